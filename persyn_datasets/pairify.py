"""Pairify: every ranked prompt becomes all its n(n−1)/2 comparisons of two teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from persyn_datasets.prompts import messages_of
from persyn_datasets.schema import PAIRS


@dataclass(frozen=True)
class Pairify:
    """A `datasets` map from prompts to pairs of teachers; give it `remove_columns`, as the rows multiply.

        ranked.map(Pairify(), batched=True, remove_columns=ranked.column_names)

    A pair has `label` 1 if `teacher_b` is preferred (the paper's C) and 0 if `teacher_a` is, and `margin`, the
    absolute difference of their rewards. Ties and responses that are not ranked give no pair.
    """

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        pairs: dict[str, list[Any]] = {column: [] for column in PAIRS}
        for key, messages, responses in zip(batch["prompt_id"], messages_of(batch), batch["responses"], strict=True):
            ranked = [r for r in responses if r["reward"] is not None]
            for a, b in combinations(ranked, 2):
                if a["reward"] == b["reward"]:
                    continue
                pairs["prompt_id"].append(key)
                pairs["messages"].append(messages)
                pairs["teacher_a"].append(a["teacher"])
                pairs["teacher_b"].append(b["teacher"])
                pairs["label"].append(int(b["reward"] > a["reward"]))
                pairs["margin"].append(abs(b["reward"] - a["reward"]))
        return pairs
