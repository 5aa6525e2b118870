"""The journal: nothing that was paid for is lost, or bought twice.

    <root>/<kind>/<name>-<hash of the identity>/identity.json
                                               /<one per writer>.parquet     columns: key, record (JSON)

A folder belongs to one identity (a teacher and how it is asked; a student and how it scores), a key to one
prompt or response. Every writer has parts of its own and moves them into place whole, so any number of
processes on any number of machines may share a folder, and a kill costs the last `FLUSH_SECONDS`.
"""

import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub.constants import HF_HOME

FLUSH_SECONDS = 2.0
ROWS_PER_PART = 4096
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
        self._part = self.folder / f"{uuid.uuid4().hex}.parquet"
        self._rows: list[tuple[str, str]] = []
        self._flushed = 0
        self._closed = threading.Event()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The records that are there, by key."""
        wanted = pa.array(sorted(set(keys)), pa.string())
        found: dict[str, Any] = {}
        for part in sorted(self.folder.glob("*.parquet")):
            with pa.OSFile(str(part)) as file:  # opened once: its writer may put a longer part in its place meanwhile
                parquet = pq.ParquetFile(file)
                hits = pc.is_in(parquet.read(columns=["key"])["key"], wanted)
                if not pc.any(hits).as_py():
                    continue
                table = parquet.read().filter(hits)
                found.update(zip(table["key"].to_pylist(), map(json.loads, table["record"].to_pylist()), strict=True))
        return found

    def put(self, key: str, record: Any) -> None:
        with self._lock:
            self._rows.append((key, json.dumps(record, ensure_ascii=False)))

    def flush(self) -> None:
        """Write what has come since the last flush. The open part is rewritten whole until it is full."""
        with self._lock:
            if len(self._rows) == self._flushed:
                return
            keys, records = zip(*self._rows, strict=True)
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table([keys, records], schema=_SCHEMA), sink, compression="zstd")
            _write(self._part, sink.getvalue())
            self._flushed = len(self._rows)
            if self._flushed >= ROWS_PER_PART:
                self._part, self._rows, self._flushed = self.folder / f"{uuid.uuid4().hex}.parquet", [], 0

    def __enter__(self) -> "Journal":
        self._flusher = threading.Thread(target=self._flush_regularly, daemon=True)
        self._flusher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closed.set()
        self._flusher.join()
        self.flush()

    def _flush_regularly(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            self.flush()


def _write(path: Path, data: Any) -> None:
    """Atomically, so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
