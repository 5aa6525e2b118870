"""A router and what it must be judged by, cross-fitted over all calibration prompts.

A small hold-out decides nothing: each fold of the prompts is scored here by what the other folds
fitted, so that every calibration prompt judges, and none was fitted to what judges it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.cluster.vq import kmeans2

from persyn_datasets.data.build import Metrics
from persyn_datasets.router.metrics import GROUP, NEAREST, SINGLE, compare, fill_failed
from persyn_datasets.router.regression import fit_rewards

FOLDS = 5
CLUSTERS = (2, 4, 8, 16, 32)
NEIGHBOURS = (10, 20, 50, 100)


@dataclass(frozen=True)
class Calibration:
    """What prompts of a calibration tell, each prompt once.

    Attributes:
        x: what the router's last layer sees, (prompts, features).
        rewards: (prompts, teachers), NaN where the response failed.
        groups: the group of each prompt; None: clusters of x stand in for it.
    """

    x: np.ndarray
    rewards: np.ndarray
    groups: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray) -> "Calibration":
        groups = None if self.groups is None else self.groups[rows]
        return Calibration(self.x[rows], self.rewards[rows], groups)

    def known(self) -> "Calibration":
        """Without the prompts of which every response failed."""
        there = ~np.isnan(self.rewards).all(-1)
        return replace(self[there], rewards=fill_failed(self.rewards))


def cross_fitted(
    calibration: Calibration,
    teachers: Sequence[str],
    seed: int = 0,
) -> Metrics:
    """`metrics.compare` of the frozen fit with what needs no router, each fold by the others."""
    known = calibration.known()
    fold = np.random.default_rng(seed).permutation(len(known.x)) % min(FOLDS, len(known.x))
    lines: dict[str, np.ndarray] = {}
    for k in np.unique(fold):
        seen, own = known[fold != k], known[fold == k]
        head = fit_rewards(seen.x, seen.rewards)
        of_fold = simple_lines(seen, own)
        of_fold["router"] = head(own.x)
        for name, scores in of_fold.items():
            lines.setdefault(name, np.zeros(known.rewards.shape))[fold == k] = scores
    return {**compare(lines, known.rewards, teachers, seed), "cross_fitted": True}


def simple_lines(seen: Calibration, asked: Calibration) -> dict[str, np.ndarray]:
    """What needs no router: scores (prompts, teachers) of the asked prompts by the seen ones."""
    seen = seen.known()
    return {
        SINGLE: np.broadcast_to(seen.rewards.mean(0), asked.rewards.shape),
        GROUP: best_per_group(seen.x, seen.rewards, seen.groups)(asked.x, asked.groups),
        NEAREST: nearest(seen.x, seen.rewards)(asked.x),
    }


def best_per_group(
    x: np.ndarray, rewards: np.ndarray, groups: np.ndarray | None = None
) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
    """What each teacher is worth in the group of a prompt; see `group_means`.

    Without groups they are clusters of x, as many of `CLUSTERS` as choose best on left-out prompts.
    """
    if groups is not None:
        names = np.unique(groups)
        # One group more, which is empty: its means are those over all, for a group never seen.
        means = group_means(np.searchsorted(names, groups), rewards, len(names) + 1)

        def of_group(_: np.ndarray, asked: np.ndarray | None) -> np.ndarray:
            assert asked is not None
            place = np.searchsorted(names, asked).clip(max=len(names) - 1)
            known = names[place] == asked
            return means[np.where(known, place, len(names))]

        return of_group

    unit = _unit(x)
    fold = np.random.default_rng(0).permutation(len(x)) % min(FOLDS, len(x))
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    # Clusters of five prompts on average, or more: smaller ones have no means to speak of.
    for count in (1, *(k for k in CLUSTERS if 5 * k <= len(x))):
        centres = kmeans2(unit, count, minit="++", rng=np.random.default_rng(0))[0]
        of = _closest(unit, centres)
        # What the choices are worth on prompts whose rewards had no part in them.
        worth = 0.0
        for k in np.unique(fold):
            others, own = fold != k, fold == k
            means = group_means(of[others], rewards[others], count)
            chosen = means[of[own]].argmax(-1)[:, None]
            worth += np.take_along_axis(rewards[own], chosen, 1).sum()
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
    # A prompt that is hard for all says nothing about who is better at it.
    y = rewards - rewards.mean(-1, keepdims=True)
    n = np.bincount(groups, minlength=count)[:, None]
    total = np.zeros((count, y.shape[1]))
    np.add.at(total, groups, y)
    mean = np.where(n > 0, total / np.maximum(n, 1), y.mean(0))
    freedom = max(len(y) - int((n > 0).sum()), 1)
    # s² of each teacher; then E[n·deviation²] = s² + n·t² gives t², 0 where that is negative.
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
    # A prompt is no neighbour of its own: each is judged by the others.
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
    # ‖u − c‖² = ‖u‖² + ‖c‖² − 2·uᵀc, without ‖u‖², which is the same for every centre.
    distance = (centres**2).sum(-1) - 2 * unit @ centres.T
    return distance.argmin(-1)
