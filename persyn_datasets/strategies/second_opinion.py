"""A second opinion: where the router is least sure, its two best teachers answer, and the better
answer is kept.

Which of two answers is the better is judged on the calibration's scale. On their own, two answers
have no scale: min–max over the two makes 0 and 1 of any difference, so that quality would decide
alone, whatever the margin.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Json, List, concatenate_datasets

from persyn_datasets.config.reward import Normalize
from persyn_datasets.config.shares import part_of
from persyn_datasets.data import schema
from persyn_datasets.data.reasoning import split
from persyn_datasets.data.responses import Responses, with_columns
from persyn_datasets.data.tools import to_calls
from persyn_datasets.store.statistics import usual_range

Stage = Callable[[Dataset], Dataset]


@dataclass(frozen=True)
class Room:
    """What a budget leaves for second answers.

    Attributes:
        places: how many more prompts each teacher may get, (teachers,).
        cost: of each teacher's answer to each prompt, (prompts, teachers).
        money: what is left, in the unit of `cost`.
    """

    places: np.ndarray
    cost: np.ndarray
    money: float


def least_sure(
    routed: Dataset, names: list[str], share: float, room: Room | None = None
) -> tuple[np.ndarray, list[str]]:
    """The rows, at most this share, of which the router is least sure, and for each the best
    teacher besides its own.

    Its own, A, is expected to beat the second best, B, with probability p_A / (p_A + p_B): the
    nearer to 1/2, the less sure. Rows that have no other teacher are left out: the others are
    masked, or the budget has no room for them.

    Args:
        routed: rows of `Route`.
        names: the router's teachers, in the order of `router_scores`.
        room: what a budget leaves. Default: there is none.
    """
    p = np.array(routed.with_format(None)["router_scores"][:], float).reshape(
        len(routed), len(names)
    )
    own = np.array([names.index(teacher) for teacher in routed["teacher"]], int)
    rows = np.arange(len(routed))
    of_own = p[rows, own]
    # 0 is a teacher that cannot be asked: masked by the router, itself, or full.
    p[rows, own] = 0
    if room:
        p[:, room.places < 1] = 0
    best = p.max(-1)
    there = np.flatnonzero(best > 0)
    # |p_A / (p_A + p_B) − 1/2|, A its own teacher and B the best other.
    a, b = of_own[there], best[there]
    certainty = abs(a / (a + b) - 0.5)
    order = there[np.argsort(certainty, kind="stable")]
    most = part_of(share, len(routed))
    if not room:
        chosen = order[:most]
        return chosen, [names[i] for i in p[chosen].argmax(-1)]
    pairs = _within(order, p, room, most)
    return np.array([row for row, _ in pairs], int), [names[i] for _, i in pairs]


def _within(order: np.ndarray, p: np.ndarray, room: Room, most: int) -> list[tuple[int, int]]:
    """(row, its best teacher that the budget has room for), least sure first, at most so many."""
    places, money = room.places.copy(), room.money
    pairs: list[tuple[int, int]] = []
    for row in order:
        if len(pairs) == most:
            break
        open_ = (p[row] > 0) & (places >= 1) & (room.cost[row] <= money)
        if open_.any():
            teacher = int(np.where(open_, p[row], 0).argmax())
            places[teacher] -= 1
            money -= room.cost[row, teacher]
            pairs.append((int(row), teacher))
    return pairs


def keep_better(
    routed: Dataset,
    answered: Dataset,
    rows: np.ndarray,
    teachers: list[str],
    synthesize: Stage,
    judge: Stage,
) -> tuple[Dataset, Dataset, int]:
    """Let these teachers answer these rows, too, and keep the answer of the larger reward.

    Args:
        routed, answered: the rows before and after `Synthesize`.
        rows, teachers: of `least_sure`.
        judge: adds what `Score` does, and then `rank_two`.

    Returns:
        The answered rows, with the better answer; for each of these prompts both answers, as the
        calibration has them: rows of `Rank`; and how often the second one was better. Otherwise,
        also where both failed, the first one stays.
    """
    asked = routed.select(rows)
    asked = asked.remove_columns("teacher").add_column(
        "teacher", teachers, feature=routed.features["teacher"]
    )
    second, first = synthesize(asked), answered.select(rows)
    both_answers = zip(_as_written(first), _as_written(second), strict=True)
    responses = [[_response(a), _response(b)] for a, b in both_answers]
    features = Features(
        {**asked.remove_columns(["teacher", "router_scores"]).features, **schema.GENERATED}
    )
    both = asked.remove_columns(["teacher", "router_scores"]).add_column("responses", responses)
    both = judge(both.cast(features))
    # A failed answer has no reward, and loses against any.
    rewards = np.array([[r["reward"] for r in row] for row in both["responses"]], float)
    of_first, of_second = np.where(np.isnan(rewards), -np.inf, rewards).T
    better = np.flatnonzero(of_second > of_first)
    # One selection from both, one behind the other, keeps the rows in their order.
    order = np.arange(len(answered))
    order[rows[better]] = len(answered) + better
    kept = concatenate_datasets([answered, second.cast(answered.features)]).select(order)
    return kept, both, len(better)


@dataclass(frozen=True)
class RankTwo:
    """A `datasets` map like `Rank`, for two responses to a prompt, on the calibration's scale.

        two = RankTwo(Rank(0.4, "none"), "learnability", "prompt", *signals_of(ranked, column))
        scored.with_format("arrow").map(two, batched=True)

    Args:
        rank: `Rank`, which takes signals as they are (`none`).
        column: the field of a response that holds r_l: `learnability`, `rsr` or `target`.
        normalize: as for `Rank`; see `on_scale`.
        r_q, r_l: these fields of the calibration's responses, (prompts, responses), NaN where there
            is none.
    """

    rank: Callable[[pa.Table], pa.Table]
    column: str
    normalize: Normalize
    r_q: np.ndarray
    r_l: np.ndarray

    def __call__(self, batch: pa.Table) -> pa.Table:
        responses = Responses(batch["responses"])
        raw = {name: responses.numbers(name) for name in ("quality", self.column)}
        scales = {"quality": self.r_q, self.column: self.r_l}
        scaled = {}
        for name, values in raw.items():
            by_prompt = on_scale(responses.rows(values), scales[name], self.normalize)
            scaled[name] = by_prompt[responses.prompt, responses.place]
        ranked = self.rank(with_columns(batch, responses=_with(responses, scaled)))
        # Rows keep raw signals, as the calibration's do: the scale served the comparison alone.
        return with_columns(ranked, responses=_with(Responses(ranked["responses"]), raw))


def signals_of(ranked: Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Quality, and the field that holds r_l, of each of the calibration's responses, (prompts,
    responses).
    """
    responses = Responses(ranked.select_columns("responses").with_format("arrow")[:]["responses"])
    quality, r_l = (responses.rows(responses.numbers(name)) for name in ("quality", column))
    return quality, r_l


def on_scale(two: np.ndarray, calibration: np.ndarray, how: Normalize) -> np.ndarray:
    """A signal of a prompt's two responses on the scale that the calibration has for it.

    Args:
        two: the signal, (prompts, 2), NaN where there is none.
        calibration: the signal of the calibration's responses, (prompts, responses).
        how: as for `Rank`. `prompt` and `zscore` have the mean range and deviation that the
            calibration's prompts have, where they have one (`prompt` at most 1 apart); `corpus`
            its percentiles; of `rank`, a response's is its place among all of the calibration's.

    Returns:
        (prompts, 2).
    """
    if how == "none" or np.isnan(two).all() or np.isnan(calibration).all():
        return two
    if how == "corpus":
        low, high = usual_range(calibration)
        return (np.clip(two, low, high) - low) / (high - low if high > low else np.inf)
    if how == "rank":
        known = np.sort(calibration[~np.isnan(calibration)])
        # Twice the mean of the first and the last place that it could have among equals.
        place = np.searchsorted(known, two, "left") + np.searchsorted(known, two, "right")
        return np.where(np.isnan(two), np.nan, place / (2 * len(known)))
    rows = np.ma.masked_invalid(calibration)
    spreads = np.ma.ptp(rows, -1) if how == "prompt" else rows.std(-1)
    # A prompt whose responses are all alike has no range to go by.
    spreads = spreads.compressed()
    usual = spreads[spreads > 1e-12].mean() if (spreads > 1e-12).any() else np.inf
    # Only the difference decides between two, so the lower one may be 0.
    low = np.ma.masked_invalid(two).min(-1, keepdims=True).filled(np.nan)
    distance = (two - low) / usual
    return np.minimum(distance, 1) if how == "prompt" else distance


def in_words(counts: dict[str, int]) -> str:
    """What came of it, in a sentence."""
    return (
        f"Of {counts['asked']:,} prompts, those of which the router is least sure, two teachers "
        "were asked; for "
        f"{counts['better']:,} the second one's answer was the better."
    )


def _with(responses: Responses, values: dict[str, np.ndarray]) -> pa.ChunkedArray:
    columns = {name: pa.array(v, mask=np.isnan(v)) for name, v in values.items()}
    return responses.with_fields(**columns)


def _as_written(answered: Dataset) -> Dataset:
    """With completions as JSON where they are, which `datasets` would read with rounded numbers."""
    if answered.features["completion"] != schema.MESSAGES_WITH_CALLS:
        return answered
    return answered.cast_column("completion", List(Json(decode=False)))


def _response(row: dict[str, Any]) -> dict[str, Any]:
    said = row["completion"][0] if row["completion"] else {"content": ""}
    said = json.loads(said) if isinstance(said, str) else said
    reasoning, text = split(said["content"])
    copied = ("teacher", "finish_reason", *schema.COUNTS, "error")
    return {
        "sample": 0,
        "text": text,
        "reasoning": reasoning or row["reasoning"],
        "tool_calls": to_calls(said.get("tool_calls")),
        **{key: row[key] for key in copied},
    }
