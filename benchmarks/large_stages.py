"""Stages over more text than one Arrow column holds (2 GiB): seconds and peak memory of each.

    python benchmarks/large_stages.py --gib 3

Recorded answers of 20 kB are the texts, scores are drawn. Each stage runs in a process of its own;
`anonymous` memory is what it took, without the files that it reads in place.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TEACHERS = 8
BYTES = 20_000  # of an answer
PROGRAM = """
import sys, threading, time
from pathlib import Path
import datasets
from datasets import Dataset, Features
from persyn_datasets import Generate, Pairify, Rank, Synthesize, Teacher
from persyn_datasets.data import schema
from persyn_datasets.data.tables import load_table
from persyn_datasets.runners.local import run
datasets.disable_progress_bars()

most = 0
def watch():
    global most
    while True:
        lines = Path("/proc/self/status").read_text().splitlines()
        most = max(most, *(int(l.split()[1]) for l in lines if l.startswith("RssAnon")))
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()
folder, stage = {folder!r}, {stage!r}
answers = str(Path(folder) / "answers.parquet")
teachers = [Teacher(answers, name=f"t{{i}}", engine="recorded") for i in range({teachers})]
rows = load_table(str(Path(folder) / "{source}.parquet"))
start = time.perf_counter()
if stage == "Generate":
    made = run(rows, Generate(teachers), schema.GENERATED, batch_size=None)
elif stage == "Synthesize":
    made = run(rows, Synthesize(teachers), schema.SYNTHESIZED, batch_size=None)
elif stage == "Pairify":
    made = rows.with_format("arrow").map(Pairify(), batched=True, batch_size=100,
        remove_columns=rows.column_names, features=Features(schema.PAIRS))
else:
    rank = Rank(normalize=stage.split()[1])
    made = run(rows.with_format("arrow"), rank, schema.RANKED, batch_size=None)
seconds = time.perf_counter() - start
made.with_format(None).to_parquet(Path(folder) / "{target}.parquet", batch_size=200)
print(f"{{len(made):,}} rows, {{made.data.nbytes / 2**30:.2f}} GiB in {{seconds:.0f}} s, "
      f"peak {{most / 1024:,.0f}} MiB anonymous")
"""


def write_answers(folder: Path, prompts: int) -> None:
    texts = np.random.default_rng(0).integers(97, 123, (64, BYTES), dtype=np.uint8)
    pool = [row.tobytes().decode() for row in texts]
    kinds = pa.schema(
        [("prompt", pa.string()), ("teacher", pa.string()), ("response", pa.string())]
    )
    with pq.ParquetWriter(folder / "answers.parquet", kinds) as file:
        for i in range(prompts):
            names = [f"t{t}" for t in range(TEACHERS)]
            found = [f"{i} {t} {pool[(i + t) % 64]}" for t in range(TEACHERS)]
            rows = [[f"Prompt {i}?"] * TEACHERS, names, found]
            file.write_table(pa.table(rows, schema=kinds))
    prompts_ = {"prompt": [f"Prompt {i}?" for i in range(prompts)]}
    pq.write_table(pa.table(prompts_), folder / "prompts.parquet")
    prompts_["teacher"] = [f"t{i % TEACHERS}" for i in range(prompts)]
    pq.write_table(pa.table(prompts_), folder / "routed.parquet")


def add_scores(folder: Path) -> None:
    """Draws what `Score` adds."""
    draw = np.random.default_rng(1)
    source = pq.ParquetFile(folder / "generated.parquet")
    writer = None
    for batch in source.iter_batches(batch_size=100):
        flat = batch.column("responses").flatten()
        fields = dict(zip([f.name for f in flat.type], flat.flatten(), strict=True))
        for name in ("quality", "learnability", "rsr"):
            fields[name] = pa.array(draw.normal(size=len(flat)))
        offsets = pa.array(np.arange(len(batch) + 1) * TEACHERS, pa.int32())
        responses = pa.StructArray.from_arrays([*fields.values()], [*fields])
        columns = {name: batch.column(name) for name in ("prompt_id", "messages")}
        table = pa.table(columns | {"responses": pa.ListArray.from_arrays(offsets, responses)})
        writer = writer or pq.ParquetWriter(folder / "scored.parquet", table.schema)
        writer.write_table(table)
    assert writer
    writer.close()
    (folder / "generated.parquet").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=3)
    parser.add_argument("--folder", help="for the files, three times as large (default: a new one)")
    options = parser.parse_args()
    prompts = int(options.gib * 2**30 / BYTES / TEACHERS)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_answers(folder, prompts)
        print(f"{prompts:,} prompts, {TEACHERS} teachers, {options.gib:g} GiB of answers")
        for stage, source, target in (
            ("Synthesize", "routed", "synthesized"),
            ("Generate", "prompts", "generated"),
            ("Rank prompt", "scored", "ranked"),
            ("Rank corpus", "scored", "ranked"),
            ("Pairify", "ranked", "pairs"),
        ):
            if source == "scored" and not (folder / "scored.parquet").exists():
                add_scores(folder)
            values = {"folder": name, "stage": stage, "source": source, "target": target}
            program = PROGRAM.format(**values, teachers=TEACHERS)
            home = os.environ | {"HF_HOME": str(folder / "home")}
            done = subprocess.run(
                [sys.executable, "-c", program], env=home, capture_output=True, text=True
            )
            print(f"  {stage}: {(done.stdout or done.stderr).strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
