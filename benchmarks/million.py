"""Many prompts through route, a budgeted assignment and synthesize: time, rows per second, memory
on the way.

python benchmarks/million.py [--prompts 10000]

A tiny router (random backbone, head fitted to made-up rewards), two teachers with recorded answers
to all prompts, the dearer of which may get a quarter of them. All runs in this process; its memory
is measured as in routing.py.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import save_model
from routing import anonymous_mb

from persyn_datasets import Pairify, Rank, Teacher, load_prompts, reuse, train_router
from persyn_datasets.config.prompts import Prompts
from persyn_datasets.report.tables import table
from persyn_datasets.strategies.budget import Budget, expectations

NAMES = ("short", "long")
CHUNK = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=10_000)
    n = parser.parse_args().prompts
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERSYN_JOURNAL"] = f"{folder}/journal"
        print(json.dumps(measure(n, Path(folder))))


def measure(n: int, folder: Path) -> dict[str, float]:
    prompts, answers = write(n, folder)
    teachers = [Teacher(str(answers), name=name, engine="recorded") for name in NAMES]
    router = tiny_router(folder, teachers)
    rows = load_prompts(str(prompts))
    memory: list[float] = []
    done = threading.Event()
    watch = threading.Thread(
        target=lambda: [memory.append(anonymous_mb()) for _ in iter(lambda: done.wait(1.0), True)]
    )
    watch.start()
    start = time.perf_counter()
    output, quarter = folder / "out", Budget(max_share={"long": 0.25})
    counts = reuse.synthesize(router, rows, output, Prompts(str(prompts)), budget=quarter)
    seconds = time.perf_counter() - start
    done.set()
    watch.join()
    assert counts.total() == n and counts["long"] <= 0.25 * n + 1
    quarters = [
        max(memory[len(memory) * q // 4 : len(memory) * (q + 1) // 4 or 1], default=0)
        for q in range(4)
    ]
    cells = [
        ["prompts", f"{n:,}"],
        ["seconds", f"{seconds:,.0f}"],
        ["prompts per second", f"{n / seconds:,.0f}"],
    ]
    cells += [
        [f"MB, quarter {q + 1} of the time", f"{most:,.0f}"] for q, most in enumerate(quarters)
    ]
    print(table(["measure", "value"], cells))
    return {"prompts": n, "seconds": round(seconds, 1), "mb": [round(most) for most in quarters]}


def write(n: int, folder: Path) -> tuple[Path, Path]:
    """`n` prompts, and the answer of each teacher to each."""
    prompts, answers = folder / "prompts.parquet", folder / "answers.parquet"
    columns = (
        pa.schema([("prompt", pa.string())]),
        pa.schema([(c, pa.string()) for c in ("prompt", "teacher", "response")]),
    )
    with (
        pq.ParquetWriter(prompts, columns[0]) as of_prompts,
        pq.ParquetWriter(answers, columns[1]) as of_answers,
    ):
        for start in range(0, n, CHUNK):
            texts = [
                f"What is {i} times {i % 97}, and why?" for i in range(start, min(start + CHUNK, n))
            ]
            of_prompts.write_table(pa.table({"prompt": texts}, schema=columns[0]))
            for name in NAMES:
                found = [f"It is what {name} says of it: {text}" for text in texts]
                of_answers.write_table(
                    pa.table(
                        {"prompt": texts, "teacher": [name] * len(texts), "response": found},
                        schema=columns[1],
                    )
                )
    return prompts, answers


def tiny_router(folder: Path, teachers: list[Teacher]):  # type: ignore[no-untyped-def]
    from datasets import Dataset

    answer = {
        "finish_reason": "stop",
        "prompt_tokens": 9,
        "completion_tokens": 9,
        "error": "",
        "sample": 0,
    }
    ranked = Dataset.from_list(
        [
            {
                "prompt_id": str(i),
                "messages": [{"role": "user", "content": f"What is {i} times {i % 7}?"}],
                "responses": [
                    answer
                    | {
                        "teacher": t,
                        "text": "x",
                        "learnability": -1.0,
                        "quality": float((i + j) % 3 > 0),
                    }
                    for j, t in enumerate(NAMES)
                ],
            }
            for i in range(200)
        ]
    ).map(Rank(), batched=True)
    pairs = ranked.map(Pairify(), batched=True, remove_columns=ranked.column_names)
    backbone = save_model(
        folder / "backbone", hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    router = train_router(
        pairs, backbone, teachers=teachers, freeze_backbone=True, output_dir=str(folder / "router")
    )
    return router.record(expected=expectations(router, ranked, ranked))


if __name__ == "__main__":
    main()
