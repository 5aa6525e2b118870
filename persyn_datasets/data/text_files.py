"""JSON Lines, JSON, CSV and TSV as `datasets` builders that keep texts and numbers as written.

The loaders of `datasets` guess: "1969-07-16" becomes a time stamp, a CSV's 007 becomes 7, and a
number beside texts turns these into numbers. Here every cell of a CSV is text, and a column of a
JSON file has a type only where all its rows agree; see `json_types`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.json as pj
from datasets import ArrowBasedBuilder, BuilderConfig, DatasetInfo, Features, SplitGenerator
from datasets.exceptions import DatasetGenerationError

from persyn_datasets.config.errors import InputError
from persyn_datasets.data import json_types as types
from persyn_datasets.data.json_types import NOTHING, TEXT, Columns

BYTES_AT_ONCE = 8 << 20
BYTES_OF_A_THREAD = 1 << 20
LARGEST_CSV_ROW = 16 << 20  # bytes
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
            nothing = TEXT if dl_manager.is_streaming else NOTHING
            self.types = _settled(next(self._all_types(), {}), nothing)
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
            self.types = _settled(reduce(types.merged_columns, self._all_types()))
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
    """JSON Lines, and files that are one list, which are read as a whole.

    Arrow's reader is quick and exact once it knows the types. What it refuses is read by Python's,
    which finds types, writes numbers among texts as texts, and names the line of a mistake.
    """

    def _all_types(self) -> Iterator[Columns]:
        known: Columns = {}
        for file in self._files:
            for part in _parts(*file):
                table = part.quick(pa.schema(list(_settled(known).items())))
                if table is None or not all(types.is_exact(c, True) for c in table.columns):
                    found = self._wanted(types.columns_of(part.rows()))
                    known = types.merged_columns(known, found)
                    yield found

    def _wanted(self, found: Columns) -> Columns:
        return {k: TEXT if k in self.config.texts else of_k for k, of_k in found.items()}

    def _tables(self, path: str, name: str) -> Iterator[pa.Table]:
        assert self.types is not None
        schema = self._schema()
        for part in _parts(path, name):
            table = part.quick(schema)
            if table is None:
                rows = part.rows()
                found = self._wanted(types.columns_of(rows))
                if _settled(types.merged_columns(self.types, found)) != self.types:
                    self._disagree(part, rows)
                table = part.exact(rows, schema)
            if len(table):
                yield table

    def _disagree(self, part: "_Part", rows: list[dict[str, Any]]) -> None:
        """Raises `Disagreement` with the first row that does not fit."""
        assert self.types is not None
        for place, row in enumerate(rows):
            for key, of_key in self._wanted(types.columns_of([row])).items():
                known = self.types.get(key, NOTHING)
                if types.settled(types.merged(known, of_key)) != known:
                    raise Disagreement(
                        f"{part.name}: {part.place(place)} has {types.shown(of_key)} in {key!r}, "
                        f"where the rows before it have {types.shown(known)}; make them alike, or "
                        "leave out --streaming."
                    )


def _settled(found: Columns, nothing: pa.DataType = NOTHING) -> Columns:
    return {key: types.settled(of_key, nothing) for key, of_key in found.items()}


class _Part:
    """Some rows of a file, in Arrow's types or Python's."""

    def __init__(self, name: str):
        self.name = name

    def quick(self, schema: pa.Schema) -> pa.Table | None:
        """The rows, if they are of exactly these types."""
        raise NotImplementedError

    def rows(self, as_written: bool = False) -> list[dict[str, Any]]:
        """The rows, with `json_types.Number`s if they are to be `as_written`."""
        raise NotImplementedError

    def place(self, row: int) -> str:
        """What people call the row."""
        raise NotImplementedError

    def exact(self, rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        """The rows in types that hold for them, be it as text."""
        try:
            try:
                return pa.Table.from_pylist(rows, schema=schema)
            except (pa.ArrowTypeError, pa.ArrowInvalid):  # of what is text some cells are not
                whole = pa.struct(list(schema))
                fitted = [types.fitted(row, whole) for row in self.rows(as_written=True)]
                return pa.Table.from_pylist(fitted, schema=schema)
        except UnicodeEncodeError as error:
            place = self.place(types.first_half_character(rows))
            raise InputError(
                f"{self.name}: {place} holds half of a surrogate pair (one of \\ud800 to "
                "\\udfff alone), which is not valid text; repair it or remove the row."
            ) from error


class _Lines(_Part):
    """Lines with an object each; `start` is the number of the first."""

    def __init__(self, raw: bytes, start: int, name: str):
        super().__init__(name)
        self.raw, self.start = raw, start

    def quick(self, schema: pa.Schema) -> pa.Table | None:
        options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        try:
            self.raw.decode()  # Arrow does not look
            blocks = pj.ReadOptions(block_size=BYTES_OF_A_THREAD)
            table = pj.read_json(pa.BufferReader(self.raw), blocks, options)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            return None
        same = table.schema.equals(schema) and all(map(types.is_exact, table.columns))
        return table if same else None

    def _texts(self) -> Iterator[tuple[int, str]]:
        for number, line in enumerate(self.raw.splitlines(), start=self.start):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise InputError(_not_utf8(self.name, number, line[error.start])) from error
            if text.strip():
                yield number, text

    def rows(self, as_written: bool = False) -> list[dict[str, Any]]:
        decode = types.decode_as_written if as_written else types.decode
        return [
            _object(_decoded(decode, text, self.name, number), self.name, f"line {number}")
            for number, text in self._texts()
        ]

    def place(self, row: int) -> str:
        return f"line {[number for number, _ in self._texts()][row]}"


class _Items(_Part):
    """Items of a list, which were read as written; `start` is the place of the first."""

    def __init__(self, items: list[Any], start: int, name: str):
        super().__init__(name)
        self.items, self.start = items, start

    def quick(self, schema: pa.Schema) -> pa.Table | None:
        return None

    def rows(self, as_written: bool = False) -> list[dict[str, Any]]:
        return [
            _object({"text": item} if isinstance(item, str) else item, self.name, self.place(i))
            for i, item in enumerate(self.items)
        ]

    def place(self, row: int) -> str:
        return f"row {self.start + row}"


def _parts(path: str, name: str) -> Iterator[_Part]:
    """The rows of a file of JSON, some megabytes at once."""
    with open(path, "rb") as stream:
        number = 1
        while block := stream.read(BYTES_AT_ONCE):
            if number == 1:
                block = block.removeprefix(BYTE_ORDER_MARK)
                if block.lstrip()[:1] == b"[":
                    yield from _parts_of_list(block + stream.read(), name)
                    return
            block += stream.readline()
            if block.strip():
                yield _Lines(block, number, name)
            number += len(block.splitlines())


def _parts_of_list(raw: bytes, name: str) -> Iterator[_Part]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(_not_utf8(name, line, raw[error.start])) from error
    items = _decoded(types.decode_as_written, text, name, 1)
    for start in range(0, len(items), ROWS_AT_ONCE):
        yield _Items(items[start : start + ROWS_AT_ONCE], start, name)


def _not_utf8(name: str, line: int, byte: int) -> str:
    return (
        f"{name}: line {line} is not UTF-8 (byte 0x{byte:02x}); convert it, "
        f"e.g. `iconv -f latin1 -t utf-8 {name}`."
    )


def _decoded(decode: Callable[[str], Any], text: str, name: str, number: int) -> Any:
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


def _object(row: Any, name: str, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
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
