"""The journal: nothing that was paid for is lost, or bought twice.

    <root>/<kind>/<name>-<hash of the identity>/
        identity.json
        <one per writer>.log            lines: key, tab, record (JSON)
        <a log when it is full>.parquet columns: key, record (JSON)

A folder belongs to one identity (a teacher and how it is asked; a student and how it scores), a key
to one prompt or response. A record is in its writer's log as soon as it is put, so a kill loses
none; a crash of the machine loses those of the last `SYNC_SECONDS`. A log has one writer, and a
part never changes, so any number of processes on any number of machines may share a folder. What
dead writers left is read like the rest, and tidied by later ones."""

import errno
import hashlib
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.constants import HF_HOME

from persyn_datasets.config.errors import BuildError, InputError

SYNC_SECONDS = 2.0
ROWS_PER_PART = 4096
ROWS_AT_ONCE = 512  # that are read into memory
SMALL_PARTS = 64  # of fewer than `ROWS_PER_PART` rows; more than so many are merged
DEAD_AFTER = 86_400.0  # seconds without a change: the writer of a log is gone
_SCHEMA = pa.schema({"key": pa.string(), "record": pa.string()})


def default_root() -> Path:
    """`$PERSYN_JOURNAL`, else `persyn/journal` in the Hugging Face cache (`$HF_HOME`)."""
    return Path(os.environ.get("PERSYN_JOURNAL") or Path(HF_HOME) / "persyn" / "journal")


def digest(value: Any) -> str:
    """A short content hash of any JSON value."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()[:32]


class Journal:
    """Records of one identity; a context manager, which tidies when it ends.

    Args:
        kind: `responses`, `learnability` or `quality`.
        name: a word for people who look into the folder.
        identity: every fact that the records depend on, as JSON values.
        root: default `default_root()`.

    Raises:
        InputError: its folder cannot be written.
    """

    def __init__(self, kind: str, name: str, identity: dict[str, Any], root: Path | None = None):
        slug = re.sub(r"[^\w.-]+", "-", name)[-60:]
        self.folder = (root or default_root()) / kind / f"{slug}-{digest(identity)[:16]}"
        described = json.dumps(identity, indent=2, ensure_ascii=False).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "identity.json").exists():
                replace_file(self.folder / "identity.json", described)
        except OSError as error:  # a read-only cache of a cluster, a full disk
            raise InputError(
                "The journal cannot be written; name a folder that can: export "
                f"PERSYN_JOURNAL=/path/to/folder ({error.strerror}: {self.folder})"
            ) from error
        self._lock = threading.Lock()
        self._log: BinaryIO | None = None
        self._rows, self._synced = 0, time.time()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The records that are there, by key."""
        wanted = frozenset(keys)
        numbers = _sorted_numbers(wanted)
        found: dict[str, Any] = {}
        read: set[Path] = set()
        # Another process may merge files while they are read: the folder is listed again until
        # nothing in it is new, so that no record is missed.
        while files := self._files() - read:
            for file in files:
                # Merged meanwhile: the next listing has what it became.
                with suppress(FileNotFoundError):
                    if _may_hold(file, numbers):
                        found.update(_hits(file, wanted))
            read |= files
        return found

    def _files(self) -> set[Path]:
        return {f for f in self.folder.iterdir() if f.suffix in (".log", ".parquet")}

    def put(self, key: str, record: Any) -> None:
        """Raises `BuildError` if it cannot be written (the disk is full): what cannot be kept
        must not be bought.
        """
        line = f"{key}\t{json.dumps(record, ensure_ascii=False)}\n".encode()
        with self._lock:
            try:
                if self._log and time.time() > self._synced + DEAD_AFTER / 2:
                    # after so long a rest another process may have taken it for a dead writer's
                    self._seal()
                if not self._log:
                    self._log = (self.folder / f"{uuid.uuid4().hex}.log").open("wb", buffering=0)
                # Unbuffered: once written, the line outlives this process.
                if self._log.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if time.time() > self._synced + SYNC_SECONDS:
                    os.fsync(self._log.fileno())
                    self._synced = time.time()
                self._rows += 1
                if self._rows >= ROWS_PER_PART:
                    self._seal()
            except OSError as error:
                self._log = None  # it may end in half a line
                raise BuildError(
                    f"The journal {self.folder} cannot be written: {error}. Free some space, or "
                    "move the journal with $PERSYN_JOURNAL, and rerun the same command."
                ) from error

    def tidy(self) -> None:
        """Merge small parts and the logs of dead writers once they are many; remove half-written
        parts.
        """
        dead, small = time.time() - DEAD_AFTER, []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process tidies too
                left = file.suffix in (".log", ".tmp") and file.stat().st_mtime < dead
                if left and file.suffix == ".tmp":
                    file.unlink()
                elif left or (file.suffix == ".parquet" and len(_numbers(file)) < ROWS_PER_PART):
                    small.append(file)
        # Rarely: rewriting a part costs more than reading it.
        if len(small) > SMALL_PARTS:
            self._merge(small)

    def _merge(self, files: list[Path]) -> None:
        with suppress(FileNotFoundError):
            table = pa.Table.from_batches([b for f in files for b in _batches(f)], schema=_SCHEMA)
            # Files come in any order: of a key that was put twice either record will do.
            rows = dict(zip(table["key"].to_pylist(), range(len(table)), strict=True))
            table = table.take(pa.array(rows.values(), pa.int64()))
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_AT_ONCE)
            # The part first, then its sources go: a kill between leaves records twice, never none.
            replace_file(self.folder / f"{uuid.uuid4().hex}.parquet", sink.getvalue())
            for file in files:
                file.unlink()

    def _seal(self) -> None:
        assert self._log
        self._log.close()
        self._merge([Path(str(self._log.name))])
        self._log, self._rows = None, 0

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._log and error is None:
            self._seal()
        elif self._log:  # nothing that may fail: its log is read as well as a part
            self._log.close()
            self._log = None
        if error is None:
            self.tidy()


def _number(key: str) -> int:
    """64 bits of a key: millions of them fit in memory where the keys would not."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())


def _sorted_numbers(keys: Iterable[str]) -> np.ndarray:
    return np.unique(np.fromiter(map(_number, keys), np.uint64))


@lru_cache(maxsize=4096)
def _numbers(part: Path) -> np.ndarray:
    """The numbers of a part's keys, sorted. Kept, since parts never change: many small batches do
    not read a large journal again and again.
    """
    return _sorted_numbers(
        key for batch in _batches(part, ["key"]) for key in batch["key"].to_pylist()
    )


def _may_hold(file: Path, wanted: np.ndarray) -> bool:
    """False: none of the keys of these numbers is in the file."""
    if file.suffix == ".log":
        return True
    kept = _numbers(file)
    if not len(kept):
        return False
    # Two keys may share a number: the file is then read for nothing, and no record is missed.
    places = np.searchsorted(kept, wanted).clip(max=len(kept) - 1)
    return bool((kept[places] == wanted).any())


def _hits(file: Path, wanted: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """The wanted records of a file; what a torn line has left of one is no record."""
    for batch in _batches(file):
        for key, record in zip(batch["key"].to_pylist(), batch["record"].to_pylist(), strict=True):
            if key in wanted:
                with suppress(ValueError):
                    yield key, json.loads(record)


def _batches(file: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Its rows, a bounded number at a time.

    Raises:
        BuildError: a part is damaged.
    """
    if file.suffix != ".parquet":
        yield from _read_log(file)
        return
    with pa.OSFile(str(file)) as part:
        try:
            whole = pq.ParquetFile(part, pre_buffer=False)  # which would read all of it
            for group in range(whole.num_row_groups):
                yield from whole.iter_batches(ROWS_AT_ONCE, [group], columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise BuildError(
                f"The journal's file {file} is damaged ({error}). Move it away and rerun the same "
                "command: only what it held is asked for again."
            ) from error


def _read_log(file: Path) -> Iterator[pa.RecordBatch]:
    """The whole lines of a log: a crash may tear any, and leave null bytes."""
    rows = []
    with file.open("rb") as lines:
        for line in lines:
            key, tab, record = line.decode(errors="replace").rstrip("\n").partition("\t")
            if tab and line.endswith(b"\n") and _is_json(record):
                rows.append({"key": key, "record": record})
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield pa.RecordBatch.from_pylist(rows[start : start + ROWS_AT_ONCE], schema=_SCHEMA)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def replace_file(path: Path, data: Any) -> None:
    """Write it atomically, so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
