"""The column `responses` of a batch as NumPy arrays: a value per response, or a matrix (prompts,
teachers).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features

from persyn_datasets.data import schema


class Responses:
    """The responses of n prompts, one after the other, as Arrow and NumPy see them.

    Attributes:
        prompt: the row of each response, int64 (responses,).
        place: its place among the responses of its prompt, from 0, int64 (responses,).
        teacher: its teacher, as an index into `names`, int64 (responses,).
        names: the teachers in the order in which they first come.
    """

    def __init__(self, column: pa.ChunkedArray):
        column = without_json(column)
        if not hasattr(column.type, "value_type") or pa.types.is_null(column.type.value_type):
            # Nobody answered.
            column = column.cast(Features(schema.RANKED).arrow_schema.field("responses").type)
        self._column, self._flat = column, pc.list_flatten(column)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        self.prompt = np.repeat(np.arange(len(column)), lengths)
        self.place = np.arange(len(self.prompt)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        coded = self.field("teacher").combine_chunks().cast(pa.string()).dictionary_encode()
        self.names, self.teacher = coded.dictionary, coded.indices.to_numpy().astype(int)

    def fields(self) -> list[str]:
        """The names of what is known of each response."""
        return [f.name for f in self._flat.type]

    def field(self, name: str) -> pa.ChunkedArray:
        """A field of each response."""
        return pc.struct_field(self._flat, name)

    def numbers(self, name: str) -> np.ndarray:
        """A field of each response, float64 (responses,); NaN where there is none."""
        self._require(name)
        values: np.ndarray = self.field(name).cast(pa.float64()).to_numpy()
        return values

    def _require(self, name: str) -> None:
        stage = "Pairify" if name == "reward" else "Rank"
        schema.require(self.fields(), name, stage, where="responses' field")

    def failed(self) -> np.ndarray:
        """Whether it has an `error`, bool (responses,)."""
        errors = pc.fill_null(self.field("error").cast(pa.string()), "")
        some: np.ndarray = errors.to_numpy() != ""
        return some

    def rows(self, values: np.ndarray) -> np.ndarray:
        """A value per response as (prompts, places), as wide as the longest row; NaN where there is
        none.
        """
        matrix = np.full((len(self._column), self.place.max(initial=-1) + 1), np.nan)
        matrix[self.prompt, self.place] = values
        return matrix

    def teachers(self, values: np.ndarray) -> np.ndarray:
        """The mean of each teacher's values (responses,) on each prompt, (prompts, teachers); NaN
        where it has none.
        """
        shape, valid = (len(self._column), len(self.names)), ~np.isnan(values)
        cell = (self.prompt * shape[1] + self.teacher)[valid]
        total, count = (np.bincount(cell, w, shape[0] * shape[1]) for w in (values[valid], None))
        means: np.ndarray = np.full(total.shape, np.nan)
        np.divide(total, count, out=means, where=count > 0)
        return means.reshape(shape)

    def order(self) -> np.ndarray:
        """The teachers in the order of each prompt's responses, then the others, int64 (prompts,
        teachers).
        """
        first = np.full((len(self._column), len(self.names)), len(self.place))
        # The last to be written is the first response.
        first[self.prompt[::-1], self.teacher[::-1]] = self.place[::-1]
        return first.argsort(-1, kind="stable")

    def with_fields(self, **fields: pa.Array | None) -> pa.ChunkedArray:
        """The column with more fields (a value per response each), or other values for them, or
        without them (None).
        """
        chunks, start = [], 0
        for chunk in self._column.chunks or [self._column.combine_chunks()]:
            flat = chunk.flatten()
            of_chunk = dict(zip([f.name for f in flat.type], flat.flatten(), strict=True))
            for name, values in fields.items():
                of_chunk.pop(name, None)
                if values is not None:
                    of_chunk[name] = values.slice(start, len(flat))
            ends = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy().cumsum()
            offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
            chunks.append(
                pa.ListArray.from_arrays(
                    offsets, pa.StructArray.from_arrays([*of_chunk.values()], [*of_chunk])
                )
            )
            start += len(flat)
        return pa.chunked_array(chunks)


def without_json(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in Arrow's own types, where `datasets` has kept it as JSON: it does so if one row
    of a file has other keys.
    """
    if "arrow.json" not in str(column.type):
        return column
    kind = Features.from_arrow_schema(pa.schema([("cells", column.type)]))
    rows = kind.decode_batch({"cells": column.to_pylist()})["cells"]
    return pa.chunked_array([pa.array(rows)])


def rewards_of(ranked: Dataset, names: Sequence[str], signal: str = "reward") -> np.ndarray:
    """The measured rewards, or another signal, (prompts, teachers), NaN where there is none; of
    several their mean.
    """
    responses = Responses(ranked.select_columns("responses").with_format("arrow")[:]["responses"])
    measured = responses.teachers(responses.numbers(signal))
    of_teacher = dict(zip(responses.names.to_pylist(), measured.T, strict=True))
    none = np.full(len(ranked), np.nan)
    return np.stack([of_teacher.get(name, none) for name in names], axis=-1)


def rewards_by_prompt(ranked: Dataset, names: Sequence[str], signal: str = "reward") -> np.ndarray:
    """`rewards_of` in the order of `one_row_each`: (prompts, teachers)."""
    return mean_by_prompt(rewards_of(ranked, names, signal), ranked["prompt_id"])


def one_row_each(ranked: Dataset) -> Dataset:
    """The first row of each prompt, for a prompt that stands in several rows is still one prompt:
    what is measured over prompts must not count it again.
    """
    return ranked.select(first_rows(ranked["prompt_id"]))


def first_rows(prompt_ids: Sequence[str]) -> np.ndarray:
    """The first row of each prompt, in the order in which they first come."""
    first: dict[str, int] = {}
    for row, key in enumerate(prompt_ids):
        first.setdefault(key, row)
    return np.array(list(first.values()), int)


def mean_by_prompt(values: np.ndarray, prompt_ids: Sequence[str]) -> np.ndarray:
    """Values (rows, …) as (prompts, …), in the order of `first_rows`; the mean of a prompt's rows,
    without their NaN.
    """
    place = {key: i for i, key in enumerate(dict.fromkeys(prompt_ids))}
    if len(place) == len(values):
        return values
    of_prompt = np.array([place[key] for key in prompt_ids])
    known = ~np.isnan(values)
    total, count = np.zeros((2, len(place), *values.shape[1:]))
    np.add.at(total, of_prompt, np.where(known, values, 0))
    np.add.at(count, of_prompt, known)
    means: np.ndarray = np.full_like(total, np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return means


def table_of(batch: Mapping[str, Sequence[Any]], **columns: Any) -> pa.Table:
    """`prompt_id`, `responses` and more columns of a batch of Python lists."""
    return pa.table(
        {"prompt_id": list(batch["prompt_id"]), "responses": list(batch["responses"]), **columns}
    )


def with_columns(table: pa.Table, **columns: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with these columns, in the place of those of the same name."""
    return pa.table(dict(zip(table.column_names, table.columns, strict=True)) | columns)
