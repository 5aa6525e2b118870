"""The Arrow type of JSON values, such that each stays as it was written.

A column has a type where all its rows agree. Where they do not, it is text: a text as it stands,
anything else as its JSON. The same holds within lists and objects.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_KEYS = 500  # an object with more is a map, not a record: its JSON is kept as text
EXACT = 2**53  # integers up to here are floats without loss
NOTHING, TEXT = pa.null(), pa.string()
LARGE = pa.uint64()  # until a type is settled: an int64 beside which no float may stand
Columns = dict[str, pa.DataType]


class Number(float):
    """A float that remembers how it was written."""

    text: str

    def __new__(cls, text: str) -> "Number":
        number = super().__new__(cls, text)
        number.text = text
        return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return keys


# From a text to its value, with floats or with `Number`s. A key that comes twice is a ValueError.
decode: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=_object).decode
decode_as_written: Callable[[str], Any] = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=Number
).decode


def type_of(values: Sequence[Any]) -> pa.DataType:
    """The type that holds all the values as they are; text where they are of several kinds.

    Integers beside floats are floats if that loses nothing. Objects have the keys of all.
    """
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return NOTHING
    if kinds == {bool}:
        return pa.bool_()
    if kinds <= {int, float, Number}:
        return _type_of_numbers([v for v in values if v is not None], kinds)
    if kinds == {list}:
        return pa.list_(type_of(list(chain.from_iterable(v for v in values if v is not None))))
    if kinds == {dict}:
        columns = columns_of([v for v in values if v is not None])
        return _struct(columns)
    return TEXT


def _type_of_numbers(numbers: list[Any], kinds: set[type]) -> pa.DataType:
    integers = [v for v in numbers if type(v) is int]
    exact = all(abs(v) <= EXACT for v in integers)
    if kinds == {int}:
        fits = min(integers) >= -(2**63) and max(integers) < 2**63
        return (pa.int64() if exact else LARGE) if fits else TEXT
    return pa.float64() if exact else TEXT


def columns_of(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """The type of each key of the rows, in the order in which the keys first come."""
    keys = dict.fromkeys(chain.from_iterable(rows))
    return {key: type_of([row.get(key) for row in rows]) for key in keys}


def _struct(columns: Columns) -> pa.DataType:
    return pa.struct(list(columns.items())) if len(columns) <= MAX_KEYS else TEXT


def merged(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type of the values of both; see `type_of`."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if {a, b} == {pa.int64(), LARGE}:
        return LARGE
    if pa.types.is_list(a) and pa.types.is_list(b):
        return pa.list_(merged(a.value_type, b.value_type))
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _struct(merged_columns(*({f.name: f.type for f in t} for t in (a, b))))
    return TEXT


def merged_columns(a: Columns, b: Columns) -> Columns:
    """The types of the columns of both."""
    return {key: merged(a.get(key, NOTHING), b.get(key, NOTHING)) for key in a | b}


def fitted(value: Any, wanted: pa.DataType) -> Any:
    """The value, with its JSON wherever the type is text and it is none."""
    if value is None:
        return None
    if wanted == TEXT:
        if isinstance(value, str):
            return value
        return value.text if isinstance(value, Number) else json.dumps(value, ensure_ascii=False)
    if pa.types.is_list(wanted):
        return [fitted(v, wanted.value_type) for v in value]
    if pa.types.is_struct(wanted):
        return {f.name: fitted(value.get(f.name), f.type) for f in wanted}
    return value


def settled(found: pa.DataType, nothing: pa.DataType = NOTHING) -> pa.DataType:
    """The type of a column, once all values are known.

    Args:
        nothing: of what has had no value yet; of a stream, whose later rows are not known, `TEXT`.
    """
    if found == LARGE:
        return pa.int64()
    if pa.types.is_null(found):
        return nothing
    if pa.types.is_list(found):
        return pa.list_(settled(found.value_type, nothing))
    if pa.types.is_struct(found):  # Arrow has objects without keys, and Parquet has not
        fields = [(field.name, settled(field.type, nothing)) for field in found]
        return pa.struct(fields) if fields else TEXT
    return found


def is_exact(column: pa.ChunkedArray, integers: bool = False) -> bool:
    """Whether no float (with `integers`: no number) in it may have lost digits as one."""
    kind = column.type
    if pa.types.is_floating(kind) or (integers and pa.types.is_integer(kind)):
        least, most = pc.min_max(column).as_py().values()
        return most is None or not (most > EXACT or least < -EXACT)
    if pa.types.is_list(kind):
        return is_exact(pc.list_flatten(column), integers)
    if pa.types.is_struct(kind):
        fields = (pc.struct_field(column, i) for i in range(kind.num_fields))
        return all(is_exact(field, integers) for field in fields)
    return True


def shown(kind: pa.DataType) -> str:
    """The type in words, for people."""
    if pa.types.is_list(kind):
        return f"a list of {shown(kind.value_type)}"
    if pa.types.is_struct(kind):
        fields = ", ".join(f"{field.name!r}: {shown(field.type)}" for field in kind)
        return f"an object of {{{fields}}}"
    words = {NOTHING: "nothing", TEXT: "text", pa.int64(): "an integer", pa.float64(): "a number"}
    words[pa.bool_()] = "true or false"
    return words.get(kind, str(kind))


def first_half_character(rows: Iterable[Any]) -> int:
    """The place of the first row with half of a surrogate pair, which no UTF-8 text has."""
    return next(place for place, row in enumerate(rows) if _has_half_character(row))


def _has_half_character(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
