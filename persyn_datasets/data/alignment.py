"""Rows that are added to others get the others' columns."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, List, Value

from persyn_datasets.config.errors import InputError


def align(file: Path, schema: pa.Schema, to: Path) -> Path:
    """Write the rows of a Parquet file with the columns of another: those it lacks are empty,
    `router_scores` may go.

    Raises:
        InputError: it has columns that the other has not, or of another type.
    """
    table, features = Dataset.from_parquet(str(file)), Features.from_arrow_schema(schema)
    assert isinstance(table, Dataset)
    if unknown := [name for name in table.column_names if name not in (*features, "router_scores")]:
        raise InputError(
            f"The rows to add have the column {unknown[0]!r}, which the published ones lack "
            f"(they have {', '.join(features)}); remove it from the prompts, or publish under "
            "another name."
        )
    for name in features:
        if name not in table.column_names:
            table = table.add_column(name, [None] * len(table))
    table = _by_label(table.select_columns(list(features)), features)
    try:
        table.cast(features).to_parquet(to)
    except (pa.ArrowInvalid, TypeError, ValueError) as error:
        raise InputError(f"The rows to add do not fit the published columns: {error}") from error
    return to


def _by_label(table: Dataset, features: Features) -> Dataset:
    """The table with classes by their names where its numbers mean others than the published ones.

    A cast would keep the numbers: 0 of (`no`, `yes`) would become 0 of (`yes`, `no`).
    """
    columns = [name for name in features if _labels(table.features[name])]
    columns = [name for name in columns if table.features[name] != features[name]]
    if not columns:
        return table
    for name in columns:
        # Not strict: types of another shape are for `cast` to refuse.
        for new, old in zip(_labels(table.features[name]), _labels(features[name]), strict=False):
            if missing := [label for label in new.names if label not in old.names]:
                raise InputError(
                    f"The rows to add have the class {missing[0]!r} in {name!r}, and the published "
                    f"ones have {', '.join(old.names)}; rename it, or publish under another name."
                )
    # By their names as text on the way, which the final cast turns into the published numbers.
    types = Features({name: table.features[name] for name in table.column_names})
    types |= {name: _as_text(table.features[name]) for name in columns}

    def named(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            name: [_named(cell, table.features[name]) for cell in batch[name]] for name in columns
        }

    return table.map(named, batched=True, features=types, load_from_cache_file=False)


def _labels(feature: Any) -> list[ClassLabel]:
    """The classes that a column's type holds, at any depth."""
    if isinstance(feature, ClassLabel):
        return [feature]
    if isinstance(feature, dict):
        return [label for part in feature.values() for label in _labels(part)]
    return _labels(feature.feature) if hasattr(feature, "feature") else []


def _as_text(feature: Any) -> Any:
    if isinstance(feature, ClassLabel):
        return Value("string")
    if isinstance(feature, dict):
        return {key: _as_text(part) for key, part in feature.items()}
    return List(_as_text(feature.feature)) if hasattr(feature, "feature") else feature


def _named(cell: Any, feature: Any) -> Any:
    if cell is None:
        return None
    if isinstance(feature, ClassLabel):
        return feature.int2str(cell) if cell >= 0 else None  # -1: no class
    if isinstance(feature, dict):
        return {key: _named(cell[key], part) for key, part in feature.items()}
    return [_named(c, feature.feature) for c in cell] if hasattr(feature, "feature") else cell
