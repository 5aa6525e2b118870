"""Rank: the combined reward r(y, θ) = (1 − α)·r_q(y) + α·r_l(y, θ), and each prompt's best teacher."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from persyn_datasets.errors import InputError

Normalize = Literal["prompt", "corpus", "zscore", "rank", "none"]


@dataclass(frozen=True)
class Rank:
    """A `datasets` map that adds `reward` and `rank` to each response, and `best_teacher`.

        scored.map(Rank(alpha=0.4), batched=True)

    - A response takes part if it has no `error` and both signals; the others have neither reward nor rank.
    - `rank` counts from 1; responses with equal rewards share the better rank.
    - `best_teacher` has the highest reward. Ties go to the more learnable response, and where that ties too, to
      the seed: never to the order of the teachers. It is None for a prompt of which every response failed.
    - With 0/1 quality and `normalize="prompt"`, every α in (0, 0.5) ranks alike: right before wrong, then by
      learnability. α only decides where quality is graded or the normalisation is another.

    Args:
        alpha: weight of learnability, 0 to 1 (the paper's best: 0.4).
        normalize: how each signal is put on a common scale before mixing:
            `prompt`: min–max over the prompt's responses; a signal that is equal for all becomes 0;
            `corpus`: min–max between the 1st and the 99th percentile of the batch, clipped; use it with
            `map(..., batch_size=None)`, so that the batch is the whole set;
            `zscore`: zero mean and unit variance over the prompt's responses;
            `rank`: from 0 for the prompt's worst to 1 for its best, ties sharing their mean;
            `none`: as it is.
        seed: for the ties that nothing else breaks.
    """

    alpha: float = 0.4
    normalize: Normalize = "prompt"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"reward.alpha is {self.alpha}; expected a value in [0, 1] (the paper's best is 0.4).")
        if self.normalize not in get_args(Normalize):
            raise InputError(
                f"reward.normalize is {self.normalize!r}; expected one of {', '.join(get_args(Normalize))}."
            )

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        rows = [[dict(r) for r in row] for row in batch["responses"]]
        r_q, r_l = (matrix(rows, signal) for signal in ("quality", "learnability"))
        r_q[np.isnan(r_l)] = r_l[np.isnan(r_q)] = np.nan
        reward = combined_reward(r_q, r_l, self.alpha, self.normalize)
        rank = np.ones(reward.shape, int)
        for column in reward.T:
            rank += column[:, None] > reward
        first = (rank == 1) & ~np.isnan(reward)
        first &= r_l == np.max(r_l, axis=-1, where=first, initial=-np.inf, keepdims=True)
        best_teacher: list[str | None] = []
        columns = zip(batch["prompt_id"], rows, reward.tolist(), rank.tolist(), first.tolist(), strict=True)
        for key, row, rewards, ranks, firsts in columns:
            for r, value, place in zip(row, rewards, ranks, strict=False):  # as wide as the longest row
                r["reward"], r["rank"] = (value, place) if value == value else (None, None)
            best = [r["teacher"] for r, is_first in zip(row, firsts, strict=False) if is_first]
            best_teacher.append(max(best, key=lambda t: self._draw(key, t)) if len(best) > 1 else (best or [None])[0])
        return {"responses": rows, "best_teacher": best_teacher}

    def _draw(self, prompt_id: str, teacher: str) -> bytes:
        return hashlib.sha256(f"{self.seed}:{prompt_id}:{teacher}".encode()).digest()


def matrix(rows: Sequence[Sequence[Mapping[str, Any]]], signal: str) -> np.ndarray:
    """A signal of the responses, as (prompts, teachers); NaN where there is none."""
    width = max(map(len, rows), default=0)
    values = [
        [np.nan if r["error"] or r[signal] is None else r[signal] for r in row] + [np.nan] * (width - len(row))
        for row in rows
    ]
    return np.array(values, float).reshape(len(rows), width)


def combined_reward(r_q: np.ndarray, r_l: np.ndarray, alpha: float, normalize: Normalize = "prompt") -> np.ndarray:
    """(1 − α)·r_q + α·r_l after normalisation (paper §3). Arrays are (prompts, teachers), NaN where there is none."""
    return (1 - alpha) * normalized(r_q, normalize) + alpha * normalized(r_l, normalize)


def normalized(signal: np.ndarray, how: Normalize) -> np.ndarray:
    """One signal (prompts, teachers) on a common scale; see `Rank`. NaN stays NaN."""
    if how == "none" or np.isnan(signal).all():
        return signal
    if how == "corpus":
        low, high = np.nanpercentile(signal, [1, 99])
        return _divide(np.clip(signal, low, high) - low, np.asarray(high - low))
    if how == "rank":
        ordered = signal[:, None, :]
        below, equal = (ordered < signal[:, :, None]).sum(-1), (ordered == signal[:, :, None]).sum(-1)
        count = (~np.isnan(signal)).sum(-1, keepdims=True)
        return _divide(np.where(np.isnan(signal), np.nan, below + (equal - 1) / 2), count - 1)
    masked = np.ma.masked_invalid(signal)
    spread = np.ma.ptp(masked, -1, keepdims=True)
    if how == "prompt":
        low, scale = masked.min(-1, keepdims=True), spread
    else:  # the deviation of equal values is not always 0, by rounding
        low, scale = masked.mean(-1, keepdims=True), np.ma.where(spread == 0, 0, masked.std(-1, keepdims=True))
    return _divide(signal - low.filled(np.nan), scale.filled(np.nan))


def _divide(distance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """distance / scale; 0 where the scale is 0: a signal that is equal for all does not decide."""
    return np.where(scale == 0, distance * 0, distance / np.where(scale == 0, 1, scale))
