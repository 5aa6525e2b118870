"""The journal: nothing that was paid for is lost, or bought twice.

    <root>/<kind>/<name>-<hash of the identity>/identity.json
                                               /<one per writer>.parquet     columns: key, record (JSON)

A folder belongs to one identity (a teacher and how it is asked; a student and how it scores), a key to one
prompt or response. A part never changes and is moved into place whole, so any number of processes on any number of
machines may share a folder, and a kill costs the last `FLUSH_SECONDS`. Small parts are merged as they become many,
whoever wrote them; unfinished files of dead writers are removed.
"""

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
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub.constants import HF_HOME

from persyn_datasets.errors import BuildError

FLUSH_SECONDS = 2.0
ROWS_PER_PART = 4096
SMALL_PARTS = 64  # of fewer than `ROWS_PER_PART` rows; more than so many are merged
DEAD_AFTER = 3600.0  # seconds that a file takes to write at most
_SCHEMA = pa.schema({"key": pa.string(), "record": pa.string()})


def default_root() -> Path:
    """`$PERSYN_JOURNAL`, else `persyn/journal` in the Hugging Face cache (`$HF_HOME`)."""
    return Path(os.environ.get("PERSYN_JOURNAL") or Path(HF_HOME) / "persyn" / "journal")


def digest(value: Any) -> str:
    """A short content hash of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def folder_hash(path: str) -> str | None:
    """A content hash of a local model folder (each file's name, size and 64 KiB of every 16 MiB); None for a Hub id."""
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


class Journal:
    """Records of one identity. Use it as a context manager: `put` may be lost until the block ends or a flush.

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
            _write(self.folder / "identity.json", json.dumps(identity, indent=2, ensure_ascii=False).encode())
        self._lock = threading.Lock()
        self._rows: list[tuple[str, str]] = []
        self._flushes = 0
        self._error: OSError | None = None
        self._closed = threading.Event()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The records that are there, by key."""
        wanted = pa.array(sorted(set(keys)), pa.string())
        found: dict[str, Any] = {}
        read: set[Path] = set()
        while parts := set(self.folder.glob("*.parquet")) - read:
            for part in parts:
                with suppress(FileNotFoundError):  # merged meanwhile: the next listing has what it became
                    if pc.any(pc.is_in(_keys(part), wanted)).as_py():
                        table = _read(part)
                        table = table.filter(pc.is_in(table["key"], wanted))
                        records = map(json.loads, table["record"].to_pylist())
                        found.update(zip(table["key"].to_pylist(), records, strict=True))
            read |= parts
        return found

    def put(self, key: str, record: Any) -> None:
        """Raises `BuildError` if what was put before cannot be written: what nobody keeps shall not be bought."""
        self._raise_if_broken()
        with self._lock:
            self._rows.append((key, json.dumps(record, ensure_ascii=False)))
            full = len(self._rows) >= ROWS_PER_PART
        if full:
            self._try_flush()

    def flush(self) -> None:
        """Write what has come since the last flush, as a part of its own."""
        with self._lock:
            if not self._rows:
                return
            self._write_part(self._rows)
            self._rows = []
            self._flushes += 1
        if self._flushes % SMALL_PARTS == 0:
            self.tidy()

    def tidy(self) -> None:
        """Merge the small parts once they are many, and remove the unfinished files of dead writers."""
        small = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process tidies too
                if file.suffix == ".parquet" and len(_keys(file)) < ROWS_PER_PART:
                    small.append(file)
                elif file.suffix == ".tmp" and file.stat().st_mtime < time.time() - DEAD_AFTER:
                    file.unlink()
        if len(small) > SMALL_PARTS:
            with suppress(FileNotFoundError):
                merged = pa.concat_tables(map(_read, small))
                self._write_part(dict(zip(*merged.to_pydict().values(), strict=True)).items())
                for part in small:
                    part.unlink()

    def _write_part(self, rows: Iterable[tuple[str, str]]) -> None:
        keys, records = zip(*rows, strict=True)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table([keys, records], schema=_SCHEMA), sink, compression="zstd")
        _write(self.folder / f"{uuid.uuid4().hex}.parquet", sink.getvalue())

    def __enter__(self) -> "Journal":
        self._flusher = threading.Thread(target=self._flush_regularly, daemon=True)
        self._flusher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closed.set()
        self._flusher.join()
        self._try_flush()
        self._raise_if_broken()
        self.tidy()

    def _flush_regularly(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS) and not self._error:
            self._try_flush()

    def _try_flush(self) -> None:
        try:
            self.flush()
        except OSError as error:
            self._error = error  # for `put` to raise, in the thread that can end the work
        else:
            self._error = None

    def _raise_if_broken(self) -> None:
        if self._error:
            raise BuildError(
                f"The journal {self.folder} cannot be written: {self._error}. Free some space, or move the journal "
                "with $PERSYN_JOURNAL, and the same command goes on."
            ) from self._error


@lru_cache(maxsize=4096)
def _keys(part: Path) -> pa.ChunkedArray:
    """Kept, since parts never change: many small batches do not read a large journal again and again."""
    return _read(part, ["key"])["key"]


def _read(part: Path, columns: list[str] | None = None) -> pa.Table:
    with pa.OSFile(str(part)) as file:
        return pq.ParquetFile(file).read(columns)


def _write(path: Path, data: Any) -> None:
    """Atomically, so that a reader sees the old file or the new one, never a part."""
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
