"""Makes docs/bfloat16.md: what the student's rounding does to its scores.

    python docs/scripts/bfloat16.py RECORDED STUDENT [PROMPTS]

RECORDED has one Parquet file per teacher with the columns `prompt` and `response`, the same prompts
in the same order; STUDENT is a folder. Both roundings score the same trained texts.
"""

import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from persyn_datasets.config.student import Student
from persyn_datasets.report.tables import table
from persyn_datasets.signals.learnability import HIGHEST_RANK, answer_log_probs
from persyn_datasets.signals.trained_text import ChatFormat

PAGE = Path(__file__).parents[1] / "bfloat16.md"


def scores(student: str, rows: list, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, float]:
    """r_l and RSR of each row, and the largest log-probability of any token."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=dtype).eval()
    learnability, rsr = np.zeros(len(rows)), np.zeros(len(rows))
    largest = -np.inf
    found = answer_log_probs(model, ChatFormat(Student(student)), rows)
    for i, log_probs, ranks, _ in found:
        learnability[i] = log_probs.mean()
        rsr[i] = (ranks.clamp(max=HIGHEST_RANK).sum() / -log_probs.sum()).item()
        largest = max(largest, log_probs.max().item())
    return learnability, rsr, largest


def main(recorded: Path, student: str, prompts: int) -> None:
    files = sorted(recorded.glob("*.parquet"))
    answers = [pq.read_table(f).slice(0, prompts).to_pylist() for f in files]
    rows = [
        ([{"role": "user", "content": of[i]["prompt"]}], of[i]["response"])
        for i in range(prompts)
        for of in answers
    ]
    exact = scores(student, rows, torch.float32)
    rounded = scores(student, rows, torch.bfloat16)
    lines = []
    for name, a, b, sign in (
        ("r_l", exact[0], rounded[0], 1),
        ("RSR", exact[1], rounded[1], -1),
    ):
        first, second = (sign * x.reshape(prompts, -1) for x in (a, b))
        lines.append(
            [
                name,
                f"{np.abs(a - b).max():.4f}",
                f"{np.abs(a - b).mean():.4f}",
                f"{(first.argmax(1) != second.argmax(1)).sum()} of {prompts}",
            ]
        )
    head = ["signal", "largest difference", "mean difference", "prompts with another best teacher"]
    PAGE.write_text(
        "# bfloat16 against float32\n\n"
        "On a GPU the student is loaded in bfloat16, which has 8 bits of precision. The target's "
        "logit and the logits of the normalising sum are rounded alike, by the model's own head, "
        "and summed in float32, so no probability exceeds 1: the largest log-probability of a "
        "token is "
        f"{rounded[2]:.6f} in bfloat16 and {exact[2]:.6f} in float32.\n\n"
        f"{len(files)} recorded teachers, {prompts} prompts of GSM8K, {len(rows)} answers, student "
        "SmolLM2-135M-Instruct (dequantised from 4 bits):\n\n"
        f"{table(head, lines)}\n\n"
        f"transformers {version('transformers')}, torch {version('torch')}, on a CPU, "
        f"{datetime.now(UTC):%d %B %Y}. Made by `python docs/scripts/bfloat16.py`.\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int((sys.argv[3:] or ["47"])[0]))
