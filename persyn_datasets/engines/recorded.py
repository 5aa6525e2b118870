"""Recorded teachers: answers that already exist as a dataset, matched on the prompt.

A thought is the beginning of the answer, between tags, or in a column of its own (`THOUGHTS`).
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from datasets import Dataset

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.prompts import prompt_id, text_of, to_messages
from persyn_datasets.data.reasoning import is_open
from persyn_datasets.data.tables import load_table
from persyn_datasets.engines import Facts, Request, Response, answered, failed
from persyn_datasets.engines.account import Account

FACTS = Facts(journalled=False)
COLUMNS = ("prompt", "teacher", "response")
THOUGHTS = ("reasoning_content", "reasoning")  # as servers name it; the first that is there
TEXTS = ("teacher", "response", *THOUGHTS)
READ_AT_ONCE = 1000
TABLES_IN_MEMORY = 4


RowsOf = dict[str, tuple[np.ndarray, np.ndarray]]
_indexed: dict[str, RowsOf] = {}  # by the fingerprint of a table


def _recorded(path: str, revision: str | None) -> tuple[Dataset, RowsOf]:
    """The responses and their thoughts, which stay on disk; and by teacher the numbers of its
    prompts, sorted, and their rows.
    """
    table = load_table(path, revision=revision, texts=TEXTS)
    if table._fingerprint not in _indexed:
        _indexed[table._fingerprint] = _index(table, path)
        if len(_indexed) > TABLES_IN_MEMORY:
            del _indexed[next(iter(_indexed))]
    thoughts = [c for c in THOUGHTS if c in table.column_names][:1]
    return table.select_columns(["response", *thoughts]), _indexed[table._fingerprint]


def _index(table: Dataset, path: str) -> RowsOf:
    missing = [c for c in COLUMNS if c not in table.column_names]
    if missing:
        raise InputError(
            f"{path}: recorded answers need the columns {', '.join(COLUMNS)}; missing "
            f"{', '.join(missing)}."
        )
    numbers, names = np.empty(len(table), np.uint64), np.empty(len(table), np.int32)
    place: dict[str, int] = {}
    batches = table.select_columns(["prompt", "teacher"]).iter(batch_size=READ_AT_ONCE)
    of_rows = chain.from_iterable(
        zip(batch["prompt"], batch["teacher"], strict=True) for batch in batches
    )
    for row, (prompt, name) in enumerate(of_rows):
        numbers[row] = _number(
            prompt_id(to_messages(prompt, f"{path}, row {row}, column 'prompt'"))
        )
        names[row] = place.setdefault(text_of(name) or "", len(place))
    rows_of = {}
    for name, i in place.items():
        rows = np.flatnonzero(names == i)
        rows = rows[np.argsort(numbers[rows], kind="stable")]
        rows_of[name] = numbers[rows], rows
    return rows_of


def _number(key: str) -> np.uint64:
    """64 bits of a prompt id."""
    return np.uint64(int(key[:16], 16))


def _row(rows_of: dict[str, tuple[np.ndarray, np.ndarray]], request: Request) -> int | None:
    """Sample j of a prompt is the j-th of its answers."""
    if request.teacher.name not in rows_of:
        return None
    (numbers, rows), number = rows_of[request.teacher.name], _number(request.prompt_id)
    i = int(np.searchsorted(numbers, number)) + request.sample
    return int(rows[i]) if i < len(rows) and numbers[i] == number else None


def generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """See `persyn_datasets.engines`. A prompt without a recorded answer is an error row, never an
    empty answer.
    """
    sources: dict[tuple[str, str | None], list[int]] = {}
    for i, request in enumerate(requests):
        sources.setdefault((request.teacher.model, request.teacher.revision), []).append(i)
    for source, places in sources.items():
        responses, rows_of = _recorded(*source)
        for start in range(0, len(places), READ_AT_ONCE):
            part = places[start : start + READ_AT_ONCE]
            rows = [_row(rows_of, requests[i]) for i in part]
            found = _read(responses, [row for row in rows if row is not None])
            for i, row in zip(part, rows, strict=True):
                text, thought = ("", "") if row is None else next(found)
                yield i, _response(requests[i], text, thought, source[0])


def _read(responses: Dataset, rows: list[int]) -> Iterator[tuple[str, str]]:
    """The text and the thought of each row, without white space at their ends."""
    batch = responses[rows]
    texts = [(text_of(cell) or "").strip() for cell in batch.pop("response")]
    [thoughts] = batch.values() or [[None] * len(rows)]
    return zip(texts, [(text_of(cell) or "").strip() for cell in thoughts], strict=True)


def _response(request: Request, text: str, thought: str, path: str) -> Response:
    teacher, sample = request.teacher, request.sample
    if not text and not thought:
        which = f"answer number {sample + 1}" if sample else "answer"
        why = f"no {which} of {teacher.name!r} to this prompt is recorded in {path}"
        return failed(teacher, why)
    # A thought that never ends was cut off, whoever recorded it.
    ends = "length" if not text or (is_open(text) and not thought) else "stop"
    return answered(teacher, text, ends, reasoning=thought)


def check(teacher: Teacher) -> None:
    """Raises `InputError` if the dataset cannot be read or holds nothing of this teacher."""
    _, answers = _recorded(teacher.model, teacher.revision)
    if teacher.name not in answers:
        raise InputError(
            f"Teacher {teacher.name!r}: {teacher.model} has no answers of it; it has "
            f"{', '.join(sorted(answers))}."
        )


def answer_bytes(teacher: Teacher) -> float:
    """The mean size of a row of the dataset, which is more than its answer's."""
    table = load_table(teacher.model, revision=teacher.revision, texts=TEXTS)
    return table.data.nbytes / max(1, len(table))
