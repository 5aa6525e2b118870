"""A second opinion: where the router is least sure, its two best teachers answer, and the better
answer is kept.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset, Features, concatenate_datasets

from persyn_datasets.data import schema

Stage = Callable[[Dataset], Dataset]


def least_sure(routed: Dataset, names: list[str], share: float) -> tuple[np.ndarray, list[str]]:
    """The rows, at most this share, of which the router is least sure, and for each the best
    teacher besides its own.

    Its own, A, is expected to beat the second best, B, with probability p_A / (p_A + p_B): the
    nearer to 1/2, the less sure. Rows that have no other teacher (the others are masked) are left
    out.

    Args:
        routed: rows of `Route`.
        names: the router's teachers, in the order of `router_scores`.
    """
    p = np.array(routed.with_format(None)["router_scores"][:], float).reshape(
        len(routed), len(names)
    )
    own = np.array([names.index(teacher) for teacher in routed["teacher"]], int)
    rows = np.arange(len(routed))
    of_own = p[rows, own]
    p[rows, own] = 0
    second = p.argmax(-1)
    there = np.flatnonzero(p[rows, second] > 0)
    certainty = abs(of_own[there] / (of_own[there] + p[there, second[there]]) - 0.5)
    chosen = there[np.argsort(certainty, kind="stable")][: int(share * len(routed))]
    return chosen, [names[i] for i in second[chosen]]


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
        judge: adds what `Score` and `Rank` do.

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
    responses = [[_response(a), _response(b)] for a, b in zip(first, second, strict=True)]
    features = Features(
        {**asked.remove_columns(["teacher", "router_scores"]).features, **schema.GENERATED}
    )
    both = asked.remove_columns(["teacher", "router_scores"]).add_column("responses", responses)
    both = judge(both.cast(features))
    # A failed answer has no reward, and loses against any.
    rewards = np.array([[r["reward"] for r in row] for row in both["responses"]], float)
    of_first, of_second = np.where(np.isnan(rewards), -np.inf, rewards).T
    better = np.flatnonzero(of_second > of_first)
    order = np.arange(len(answered))
    order[rows[better]] = len(answered) + better
    kept = concatenate_datasets([answered, second.cast(answered.features)]).select(order)
    return kept, both, len(better)


def in_words(told: dict[str, int]) -> str:
    """What came of it, in a sentence."""
    return (
        f"Of {told['asked']:,} prompts, those of which the router is least sure, two teachers "
        "were asked; for "
        f"{told['better']:,} the second one's answer was the better."
    )


def _response(row: dict[str, Any]) -> dict[str, Any]:
    text = row["completion"][0]["content"] if row["completion"] else ""
    copied = ("teacher", "finish_reason", "prompt_tokens", "completion_tokens", "error")
    return {"sample": 0, "text": text} | {key: row[key] for key in copied}
