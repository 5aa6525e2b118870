"""Recorded teachers: answers that already exist as a dataset, matched on the prompt.

The dataset has a row for each answer, with its teacher's name; or, as a teacher's `columns` say, a
row for each prompt, with a column for each teacher. A thought is the beginning of the answer,
between tags, or in a column of its own (`THOUGHTS`). Where there is a column `tools`, it belongs to
the prompt, and an answer that is a message may have `tool_calls`.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Json, List

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data import schema
from persyn_datasets.data.prompts import prompt_id, text_of, to_messages
from persyn_datasets.data.reasoning import is_open, split
from persyn_datasets.data.tables import load_table
from persyn_datasets.data.tools import COLUMN as TOOLS
from persyn_datasets.data.tools import is_exact, to_calls, to_tools
from persyn_datasets.engines import Facts, Request, Response, answered, failed
from persyn_datasets.engines.account import Account

FACTS = Facts(journalled=False, tools=True, keys=("columns",))
COLUMNS = ("prompt", "teacher", "response")
THOUGHTS = ("reasoning_content", "reasoning")  # as servers name it; the first that is there
TEXTS = ("teacher", "response", TOOLS, *THOUGHTS)
READ_AT_ONCE = 1000
TABLES_IN_MEMORY = 4
EVERYBODY = ""  # the name of whose answers they are, where no column says it


class Place(NamedTuple):
    """Where a cell is: a column, and the fields on the way down to it."""

    column: str
    fields: tuple[str, ...] = ()

    def of(self, cell: Any) -> Any:
        for field in self.fields:
            cell = None if cell is None else cell[field]
        return cell


class Said(NamedTuple):
    """A recorded answer, without white space at its ends; `error`: why its calls cannot be read."""

    text: str = ""
    thought: str = ""
    calls: str = ""
    error: str = ""


class Records(NamedTuple):
    """Recorded answers and their thoughts, which stay on disk.

    `rows_of` has by teacher the numbers of its prompts, sorted, and their rows. `exact`: answers
    are lists of messages, as JSON.
    """

    table: Dataset
    response: Place
    reasoning: Place | None
    rows_of: dict[str, tuple[np.ndarray, np.ndarray]]
    named: bool  # a column says whose answers they are
    exact: bool

    def answers_of(self, teacher: Teacher) -> tuple[np.ndarray, np.ndarray] | None:
        return self.rows_of.get(teacher.name if self.named else EVERYBODY)


_indexed: dict[Any, Any] = {}  # by the fingerprint of a table, and where its prompts are


def _recorded(teacher: Teacher) -> Records:
    table, places = _load(teacher)
    named = "teacher" in places
    # Teachers with a column each share the prompts.
    key = table._fingerprint, places["prompt"], places.get("teacher")
    if key not in _indexed:
        _indexed[key] = _index(table, places, teacher.model)
        if len(_indexed) > TABLES_IN_MEMORY:
            del _indexed[next(iter(_indexed))]
    response, reasoning = places["response"], places.get("reasoning")
    columns = {response.column} | ({reasoning.column} if reasoning else set())
    read = table.select_columns(sorted(columns))
    if exact := read.features[response.column] == schema.MESSAGES_WITH_CALLS:
        read = read.cast_column(response.column, List(Json(decode=False)))
    return Records(read, response, reasoning, _indexed[key], named, exact)


def _load(teacher: Teacher) -> tuple[Dataset, dict[str, Place]]:
    """The dataset, and where it has what `COLUMNS` names, and `reasoning` if it has.

    Raises:
        InputError: it lacks one of them.
    """
    path, columns = teacher.model, teacher.columns
    table = load_table(path, revision=teacher.revision, texts=(TOOLS,) if columns else TEXTS)
    tools = {TOOLS: Place(TOOLS)} if TOOLS in table.column_names else {}
    if columns:
        return table, tools | {key: _place(table.features, teacher, key) for key in columns}
    missing = [c for c in COLUMNS if c not in table.column_names]
    if missing:
        raise InputError(
            f"{path}: recorded answers need the columns {', '.join(COLUMNS)}; missing "
            f"{', '.join(missing)}. It has {', '.join(table.column_names)}: map them in the "
            "teacher's columns, e.g. columns: {prompt: question, response: answer}."
        )
    thoughts = [name for name in THOUGHTS if name in table.column_names]
    reasoning = {"reasoning": Place(thoughts[0])} if thoughts else {}
    return table, tools | {key: Place(key) for key in COLUMNS} | reasoning


def _place(features: Features, teacher: Teacher, key: str) -> Place:
    """The place that `columns` names. Names of columns may have dots: the longest one counts."""
    written = teacher.columns[key]
    where = f"Teacher {teacher.name!r}: columns.{key} is {written!r}"
    parts = written.split(".")
    lengths = range(len(parts), 0, -1)
    length = next((n for n in lengths if ".".join(parts[:n]) in features), None)
    if length is None:
        raise InputError(
            f"{where}, and {teacher.model} has no such column; it has {', '.join(features)}."
        )
    column, fields = ".".join(parts[:length]), tuple(parts[length:])
    inner: Any = features[column]
    for field in fields:
        if not isinstance(inner, dict) or field not in inner:
            found = f"the fields {', '.join(inner)}" if isinstance(inner, dict) else "no fields"
            raise InputError(f"{where}, and the column {column!r} of {teacher.model} has {found}.")
        inner = inner[field]
    if isinstance(inner, dict):
        raise InputError(
            f"{where}, which has the fields {', '.join(inner)}; name one of them, e.g. "
            f"{written}.{'content' if 'content' in inner else next(iter(inner))}."
        )
    return Place(column, fields)


def _index(
    table: Dataset, places: dict[str, Place], path: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    numbers, names = np.empty(len(table), np.uint64), np.empty(len(table), np.int32)
    place: dict[str, int] = {}
    exact = TOOLS in places and is_exact(table.features[TOOLS])
    for row, (prompt, tools, name) in enumerate(_prompts(table, places)):
        where = f"{path}, row {row}, column "
        messages = to_messages(prompt, f"{where}{places['prompt'].column!r}")
        numbers[row] = _number(prompt_id(messages, to_tools(tools, f"{where}{TOOLS!r}", exact)))
        names[row] = place.setdefault(text_of(name, f"{path}, row {row}") or "", len(place))
    rows_of = {}
    for name, i in place.items():
        rows = np.flatnonzero(names == i)
        rows = rows[np.argsort(numbers[rows], kind="stable")]
        rows_of[name] = numbers[rows], rows
    return rows_of


def _prompts(table: Dataset, places: dict[str, Place]) -> Iterator[tuple[Any, Any, Any]]:
    """The prompt of each row, what it offers, and whose answer it has."""
    read = [places.get(key) for key in ("prompt", TOOLS, "teacher")]
    columns = {place.column for place in read if place}
    for batch in table.select_columns(list(columns)).iter(batch_size=READ_AT_ONCE):
        prompt, tools, teacher = (map(p.of, batch[p.column]) if p else None for p in read)
        assert prompt is not None
        yield from zip(prompt, tools or repeat(None), teacher or repeat(EVERYBODY), strict=False)


def _number(key: str) -> np.uint64:
    """64 bits of a prompt id."""
    return np.uint64(int(key[:16], 16))


def _row(records: Records, request: Request) -> int | None:
    """Sample j of a prompt is the j-th of its answers."""
    if (found := records.answers_of(request.teacher)) is None:
        return None
    (numbers, rows), number = found, _number(request.prompt_id)
    i = int(np.searchsorted(numbers, number)) + request.sample
    return int(rows[i]) if i < len(rows) and numbers[i] == number else None


def generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """See `persyn_datasets.engines`. A prompt without a recorded answer is an error row, never an
    empty answer.
    """
    sources: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
        teacher = request.teacher
        source = teacher.model, teacher.revision, *sorted(teacher.columns.items())
        sources.setdefault(source, []).append(i)
    for (path, *_), places in sources.items():
        records = _recorded(requests[places[0]].teacher)
        for start in range(0, len(places), READ_AT_ONCE):
            part = places[start : start + READ_AT_ONCE]
            rows = [_row(records, requests[i]) for i in part]
            found = _read(records, [row for row in rows if row is not None], path)
            for i, row in zip(part, rows, strict=True):
                yield i, _response(requests[i], Said() if row is None else next(found))


def _read(records: Records, rows: list[int], path: str) -> Iterator[Said]:
    batch, reasoning = records.table[rows], records.reasoning
    for i, row in enumerate(rows):
        where = f"{path}, row {row}"
        said = _said(records.response.of(batch[records.response.column][i]), where, records.exact)
        if reasoning:
            thought = text_of(reasoning.of(batch[reasoning.column][i]), where) or ""
            said = said._replace(thought=thought.strip())
        yield said


def _said(cell: Any, where: str, exact: bool) -> Said:
    """An answer. A completion, as TRL and this package write it, is a list of one message; `exact`:
    as its JSON.
    """
    if exact and isinstance(cell, list) and len(cell) == 1:
        cell = [json.loads(cell[0])]
    if not isinstance(cell, list) or len(cell) != 1 or not isinstance(cell[0], dict):
        return Said((text_of(cell, where) or "").strip())
    message = cell[0]
    text = text_of(message.get("content"), where) or ""
    thought = next((message[key] for key in THOUGHTS if message.get(key)), "")
    said = Said(text.strip(), (text_of(thought, where) or "").strip())
    try:
        return said._replace(calls=to_calls(message.get("tool_calls"), exact))
    except ValueError as error:
        return said._replace(error=str(error))


def _response(request: Request, said: Said) -> Response:
    teacher, sample = request.teacher, request.sample
    text, thought = said.text, said.thought
    if request.tools and said.error:
        return failed(teacher, f"its recorded answer calls what cannot be read: {said.error}")
    calls = said.calls if request.tools else ""
    if not text and not thought and not calls:
        which = f"answer number {sample + 1}" if sample else "answer"
        why = f"no {which} of {teacher.name!r} to this prompt is recorded in {teacher.model}"
        return failed(teacher, why)
    # A thought that never ends was cut off, whoever recorded it.
    cut = not (text or calls) or (is_open(text) and not thought)
    ends = "length" if cut else "stop"
    return answered(teacher, text, ends, reasoning=thought, tool_calls=calls)


def check(teacher: Teacher) -> None:
    """Raises `InputError` if the dataset cannot be read or holds nothing of this teacher."""
    records = _recorded(teacher)
    if records.answers_of(teacher) is None:
        raise InputError(
            f"Teacher {teacher.name!r}: {teacher.model} has none of its answers; it has those of "
            f"{', '.join(sorted(records.rows_of))}."
        )


def thinks(teacher: Teacher) -> bool:
    """Whether one of its first answers holds its reasoning.

    Raises:
        InputError: see `check`.
    """
    check(teacher)
    records = _recorded(teacher)
    found = records.answers_of(teacher)
    assert found
    rows = np.sort(found[1])[:READ_AT_ONCE].tolist()
    return any(said.thought or split(said.text)[0] for said in _read(records, rows, teacher.model))


def read_columns(teacher: Teacher) -> Dataset:
    """The columns of the dataset that are read, and no others.

    Raises:
        InputError: it lacks one of them.
    """
    table, places = _load(teacher)
    return table.select_columns(list(dict.fromkeys(place.column for place in places.values())))


def answer_bytes(teacher: Teacher) -> float:
    """The mean size of a row of the columns that are read, which is more than its answer's."""
    table = read_columns(teacher)
    return table.data.nbytes / max(1, len(table))
