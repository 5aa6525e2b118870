"""Versions of a published dataset: their numbers, what changed between two of them, rows made alike
to be added.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, List, Value

from persyn_datasets.config.errors import InputError
from persyn_datasets.data.build import Added, Answered, Build
from persyn_datasets.hub import public

MOST = 8  # changes that a card names


def numbers(version: str) -> tuple[int, int, int] | None:
    """`v1.2.0` or `1.2.0` as (1, 2, 0); None if it is no version."""
    found = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def in_order(tags: Iterable[str]) -> list[str]:
    """The tags that are versions, oldest first."""
    return sorted(
        (tag for tag in tags if tag[0] == "v" and numbers(tag)),
        key=lambda tag: numbers(tag) or (0, 0, 0),
    )


def what_changed(
    recipe: Any, new_recipe: Any, stats: Build | None, new_stats: Build | Answered
) -> str:
    """In words; the recipes are those of `Recipe.to_dict`, or None."""
    if not stats:
        return f"the first version: {rows(new_stats):,} rows"
    added = _added(new_stats)[len(_added(stats)) :]
    if added and recipe == new_recipe:
        return "; ".join(
            f"{rows(more):,} rows added, answered by {more['router']}" for more in added
        )
    before, now = _flat(recipe), _flat(new_recipe)
    changed = [
        key
        for key in [*before, *(k for k in now if k not in before)]
        if before.get(key) != now.get(key)
    ]
    words = [f"{key}: {_short(before.get(key))} → {_short(now.get(key))}" for key in changed[:MOST]]
    words += [f"{len(changed) - MOST} more changes of the recipe"] if len(changed) > MOST else []
    words = words or ["the same recipe, built again"]
    return f"{rows(new_stats):,} rows ({rows(new_stats) - rows(stats):+,}); {'; '.join(words)}"


def rows(stats: Build | Answered | Added) -> int:
    """Rows with an answer."""
    return sum(part["rows"] - part["failed"] for part in (stats, *_added(stats)))


def _added(stats: Mapping[str, Any]) -> list[Added]:
    return stats.get("added", [])


def _flat(values: Any, key: str = "") -> dict[str, Any]:
    """Nested values by their dotted path; teachers by their names."""
    if isinstance(values, list) and all(
        isinstance(value, dict) and "name" in value for value in values
    ):
        values = {value["name"]: value for value in values}
    if isinstance(values, dict) and values:
        return {
            k: v
            for part, value in values.items()
            for k, v in _flat(value, f"{key}.{part}".lstrip(".")).items()
        }
    return {key: values} if key else {}


def _short(value: Any) -> str:
    if isinstance(value, str) and Path(value).is_absolute():
        value = Path(value).name
    text = "none" if value is None else public.text(" ".join(str(value).split()))
    return (text if len(text) <= 40 else f"{text[:39]}…").replace("|", "/")


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
            f"The rows to add have the column {unknown[0]!r}, and the published ones have not "
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
        for new, old in zip(_labels(table.features[name]), _labels(features[name]), strict=False):
            if missing := [label for label in new.names if label not in old.names]:
                raise InputError(
                    f"The rows to add have the class {missing[0]!r} in {name!r}, and the published "
                    f"ones have {', '.join(old.names)}; rename it, or publish under another name."
                )
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
