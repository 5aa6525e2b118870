"""What a response is worth to the student: one signal a file.

What the student itself says of it: learnability, r_l, is `learnability.py`, and r_t `target.py`;
both read `log_probs.py`'s log p_θ of each token in the text that `trained_text.py` renders.

Quality, r_q, is any file here with these two functions; a recipe's `quality` names it by its file's
name (`math-verify` is `math_verify.py`), or by a key of that name that holds what it needs
(`{reward_model: org/name}`). A callable, or the dotted path of one, is `function.py`.

    score(rows, columns, **spec) -> list[float | None]
        The quality of each row (messages, response text); None: it has none and takes no part.
        `columns` are the other columns, one cell per row.
    check(spec, prompts) -> None
        Raises `InputError` for what would not work with these prompts, before anything is paid for,
        without loading weights: where scores are kept, one row is scored when a build begins.

and, where the defaults do not fit, these facts about itself:

    identity(spec) -> dict      what its scores depend on, as JSON values; default: `spec`
    JOURNALLED = False          its scores are made each time; default: they are kept
    COLUMNS = ("answer",)       the columns that its scores depend on; default: none
    CUT = 0.0                   of an answer that `max_tokens` cut off; default: its score
    KEYS = {"judge", "prompt"}  the keys that a recipe may give it; default: the signal's name
    NAME = "math-verify"        how recipes write it; default: its file's name
    asked(spec) -> Teacher      whom it asks over a server; then `score` also takes the `account`,
                                and `requests_of_prompt(spec, answers)` says how often it asks
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher

Quality = str | Mapping[str, Any] | Callable[..., Any]
FUNCTION = "function"


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
    known = module.KEYS if hasattr(module, "KEYS") else {found[0]}
    for key in quality:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise InputError(
                f"quality: {_written(found[0])} has no key {key!r}; it has "
                f"{', '.join(sorted(known))}." + (f" Did you mean {near[0]!r}?" if near else "")
            )
    return module, dict(quality)


def check(quality: Quality, prompts: Any) -> None:
    """Check a recipe's quality with its prompts; see the signal's own `check`."""
    signal, spec = signal_of(quality)
    signal.check(spec, prompts)


def asks(quality: Quality) -> Teacher | None:
    """Whom the signal asks for its scores, if anybody."""
    signal, spec = signal_of(quality)
    asked: Teacher | None = signal.asked(spec) if hasattr(signal, "asked") else None
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


def _last(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")


def _is_quality(module: ModuleType) -> bool:
    return hasattr(module, "score") and hasattr(module, "check")


def _named(key: str) -> str | None:
    """The file of a signal's name."""
    name = key.replace("-", "_")
    files = {module.name for module in iter_modules(__path__)} - {FUNCTION}
    return name if name in files and key == _written(name) and _is_quality(_module(name)) else None


def _written(name: str) -> str:
    module = _module(name)
    return getattr(module, "NAME", name)
