"""How good is a router? Reward, regret and Hit@k on held-out prompts, beside simpler choices."""

from collections.abc import Mapping, Sequence
from math import comb

import numpy as np

from persyn_datasets.data.build import Metrics, Reliability
from persyn_datasets.store.statistics import Interval, interval, paired

SINGLE, GROUP, NEAREST = "best single", "best per group", "nearest neighbours"
SHARES, RANDOM, ORACLE = "shares at random", "random", "oracle"


def compare(
    lines: Mapping[str, np.ndarray], rewards: np.ndarray, teachers: Sequence[str], seed: int = 0
) -> Metrics:
    """The router and what it must be judged by, on prompts that none of them was fitted to.

    Hit@k: how often one of the prompt's best teachers (several, where they tie) is among the k that
    are scored highest. Regret: the oracle's mean reward minus the line's. A failed response counts
    as the prompt's lowest reward. *Shares at random* deals the router's own choices at random to
    the prompts: what is left of its lead over that comes from reading the prompt.

    Args:
        lines: name → scores (prompts, teachers), the highest is chosen; with `router` and
            `best single` among them.
        rewards: r(y, θ), (prompts, teachers), NaN where the response failed.

    Returns:
        JSON values. `against`: the mean reward of the router minus each other line's, with its 95%
        bootstrap interval over the prompts, `p` of the paired sign-flip test, and on how many
        prompts the choice `differs` (of a random line: all). `advantage` and
        `advantage_over_random` are those over the best single and a random teacher. `routed`: how
        many of the prompts the router sends to each teacher.
    """
    known = ~np.isnan(rewards).all(-1)
    lines = {name: scores[known] for name, scores in lines.items()}
    rewards = fill_failed(rewards)
    prompts, n = rewards.shape
    best = rewards == rewards.max(-1, keepdims=True)
    chosen = {name: scores.argmax(-1) for name, scores in lines.items()}
    routed = np.bincount(chosen["router"], minlength=n)

    reward = {name: rewards[np.arange(prompts), choice] for name, choice in chosen.items()}
    reward |= {
        SHARES: rewards @ (routed / prompts),
        RANDOM: rewards.mean(-1),
        ORACLE: rewards.max(-1),
    }
    of_line = {name: hits(scores, rewards) for name, scores in lines.items()}
    hit = {at: {name: found[at] for name, found in of_line.items()} for at in ("hit@1", "hit@3")}
    hit["hit@1"][SHARES] = float((best @ (routed / prompts)).mean())
    for k in (1, 3):
        hit[f"hit@{k}"] |= {RANDOM: _chance(best, k), ORACLE: 1.0}
    against: dict[str, Interval] = {
        name: {
            **_difference(reward["router"], theirs, seed),
            "differs": int((chosen["router"] != chosen[name]).sum()) if name in chosen else prompts,
        }
        for name, theirs in reward.items()
        if name not in ("router", ORACLE)
    }
    single = np.bincount(chosen[SINGLE], minlength=n).argmax()
    return {
        "prompts": prompts,
        "best_single_teacher": teachers[int(single)],
        "reward": {name: float(r.mean()) for name, r in reward.items()},
        "regret": {name: float((reward[ORACLE] - r).mean()) for name, r in reward.items()},
        "hit@1": hit["hit@1"],
        "hit@3": hit["hit@3"],
        "routed": {name: int(count) for name, count in zip(teachers, routed, strict=True) if count},
        "against": against,
        "advantage": _interval(against[SINGLE]),
        "advantage_over_random": _interval(against[RANDOM]),
    }


def hits(scores: np.ndarray, rewards: np.ndarray) -> dict[str, float]:
    """`hit@1` and `hit@3` of scores (prompts, teachers); rewards as in `compare`."""
    scores, rewards = scores[~np.isnan(rewards).all(-1)], fill_failed(rewards)
    best = rewards == rewards.max(-1, keepdims=True)
    order = np.argsort(-scores, axis=-1, kind="stable")
    return {
        f"hit@{k}": float(np.take_along_axis(best, order[:, :k], -1).any(-1).mean()) for k in (1, 3)
    }


def _chance(best: np.ndarray, k: int) -> float:
    """Hit@k of a random order."""
    n = best.shape[1]
    k = min(k, n)
    return float(np.mean([1 - comb(n - int(b), k) / comb(n, k) for b in best.sum(-1)]))


def _interval(of: Interval) -> Interval:
    return {"mean": of["mean"], "low": of["low"], "high": of["high"]}


def _difference(ours: np.ndarray, theirs: np.ndarray, seed: int) -> Interval:
    if len(ours) < 2:  # no interval
        mean = float((ours - theirs).mean())
        return {"mean": mean, "low": mean, "high": mean, "p": 1.0}
    return paired(ours, theirs, seed)


def mean_with_interval(of_prompts: np.ndarray, seed: int = 0) -> Interval:
    """The mean over prompts, with its 95% bootstrap interval; of one prompt the mean alone."""
    if len(of_prompts) < 2:
        mean = float(of_prompts.mean())
        return {"mean": mean, "low": mean, "high": mean}
    return interval(of_prompts, seed)


def fill_failed(rewards: np.ndarray) -> np.ndarray:
    """Failed responses get their prompt's lowest reward; prompts of which all failed are
    left out.
    """
    rewards = rewards[~np.isnan(rewards).all(-1)]
    return np.where(np.isnan(rewards), np.nanmin(rewards, axis=-1, keepdims=True), rewards)


def reliability(o: np.ndarray, rewards: np.ndarray) -> list[Reliability]:
    """Is the favourite of two teachers the better one as often as σ(Zᵀ π(x)) says?

    Args:
        o: π(x), (prompts, teachers); −∞ for teachers that are not available.
        rewards: (prompts, teachers), NaN where there is none; ties are no comparison.

    Returns:
        The comparisons in fifths of [0.5, 1] by the probability that the router gives its
        favourite: the mean of that probability (`predicted`), how often the favourite was better
        (`observed`), and their number.
    """
    a, b = np.triu_indices(o.shape[1], 1)
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        ahead, better = o[:, a].astype(float) - o[:, b], rewards[:, a] - rewards[:, b]
    known = ~np.isnan(ahead) & ~np.isnan(better) & (better != 0)
    ahead, right = ahead[known], ((ahead >= 0) == (better > 0))[known]
    predicted = 1 / (1 + np.exp(-np.abs(ahead)))
    fifths = np.clip((predicted - 0.5) * 10, 0, 4).astype(int)
    return [
        {
            "predicted": float(predicted[i].mean()),
            "observed": float(right[i].mean()),
            "comparisons": int(i.sum()),
        }
        for i in (fifths == k for k in range(5))
        if i.any()
    ]


def calibration_error(bins: list[Reliability]) -> float | None:
    """The mean distance of predicted and observed in `reliability`, weighted by the comparisons;
    None without any.
    """
    count = sum(b["comparisons"] for b in bins)
    return (
        sum(abs(b["predicted"] - b["observed"]) * b["comparisons"] for b in bins) / count
        if count
        else None
    )
