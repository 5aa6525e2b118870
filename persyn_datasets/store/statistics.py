"""How sure is a difference? Intervals and paired tests over prompts, and Holm's correction; the
range of a signal; and draws that depend on a seed and a name alone.
"""

import hashlib
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
import scipy  # its parts are imported when they are used

RESAMPLES = 9_999
VALUES_AT_ONCE = 2**21  # of all resamples; one takes some 70 bytes


class Interval(TypedDict):
    """A mean over prompts with its 95% interval; of a paired comparison also `p`, and on how many
    prompts the choice `differs`.
    """

    mean: float
    low: float
    high: float
    p: NotRequired[float]
    differs: NotRequired[int]


def interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean and 95% percentile-bootstrap interval over the values, one per prompt, (prompts,)."""
    if len(values) < 2:
        return {"mean": float(values.mean()), "low": -np.inf, "high": np.inf}
    found = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=seed,
        batch=_resamples_at_once(len(values)),
    )
    low, high = found.confidence_interval
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def paired(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> Interval:
    """`interval` of ours − theirs on the same prompts, and `p` of a two-sided sign-flip permutation
    test.

    Under the null hypothesis a prompt's two values could as well be swapped. Prompts of equal
    values say nothing then; the test is exact where at most 13 differ.
    """

    def difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        of_resamples: np.ndarray = (a - b).mean(axis=axis)
        return of_resamples

    found = interval(ours - theirs, seed)
    differ = ours != theirs
    if not differ.any():
        return {**found, "p": 1.0}
    ours, theirs = ours[differ], theirs[differ]
    if len(ours) == 1:  # SciPy wants two; one difference falls either way
        return {**found, "p": 1.0}
    test = scipy.stats.permutation_test(
        (ours, theirs),
        difference,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=seed,
        batch=_resamples_at_once(len(ours)),
    )
    return {**found, "p": float(test.pvalue)}


def _resamples_at_once(size: int) -> int:
    return max(1, VALUES_AT_ONCE // size)


def usual_range(values: np.ndarray) -> tuple[float, float]:
    """The 1st and the 99th percentile, NaN left out; where they are the same (nearly all answers
    are right), the least and the largest, or the few others would count like the rest.
    """
    low, high = np.nanpercentile(values, [1, 99])
    if low == high:
        low, high = np.nanmin(values), np.nanmax(values)
    return float(low), float(high)


def seeded_uniform(seed: int, *names: str) -> float:
    """Uniform in [0, 1), the same for the same names, whatever else is drawn."""
    digest = hashlib.sha256(":".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down p-values: the chance of one false claim among all of them stays below the
    level.
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return adjusted.tolist()
