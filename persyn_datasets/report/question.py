"""How much of learnability's order is left when the student does not see the question."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from scipy.stats import spearmanr

from persyn_datasets.data import schema
from persyn_datasets.data.responses import one_row_each
from persyn_datasets.data.tools import COLUMN as TOOLS

# Prompts whose answers are scored once more: enough for a first digit, at little cost.
PROMPTS = 16
NOTHING = "?"  # in place of the question; an empty turn is refused by some templates


def without_question(ranked: Dataset) -> Dataset:
    """The first `PROMPTS` prompts of a calibration with `NOTHING` for their last turn, to be scored
    again.
    """
    first = _first(ranked)
    tools = {TOOLS: Value("string")} if TOOLS in ranked.column_names else {}

    def blank(row: dict[str, Any]) -> dict[str, Any]:
        *before, last = row["messages"]
        # Without what the calibration has added to them.
        responses = [{key: r[key] for key in schema.RESPONSE} for r in row["responses"]]
        asked = {"messages": [*before, last | {"content": NOTHING}], "responses": responses}
        return asked | {key: row[key] for key in ("prompt_id", *tools)}

    return first.map(
        blank,
        features=Features({**schema.GENERATED, **tools}),
        remove_columns=first.column_names,
        load_from_cache_file=False,
    )


def _first(ranked: Dataset) -> Dataset:
    """One row of each."""
    prompts = one_row_each(ranked)
    return prompts.select(range(min(PROMPTS, len(prompts))))


def order_left(ranked: Dataset, blank: Dataset) -> float | None:
    """The rank correlation (Spearman) of a prompt's answers by learnability with and without its
    question, mean over the prompts of `blank`, which is `without_question` of `ranked`, scored.

    1: the question changes nothing, so what the student finds likely is the answers' manner alone.
    0: the order is all about the question. None: no prompt has two answers that differ.
    """
    pairs = zip(_first(ranked)["responses"], blank["responses"], strict=True)
    found = [_spearman(*_learnability(asked, unasked)) for asked, unasked in pairs]
    known = [rho for rho in found if rho is not None]
    return float(np.mean(known)) if known else None


def _learnability(
    asked: Sequence[dict[str, Any]], unasked: Sequence[dict[str, Any]]
) -> tuple[list[float], list[float]]:
    """Of the answers that have one in both."""
    both = [
        (a["learnability"], b["learnability"])
        for a, b in zip(asked, unasked, strict=True)
        if a["learnability"] is not None and b["learnability"] is not None
    ]
    return [a for a, _ in both], [b for _, b in both]


def _spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(spearmanr(x, y).statistic)
