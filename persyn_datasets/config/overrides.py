"""Overrides of a recipe or a router, `key=value`; and what of a foreign one counts only so."""

import os
from collections.abc import Collection, Iterable, Iterator
from shlex import quote
from typing import Any

import yaml

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import WHERE_AND_HOW_FAST

# A key of these names decides for the user, at any depth: code, servers and what they are sent.
DECIDES = {"trust_remote_code", "base_url", "api_key_env", "include_path", "extra_body"}
# A key of these names, or below them, decides where it names something that may lie here.
PLACES = {"path", "model", "backbone", "reward_model", "against", "data"}
# Of `quality`, the keys of signals that run no code. A signal that is not here counts as code.
WITHOUT_CODE = {"reward_model", "revision", "judge", "prompt", "scale", "samples", "pairwise"}
# Many of vLLM's other arguments name classes, files or servers.
ARGUMENTS = WHERE_AND_HOW_FAST - {"distributed_executor_backend"} | {"dtype"}
Place = tuple[str, ...]


def apply_overrides(
    values: dict[str, Any],
    overrides: Iterable[str],
    foreign: str = "",
    own: Collection[str] = (),
) -> None:
    """Set `key=value` in nested values. If they come from elsewhere, `foreign` says from where;
    keys below one of `own` are the user's nevertheless.

    Raises:
        InputError: no such key; or foreign values would run code, name a server or read a file or
            variable of this machine, and no override says so too.
    """
    overrides = list(overrides)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise InputError(f"--set {override}: expected key=value.")
        try:
            _set(values, key.split("."), yaml.safe_load(value), override)
        except yaml.YAMLError as error:
            raise InputError(f"--set {override}: the value is not YAML: {error}") from error
    if foreign:
        named = {override.partition("=")[0] for override in overrides}
        _check_foreign(values, foreign, {*own, *named})


def _check_foreign(values: dict[str, Any], foreign: str, users: Collection[str]) -> None:
    """Raises `InputError` for what decides for the user and is not at or below one of the `users`
    keys.
    """
    # As they are after the overrides: code that the user allows runs at a revision of theirs, too.
    found = {".".join(place): value for place, value in _decisions(values)}
    left = {
        key: value
        for key, value in found.items()
        if not any(key == of or key.startswith(f"{of}.") for of in users)
    }
    if left:
        stated = ", ".join(f"{key} to {value!r}" for key, value in left.items())
        # Quoted, since somebody else's value is to be pasted into a shell.
        repeated = " ".join(f"--set {quote(f'{key}={value}')}" for key, value in left.items())
        raise InputError(
            f"{foreign} sets {stated}, which runs code here, or names a server, file or variable "
            f"for you. If you want that, say so: {repeated}"
        )


def _decisions(
    values: Any, place: Place = (), runs_code: bool = False
) -> Iterator[tuple[Place, Any]]:
    """The entries that decide for the user, by their place.

    Args:
        runs_code: the section they are in allows a model's own code.
    """
    if isinstance(values, dict):
        runs_code = bool(values.get("trust_remote_code"))
        for key, value in values.items():
            yield from _decisions(value, (*place, str(key)), runs_code)
    elif isinstance(values, list):
        for i, value in enumerate(values):
            yield from _decisions(value, (*place, str(i)), runs_code)
    elif values and _decides(place, values, runs_code):
        yield place, values


def _decides(place: Place, value: Any, runs_code: bool) -> bool:
    if DECIDES.intersection(place):
        return True
    # Whose code it is, and which: anybody may open a pull request, refs/pr/9.
    if runs_code and place[-1] in ("model", "reward_model", "revision"):
        return True
    if "engine_args" in place:
        below = place[place.index("engine_args") + 1 :]
        return not below or below[0] not in ARGUMENTS
    if place == ("quality",):
        return bool(value != "math-verify")
    if place[0] == "quality" and place[1] not in WITHOUT_CODE:
        return True
    return not PLACES.isdisjoint(place) and _may_lie_here(str(value))


def _may_lie_here(named: str) -> bool:
    """Whether this is more than the id of a repository: a path, a pattern or a URL."""
    return (
        os.path.exists(named)
        or named.startswith(("/", "~", "."))
        or any(part in named for part in ("://", "*", "?", "[", "\\"))
    )


def _set(values: Any, path: list[str], value: Any, override: str) -> None:
    *above, last = path
    for key in above:
        place = _position(values, key, override)
        if isinstance(values, dict) and values.get(key) is None:  # not there, or written as null
            values[key] = {}
        values = values[place]
    values[_position(values, last, override)] = value


def _position(values: Any, key: str, override: str) -> str | int:
    if isinstance(values, dict):
        return key
    if isinstance(values, list) and key.isdigit() and int(key) < len(values):
        return int(key)
    found = (
        f"a list of {len(values)} (counting from 0)" if isinstance(values, list) else repr(values)
    )
    raise InputError(f"--set {override}: there is no {key!r} in {found}.")
