"""How good is a router? Hit@k and regret on held-out prompts, beside a random router and the best
single teacher.
"""

from math import comb
from typing import Any

import numpy as np

BOOTSTRAP_SAMPLES = 10_000


def router_metrics(
    scores: np.ndarray,
    rewards: np.ndarray,
    rewards_before: np.ndarray,
    teachers: list[str],
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a router's choices with what was measured on the same prompts.

    Hit@k: how often one of the prompt's best teachers (several, where they tie) is among the k that
    the router scores highest. Regret: the oracle's mean reward minus the strategy's. A failed
    response counts as the prompt's lowest reward.

    Args:
        scores: o = π(x), (prompts, teachers).
        rewards: r(y, θ), (prompts, teachers), NaN where the response failed.
        rewards_before: the same on the prompts that the router was trained on: they name the best
            single teacher.
        teachers: names, in the order of the columns.
        seed: for the bootstrap over prompts.

    Returns:
        JSON values; `advantage` is the mean reward of the router minus the best single teacher's,
        and `advantage_over_random` minus a random one's, with their 95% bootstrap intervals over
        the prompts.
    """
    scores = scores[~np.isnan(rewards).all(-1)]
    rewards = _fill_failed(rewards)
    prompts, n = rewards.shape
    single = np.broadcast_to(_fill_failed(rewards_before).mean(0), rewards.shape)
    oracle, best = rewards.max(-1), rewards == rewards.max(-1, keepdims=True)

    def hit(order_by: np.ndarray, k: int) -> float:
        top = np.argsort(-order_by, axis=-1, kind="stable")[:, :k]
        return float(np.take_along_axis(best, top, -1).any(-1).mean())

    def chance(k: int) -> float:
        return float(np.mean([1 - comb(n - int(b), k) / comb(n, k) for b in best.sum(-1)]))

    def reward(order_by: np.ndarray) -> np.ndarray:
        return np.take_along_axis(rewards, order_by.argmax(-1)[:, None], -1)[:, 0]

    routed, of_single = reward(scores), reward(single)
    strategies = {
        "router": routed,
        "best single": of_single,
        "random": rewards.mean(-1),
        "oracle": oracle,
    }
    return {
        "prompts": prompts,
        "best_single_teacher": teachers[int(single[0].argmax())],
        "reward": {name: float(r.mean()) for name, r in strategies.items()},
        "regret": {name: float((oracle - r).mean()) for name, r in strategies.items()},
        "hit@1": {
            "router": hit(scores, 1),
            "best single": hit(single, 1),
            "random": chance(1),
            "oracle": 1.0,
        },
        "hit@3": {
            "router": hit(scores, min(3, n)),
            "best single": hit(single, min(3, n)),
            "random": chance(min(3, n)),
            "oracle": 1.0,
        },
        "advantage": mean_with_interval(routed - of_single, seed),
        "advantage_over_random": mean_with_interval(routed - rewards.mean(-1), seed),
    }


def mean_with_interval(of_prompts: np.ndarray, seed: int = 0) -> dict[str, float]:
    """The mean over prompts, with its 95% bootstrap interval."""
    draws = np.random.default_rng(seed).integers(
        0, len(of_prompts), (BOOTSTRAP_SAMPLES, len(of_prompts))
    )
    low, high = np.percentile(of_prompts[draws].mean(-1), [2.5, 97.5])
    return {"mean": float(of_prompts.mean()), "low": float(low), "high": float(high)}


def _fill_failed(rewards: np.ndarray) -> np.ndarray:
    """Failed responses get their prompt's lowest reward; prompts of which all failed are
    left out.
    """
    rewards = rewards[~np.isnan(rewards).all(-1)]
    return np.where(np.isnan(rewards), np.nanmin(rewards, axis=-1, keepdims=True), rewards)


def reliability(o: np.ndarray, rewards: np.ndarray) -> list[dict[str, Any]]:
    """Is the favourite of two teachers the better one as often as σ(Zᵀ π(x)) says?

    Args:
        o: π(x), (prompts, teachers); −∞ for teachers that are not to be had.
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


def calibration_error(bins: list[dict[str, Any]]) -> float | None:
    """The mean distance of predicted and observed in `reliability`, weighted by the comparisons;
    None without any.
    """
    count = sum(b["comparisons"] for b in bins)
    return (
        sum(abs(b["predicted"] - b["observed"]) * b["comparisons"] for b in bins) / count
        if count
        else None
    )
