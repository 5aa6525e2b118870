"""The files of a build: are they all there, and is the router the one that the build made?"""

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from persyn_datasets.store.identity import content_hash
from persyn_datasets.store.journal import digest

TABLES = ["dataset/*/*.parquet"]
ROUTER_FILES = [
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
]


class Files(TypedDict, total=False):
    """What a finished build notes of its files: the paths of its tables and router, and what the
    router's files are. Version 0.1.0 noted neither.
    """

    files: list[str]
    router_files: str | None


def written(output: Path) -> Files:
    """The files of a build that is finished now."""
    router = [f"router/{pattern}" for pattern in ROUTER_FILES]
    paths = [str(f.relative_to(output)) for f in _files(output, [*TABLES, *router])]
    return {"files": paths, "router_files": router_digest(output / "router")}


def are_whole(noted: Files, output: Path) -> bool:
    """Whether the files are those that the build noted."""
    if not all((output / path).is_file() for path in noted.get("files", [])):
        return False
    return "router_files" not in noted or noted["router_files"] == router_digest(output / "router")


def router_digest(folder: Path) -> str | None:
    """What a router's files are; None if there are none."""
    return digest_of(router_files(folder))


def router_files(folder: Path) -> list[Path]:
    """A router's files, and nothing that a user put beside them."""
    return _files(folder, ROUTER_FILES)


def digest_of(files: Iterable[Path]) -> str | None:
    """What these files are, by their names and bytes; None if there are none."""
    found = {f.name: content_hash(f) for f in files}
    return digest(found) if found else None


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()})
