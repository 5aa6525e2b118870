"""Versions of a published dataset: their numbers, and what changed between two of them."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
