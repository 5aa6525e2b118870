"""Routing against `pipeline("text-classification")`, and the memory that many prompts take.

    python benchmarks/routing.py [--prompts 200 24] [--rounds 2] [--memory 20000 100000]
                                 [--peer routellm=/path/to/its/venv/bin/python]

Both read the same prompts (log-normal, 10 to 800 tokens, median 90) with the same random weights,
in turn; the pipeline with each of several batch sizes. The limit is the time that the model's
matrix products alone would take at the rate that this machine reaches with one of them. `--peer
routellm` (`pip install routellm`) is its BERT router.

Memory is the largest of a process of its own that routes N prompts of 2 to 8 words with a small
encoder, once by `map(Route(router))` and once by `persyn route --streaming`: anonymous memory. The
pages of mapped files (Arrow tables) are left out, since the system takes them back when it needs
them.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZES = (1, 4, 8, 16, 32)
Rows = list[list[str]]  # measure, ours, beside it, ratio, limit


def make_router(config: Any, folder: Path) -> str:
    import shapes
    from transformers import AutoModelForSequenceClassification

    config.id2label = dict(enumerate(shapes.TEACHERS))
    config.label2id = {name: i for i, name in enumerate(shapes.TEACHERS)}
    model = AutoModelForSequenceClassification.from_config(config)
    model.config.persyn = {"teachers": [], "training": {}}
    return shapes.save(model, folder)


def speed(name: str, folder: str, texts: list[str], rounds: int, peers: dict[str, str]) -> Rows:
    import shapes
    import torch
    from transformers import pipeline

    from persyn_datasets.report.tables import table
    from persyn_datasets.router.model import Router
    from persyn_datasets.store.memory import CPU_TOKENS
    from persyn_datasets.store.models import batches

    router = Router.from_pretrained(folder)
    model, tokenizer = router._load()
    pipe: Any = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None
    )
    messages = [[{"role": "user", "content": text}] for text in texts]
    ways: dict[str, Callable[[], Any]] = {"persyn": lambda: router.scores(messages)} | {
        f"pipeline, batch size {b}": lambda b=b: pipe(texts, batch_size=b, truncation=True)
        for b in BATCH_SIZES
    }
    router.scores(messages[:16])  # to warm up
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            result = run()
            seconds[way].append(time.perf_counter() - start)
            if way == "persyn":
                best = [router.names[i] for i in result.argmax(-1)]
                scores = result
            elif [max(row, key=lambda r: r["score"])["label"] for row in result] != best:
                raise SystemExit(f"{name}: {way} gives other teachers.")
    least = {way: min(times) for way, times in seconds.items()}
    if name == "MiniLM":  # an encoder is what RouteLLM's router takes
        for peer, python in peers.items():
            least[peer] = routellm(python, folder, texts, scores)
    lengths = [len(ids) for ids in tokenizer(texts, truncation=True)["input_ids"]]
    read = {
        "persyn": sum(max(lengths[i] for i in b) * len(b) for b in batches(lengths, CPU_TOKENS))
    }
    for size in BATCH_SIZES:
        parts = [lengths[i : i + size] for i in range(0, len(lengths), size)]
        read[f"pipeline, batch size {size}"] = sum(max(part) * len(part) for part in parts)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    limit = 2 * linear * sum(lengths) / shapes.matrix_rate()
    fastest = min((w for w in least if w.startswith("pipeline")), key=lambda w: least[w])
    lines = [
        [
            way,
            f"{s:.2f}",
            f"{len(texts) / s:.1f}",
            f"{s / least['persyn']:.2f}",
            f"{read.get(way, sum(lengths)):,}",
        ]
        for way, s in least.items()
    ]
    print(
        f"{name}: {len(texts)} prompts, {sum(lengths):,} tokens, top-1 identical; matrix "
        f"products: {limit:.2f} s"
    )
    print(table(["way", "seconds", "prompts/s", "times ours", "tokens with padding"], lines))
    of_limit = f"matrix products alone {len(texts) / limit:.1f}; at {limit / least['persyn']:.0%}"
    return [
        [
            f"routing, prompts/s ({name}'s shape)",
            f"{len(texts) / least['persyn']:.1f}",
            f"{len(texts) / least[way]:.1f}: {way}",
            f"{least[way] / least['persyn']:.2f}",
            of_limit,
        ]
        for way in (fastest, "pipeline, batch size 32", *peers)
        if way in least
    ]


def routellm(python: str, folder: str, texts: list[str], scores: np.ndarray) -> float:
    """Seconds of RouteLLM's BERT router, which gives 1 − p of the last two outputs."""
    order = json.dumps([folder, scores.shape[1], texts])
    environment = os.environ | {"OPENAI_API_KEY": "it wants one to be imported", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, __file__, "--routellm"],
        input=order,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    seconds, rates = json.loads(done.stdout.splitlines()[-1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    error = np.abs(1 - (p / p.sum(-1, keepdims=True))[:, -2:].sum(-1) - rates).max()
    if error > 1e-4:
        raise SystemExit(f"RouteLLM's router gives other numbers: {error}.")
    return seconds


def child_routellm() -> None:
    from routellm.routers.routers import BERTRouter

    folder, outputs, texts = json.load(sys.stdin)
    router = BERTRouter(folder, num_labels=outputs)
    router.calculate_strong_win_rate(texts[0])
    start = time.perf_counter()
    rates = [float(router.calculate_strong_win_rate(text)) for text in texts]
    print(json.dumps([time.perf_counter() - start, rates]))


def anonymous_mb() -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def child_memory(way: str, folder: str, prompts: str, output: str) -> None:
    """Prints the largest anonymous memory in MB and the seconds that routing took."""
    from persyn_datasets import Route, cli
    from persyn_datasets.data import prompts as p
    from persyn_datasets.data import schema

    most, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], anonymous_mb())

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    if way == "map":
        rows = p.load_prompts(prompts)
        routed = rows.map(Route(folder), batched=True)
        assert len(routed) == len(rows) and set(schema.ROUTED) <= set(routed.column_names)
    elif cli.main(["route", folder, prompts, "--output", output, "--streaming"]):
        raise SystemExit("persyn route failed.")
    done.set()
    print(json.dumps([most[0], time.perf_counter() - start]))


def memory(sizes: list[int], work: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapes

    from persyn_datasets.report.tables import table

    tiny = shapes.minilm(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    folder = make_router(tiny, work / "tiny")
    r = random.Random(0)
    words = ["".join(r.choices("etaoinshrdlu", k=r.randint(2, 9))) for _ in range(5000)]
    lines, result = [], []
    found: dict[tuple[str, int], tuple[float, float]] = {}
    for n in sizes:
        file = work / f"{n}.parquet"
        with pq.ParquetWriter(file, pa.schema([("prompt", pa.string())])) as writer:
            for start in range(0, n, 10_000):
                texts = [
                    f"{start + i} " + " ".join(r.choices(words, k=r.randint(2, 8)))
                    for i in range(10_000)
                ]
                writer.write_table(pa.table({"prompt": texts[: n - start]}))
        for way in ("map", "stream"):
            command = [
                sys.executable,
                __file__,
                "--child",
                way,
                folder,
                str(file),
                str(work / f"{way}-{n}"),
            ]
            environment = os.environ | {
                "HF_HOME": str(work / "home"),
                "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            }
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=environment
            )
            found[way, n] = much, seconds = json.loads(done.stdout.splitlines()[-1])
            lines.append([way, f"{n:,}", f"{much:,.0f}", f"{seconds:.1f}", f"{n / seconds:,.0f}"])
            print(lines[-1], file=sys.stderr)
    print(table(["way", "prompts", "peak anonymous MB", "seconds", "prompts/s"], lines))
    for way, name in (("map", "map(Route(router))"), ("stream", "persyn route --streaming")):
        (low, _), (high, _) = found[way, sizes[0]], found[way, sizes[-1]]
        result.append(
            [
                f"peak anonymous memory of `{name}` at {sizes[-1]:,} prompts, MB",
                f"{high:,.0f}",
                f"{low:,.0f}: at {sizes[0]:,}",
                f"{high / low:.2f}",
                "1.00: flat",
            ]
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompts", type=int, nargs=2, default=[200, 24], help="for MiniLM's and SmolLM2's shape"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", type=int, nargs="*", default=[20_000, 100_000])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--routellm", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.routellm:
        return child_routellm()
    if options.child:
        return child_memory(*options.child)

    import shapes
    from transformers.utils import logging

    logging.set_verbosity_error()
    rows = []
    peers = dict(peer.split("=", 1) for peer in options.peer)
    with tempfile.TemporaryDirectory() as work:
        configs = {"MiniLM": shapes.minilm(), "SmolLM2": shapes.smollm2()}
        for (name, config), n in zip(configs.items(), options.prompts, strict=True):
            if n:
                folder = make_router(config, Path(work) / name)
                rows += speed(name, folder, shapes.prompts(n, median=90), options.rounds, peers)
        if options.memory:
            rows += memory(options.memory, Path(work))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
