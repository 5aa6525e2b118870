"""The functions that a prompt offers, and the calls with which a teacher answers.

    tools       [{"type": "function", "function": {"name": …, "description": …, "parameters": …}}]
    tool_calls  [{"type": "function", "function": {"name": …, "arguments": {…}}}]

This is the form of OpenAI's API and of chat templates (transformers, "Tool use"), which want the
arguments as an object. Both are kept as JSON text, so that a column's type depends on nobody's
parameters.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Json

from persyn_datasets.config.errors import InputError

COLUMN = "tools"
_EXPECTED = (
    "expected a list of {'type': 'function', 'function': {'name': …, 'parameters': …}}, the "
    "parameters as a JSON schema, or the JSON of such a list. Rename the column if it is something "
    "else"
)


def to_tools(cell: Any, where: str, exact: bool = False) -> str:
    """The functions of a cell as JSON text; empty if it offers none. `where` names it in errors.

    Args:
        exact: a None within the cell was written there. Else it is how Arrow fills up objects that
            have fewer keys than others, and is left out.

    Raises:
        InputError: it is something else.
    """
    found = cell
    if isinstance(cell, str):
        try:
            found = _loads(cell) if cell.strip() else None
        except ValueError as error:
            raise InputError(
                f"{where}: {cell[:60]!r} is not JSON ({error}); {_EXPECTED}."
            ) from None
    elif not exact:
        found = _without_none(cell)
    if found is None:
        return ""
    if not isinstance(found, list):
        raise InputError(f"{where}: found a {type(found).__name__}; {_EXPECTED}.")
    for i, tool in enumerate(found):
        if not _is_function(tool):
            raise InputError(f"{where}: item {i} is {repr(tool)[:80]}; {_EXPECTED}.")
    return _dumps(found) if found else ""


def tools_of(batch: Mapping[str, Sequence[Any]]) -> list[str]:
    """What each row of a batch offers, from its column `tools` if there is one; see `to_tools`."""
    if COLUMN not in batch:
        return [""] * len(batch[next(iter(batch))])  # of `map`'s batches one column is decoded
    return [
        to_tools(cell, f"row {i} of the batch, column {COLUMN!r}")
        for i, cell in enumerate(batch[COLUMN])
    ]


def offered(rows: Any) -> list[str]:
    """What each prompt of a table by `load_prompts` offers, as JSON text; empty if nothing."""
    if COLUMN not in rows.column_names:
        return [""] * len(rows)
    return [text or "" for text in rows[COLUMN]]


def to_calls(cell: Any, exact: bool = True) -> str:
    """The calls of an assistant's message as JSON text; empty if there are none.

    Arguments may be an object, its JSON, or nothing where a function takes none. What else a call
    holds, such as a server's `id`, is left out. `exact`: see `to_tools`.

    Raises:
        ValueError: they are something else, or arguments are not JSON.
    """
    found = _loads(cell) if isinstance(cell, str) and cell.strip() else cell
    if not found:
        return ""
    if not isinstance(found, list):
        raise ValueError(f"the tool_calls are a {type(found).__name__}, not a list")
    text = _dumps([_call(call, exact) for call in found])
    try:
        Json().decode_example(text)
    except ValueError as error:
        raise ValueError(f"`datasets` cannot read the arguments of a call ({error})") from None
    return text


def message(text: str, calls: str) -> str:
    """An assistant's message as JSON, for a column of `Json`.

    Not as an object: `datasets` (5.2) keeps nine decimals of a number that it encodes itself.
    """
    said: dict[str, Any] = {"role": "assistant", "content": text}
    return _dumps(said | ({"tool_calls": json.loads(calls)} if calls else {}))


def is_exact(feature: Any) -> bool:
    """Whether a column of this type has its objects as they were written."""
    return "Json(" in repr(feature)


def _is_function(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        return False
    name, parameters = function.get("name"), function.get("parameters")
    return isinstance(name, str) and bool(name) and isinstance(parameters, dict | None)


def _call(call: Any, exact: bool) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"a call without a function's name: {repr(call)[:80]}")
    assert isinstance(function, dict)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = _loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            shown = repr(arguments)[:80]
            raise ValueError(f"the arguments of {name!r} are not JSON ({error}): {shown}") from None
    elif not exact:
        arguments = _without_none(arguments)
    if not isinstance(arguments, dict | None):
        raise ValueError(f"the arguments of {name!r} are no object: {repr(arguments)[:80]}")
    return {"type": "function", "function": {"name": name, "arguments": arguments or {}}}


def _without_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _loads(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    return json.loads(text, parse_constant=refuse)


def _dumps(value: Any) -> str:
    """JSON can hold half a surrogate pair, Arrow cannot."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace").decode()
