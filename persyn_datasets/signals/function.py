"""Quality by the user's own reward function, of the kind that TRL's trainers take:
`f(prompts=, completions=, **columns) -> list of floats`.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Message
from persyn_datasets.data.tools import message
from persyn_datasets.signals import CALLS, Facts

# It may ask a judge, or draw: it is called each time.
FACTS = Facts(journalled=False, tools=True)
RewardFunction = Callable[..., Sequence[float | None]]


def resolve(path: str) -> RewardFunction:
    """The callable at a dotted path, e.g. `my_package.rewards.politeness`.

    Raises:
        InputError: nothing callable is there.
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"quality: {path!r} is not 'math-verify', not {{reward_model: …}} and not a "
            f"callable's path ({error})."
        ) from error
    if not callable(function):
        raise InputError(f"quality: {path!r} is a {type(function).__name__}; expected a callable.")
    return function


def score(
    rows: Sequence[tuple[list[Message], str]],
    columns: Mapping[str, list[Any]],
    function: RewardFunction | str,
) -> list[float | None]:
    """What the function returns, for all rows at once.

    `prompts` and `completions` are conversational, with `tool_calls` where an answer has some;
    every other column of the rows comes by its name.

    Raises:
        InputError: it returned something else than one number or None per row.
    """
    called = resolve(function) if isinstance(function, str) else function
    parameters = inspect.signature(called).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    columns = dict(columns)
    calls = columns.pop(CALLS, None) or [""] * len(rows)
    given = {
        "prompts": [messages for messages, _ in rows],
        "completions": [
            [json.loads(message(text, called))]
            for (_, text), called in zip(rows, calls, strict=True)
        ],
        **columns,
    }
    scores = list(called(**{k: v for k, v in given.items() if takes_all or k in parameters}))
    if len(scores) != len(rows):
        raise InputError(
            f"quality: {called} returned {len(scores)} scores for {len(rows)} responses."
        )
    return [None if score is None else float(score) for score in scores]


def check(spec: Mapping[str, Any], prompts: Any) -> None:
    """It is there, and it asks for no column that the prompts do not have."""
    function = spec["function"]
    called = resolve(function) if isinstance(function, str) else function
    known = {"prompts", "completions", "prompt_id", *prompts.column_names}
    required = [
        name
        for name, p in inspect.signature(called).parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    missing = [name for name in required if name not in known]
    if missing:
        raise InputError(
            f"quality: {called} asks for {missing[0]!r}, and the prompts have no such column; they "
            f"have {', '.join(sorted(known - {'prompts', 'completions'}))}."
        )


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The function's name, and the content of the file that it is written in.

    What that file imports is not looked at. A function without a file is known by its byte code.
    """
    function = spec["function"]
    called: Any = resolve(function) if isinstance(function, str) else function
    bound: Any = None
    if isinstance(called, partial):
        bound, called = repr((called.args, called.keywords)), called.func
    written: Any = called if hasattr(called, "__code__") else type(called)
    name = getattr(written, "__qualname__", "")
    return {"function": name, "bound": bound, "source": _source(written)}


def _source(written: Any) -> str | None:
    try:
        file = inspect.getsourcefile(inspect.unwrap(written))
    except TypeError:
        file = None
    if file and Path(file).is_file():
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    code = getattr(written, "__code__", None)
    if code is None:
        return None
    return hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()
