"""The journal: rows written and read again, the memory that takes, and its share of a build's time.

python benchmarks/journal.py [--rows 100000]

The share is the journal's processor time while answers come at 100 a second, as from a busy server.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from persyn_datasets.report.tables import table
from persyn_datasets.store.journal import Journal, digest

RATE, SECONDS = 100, 30


def resident_mb() -> float:
    """The largest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    r = random.Random(0)
    words = ["".join(r.choices("etaoinshrdlu", k=r.randint(2, 9))) for _ in range(5000)]
    texts = [" ".join(r.choices(words, k=200)) for _ in range(1000)]

    def record(i: int) -> dict[str, Any]:
        text = f"{i} {texts[i % 1000]}"
        counts = {"prompt_tokens": 100, "completion_tokens": 250}
        return {"teacher": "t", "text": text, "finish_reason": "stop", **counts, "error": ""}

    found: dict[str, float] = {"rows": rows, "bytes per row": len(json.dumps(record(0)))}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERSYN_JOURNAL"] = folder
        keys = [digest(i) for i in range(rows)]
        before, start = resident_mb(), time.perf_counter()
        with Journal("responses", "bench", {}) as journal:
            for i, key in enumerate(keys):
                journal.put(key, record(i))
        found["written, rows/s"] = rows / (time.perf_counter() - start)
        found["memory to write, MB"] = resident_mb() - before
        found["on disk, MB"] = (
            sum(part.stat().st_size for part in Path(folder).rglob("*.parquet")) / 2**20
        )

        start = time.perf_counter()
        assert Journal("responses", "bench", {}).get(digest(-i - 1) for i in range(1000)) == {}
        found["1,000 unknown keys asked, first, s"] = time.perf_counter() - start
        start = time.perf_counter()
        assert Journal("responses", "bench", {}).get(digest(-i - 1) for i in range(1000)) == {}
        found["1,000 unknown keys asked, again, s"] = time.perf_counter() - start
        before, start = resident_mb(), time.perf_counter()
        records = Journal("responses", "bench", {}).get(keys)
        found["read, rows/s"] = rows / (time.perf_counter() - start)
        found["memory to read, MB"] = resident_mb() - before
        assert len(records) == rows and records[keys[-1]] == record(rows - 1)
        del records

        start, busy = time.perf_counter(), 0.0
        with Journal("responses", "paced", {}) as journal:
            for i in range(RATE * SECONDS):
                response, before = record(i), time.thread_time()
                journal.put(keys[i % rows], response)
                busy += time.thread_time() - before
                time.sleep(max(0.0, start + i / RATE - time.perf_counter()))
            before = time.thread_time()
        found[f"share of a build at {RATE} answers/s"] = (
            busy + time.thread_time() - before
        ) / SECONDS
    show = lambda value: f"{value:,.4g}" if value < 100 else f"{value:,.0f}"  # noqa: E731
    print(table(["measure", "value"], [[name, show(value)] for name, value in found.items()]))
    made = [name for name in found if name.endswith("rows/s") or name.startswith("share")]
    lines = [[f"journal: {name}", show(found[name]), "", "", ""] for name in made]
    print(json.dumps(found | {"rows": lines}))


if __name__ == "__main__":
    main()
