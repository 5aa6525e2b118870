"""Rank: the combined reward r(y, θ) = (1 − α)·r_q(y) + α·r_l(y, θ), and each prompt's best
teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.reward import Learnability, Normalize, Reward
from persyn_datasets.data import schema
from persyn_datasets.data.responses import Responses, table_of, with_columns
from persyn_datasets.store.statistics import seeded_uniform, usual_range

COLUMNS = {"log-probability": "learnability", "rsr": "rsr", "target": "target"}


@dataclass(frozen=True)
class Rank:
    """A `datasets` map that adds `reward` and `rank` to each response, and `best_teacher`.

        scored.map(Rank(alpha=0.4), batched=True)
        scored.with_format("arrow").map(Rank(alpha=0.4), batched=True)  # the same, twice as fast

    - A response takes part if it has no `error` and both signals; the others have neither reward
    nor rank.
    - A teacher's reward on a prompt is that of its response; of several, the mean of theirs.
    - `rank` is the teacher's on that prompt and counts from 1; teachers with equal rewards share
    the better rank.
    - `best_teacher` has the highest reward. Ties go to the more learnable one, and where that ties
      too, to the seed: never to the order of the teachers. It is None for a prompt of which every
      response failed.
    - With 0/1 quality and `normalize="prompt"`, every α in (0, 0.5) ranks alike: right before
      wrong, then by learnability. α only decides where quality is graded or the normalisation is
      another.

    Args:
        alpha: weight of learnability, 0 to 1 (the paper's best: 0.4).
        normalize: how each signal is put on a common scale before mixing:
            `prompt`: min–max over the prompt's responses; a signal that is equal for all becomes 0;
            `corpus`: min–max between the 1st and the 99th percentile of the batch, clipped (where
            they are the same, between the least and the largest value); use it with
            `map(..., batch_size=None)`, so that the batch is the whole set;
            `zscore`: zero mean and unit variance over the prompt's responses;
            `rank`: from 0 for the prompt's worst to 1 for its best, ties sharing their mean;
            `none`: as it is.
        learnability: what r_l is: `log-probability`, the paper's mean token log-probability; `rsr`,
            minus the Rank-Surprisal Ratio (arXiv 2601.14249; there lower is better, hence the
            minus); or `target`, the target signal (see `signals.target`), for which `Score` needs a
            target.
        seed: for the ties that nothing else breaks.
    """

    alpha: float = 0.4
    normalize: Normalize = "prompt"
    learnability: Learnability = "log-probability"
    seed: int = 0

    def __post_init__(self) -> None:
        Reward(**asdict(self))  # its checks are ours

    def __call__(
        self, batch: pa.Table | Mapping[str, Sequence[Any]]
    ) -> pa.Table | dict[str, list[Any]]:
        found = batch.column_names if isinstance(batch, pa.Table) else batch
        for column in ("prompt_id", "responses"):
            schema.require(found, column, "Rank")
        if isinstance(batch, pa.Table):
            return self._ranked(batch)
        return self._ranked(table_of(batch)).drop_columns("prompt_id").to_pydict()

    def _ranked(self, batch: pa.Table) -> pa.Table:
        responses = Responses(batch["responses"])
        r_q, r_l = responses.numbers("quality"), self._r_l(responses)
        # r needs both signals: a response that lacks one has no reward and takes no part.
        none = responses.failed() | np.isnan(r_q) | np.isnan(r_l)
        r_q, r_l = np.where(none, np.nan, r_q), np.where(none, np.nan, r_l)

        rewards = combined_reward(
            responses.rows(r_q), responses.rows(r_l), self.alpha, self.normalize
        )
        reward = rewards[responses.prompt, responses.place]
        r, learnable = responses.teachers(reward), responses.teachers(r_l)
        # 1 + how many teachers have a larger reward; a teacher of several samples has their mean.
        rank = np.ones(r.shape, int)
        for of_teacher in r.T:
            rank += of_teacher[:, None] > r
        first = (rank == 1) & ~np.isnan(r)
        # Ties in r go to the more learnable, and only then to the seed: by list order one teacher
        # would win them all.
        first &= learnable == np.max(
            learnable, axis=-1, where=first, initial=-np.inf, keepdims=True
        )

        added = {"reward": reward, "rank": rank[responses.prompt, responses.teacher]}
        column = responses.with_fields(
            **{k: pa.array(v, mask=np.isnan(reward)) for k, v in added.items()}
        )
        best_teacher = self._best(batch["prompt_id"], responses.names, first)
        return with_columns(batch, responses=column, best_teacher=best_teacher)

    def _r_l(self, responses: Responses) -> np.ndarray:
        """Raises `InputError` if the responses are scored, but not by this signal."""
        column = COLUMNS[self.learnability]
        found = column in responses.fields()
        r_l = responses.numbers(column) if found else np.full(len(responses.prompt), np.nan)
        if np.isnan(r_l).all() and not np.isnan(responses.numbers("learnability")).all():
            raise InputError(
                f"reward.learnability is {self.learnability!r}, and no response has a value in "
                f"{column!r}; add it first: Score(student, {column}=…)."
            )
        return -r_l if column == "rsr" else r_l

    def _best(self, prompt_ids: pa.ChunkedArray, names: pa.Array, first: np.ndarray) -> pa.Array:
        """The name of each prompt's best teacher; `first` (prompts, teachers) are those that only
        the seed can part.
        """
        best = np.zeros(len(first), int)
        prompts, teachers = np.nonzero(first)
        best[prompts] = teachers
        for i in np.flatnonzero(first.sum(-1) > 1):
            tied = teachers[prompts == i]
            best[i] = max(tied, key=lambda t: self._draw(prompt_ids[i].as_py(), names[t].as_py()))
        return names.take(pa.array(best, mask=~first.any(-1)))

    def _draw(self, prompt_id: str, teacher: str) -> float:
        return seeded_uniform(self.seed, prompt_id, teacher)


def combined_reward(
    r_q: np.ndarray, r_l: np.ndarray, alpha: float, normalize: Normalize = "prompt"
) -> np.ndarray:
    """(1 − α)·r_q + α·r_l after normalisation (paper §3). Arrays are (prompts, teachers), NaN where
    there is none.
    """
    return (1 - alpha) * normalized(r_q, normalize) + alpha * normalized(r_l, normalize)


def normalized(signal: np.ndarray, how: Normalize) -> np.ndarray:
    """One signal (prompts, teachers) on a common scale; see `Rank`. NaN stays NaN."""
    if how == "none" or np.isnan(signal).all():
        return signal
    if how == "corpus":
        low, high = usual_range(signal)
        return _divide(np.clip(signal, low, high) - low, np.asarray(high - low))
    if how == "rank":
        ordered = signal[:, None, :]
        below, equal = (
            (ordered < signal[:, :, None]).sum(-1),
            (ordered == signal[:, :, None]).sum(-1),
        )
        count = (~np.isnan(signal)).sum(-1, keepdims=True)
        return _divide(np.where(np.isnan(signal), np.nan, below + (equal - 1) / 2), count - 1)
    masked = np.ma.masked_invalid(signal)
    spread = np.ma.ptp(masked, -1, keepdims=True)
    if how == "prompt":
        low, scale = masked.min(-1, keepdims=True), spread
    else:  # the deviation of equal values is not always 0, by rounding
        low, scale = (
            masked.mean(-1, keepdims=True),
            np.ma.where(spread == 0, 0, masked.std(-1, keepdims=True)),
        )
    return _divide(signal - low.filled(np.nan), scale.filled(np.nan))


def _divide(distance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """distance / scale; 0 where the scale is 0: a signal that is equal for all does not decide."""
    return np.where(scale == 0, distance * 0, distance / np.where(scale == 0, 1, scale))
