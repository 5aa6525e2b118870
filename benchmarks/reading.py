"""Reading a JSON Lines file as written, against the loader of `datasets`: seconds and peak memory.

    python benchmarks/reading.py --rows 1000000

Each reader runs in a process of its own, with an empty cache; `load_prompts` also gives each prompt
its identity. `ragged`: the last row has other keys and a text beside numbers.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

READERS = {
    "datasets": "datasets.load_dataset('json', data_files=file, split='train')",
    "load_table": "persyn_datasets.data.tables.load_table(file)",
    "load_table, streamed": "sum(1 for _ in load_table(file, streaming=True).iter(1000))",
    "load_prompts": "load_prompts(file, answer_column='answer')",
    "load_prompts, streamed": "sum(1 for _ in load_prompts(file, streaming=True))",
}
PROGRAM = """
import resource, time
import datasets
import persyn_datasets.data.tables
from persyn_datasets.data.prompts import load_prompts
from persyn_datasets.data.tables import load_table
datasets.disable_progress_bars()
file = {file!r}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
{reader}
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"{{seconds:.1f}} s, peak {{peak / 1024:,.0f}} MiB ({{before / 1024:,.0f}} before)")
"""


def write(file: Path, rows: int, ragged: bool) -> None:
    draw = random.Random(0)
    words = [f"w{draw.randint(0, 9999)}" for _ in range(500)]
    with file.open("w") as lines:
        for i in range(rows):
            content = " ".join(draw.choices(words, k=60))
            row = {
                "messages": [{"role": "user", "content": content}],
                "answer": str(i),
                "level": i % 5,
                "score": i / 7,
                "meta": {"source": "x", "weight": 0.1 * i},
            }
            lines.write(json.dumps(row) + "\n")
        if ragged:
            row = {"messages": [{"role": "user", "content": "?"}], "answer": 7, "meta": {"b": "1"}}
            lines.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        for ragged in (False, True):
            file = Path(folder) / f"{'ragged' if ragged else 'even'}.jsonl"
            write(file, rows, ragged)
            print(f"{file.name}: {rows:,} rows, {file.stat().st_size / 2**20:,.0f} MiB")
            for name, reader in READERS.items():
                program = PROGRAM.format(file=str(file), reader=reader)
                with tempfile.TemporaryDirectory() as home:
                    done = subprocess.run(
                        [sys.executable, "-c", program],
                        env=os.environ | {"HF_HOME": home},
                        capture_output=True,
                        text=True,
                    )
                last = (done.stdout or done.stderr).strip().splitlines()[-1]
                print(f"  {name}: {last[:160]}", flush=True)


if __name__ == "__main__":
    main()
