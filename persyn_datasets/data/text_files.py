"""JSON Lines, JSON, CSV and TSV as `datasets` builders that keep texts and numbers as written.

The loaders of `datasets` guess: "1969-07-16" becomes a time stamp, a CSV's 007 becomes 7, and a
number beside texts turns these into numbers. Here every cell of a CSV is text, and a column of a
JSON file has a type only where all its rows agree; see `json_types`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pc
from datasets import ArrowBasedBuilder, BuilderConfig, DatasetInfo, Features, SplitGenerator
from datasets.exceptions import DatasetGenerationError

from persyn_datasets.config.errors import InputError
from persyn_datasets.data import json_types as types
from persyn_datasets.data.json_types import NOTHING, TEXT, Columns

BYTES_AT_ONCE = 8 << 20
LARGEST_CSV_ROW = 64 << 20
ROWS_AT_ONCE = 10_000  # of a file that is one JSON list
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
File = tuple[str, str]  # where it is read, and the name that people know it by


class Disagreement(InputError):
    """A row does not fit the types of the rows before it."""


@dataclass
class TextFilesConfig(BuilderConfig):
    """Configuration of the builders below.

    Args:
        texts: columns that are text, whatever their cells look like.
        delimiter: of a CSV.
    """

    texts: tuple[str, ...] = ()
    delimiter: str = ","


class _TextFiles(ArrowBasedBuilder):
    """What the builders have in common: types of the columns that hold for all rows."""

    BUILDER_CONFIG_CLASS = TextFilesConfig
    types: Columns | None = None

    def _info(self) -> DatasetInfo:
        return DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        files: dict[str, list[File]] = {}
        for split, names in self.config.data_files.items():
            paths = dl_manager.download_and_extract(list(names))
            files[split] = list(zip(paths, map(str, names), strict=True))
        self._files = list(chain.from_iterable(files.values()))
        if self.types is None:
            self.types = next(self._all_types(), {})
            if dl_manager.is_streaming:
                self.types = {k: types.never_nothing(of_k) for k, of_k in self.types.items()}
        self.info.features = Features.from_arrow_schema(self._schema())
        return [
            SplitGenerator(name=split, gen_kwargs={"files": of_split})
            for split, of_split in files.items()
        ]

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """See `DatasetBuilder`. If a row does not agree with those before it, all are looked at,
        and then read again."""
        try:
            super().download_and_prepare(*args, **kwargs)
        except DatasetGenerationError as error:
            if not isinstance(error.__cause__, Disagreement):
                raise
            self.types = reduce(types.merged_columns, self._all_types())
            super().download_and_prepare(*args, **kwargs)

    def _schema(self) -> pa.Schema:
        assert self.types is not None
        return pa.schema(list(self.types.items()))

    def _all_types(self) -> Iterator[Columns]:
        """Those of each part of the files."""
        raise NotImplementedError

    def _generate_tables(self, files: list[File]) -> Iterator[tuple[int, pa.Table]]:
        yield from enumerate(table for file in files for table in self._tables(*file))

    def _tables(self, path: str, name: str) -> Iterator[pa.Table]:
        raise NotImplementedError


class WrittenJson(_TextFiles):
    """JSON Lines, and files that are one list, which are read as a whole."""

    def _all_types(self) -> Iterator[Columns]:
        for file in self._files:
            for chunk in _chunks(*file):
                yield self._wanted(types.columns_of(chunk.rows))

    def _wanted(self, found: Columns) -> Columns:
        return {k: TEXT if k in self.config.texts else of_k for k, of_k in found.items()}

    def _tables(self, path: str, name: str) -> Iterator[pa.Table]:
        assert self.types is not None
        for chunk in _chunks(path, name):
            found = self._wanted(types.columns_of(chunk.rows))
            if types.merged_columns(self.types, found) != self.types:
                self._disagree(chunk)
            yield self._table(chunk)

    def _table(self, chunk: "_Chunk") -> pa.Table:
        schema = self._schema()
        try:
            try:
                return pa.Table.from_pylist(chunk.rows, schema=schema)
            except (pa.ArrowTypeError, pa.ArrowInvalid):  # of what is text some cells are not
                whole = pa.struct(list(schema))
                rows = [types.fitted(row, whole) for row in chunk.as_written()]
                return pa.Table.from_pylist(rows, schema=schema)
        except UnicodeEncodeError as error:
            place = chunk.place(types.first_half_character(chunk.rows))
            raise InputError(
                f"{chunk.name}: {place} holds half of a character (one of \\ud800 to \\udfff "
                "without its other half), which is no text; repair it or remove the row."
            ) from error

    def _disagree(self, chunk: "_Chunk") -> None:
        """Raises `Disagreement` with the first row that does not fit."""
        assert self.types is not None
        for place, row in enumerate(chunk.rows):
            for key, of_key in self._wanted(types.columns_of([row])).items():
                known = self.types.get(key, NOTHING)
                if types.merged(known, of_key) != known:
                    raise Disagreement(
                        f"{chunk.name}: {chunk.place(place)} has {types.shown(of_key)} in "
                        f"{key!r}, where the rows before it have {types.shown(known)}; make them "
                        "alike, or read the file without streaming."
                    )


class _Chunk(NamedTuple):
    """Some rows of a file."""

    rows: list[dict[str, Any]]
    lines: list[tuple[int, str]]  # their numbers and texts; none in a file that is one list
    name: str
    start: int  # the place of the first row

    def place(self, row: int) -> str:
        return f"line {self.lines[row][0]}" if self.lines else f"row {self.start + row}"

    def as_written(self) -> list[dict[str, Any]]:
        return [types.decode_as_written(text) for _, text in self.lines] or self.rows


def _chunks(path: str, name: str) -> Iterator[_Chunk]:
    """The rows of a file of JSON, some megabytes at once.

    Raises:
        InputError: with the first line that is no JSON object.
    """
    with open(path, "rb") as stream:
        number = start = 0
        while block := stream.read(BYTES_AT_ONCE):
            if not number:
                block = block.removeprefix(BYTE_ORDER_MARK)
                if block.lstrip()[:1] == b"[":
                    yield from _chunks_of_list(block + stream.read(), name)
                    return
            block += stream.readline()
            lines = block.splitlines()
            texts = [(i, _text(line, i, name)) for i, line in enumerate(lines, start=number + 1)]
            texts = [(i, text) for i, text in texts if text.strip()]
            rows = [_object(_decoded(types.decode, *line, name), line, name) for line in texts]
            if rows:
                yield _Chunk(rows, texts, name, start)
            number, start = number + len(lines), start + len(rows)


def _chunks_of_list(raw: bytes, name: str) -> Iterator[_Chunk]:
    text = "\n".join(_text(line, i, name) for i, line in enumerate(raw.splitlines(), start=1))
    rows = _decoded(types.decode_as_written, 1, text, name)
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        part = [_object(row, f"row {start + i}", name) for i, row in enumerate(part)]
        yield _Chunk(part, [], name, start)


def _text(line: bytes, number: int, name: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(_not_utf8(name, number, line[error.start])) from error


def _not_utf8(name: str, line: int, byte: int) -> str:
    return (
        f"{name}: line {line} is not UTF-8 (byte 0x{byte:02x}); convert it, "
        f"e.g. `iconv -f latin1 -t utf-8 {name}`."
    )


def _decoded(decode: Callable[[str], Any], number: int, text: str, name: str) -> Any:
    try:
        return decode(text)
    except ValueError as error:
        if "\0" in text:
            raise InputError(
                f"{name}: line {number} holds binary data; expected text in UTF-8."
            ) from error
        line = number + getattr(error, "lineno", 1) - 1
        raise InputError(
            f"{name}: line {line} cannot be read ({getattr(error, 'msg', error)}); expected a JSON "
            "object in each line, or one list of them."
        ) from error


def _object(row: Any, place: Any, name: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        place = place if isinstance(place, str) else f"line {place[0]}"
        raise InputError(
            f"{name}: {place} is the {type(row).__name__} {str(row)[:60]!r}; expected an object, "
            'e.g. {"prompt": …}.'
        )
    return row


class WrittenCsv(_TextFiles):
    """CSV and TSV: every cell is text, an empty one is None. A row of another length is an
    error."""

    def _all_types(self) -> Iterator[Columns]:
        for file in self._files:
            yield {column: TEXT for column in self._open(*file).schema.names}

    def _tables(self, path: str, name: str) -> Iterator[pa.Table]:
        assert self.types is not None
        reader = self._open(path, name)
        if more := [column for column in reader.schema.names if column not in self.types]:
            raise Disagreement(
                f"{name}: the column {more[0]!r} is not in the files before it; make them alike, "
                "or read them without streaming."
            )
        while (batch := self._next(reader, path, name)) is not None:
            table = pa.Table.from_batches([batch])
            columns = [
                table[column] if column in table.column_names else pa.nulls(len(table), TEXT)
                for column in self.types
            ]
            yield pa.table(columns, names=list(self.types)).cast(self._schema())

    def _open(self, path: str, name: str) -> pc.CSVStreamingReader:
        options: dict[str, Any] = {
            "parse_options": pc.ParseOptions(
                delimiter=self.config.delimiter, newlines_in_values=True
            ),
            "read_options": pc.ReadOptions(block_size=LARGEST_CSV_ROW),
        }
        try:
            with open(path, "rb") as stream:
                columns = pc.open_csv(stream, **options).schema.names
            if twice := [column for column in columns if columns.count(column) > 1]:
                raise InputError(f"{name}: two columns are named {twice[0]!r}; rename one.")
            as_text = pc.ConvertOptions(
                column_types=dict.fromkeys(columns, TEXT),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            )
            return pc.open_csv(open(path, "rb"), convert_options=as_text, **options)
        except pa.ArrowInvalid as error:
            raise _unreadable_csv(error, path, name) from error

    def _next(self, reader: pc.CSVStreamingReader, path: str, name: str) -> pa.RecordBatch | None:
        try:
            return reader.read_next_batch()
        except StopIteration:
            return None
        except pa.ArrowInvalid as error:
            raise _unreadable_csv(error, path, name) from error


def _unreadable_csv(error: Exception, path: str, name: str) -> InputError:
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if b"\0" in line:
                return InputError(
                    f"{name}: line {number} holds binary data; expected text in UTF-8."
                )
            try:
                line.decode()
            except UnicodeDecodeError as wrong:
                return InputError(_not_utf8(name, number, line[wrong.start]))
    return InputError(f"{name}: cannot be read ({error}); check its format.")
