"""Batches that were sent and not yet taken: a file for each, beside the journal.

    <root>/batches/<model>-<hash of the teacher's identity>/<mark>.json

The file is there before its batch is, and holds what finds the batch again: a build that is killed
at any moment takes what it has bought when it runs again. It goes when all its answers are in the
journal of responses.
"""

import json
import re
import time
import uuid
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from persyn_datasets.config.teacher import Teacher
from persyn_datasets.engines import Request
from persyn_datasets.engines.dispatch import identity_of
from persyn_datasets.store.journal import Journal, default_root, digest, replace_file


@dataclass
class Order:
    """One batch, from before it is created until all of its answers are taken.

    Attributes:
        teacher: as `Teacher.to_dict` has it: whom to ask for the batch.
        rows: prompt_id and sample of each row; None once its answer is taken. The custom_id of row
            i is `mark-i`.
        since: when its creation was first tried, in seconds since 1970; 0: not yet.
        file: the provider's id of the uploaded rows, where there is one.
        batch: the provider's id of the batch; empty: it may not exist.
    """

    teacher: dict[str, Any]
    rows: list[tuple[str, int] | None]
    mark: str = field(default_factory=lambda: f"p{uuid.uuid4().hex[:15]}")
    since: float = 0.0
    file: str = ""
    batch: str = ""

    @classmethod
    def of(cls, requests: Iterable[Request]) -> "Order":
        requests = list(requests)
        rows: list[tuple[str, int] | None] = [(r.prompt_id, r.sample) for r in requests]
        return cls(requests[0].teacher.to_dict(), rows)

    @classmethod
    def read(cls, path: Path) -> "Order":
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = [row and (str(row[0]), int(row[1])) for row in values.pop("rows")]
        return cls(rows=rows, **values)

    @property
    def path(self) -> Path:
        teacher = Teacher.from_dict(self.teacher)
        slug = re.sub(r"[^\w.-]+", "-", teacher.model)[-60:]
        folder = f"{slug}-{digest(identity_of(teacher))[:16]}"
        return default_root() / "batches" / folder / f"{self.mark}.json"

    def custom_id(self, row: int) -> str:
        return f"{self.mark}-{row}"

    def row_of(self, custom_id: Any) -> int | None:
        """The row that a custom_id names; None if it is none of ours."""
        mark, dash, row = str(custom_id).rpartition("-")
        ours = dash and mark == self.mark and row.isdecimal() and int(row) < len(self.rows)
        return int(row) if ours else None

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps(asdict(self)).encode())

    def begin(self) -> None:
        """Its creation is tried now: from here on it may exist."""
        self.since = time.time()
        self.save()

    def drop_answered(self) -> None:
        """A run that was killed while it took them had put some into the journal."""
        teacher, found = Teacher.from_dict(self.teacher), set[tuple[str, int]]()
        for sample in {row[1] for row in self.rows if row}:
            asked = replace(teacher, sampling=Request(teacher, "", [], sample).sampling)
            journal = Journal("responses", teacher.model, identity_of(asked))
            keys = [row[0] for row in self.rows if row and row[1] == sample]
            found |= {(key, sample) for key in journal.get(keys)}
        if found:
            self.take([i for i, row in enumerate(self.rows) if row in found])

    def take(self, rows: Collection[int]) -> None:
        """These need not be found again."""
        for row in rows:
            self.rows[row] = None
        if any(self.rows):
            self.save()
        else:
            self.path.unlink(missing_ok=True)


def sent_for(teacher: Teacher) -> list[Order]:
    """What earlier runs sent to this teacher and did not take, the newest first."""
    orders = _read(Order(teacher.to_dict(), []).path.parent.glob("*.json"))
    for order in orders:
        order.drop_answered()
    return [order for order in orders if any(order.rows)]


def everything() -> list[Order]:
    """All batches of this journal that are not taken, the newest first."""
    return _read((default_root() / "batches").glob("*/*.json"))


def _read(paths: Iterable[Path]) -> list[Order]:
    return sorted(map(Order.read, paths), key=lambda order: (-order.since, order.mark))
