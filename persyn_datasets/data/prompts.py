"""Prompts: load them from anywhere, check them, give each its identity."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Message
from persyn_datasets.data import schema
from persyn_datasets.data.tables import load_table, plain_errors
from persyn_datasets.data.tools import COLUMN as TOOLS
from persyn_datasets.data.tools import is_exact, to_tools

FIRST_ROWS = 100
ROWS_AT_ONCE = 1000
_EXPECTED = (
    "expected a non-empty string, or a list of {'role': …, 'content': …} that ends with the "
    "user's message"
)


def prompt_id(messages: Sequence[Message], tools: str = "") -> str:
    """The identity of a prompt: a hash of its messages, and of the `tools` that it offers (JSON
    text, see `to_tools`). The same prompt has the same id everywhere.
    """
    turns: list[Any] = [[m["role"], m["content"]] for m in messages]
    canonical = json.dumps([turns, json.loads(tools)] if tools else turns, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def to_messages(cell: Any, where: str) -> list[Message]:
    """A prompt cell as messages: a string is one user message, unless it is the JSON of messages; a
    list is checked. `where` names it in errors.
    """
    if isinstance(cell, str):
        cell = _from_json(cell, where) or [{"role": "user", "content": cell}]
    if not isinstance(cell, Sequence) or isinstance(cell, bytes) or not cell:
        raise InputError(f"{where}: found {_shown(cell)}; {_EXPECTED}.")
    for i, message in enumerate(cell):
        if isinstance(message, Mapping) and (kind := _not_text(message.get("content"))):
            raise InputError(
                f"{where}: message {i} has a part of type {kind!r}, and only text is "
                "supported; remove the row, or leave that part out."
            )
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            raise InputError(f"{where}: message {i} is {_shown(message)}; {_EXPECTED}.")
        if message["role"] not in ("system", "user", "assistant"):
            raise InputError(
                f"{where}: message {i} has role {message['role']!r}; expected system, user or "
                "assistant."
            )
        if message.get("tool_calls"):
            raise InputError(
                f"{where}: message {i} has tool_calls, and only an answer can call functions here; "
                "end the prompt before that message, or remove the row."
            )
    if cell[-1]["role"] != "user":
        raise InputError(f"{where}: the last message is the {cell[-1]['role']}'s; {_EXPECTED}.")
    if not cell[-1]["content"].strip():
        raise InputError(f"{where}: the prompt is empty; {_EXPECTED}. Remove the row or fill it.")
    return [{"role": m["role"], "content": m["content"]} for m in cell]


def _not_text(content: Any) -> str:
    """The type of the first part that is no text, e.g. `image_url`; empty if there is none."""
    parts = content if isinstance(content, list) else []
    types = (str(part.get("type", "")) for part in parts if isinstance(part, Mapping))
    return next((kind for kind in types if kind not in ("", "text")), "")


def _from_json(text: str, where: str) -> Any:
    """The messages whose JSON the text is, as a CSV has them; None: it is an ordinary text."""
    if not text.lstrip().startswith("["):
        return None
    start = "".join(text[:200].split())
    if not start.startswith(('[{"role":', '[{"content":', "[{'role':", "[{'content':")):
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{where}: the text {text[:60]!r} looks like a list of messages but is not JSON "
            f'({error}); write it with json.dumps, which has " around keys and texts.'
        ) from error


def _shown(value: Any) -> str:
    return "no value" if value is None else f"the {type(value).__name__} {repr(value)[:80]}"


def messages_of(batch: Mapping[str, Sequence[Any]]) -> list[list[Message]]:
    """The messages of a batch's rows, from its column `messages` or else `prompt`.

    Raises:
        InputError: neither column is there, or a cell is not a prompt.
    """
    column = next((c for c in ("messages", "prompt") if c in batch), None)
    if column is None:
        raise InputError(
            f"Found the columns {sorted(batch)}; expected 'messages' or 'prompt'. Rename yours "
            "to one."
        )
    return [
        to_messages(cell, f"row {i} of the batch, column {column!r}")
        for i, cell in enumerate(batch[column])
    ]


def load_prompts(
    path: str,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    column: str | None = None,
    answer_column: str | None = None,
    streaming: bool = False,
) -> Any:
    """Load prompts as rows of `prompt_id`, `messages` and, if named, `answer`; other columns pass
    through. A column `tools` holds what each prompt offers its teacher, as JSON text; see
    `to_tools`. See `load_table` for what can be read.

    Args:
        column: the column with the prompts. Default: `messages`, else `prompt`.
        answer_column: the column with the reference answers, which are read as text.
        streaming: give an `IterableDataset`: rows are read, and checked, as they are needed.

    Raises:
        InputError: with the row and column of the first cell that is not a prompt, or no `tools`.
    """
    options: dict[str, Any] = {"name": name, "split": split, "revision": revision}
    texts = [TOOLS, answer_column] if answer_column else [TOOLS]
    options |= {"streaming": streaming, "texts": texts}
    table = load_table(path, **options)
    columns = _columns(table, path)
    column = column or next((c for c in ("messages", "prompt") if c in columns), "messages")
    _require(columns, path, column=column, answer_column=answer_column)
    if not streaming and len(table) == 0:
        raise InputError(f"{path}: there are no rows; expected prompts.")

    with_tools = TOOLS in columns and TOOLS not in (column, answer_column)
    identify = _identify(path, column, answer_column, columns[TOOLS] if with_tools else None)
    gone = [c for c in (column, answer_column) if c and c not in ("messages", "answer")]
    added = schema.PROMPT | ({"answer": Value("string")} if answer_column else {})
    added |= {TOOLS: Value("string")} if with_tools else {}
    kept = {k: v for k, v in columns.items() if k not in (column, answer_column)}
    features = Features({**kept, **added})
    if isinstance(table, IterableDataset):
        return _streamed(table, identify, path, features)
    return table.map(
        identify,
        batched=True,
        with_indices=True,
        remove_columns=gone,
        features=features,
        desc="Prompts",
    )


def _identify(path: str, column: str, answer_column: str | None, tools: Any) -> Any:
    """A batched map that adds what `load_prompts` does; `tools` is the feature of that column."""

    def identify(batch: dict[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        def read(name: str, reader: Callable[..., Any], *more: Any) -> list[Any]:
            cells = zip(indices, batch[name], strict=True)
            return [reader(cell, f"{path}, row {i}, column {name!r}", *more) for i, cell in cells]

        messages = read(column, to_messages)
        offered = [""] * len(messages) if tools is None else read(TOOLS, to_tools, is_exact(tools))
        added = {"prompt_id": list(map(prompt_id, messages, offered)), "messages": messages}
        if tools is not None:
            added[TOOLS] = [text or None for text in offered]
        if answer_column:
            added["answer"] = read(answer_column, text_of)
        return added

    return identify


def _require(columns: Features, path: str, **named: str | None) -> None:
    """Raises `InputError` if a column that a key of the recipe names is not there."""
    for key, column in named.items():
        if column and column not in columns:
            raise InputError(
                f"prompts.{key}: {path} has no column {column!r}; it has {', '.join(columns)}."
            )


def _streamed(
    table: IterableDataset, identify: Any, path: str, features: Features
) -> IterableDataset:
    """The rows with what `identify` adds, read as they are needed."""

    def stream(shards: list[int]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            part = table.shard(table.num_shards, shard) if len(shards) > 1 else table
            yield from _identified(part, identify, path, list(features))

    shards = {"shards": list(range(table.num_shards))}
    return IterableDataset.from_generator(stream, features=features, gen_kwargs=shards)


def text_of(value: Any, where: str) -> str | None:
    """A cell as text; None where it is empty.

    Raises:
        InputError: it is a list or has fields: as text that would be Python's notation of it.
    """
    if isinstance(value, list | dict):
        raise InputError(
            f"{where}: found {_shown(value)}; expected a text or a number. Make a column that has "
            "one."
        )
    return None if value is None else str(value)


def _columns(table: Dataset | IterableDataset, path: str) -> Features:
    """A stream may not know them before it is read."""
    if table.features:
        return table.features
    with plain_errors(path):
        return Dataset.from_list(list(table.take(FIRST_ROWS))).features


def _identified(
    table: IterableDataset, identify: Any, path: str, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The rows of a stream with what `identify` adds; what cannot be read is an `InputError`."""
    start = 0
    batches = iter(table.iter(batch_size=ROWS_AT_ONCE))
    while True:
        with plain_errors(path):
            batch = next(batches, None)
        if batch is None:
            return
        count = len(next(iter(batch.values())))
        made = batch | identify(batch, range(start, start + count))
        start += count
        yield from (
            dict(zip(names, row, strict=True)) for row in zip(*map(made.get, names), strict=True)
        )
