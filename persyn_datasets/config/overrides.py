"""Overrides of a recipe or a router, `key=value`; and what of a foreign one counts only so."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import WHERE_AND_HOW_FAST


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
    named = {override.partition("=")[0] for override in overrides}
    for key, value in _of_this_machine(values) if foreign else ():
        if key not in named and not any(key.startswith(f"{place}.") for place in own):
            raise InputError(
                f"{foreign} sets {key} to {value!r}, which runs code here, or names a server, file "
                f"or variable for you. If you want that, say so: --set {key}={value}"
            )
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise InputError(f"--set {override}: expected key=value.")
        try:
            _set(values, key.split("."), yaml.safe_load(value), override)
        except yaml.YAMLError as error:
            raise InputError(f"--set {override}: the value is not YAML: {error}") from error


def _of_this_machine(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The entries that run code here, or name a server, a file or a variable."""
    if isinstance(values, dict | list):
        for part, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _of_this_machine(value, f"{key}.{part}".lstrip("."))
        return
    last = key.rpartition(".")[2]
    dotted_path = key == "quality" and values != "math-verify"
    file = (last in ("path", "model", "backbone", "reward_model") or ".against." in key) and (
        Path(str(values)).exists() or any(c in str(values) for c in ("*", "?", "[", "://"))
    )
    # Many of vLLM's arguments name classes, files or servers.
    argument = ".engine_args." in key and last not in WHERE_AND_HOW_FAST - {
        "distributed_executor_backend"
    } | {"dtype"}
    if values and (
        last in ("trust_remote_code", "base_url", "api_key_env", "include_path")
        or ".base_url." in key
        or dotted_path
        or file
        or argument
    ):
        yield key, values


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
