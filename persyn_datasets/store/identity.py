"""What a name stands for, by content: of models, files and folders.

A path or a branch may hold other weights tomorrow. Everything that is kept for later (scores,
builds, routers, models in memory) is therefore named by what was read: a folder by the bytes of its
files, a model on the Hub by its commit.
"""

import hashlib
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import RANGES, WHERE_AND_HOW_FAST, Sampling, Teacher
from persyn_datasets.store.journal import default_root, digest, replace_file

# A smaller file is read each time; the hash of a larger one is kept for other processes.
LARGE_BYTES = 2**20
# A file that changed so shortly ago may change again within one tick of the file system's clock.
SETTLED_SECONDS = 2.0
SINCE_0_1_0 = ("chat_template_kwargs", "reasoning_effort", "response_format", "extra_body")
# Of a teacher, what can change its responses; beside these some of its `engine_args`.
OF_RESPONSES = (
    "model",
    "engine",
    "revision",
    "base_url",
    "system_prompt",
    "examples",
    "sampling",
)


class KnownByContent(ABC):
    """A stage that a hash of its pickle identifies, by what it reads rather than by where it lies.

    `datasets` finds the rows that `map` made before by such a hash. Of a stage that holds a path,
    it would be the same after the model at that path was trained on.
    """

    @abstractmethod
    def content(self) -> Any:
        """What the names in the stage stand for now, as values that can be pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"content": self.content()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({key: value for key, value in state.items() if key != "content"})


def content_hash(path: str | Path) -> str | None:
    """The hash of a file's bytes, or of all files in a folder with their names; None: neither.

    Every byte counts. The hash of a large file is kept beside the journal and taken again while
    device, inode, size, and both times of the file are what they were. The time of the last change
    of the inode cannot be set back, so that another file of the same size and date is seen.

    Hidden files, and a trainer's `checkpoint-*` folders, are no part of a folder's content.
    """
    path = Path(path)
    if path.is_file():
        return _file_hash(path)
    if not path.is_dir():
        return None
    return digest([(str(file.relative_to(path)), _file_hash(file)) for file in _files(path)])


def weights_of(model: str, revision: str | None = None) -> str:
    """What a model's name stands for now: a local folder's `content_hash`, or the commit on the Hub
    that `revision` (default: the main branch) points to.

    Without a connection it is the commit that the cache has.

    Raises:
        InputError: neither a folder nor a model on the Hub that can be reached.
    """
    return content_hash(model) or commit_of(model, revision)


def commit_of(model: str, revision: str | None = None) -> str:
    """The commit of a model on the Hub; see `weights_of`."""
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        return Path(hf_hub_download(model, "config.json", revision=revision)).parent.name
    except (OSError, ValueError) as error:
        raise InputError(
            f"Model {model!r} is not a folder, and was not found on the Hub: "
            f"{str(error).splitlines()[0]} Give a folder, or the id of a model that you may read."
        ) from error


def teacher_identity(teacher: Teacher, commit: str | None = None) -> dict[str, Any]:
    """All that can change a teacher's response, and nothing else: its address in the journal.

    Args:
        commit: of a model on the Hub that is loaded here, where the branch is now.
    """
    identity = {key: value for key, value in teacher.to_dict().items() if key in OF_RESPONSES}
    if teacher.base_urls:
        identity["base_url"] = teacher.base_urls[0]
    arguments = {k: v for k, v in teacher.engine_args.items() if k not in WHERE_AND_HOW_FAST}
    if arguments:
        identity["engine_args"] = arguments
    # Only where they are stated: a teacher of version 0.1.0 has none, and its answers stay valid.
    sampling = {key: value for key, value in identity["sampling"].items() if key not in RANGES}
    identity["sampling"] = sampling | (teacher.sampling or Sampling()).stated
    identity |= {key: value for key in SINCE_0_1_0 if (value := getattr(teacher, key))}
    on_the_hub = _hub_weights(teacher, commit) if commit else None
    return identity | {"weights": response_weights(teacher.model) or on_the_hub}


def response_weights(path: str) -> str | None:
    """A local teacher's weights as journals of responses name them; None for a Hub id.

    Journals of version 0.1.0 name them by samples of their bytes, and stay valid. Where two folders
    differ outside the samples, the one that came first owns the old name, and the other adds its
    `content_hash`.
    """
    if (content := content_hash(path)) is None or not (sampled := _sampled_hash(path)):
        return None
    return sampled if _owner(sampled, content) == content else f"{sampled}-{content}"


def _hub_weights(teacher: Teacher, commit: str) -> str | None:
    """A commit as journals of responses name it; None: as in all journals before commits counted.

    Those answers stay valid for the first commit that is seen. Where the branch moves on, another
    commit adds itself.
    """
    branch = digest(["hub", teacher.model, teacher.revision])
    return None if _owner(branch, commit) == commit else commit


def _owner(name: str, content: str) -> str:
    """The content that has this name in the journal, which is this one if the name is free."""
    claim = default_root() / "weights" / name
    if not claim.exists():
        with suppress(OSError):  # a journal that cannot be written is refused where it is opened
            claim.parent.mkdir(parents=True, exist_ok=True)
            replace_file(claim, content.encode())
    return claim.read_text() if claim.exists() else content


def facts_here(model: str, revision: str | None = None) -> tuple[Any, ...]:
    """What tells within one process that a model is another one now, at little cost: of each file
    in a folder its name, device, inode, size and times, in nanoseconds; of a Hub id the commit that
    the cache has.
    """
    folder = Path(model)
    if folder.is_dir():
        return tuple((str(f), *_facts(f)) for f in _files(folder))
    try:
        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return ()
    return (Path(config).parent.name,) if isinstance(config, str) else ()


def _facts(file: Path) -> tuple[int, int, int, int, int]:
    of = file.stat()
    return of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns


def _files(folder: Path) -> Iterator[Path]:
    for place in sorted(folder.iterdir()):
        if place.name.startswith("."):
            continue
        if place.is_file():
            yield place
        elif place.is_dir() and not (place.is_symlink() or place.name.startswith("checkpoint-")):
            yield from _files(place)


def _file_hash(file: Path) -> str:
    if file.stat().st_size < LARGE_BYTES:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    *facts, modified, changed = _facts(file)
    kept = default_root() / "hashes" / digest([os.path.realpath(file), *facts, modified, changed])
    if kept.exists():
        return kept.read_text()
    begun = time.time()
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if max(modified, changed) / 1e9 + SETTLED_SECONDS < begun:
        with suppress(OSError):  # read-only: it is read again next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_file(kept, found.encode())
    return found


def _sampled_hash(path: str) -> str | None:
    """Version 0.1.0's: each file's name, size and 64 KiB of every 16 MiB."""
    folder, sha = Path(path), hashlib.sha256()
    if not folder.is_dir():
        return None
    for file in sorted(f for f in folder.iterdir() if f.is_file()):
        size = file.stat().st_size
        sha.update(f"{file.name}:{size}".encode())
        with file.open("rb") as data:
            for offset in range(0, size, 2**24):
                data.seek(offset)
                sha.update(data.read(2**16))
    return sha.hexdigest()[:32]
