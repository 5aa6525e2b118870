"""Scoring by a reward model against the usual way: batches of rows as they come, padded to their
longest.

    python benchmarks/reward_model.py [--rows 32] [--rounds 2]

Both score the same conversations (lengths log-normal) with SmolLM2's shape, random weights and one
output. Scores must not depend on who shares a batch: beside each speed is the largest difference to
the row alone, in standard deviations of the scores.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import shapes
import torch
from transformers import AutoModelForSequenceClassification

from persyn_datasets.report.tables import table
from persyn_datasets.signals.reward_model import _load, score

BATCH_SIZES = (1, 4, 16)


@torch.inference_mode()
def as_they_come(folder: str, rows: list[list[dict[str, str]]], size: int) -> list[float]:
    model, tokenizer = _load(folder, None, False)
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    scores: list[float] = []
    for i in range(0, len(texts), size):
        encoded: Any = tokenizer(
            texts[i : i + size], padding=True, add_special_tokens=False, return_tensors="pt"
        )
        scores += model(**encoded).logits[:, 0].tolist()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    texts = shapes.prompts(2 * options.rows, 90)
    rows = [
        [{"role": "user", "content": x}, {"role": "assistant", "content": y}]
        for x, y in zip(texts[::2], texts[1::2], strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        shapes.save(
            AutoModelForSequenceClassification.from_config(shapes.smollm2(num_labels=1)), folder
        )
        ways: dict[str, Callable[[], list[float]]] = {
            "persyn": lambda: score([(row[:-1], row[-1]["content"]) for row in rows], {}, folder)
        }
        ways |= {f"batch size {b}": lambda b=b: as_they_come(folder, rows, b) for b in BATCH_SIZES}
        as_they_come(folder, rows[:4], 1)  # to warm up
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        scores: dict[str, np.ndarray] = {}
        for _ in range(options.rounds):
            for way, run in ways.items():
                start = time.perf_counter()
                scores[way] = np.array(run())
                seconds[way].append(time.perf_counter() - start)
    alone = scores["batch size 1"]
    error = {way: abs(of - alone).max() / alone.std() for way, of in scores.items()}
    if error["persyn"] > 1e-3:
        raise SystemExit(f"Scores depend on the batch: {error['persyn']:.1e} of their spread.")
    least = {way: min(times) for way, times in seconds.items()}
    lines = [
        [way, f"{s:.2f}", f"{len(rows) / s:.1f}", f"{error[way]:.1e}"] for way, s in least.items()
    ]
    print(
        table(
            ["way", "seconds", "rows/s", "largest difference to a row alone / standard deviation"],
            lines,
        )
    )
    best = min((way for way in least if way != "persyn"), key=least.__getitem__)
    summary = [
        [
            "reward model (SmolLM2's shape), rows/s",
            f"{len(rows) / least['persyn']:.1f}",
            f"{len(rows) / least[way]:.1f}: {way}",
            f"{least[way] / least['persyn']:.2f}",
            f"differs from a row alone by {error['persyn']:.0e} of the spread",
        ]
        for way in dict.fromkeys((best, f"batch size {BATCH_SIZES[-1]}"))
    ]
    print(json.dumps({"rows": summary}))


if __name__ == "__main__":
    main()
