"""A router and what it must be judged by, cross-fitted over all calibration prompts.

A small hold-out decides nothing: each fold of the prompts is scored here by what the other folds
fitted, so that every calibration prompt judges, and none was fitted to what judges it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from persyn_datasets.router.metrics import GROUP, NEAREST, SINGLE, compare, fill_failed
from persyn_datasets.router.regression import fit_rewards

FOLDS = 5
CLUSTERS = (2, 4, 8, 16, 32)
NEIGHBOURS = (10, 20, 50, 100)
Predictor = Callable[[np.ndarray, np.ndarray], np.ndarray]  # features, groups → scores


def cross_fitted(
    x: np.ndarray,
    rewards: np.ndarray,
    teachers: Sequence[str],
    groups: Sequence[Any] | None = None,
    available: Sequence[bool] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """`metrics.compare` of the frozen fit with the best single teacher, the best per group and the
    nearest neighbours, each fold by a fit to the others.

    Args:
        x: what the router's last layer sees, (prompts, features), each prompt once.
        rewards: (prompts, teachers), NaN where the response failed.
        groups: the group of each prompt. Default: clusters of x.
        available: the teachers that the router may pick. Default: all.
    """
    known = ~np.isnan(rewards).all(-1)
    x, rewards = x[known], fill_failed(rewards)
    groups = None if groups is None else np.asarray(groups)[known]
    open_to_it = np.ones(len(teachers), bool) if available is None else np.array(available)
    fold = np.random.default_rng(seed).permutation(len(x)) % min(FOLDS, len(x))
    lines = {name: np.zeros(rewards.shape) for name in ("router", SINGLE, GROUP, NEAREST)}
    for k in np.unique(fold):
        seen, own = fold != k, fold == k
        head = fit_rewards(x[seen], rewards[seen])
        lines["router"][own] = np.where(open_to_it, head(x[own]), -np.inf)
        lines[SINGLE][own] = rewards[seen].mean(0)
        in_groups = best_per_group(x[seen], rewards[seen], None if groups is None else groups[seen])
        lines[GROUP][own] = in_groups(x[own], None if groups is None else groups[own])
        lines[NEAREST][own] = nearest(x[seen], rewards[seen])(x[own])
    return compare(lines, rewards, teachers, seed) | {"cross_fitted": True}


def best_per_group(
    x: np.ndarray, rewards: np.ndarray, groups: np.ndarray | None = None
) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
    """What each teacher is worth in the group of a prompt; see `group_means`.

    Without groups they are clusters of x, as many of `CLUSTERS` as choose best on left-out prompts.
    """
    if groups is not None:
        names = np.unique(groups)
        means = group_means(np.searchsorted(names, groups), rewards, len(names) + 1)

        def of_group(_: np.ndarray, asked: np.ndarray | None) -> np.ndarray:
            assert asked is not None  # groups are asked for as they were learned
            place = np.searchsorted(names, asked).clip(max=len(names) - 1)
            return means[np.where(names[place] == asked, place, len(names))]

        return of_group

    unit = _unit(x)
    fold = np.random.default_rng(0).permutation(len(x)) % min(FOLDS, len(x))
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for count in (1, *(k for k in CLUSTERS if 5 * k <= len(x))):
        centres = kmeans2(unit, count, minit="++", rng=np.random.default_rng(0))[0]
        of = _closest(unit, centres)
        worth = 0.0
        for k in np.unique(fold):
            means = group_means(of[fold != k], rewards[fold != k], count)
            chosen = means[of[fold == k]].argmax(-1)
            worth += rewards[fold == k][np.arange(len(chosen)), chosen].sum()
        if best is None or worth > best[0]:
            best = worth, centres, group_means(of, rewards, count)
    assert best
    _, centres, means = best
    return lambda asked, _: means[_closest(_unit(asked), centres)]


def group_means(groups: np.ndarray, rewards: np.ndarray, count: int) -> np.ndarray:
    """Each teacher's mean reward in each group, shrunk to its mean over all by empirical Bayes.

    With s² the variance within groups and t² that of the groups' true means (method of moments,
    one for all teachers), a group of n prompts keeps the part t² / (t² + s²/n) of its deviation.

    Args:
        groups: of each prompt, from 0 to count − 1.

    Returns:
        (count, teachers); of a group without prompts the means over all.
    """
    y = rewards - rewards.mean(-1, keepdims=True)
    n = np.bincount(groups, minlength=count)[:, None]
    total = np.zeros((count, y.shape[1]))
    np.add.at(total, groups, y)
    mean = np.where(n > 0, total / np.maximum(n, 1), y.mean(0))
    freedom = max(len(y) - int((n > 0).sum()), 1)
    within = ((y - mean[groups]) ** 2).sum(0) / freedom
    filled = n[:, 0] > 0
    deviation = (mean - y.mean(0))[filled]
    excess = n[filled] * deviation**2 - within
    between = max(float(excess.sum() / n[filled].sum() / y.shape[1]), 0.0)
    kept = between / (between + within / np.maximum(n, 1) + 1e-12)
    return rewards.mean(0) + kept * (mean - y.mean(0))


def nearest(x: np.ndarray, rewards: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What each teacher is worth among the nearest prompts (cosine), as many of `NEIGHBOURS` as
    choose best for a prompt that is left out.
    """
    unit = _unit(x)
    counts = [k for k in NEIGHBOURS if k < len(x)] or [max(len(x) - 1, 1)]
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    order = np.argsort(-alike, axis=-1)[:, : max(counts)]

    def gained(k: int) -> float:
        chosen = rewards[order[:, :k]].mean(1).argmax(-1)
        return float(rewards[np.arange(len(x)), chosen].mean())

    count = max(counts, key=gained)

    def scores(asked: np.ndarray) -> np.ndarray:
        near = np.argsort(-(_unit(asked) @ unit.T), axis=-1)[:, :count]
        return rewards[near].mean(1)

    return scores


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _closest(unit: np.ndarray, centres: np.ndarray) -> np.ndarray:
    distance = (centres**2).sum(-1) - 2 * unit @ centres.T
    return distance.argmin(-1)
