"""Pairify: every ranked prompt becomes all its n(n−1)/2 comparisons of two teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features

from persyn_datasets.config.teacher import Message
from persyn_datasets.data.prompts import messages_of
from persyn_datasets.data.responses import Responses, table_of, with_columns, without_json
from persyn_datasets.data.schema import PAIRS, require

TYPES = Features(PAIRS).arrow_schema


@dataclass(frozen=True)
class Pairify:
    """A `datasets` map from prompts to pairs of teachers; give it `remove_columns`, as the rows
    multiply.

        ranked.map(Pairify(), batched=True, remove_columns=ranked.column_names)
        ranked.with_format("arrow").map(
            Pairify(), batched=True, remove_columns=ranked.column_names
        )  # 10 times as fast

    A pair has `label` 1 if `teacher_b` is preferred (the paper's C) and 0 if `teacher_a` is, and
    `margin`, the absolute difference of their rewards (of several responses, the mean of theirs).
    Ties and teachers without reward give no pair. Every pair has a copy of its prompt: for very
    long ones, give `map` a small `batch_size`."""

    def __call__(
        self, batch: pa.Table | Mapping[str, Sequence[Any]]
    ) -> pa.Table | dict[str, list[Any]]:
        found = batch.column_names if isinstance(batch, pa.Table) else batch
        for column in ("prompt_id", "responses"):
            require(found, column, "Pairify")
        if not isinstance(batch, pa.Table):
            return self._pairs(table_of(batch, messages=_column(messages_of(batch)))).to_pydict()
        if "messages" not in batch.column_names:
            prompts = {name: batch[name].to_pylist() for name in found if name == "prompt"}
            batch = with_columns(batch, messages=_column(messages_of(prompts)))
        elif batch["messages"].type != TYPES.field("messages").type:
            messages = without_json(batch["messages"]).to_pylist()
            batch = with_columns(batch, messages=_column(messages_of({"messages": messages})))
        return self._pairs(batch)

    def _pairs(self, batch: pa.Table) -> pa.Table:
        responses = Responses(batch["responses"])
        r = responses.teachers(responses.numbers("reward"))
        order = responses.order()
        r = np.take_along_axis(r, order, -1)
        # Zᵀ r of all pairs A < B, Z with −1 at A and +1 at B; C = 1 where it is above 0 (paper §3).
        a, b = np.triu_indices(len(responses.names), 1)
        z_r = r[:, b] - r[:, a]
        prompt, pair = np.nonzero(~np.isnan(z_r) & (z_r != 0))
        margin = z_r[prompt, pair]
        teacher_a, teacher_b = (
            responses.names.take(pa.array(order[prompt, side[pair]])) for side in (a, b)
        )
        pairs = batch.select(["prompt_id", "messages"]).take(pa.array(prompt))
        values = {"label": pa.array(margin > 0), "margin": pa.array(np.abs(margin))}
        return with_columns(pairs, teacher_a=teacher_a, teacher_b=teacher_b, **values).cast(TYPES)


def _column(messages: list[list[Message]]) -> pa.Array:
    return pa.array(messages, TYPES.field("messages").type)
