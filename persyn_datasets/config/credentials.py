"""No key in what a recipe states: recipes, routers and cards are published, and addresses are
written into the journal and servers' logs.

A key in the path of an address looks like any other path, and is not found.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from persyn_datasets.config.errors import InputError

# Any other parameter of a query may hold a key, whatever its name.
HARMLESS_PARAMETERS = {"api-version", "download"}
# A text whose name ends like this is a key, except OpenAI's label for requests that begin alike.
_OF_KEYS = re.compile(r"(keys?|token|secret|password|authorization|credentials?|cookie)$", re.I)
HARMLESS_NAMES = {"prompt_cache_key"}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USE_A_VARIABLE = "Remove it, and name the variable that holds the key with api_key_env."


def check_server(where: str, stated: Mapping[str, Any]) -> None:
    """Raises `InputError` if what a teacher, a judge or a reward server is stated by holds a key.

    No message repeats a value, since that may be the key.

    Args:
        where: written before the key's name, e.g. `quality.`.
    """
    urls = stated.get("base_url") or ()
    for url in [urls] if isinstance(urls, str) else urls:
        check_address(f"{where}base_url", str(url), _USE_A_VARIABLE)
    variable = stated.get("api_key_env")
    if variable and not _VARIABLE.fullmatch(str(variable)):
        raise InputError(
            f"{where}api_key_env is not the name of an environment variable; expected one, e.g. "
            "MY_KEY after `export MY_KEY=…`, and never the key itself."
        )
    for key in ("extra_body", "engine_args"):
        _check_names(f"{where}{key}", stated.get(key))


def check_address(where: str, address: str, fix: str) -> None:
    """Raises `InputError` if a URL has a part that may hold a key. Local paths may hold anything.

    Args:
        where: the key that states the address.
        fix: a sentence that says what to do instead.
    """
    if "://" not in address:
        return
    url = urlsplit(address)
    parameters = {name for name, _ in parse_qsl(url.query, keep_blank_values=True)}
    parts = {
        "a user or password": "@" in url.netloc,
        "a query (?…)": bool(parameters - HARMLESS_PARAMETERS),
        "a fragment (#…)": bool(url.fragment),
    }
    if found := [part for part, is_there in parts.items() if is_there]:
        raise InputError(
            f"{where} is a URL with {found[0]}, which may hold a key and would be published. {fix}"
        )


def _check_names(where: str, values: Any) -> None:
    for path in _paths_of_texts(values):
        name = next((part for part in reversed(path) if not part.isdigit()), "")
        if _OF_KEYS.search(name) and name not in HARMLESS_NAMES:
            raise InputError(
                f"{where}.{'.'.join(path)} is named like a key, and would be published. Remove it, "
                "and put the key into an environment variable: api_key_env names that of a "
                "server, and HF_TOKEN is that of the Hub."
            )


def _paths_of_texts(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each text in nested values."""
    if isinstance(values, str):
        yield path
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _paths_of_texts(value, (*path, str(key)))
    elif isinstance(values, list | tuple):
        for i, value in enumerate(values):
            yield from _paths_of_texts(value, (*path, str(i)))
