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

# What of a teacher decides none of that: how it is called, counted and paced, and the words that it
# gets. Any other key decides, one that is added tomorrow included.
HARMLESS = frozenset(
    "name family license size price tokens_per_second num_gpus concurrency requests_per_minute "
    "tokens_per_minute timeout system_prompt examples sampling chat_template_kwargs "
    "reasoning_effort response_format columns".split()
)


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
    return digest({key: value for key, value in teacher.items() if value and key not in HARMLESS})


def _folders() -> list[Path]:
    return [default_root() / "own", Path(HF_HOME) / "persyn" / "own"]
