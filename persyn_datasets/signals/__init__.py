"""What a response is worth to the student: one signal a file.

What the student itself says of it: learnability, r_l, is `learnability.py`, and r_t `target.py`;
both read `log_probs.py`'s log p_θ of each token in the text that `trained_text.py` renders.

Quality, r_q, is any file here with these three names; a recipe's `quality` names it by its file's
name (`math-verify` is `math_verify.py`), or by a key of that name that holds what it needs
(`{reward_model: org/name}`). A callable, or the dotted path of one, is `function.py`.

    FACTS: Facts
        What the rest of the package needs to know about it.
    score(rows, columns, **spec) -> list[float | None]
        The quality of each row (messages, response text); None: it has none and takes no part.
        `columns` are the other columns, one cell per row.
    check(spec, prompts) -> None
        Raises `InputError` for what would not work with these prompts, before anything is paid for,
        without loading weights: where scores are kept, one row is scored when a build begins.

Optional: `identity(spec) -> dict`, what its scores depend on, as JSON values; default: `spec`.
`resolved(spec) -> spec`, the same with the commit of what is on the Hub; default: `spec`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher

Quality = str | Mapping[str, Any] | Callable[..., Any]
FUNCTION = "function"
CALLS = "tool_calls of completions"  # no column of a table of prompts


@dataclass(frozen=True)
class Facts:
    """What a quality signal says about itself.

    Attributes:
        name: how recipes write it. Default: its file's name.
        keys: those that a recipe may give it. Default: its name.
        columns: those of the prompts that its scores depend on.
        journalled: its scores are kept in the journal. Else they are made each time.
        cut: the score of an answer that `max_tokens` cut off. Default: as of any other.
        asks: it asks a model behind a server. Then `score` also takes the `account`, and the file
            has `asked(spec) -> Teacher`, `template(spec)`, the text that asks, and
            `requests_of_prompt(spec, answers)`, how often it asks about a prompt.
        tools: it sees calls of functions: `score` finds them in the column `CALLS`, as JSON text of
            each row. Else it is not asked where prompts offer some: it would take a call for an
            empty answer.
    """

    name: str = ""
    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    journalled: bool = True
    cut: float | None = None
    asks: bool = False
    tools: bool = False


def names() -> list[str]:
    """Of all quality signals, as recipes write them."""
    found = [module.name for module in iter_modules(__path__)]
    return [_written(name) for name in found if name != FUNCTION and _is_quality(_module(name))]


def signal_of(quality: Quality) -> tuple[ModuleType, dict[str, Any]]:
    """The signal that a recipe's `quality` names, and the arguments of its `score`.

    Raises:
        InputError: there is none, or it does not take these keys.
    """
    if callable(quality):
        return _module(FUNCTION), {FUNCTION: quality}
    if isinstance(quality, str):
        if name := _named(quality):
            return _module(name), {}
        function = _module(FUNCTION)
        function.resolve(quality)
        return function, {FUNCTION: quality}
    found = [name for key in quality if (name := _named(key))]
    if len(found) != 1:
        raise InputError(
            f"quality: found {dict(quality)}; expected the key 'reward_model', or another signal's "
            f"({', '.join(names())})."
        )
    module = _module(found[0])
    known = module.FACTS.keys or (found[0],)
    for key in quality:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise InputError(
                f"quality: {_written(found[0])} has no key {key!r}; it has "
                f"{', '.join(sorted(known))}." + (f" Did you mean {near[0]!r}?" if near else "")
            )
    return module, dict(quality)


def facts_of(quality: Quality) -> Facts:
    """What the signal says about itself."""
    facts: Facts = signal_of(quality)[0].FACTS
    return facts


def check(quality: Quality, prompts: Any) -> None:
    """Check a recipe's quality with its prompts; see the signal's own `check`."""
    signal, spec = signal_of(quality)
    signal.check(spec, prompts)


def check_tools(quality: Quality) -> None:
    """Raises `InputError`: the signal sees no calls of functions."""
    if not facts_of(quality).tools:
        raise InputError(
            f"quality: prompts have `tools`, and {shown(quality)} sees the text of an answer and "
            "not what it calls. Take a function of your own, which finds the calls in its "
            "completions as `tool_calls`; or remove the column."
        )


def asks(quality: Quality) -> Teacher | None:
    """Whom the signal asks for its scores, if anybody."""
    signal, spec = signal_of(quality)
    asked: Teacher | None = signal.asked(spec) if signal.FACTS.asks else None
    return asked


def shown(quality: Quality) -> str:
    """The signal in a few words."""
    if judge := asks(quality):
        how = "pairwise" if signal_of(quality)[1].get("pairwise") else "pointwise"
        return f"{judge.name}, {how}"
    signal, spec = signal_of(quality)
    return str(spec[_written(_last(signal))]) if spec else _written(_last(signal))


def identity(quality: Quality) -> dict[str, Any]:
    """Every fact that the scores depend on beside the rows, as JSON values."""
    signal, spec = signal_of(quality)
    facts = signal.identity(spec) if hasattr(signal, "identity") else spec
    return {"signal": _last(signal), **facts}


def resolved(quality: Quality) -> Quality:
    """The same quality, whose model on the Hub is from now on this very commit."""
    signal, spec = signal_of(quality)
    return signal.resolved(spec) if hasattr(signal, "resolved") else quality


def _last(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")


def _is_quality(module: ModuleType) -> bool:
    return hasattr(module, "FACTS")


def _named(key: str) -> str | None:
    """The file of a signal's name."""
    name = key.replace("-", "_")
    files = {module.name for module in iter_modules(__path__)} - {FUNCTION}
    found = name in files and _is_quality(_module(name)) and key == _written(name)
    return name if found else None


def _written(name: str) -> str:
    return _module(name).FACTS.name or name
