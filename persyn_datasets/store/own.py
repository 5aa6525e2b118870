"""The servers, keys, files and code that the user of this machine has named in teachers of theirs.

A router says how its teachers are asked. A router that comes from elsewhere, in a folder or from
the Hub, would name servers and keys in the user's place; so they count only where the user has
named the very same before, in a recipe or in Python, or names them again.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from persyn_datasets.store.journal import default_root, digest

# What of a teacher decides where prompts and keys go, what is read and what is run.
KEYS = ("engine", "model", "base_url", "api_key_env", "trust_remote_code", "engine_args")


def remember(teachers: Iterable[Mapping[str, Any]]) -> None:
    """The user has named these teachers, as `Teacher.to_dict` gives them."""
    for name in {_name(teacher) for teacher in teachers}:
        for folder in _folders():
            with suppress(OSError):  # read-only: the user is asked to name them again
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()


def is_own(teacher: Mapping[str, Any]) -> bool:
    """Whether the user has named a teacher that goes to the same places before."""
    return any((folder / _name(teacher)).exists() for folder in _folders())


def _name(teacher: Mapping[str, Any]) -> str:
    return digest({key: teacher.get(key) for key in KEYS})


def _folders() -> list[Path]:
    return [default_root() / "own", Path(HF_HOME) / "persyn" / "own"]
