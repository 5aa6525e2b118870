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
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub.constants import HF_HOME

from persyn_datasets.config.errors import BuildError

SYNC_SECONDS = 2.0
ROWS_PER_PART = 4096
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
    """

    def __init__(self, kind: str, name: str, identity: dict[str, Any], root: Path | None = None):
        slug = re.sub(r"[^\w.-]+", "-", name)[-60:]
        self.folder = (root or default_root()) / kind / f"{slug}-{digest(identity)[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "identity.json").exists():
            replace_file(
                self.folder / "identity.json",
                json.dumps(identity, indent=2, ensure_ascii=False).encode(),
            )
        self._lock = threading.Lock()
        self._log: BinaryIO | None = None
        self._rows, self._synced = 0, time.time()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The records that are there, by key."""
        wanted = frozenset(keys)
        found: dict[str, Any] = {}
        read: set[Path] = set()
        while (
            files := {f for f in self.folder.iterdir() if f.suffix in (".log", ".parquet")} - read
        ):
            for file in files:
                with suppress(
                    FileNotFoundError
                ):  # merged meanwhile: the next listing has what it became
                    table = _read(file) if file.suffix == ".log" else None
                    if hits := wanted & (
                        frozenset(table["key"].to_pylist()) if table else _keys(file)
                    ):
                        table = table or _read(file)
                        table = table.filter(pc.is_in(table["key"], pa.array(hits, pa.string())))
                        records = map(json.loads, table["record"].to_pylist())
                        found.update(zip(table["key"].to_pylist(), records, strict=True))
            read |= files
        return found

    def put(self, key: str, record: Any) -> None:
        """Raises `BuildError` if it cannot be written (the disk is full): what nobody keeps shall
        not be bought.
        """
        line = f"{key}\t{json.dumps(record, ensure_ascii=False)}\n".encode()
        with self._lock:
            try:
                if self._log and time.time() > self._synced + DEAD_AFTER / 2:
                    # after so long a rest another process may have taken it for a dead writer's
                    self._seal()
                if not self._log:
                    self._log = (self.folder / f"{uuid.uuid4().hex}.log").open("wb", buffering=0)
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
                    "move the journal with "
                    "$PERSYN_JOURNAL, and the same command goes on."
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
                elif left or (file.suffix == ".parquet" and len(_keys(file)) < ROWS_PER_PART):
                    small.append(file)
        if len(small) > SMALL_PARTS:
            self._merge(small)

    def _merge(self, files: list[Path]) -> None:
        with suppress(FileNotFoundError):
            keys, records = pa.concat_tables(map(_read, files)).to_pydict().values()
            rows = dict(zip(keys, records, strict=True))
            sink = pa.BufferOutputStream()
            columns = [list(rows.keys()), list(rows.values())]
            pq.write_table(pa.table(columns, schema=_SCHEMA), sink, compression="zstd")
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


@lru_cache(maxsize=4096)
def _keys(part: Path) -> frozenset[str]:
    """Kept, since parts never change: many small batches do not read a large journal again and
    again.
    """
    return frozenset(_read(part, ["key"])["key"].to_pylist())


def _read(file: Path, columns: list[str] | None = None) -> pa.Table:
    if file.suffix == ".parquet":
        with pa.OSFile(str(file)) as part:
            return pq.ParquetFile(part).read(columns)
    *lines, _ = (
        file.read_bytes().decode(errors="replace").split("\n")
    )  # without a half line at the end
    rows = [line.split("\t", 1) for line in lines]
    return pa.table([[key for key, _ in rows], [record for _, record in rows]], schema=_SCHEMA)


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
