"""The ceiling: how much of the oracle's lead over the best single teacher can be known from the
prompt at all?

The oracle picks each prompt's best teacher by the very responses that it is judged on, so it also
picks lucky ones. With several responses of each teacher to a prompt, it can choose by one half of
them and be judged on the other.
"""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from persyn_datasets.data.build import Ceiling
from persyn_datasets.router.metrics import mean_with_interval
from persyn_datasets.store.statistics import Interval


def sampled_rewards(ranked: Dataset, names: Sequence[str]) -> np.ndarray:
    """r(y, θ) of each response, (prompts, teachers, samples); a failed one counts as its prompt's
    lowest.

    Prompts of which every response failed are all NaN.
    """
    index = {name: i for i, name in enumerate(names)}
    samples = 1 + max((r.get("sample", 0) for row in ranked["responses"] for r in row), default=0)
    rewards = np.full((len(ranked), len(names), samples), np.nan)
    for i, row in enumerate(ranked["responses"]):
        for r in row:
            if r["teacher"] in index and r["reward"] is not None:
                rewards[i, index[r["teacher"]], r.get("sample", 0)] = r["reward"]
    lowest = np.min(rewards, axis=(1, 2), keepdims=True, where=~np.isnan(rewards), initial=np.inf)
    return np.where(np.isnan(rewards) & np.isfinite(lowest), lowest, rewards)


def ceiling(scores: np.ndarray, rewards: np.ndarray, single: int, seed: int = 0) -> Ceiling:
    """Mean leads in reward over the best single teacher, on held-out prompts, with 95% bootstrap
    intervals over them.

    Args:
        scores: o = π(x), (prompts, teachers).
        rewards: of `sampled_rewards`, (prompts, teachers, samples), two samples or more.
        single: column of the best single teacher, chosen on other prompts.

    Returns:
        JSON values. `apparent`: of the oracle that chooses and is judged by the same half of the
        samples;
        `predictable`: of one that chooses by one half and is judged on the other, both ways (it
        still chooses by a noisy estimate: who knew every expected reward would lead by this or
        more, and by less than the apparent lead);
        `router`: of the router; `left`: predictable minus router.
    """
    known = ~np.isnan(rewards).any(axis=(1, 2))
    scores, rewards = scores[known], rewards[known]

    def of(teacher: np.ndarray, judge: np.ndarray) -> np.ndarray:
        return np.take_along_axis(judge, teacher[:, None], -1)[:, 0]

    halves = rewards[..., 0::2].mean(-1), rewards[..., 1::2].mean(-1)
    apparent = np.mean([half.max(-1) - half[:, single] for half in halves], axis=0)
    predictable = np.mean(
        [
            of(choose.argmax(-1), judge) - judge[:, single]
            for choose, judge in (halves, halves[::-1])
        ],
        axis=0,
    )
    both = np.mean(halves, axis=0)
    router = of(scores.argmax(-1), both) - both[:, single]
    return {
        "prompts": len(rewards),
        "samples": rewards.shape[-1],
        "apparent": mean_with_interval(apparent, seed),
        "predictable": mean_with_interval(predictable, seed),
        "router": mean_with_interval(router, seed),
        "left": mean_with_interval(predictable - router, seed),
    }


def in_words(c: Ceiling, single: str) -> str:
    """What the ceiling means for the user, in plain sentences."""

    def lead(x: Interval) -> str:
        return f"{x['mean']:+.3f} [{x['low']:+.3f} to {x['high']:+.3f}]"

    lead_words = (
        f"{c['samples']} answers per teacher to each of {c['prompts']} held-out prompts: the "
        f"oracle leads {single} by {lead(c['apparent'])} reward. Chosen on one half of the "
        f"answers and judged on the other, it leads by {lead(c['predictable'])}; the router leads "
        f"by {lead(c['router'])}."
    )
    if c["predictable"]["low"] <= 0:
        meaning = (
            f"No lead is proven to be predictable: {single} alone may be enough. Other teachers or "
            "another reward can change that; a better router hardly can."
        )
    elif c["left"]["low"] > 0:
        meaning = (
            f"The router misses {lead(c['left'])} of the predictable lead: more calibration "
            "prompts or a larger backbone can help."
        )
    else:
        meaning = (
            "The router is not proven to miss anything predictable: more calibration or a larger "
            "backbone will hardly help; other teachers or another reward may."
        )
    return f"{lead_words} {meaning}"
