"""Contamination: prompts that share text with a benchmark, by the usual rule: 13 words in a row
(arXiv 2005.14165).
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.prompts import Benchmark, Decontaminate
from persyn_datasets.data.tables import load_table

WORDS = 13
EXAMPLES = 3  # that are shown


def runs(text: str) -> set[str]:
    """All runs of 13 words, in lower case and without punctuation; a shorter text counts as a
    whole.
    """
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    return {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))} - {""}


def overlaps(prompts: Dataset, against: Iterable[str | Benchmark]) -> dict[str, list[int]]:
    """benchmark → rows of the prompts with a message that shares a run with any text of the
    benchmark.

    A local benchmark goes by the last part of its path.

    Raises:
        InputError: a benchmark cannot be read.
    """
    tables = {}
    for b in (Benchmark(b) if isinstance(b, str) else b for b in against):
        table = load_table(b.path, name=b.name, split=b.split, revision=b.revision)
        tables[Path(b.path).name if Path(b.path).exists() else b.path] = table
    # The plan and the build of one recipe ask the same.
    content = (prompts._fingerprint, *((name, t._fingerprint) for name, t in tables.items()))
    if content not in _last_found:
        _last_found.clear()
        _last_found[content] = _overlaps(prompts, tables)
    return _last_found[content]


_last_found: dict[tuple[Any, ...], dict[str, list[int]]] = {}


def _overlaps(prompts: Dataset, tables: dict[str, Dataset]) -> dict[str, list[int]]:
    known = {
        name: {run for row in table for text in _texts(row) for run in runs(text)}
        for name, table in tables.items()
    }
    found: dict[str, list[int]] = {name: [] for name in known}
    for i, messages in enumerate(prompts["messages"]):
        of_prompt = {run for message in messages for run in runs(message["content"])}
        for name, of_benchmark in known.items():
            if not of_prompt.isdisjoint(of_benchmark):
                found[name].append(i)
    return found


def clean(prompts: Dataset, how: Decontaminate) -> tuple[Dataset, dict[str, Any]]:
    """The prompts, without those that overlap if they are to be dropped; and what was found, as
    JSON values.

    Raises:
        InputError: every prompt would be dropped.
    """
    found = overlaps(prompts, how.against)
    rows = {i for of_benchmark in found.values() for i in of_benchmark}
    summary = {
        "prompts": len(prompts),
        "overlapping": len(rows),
        "dropped": how.drop,
        "benchmarks": {
            name: {
                "overlapping": len(of_one),
                "examples": [prompts[i]["messages"][-1]["content"] for i in of_one[:EXAMPLES]],
            }
            for name, of_one in found.items()
        },
    }
    if how.drop and len(rows) == len(prompts):
        raise InputError(
            f"prompts.decontaminate: each of the {len(prompts):,} prompts shares {WORDS} "
            f"consecutive words with a benchmark ({', '.join(found)}), so none is left. Choose "
            "other benchmarks, or set prompts.decontaminate.drop=false."
        )
    if how.drop and rows:
        prompts = prompts.select([i for i in range(len(prompts)) if i not in rows])
    return prompts, summary


def in_words(summary: dict[str, Any]) -> str:
    """What was found, in a sentence."""
    benchmarks = summary["benchmarks"].items()
    by = "; ".join(f"{b['overlapping']:,} with {name}" for name, b in benchmarks)
    count = (
        f"{summary['overlapping']:,} of {summary['prompts']:,} prompts share {WORDS} words in a "
        "row with a benchmark"
    )
    done = "dropped" if summary["dropped"] else "kept: prompts.decontaminate.drop=true drops them"
    return f"{count} ({by}){f', and are {done}' if summary['overlapping'] else ''}."


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
