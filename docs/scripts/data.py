"""Makes the table of docs/data.md: what `datasets` reads of a file, and what `load_table` does.

    python docs/scripts/data.py

Writes each file, reads it by both, and puts the values of its column `x` into the page.
"""

import gzip
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars, load_dataset

from persyn_datasets.data.tables import load_table
from persyn_datasets.report.tables import table

PAGE = Path(__file__).parents[1] / "data.md"
BEGIN, END = "<!-- loaders -->\n", "<!-- /loaders -->"
# (the file's name, what is in it)
FILES = {
    "csv: codes": ("a.csv", "x\n007\n010\n"),
    "csv: numbers": ("a.csv", "x\n1.50\n2\n"),
    "csv: words for nothing": ("a.csv", "x,y\nNone,1\nnull,2\nNA,3\n,4\n"),
    "csv: truth": ("a.csv", "x\nTrue\nfalse\n"),
    "tsv: codes": ("a.tsv", "x\ty\n007\t1\n"),
    "jsonl: a code beside a number": ("a.jsonl", '{"x": "007"}\n{"x": 7}\n'),
    "jsonl: a text beside a number": ("a.jsonl", '{"x": "1.50"}\n{"x": 3}\n'),
    "jsonl: dates": ("a.jsonl", '{"x": "1969-07-16"}\n{"x": "1969-07-20"}\n'),
    "jsonl: a long number": ("a.jsonl", '{"x": 12345678901234567890123}\n{"x": 1}\n'),
    "jsonl: small numbers, ragged objects": (
        "a.jsonl",
        '{"x": 3e-12, "meta": {"a": 1}}\n{"x": 0.1, "meta": {"b": "c"}}\n',
    ),
    "jsonl: objects of other keys": ("a.jsonl", '{"x": {"a": 1}}\n{"x": {"b": "c"}}\n'),
    "jsonl: a column that comes late": ("a.jsonl", '{"y": 1}\n{"x": "late", "y": 2}\n'),
    "json: one list": ("a.json", '[{"x": "007"}, {"x": 7}]'),
    "ndjson": ("a.ndjson", '{"x": "007"}\n{"x": "08"}\n'),
    "csv.gz": ("a.csv.gz", "x\n007\n"),
}


def by_datasets(path: str) -> Any:
    kinds = {"csv": "csv", "tsv": "csv", "jsonl": "json", "json": "json", "ndjson": "json"}
    kind = Path(path).name.split(".")[1]
    more = {"sep": "\t"} if kind == "tsv" else {}
    with tempfile.TemporaryDirectory() as cache:
        return load_dataset(kinds[kind], data_files=path, split="train", cache_dir=cache, **more)[:]


def by_persyn(path: str) -> Any:
    return load_table(path)[:]


def as_answers(path: str) -> Any:
    return load_table(path, texts=["x"])[:]


def found(read: Callable[[str], Any], name: str, text: str) -> str:
    """The column `x` as Python writes it, or the error's name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        data = text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        try:
            return f"`{', '.join(map(repr, read(str(path))['x']))}`"
        except Exception as error:  # whatever a library raises is what it does
            return type(error).__name__


def rows() -> list[list[str]]:
    return [
        [
            what,
            "`" + text.strip().replace("\n", " ⏎ ").replace("\t", " ⇥ ") + "`",
            *(found(read, name, text) for read in (by_datasets, by_persyn, as_answers)),
        ]
        for what, (name, text) in FILES.items()
    ]


def main() -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("datasets", "pyarrow", "pandas"))
    head = ["file", "written", "`load_dataset`", "persyn, a column", "persyn, answers"]
    made = (
        f"Made by `python docs/scripts/data.py` with {versions}, "
        f"{datetime.now(UTC):%d %B %Y}.\n\n{table(head, rows())}\n"
    )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{made}{END}{rest.partition(END)[2]}")
    print(made)


if __name__ == "__main__":
    disable_progress_bars()
    main()
