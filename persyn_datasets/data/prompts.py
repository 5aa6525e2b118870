"""Prompts: load them from anywhere, check them, give each its identity."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, load_dataset
from datasets.exceptions import DatasetGenerationError

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Message
from persyn_datasets.data import schema

FIRST_ROWS = 100
_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def prompt_id(messages: Sequence[Message]) -> str:
    """The identity of a prompt: a hash of its messages. The same prompt has the same id
    everywhere.
    """
    canonical = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def to_messages(cell: Any, where: str) -> list[Message]:
    """A prompt cell as messages: a string is one user message, a list is checked. `where` names it
    in errors.
    """
    if isinstance(cell, str):
        cell = [{"role": "user", "content": cell}]
    mend = (
        "expected a non-empty string, or a list of {'role': …, 'content': …} that ends with "
        "the user's message"
    )
    if not isinstance(cell, Sequence) or not cell:
        raise InputError(f"{where}: found {_short(cell)}; {mend}.")
    for i, message in enumerate(cell):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            raise InputError(f"{where}: message {i} is {_short(message)}; {mend}.")
        if message["role"] not in ("system", "user", "assistant"):
            raise InputError(
                f"{where}: message {i} has role {message['role']!r}; expected system, user or "
                "assistant."
            )
    if cell[-1]["role"] != "user":
        raise InputError(f"{where}: the last message is the {cell[-1]['role']}'s; {mend}.")
    if not cell[-1]["content"].strip():
        raise InputError(f"{where}: the prompt is empty; {mend}. Remove the row or fill it.")
    return [{"role": m["role"], "content": m["content"]} for m in cell]


def _short(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:80]}"


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


def load_table(
    path: str,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> Any:
    """Load a Hub dataset, a folder, or a .jsonl, .json, .csv, .tsv or .parquet file (globs too).

    Returns a `Dataset`, or an `IterableDataset` if it is `streaming`.

    Raises:
        InputError: nothing is there, the format is unknown, or a file cannot be read as what its
            name says.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _FILES:
        files = sorted(Path(path).parent.glob(Path(path).name))
        if not files:
            raise InputError(f"{path}: no such file.")
        if suffix != ".parquet":
            for file in files:
                _check_utf8(file)
        options = {"sep": "\t"} if suffix == ".tsv" else {}
        data_files = [str(f) for f in files]
        return _load_dataset(
            path,
            _FILES[suffix],
            data_files=data_files,
            split="train",
            streaming=streaming,
            **options,
        )
    if Path(path).is_file():
        raise InputError(
            f"{path}: unknown format {suffix or 'without extension'!r}; expected "
            f"{', '.join(_FILES)}."
        )
    return _load_dataset(path, path, name, split=split, revision=revision, streaming=streaming)


def _load_dataset(shown: str, *args: Any, **options: Any) -> Any:
    try:
        return load_dataset(*args, **options)
    except (
        FileNotFoundError
    ) as error:  # DatasetNotFoundError and EmptyDatasetError are of this kind
        raise InputError(
            f"{shown}: no such dataset on the Hub, and no such file or folder with data ({error})."
        ) from error
    except ConnectionError as error:
        raise InputError(
            f"{shown}: no such file or folder here, and the Hub cannot be reached ({error})."
        ) from error
    except DatasetGenerationError as error:
        raise InputError(
            f"{shown}: cannot be read ({error.__cause__ or error}); check its format."
        ) from error
    except ValueError as error:
        raise InputError(f"{shown}: {error}") from error


def _check_utf8(file: Path) -> None:
    line = 0
    with file.open("rb") as lines:
        for line, raw in enumerate(lines, start=1):
            if b"\0" in raw:
                raise InputError(f"{file}: line {line} holds binary data; expected text in UTF-8.")
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{file}: line {line} is not UTF-8 (byte 0x{raw[error.start]:02x}); "
                    f"convert it, e.g. `iconv -f latin1 -t utf-8 {file}`."
                ) from error
    if line == 0:
        raise InputError(f"{file}: the file is empty; expected prompts.")


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
    through.

    Args:
        column: the column with the prompts. Default: `messages`, else `prompt`.
        answer_column: the column with the reference answers.
        streaming: give an `IterableDataset`: rows are read, and checked, as they are needed.

    Raises:
        InputError: with the row and column of the first cell that is not a prompt.
    """
    table = load_table(path, name=name, split=split, revision=revision, streaming=streaming)
    columns = (
        table.features or Dataset.from_list(list(table.take(FIRST_ROWS))).features
    )  # a stream may not know them
    names = list(columns)
    column = column or next((c for c in ("messages", "prompt") if c in names), "messages")
    for wanted, key in ((column, "column"), (answer_column, "answer_column")):
        if wanted and wanted not in names:
            raise InputError(
                f"prompts.{key}: {path} has no column {wanted!r}; it has {', '.join(names)}."
            )
    if not streaming and len(table) == 0:
        raise InputError(f"{path}: there are no rows; expected prompts.")

    def identify(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        messages = [
            to_messages(cell, f"{path}, row {i}, column {column!r}")
            for i, cell in zip(indices, batch[column], strict=True)
        ]
        columns: dict[str, list[Any]] = {
            "prompt_id": [prompt_id(m) for m in messages],
            "messages": messages,
        }
        if answer_column:
            columns["answer"] = [None if a is None else str(a) for a in batch[answer_column]]
        return columns

    answer = {"answer": schema.Value("string")} if answer_column else {}
    kept = {k: v for k, v in columns.items() if k not in (column, answer_column)}
    return table.map(
        identify,
        batched=True,
        with_indices=True,
        remove_columns=[
            c for c in (column, answer_column) if c and c not in ("messages", "answer")
        ],
        features=Features({**kept, **schema.PROMPT, **answer}),
        **({} if streaming else {"desc": "Prompts"}),
    )
