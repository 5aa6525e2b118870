"""What the steps of this study share: the data, the student, a short training, and scoring."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from persyn_datasets.signals import log_probs as package
from persyn_datasets.signals.log_probs import response_log_probs
from persyn_datasets.store.models import prompt_ids, text_ids

Row = tuple[list[int], list[int]]  # token ids of a prompt and of a response

KEYS = ("log_prob", "rank", "collision")
MAX_TRAINED_TOKENS = 256
TARGET = range(160)  # of the references: what θ⁺ is trained on
REFERENCES = range(1000, 1048)  # of the references: judge 1
ALL_SCORED = range(32)  # questions on which all teachers are scored
POOL_SCORED = range(32, 304)  # and those of the routers' pool alone
FINAL = range(240, 304)  # of these: the final split of the routers
PROBED = range(400, 432)  # questions: what a probe is trained on
TAUGHT = range(400, 464)  # questions: what a strategy's student is trained on


class Data:
    """The recorded answers, the references and the judges, as token ids of the student.

    Args:
        folder: has `recorded-gsm8k/`, `gsm8k/train.jsonl` and `math500/test.jsonl`.
        student: a folder with the student's weights and tokenizer.
    """

    def __init__(self, folder: Path, student: Path) -> None:
        self.student = student
        self.tokenizer = AutoTokenizer.from_pretrained(student)
        self.facts = json.loads((folder / "recorded-gsm8k/teachers.json").read_text())
        self.teachers = list(self.facts)
        self.answers = {
            t: pq.read_table(folder / f"recorded-gsm8k/{t}.parquet").to_pylist()
            for t in self.teachers
        }
        self.train = [json.loads(line) for line in (folder / "gsm8k/train.jsonl").open()]
        self.math = [json.loads(line) for line in (folder / "math500/test.jsonl").open()]

    def row(self, question: str, text: str, limit: int | None = None) -> Row:
        messages = [{"role": "user", "content": question}]
        return prompt_ids(self.tokenizer, messages), text_ids(self.tokenizer, text)[:limit]

    def answer(self, teacher: str, question: int, limit: int | None = None) -> Row:
        line = self.answers[teacher][question]
        return self.row(line["prompt"], line["response"], limit)

    def reference(self, i: int) -> Row:
        return self.row(self.train[i]["question"], reference(self.train[i]["answer"]))

    def judges(self) -> dict[str, list[Row]]:
        plain = [x for x in self.math if "[asy]" not in x["answer"] + x["question"]]
        plain = [x for x in plain if len(x["answer"]) <= 500][:48]
        others = [
            self.answer(self.teachers[i % len(self.teachers)], 600 + i, MAX_TRAINED_TOKENS)
            for i in range(48)
        ]
        return {
            "GSM8K references": [self.reference(i) for i in REFERENCES],
            "MATH-500 solutions": [self.row(x["question"], x["answer"]) for x in plain],
            "teachers' answers": [row for row in others if row[1]],
        }


def reference(solution: str) -> str:
    """A solution of GSM8K without the calculator's marks, its last line as a sentence."""
    return re.sub(r"<<.*?>>", "", solution).replace("####", "The answer is") + "."


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def token_log_probs(model: PreTrainedModel, rows: Sequence[Row]) -> list[dict[str, np.ndarray]]:
    """Of every response token: `log_prob`, `rank` and `collision`, Σ_v p(v)², which LARK needs.

    Each (tokens,), empty for an empty response.
    """
    found: list[dict[str, np.ndarray]] = [
        {key: np.zeros(0, np.float32) for key in KEYS} for _ in rows
    ]
    full = [i for i, (_, y) in enumerate(rows) if y]
    order: list[int] = []
    list(
        response_log_probs(model, [rows[i] for i in full[:1]])
    )  # its first call looks at the model
    with _collisions() as sums:
        for place, log_probs, ranks in response_log_probs(model, [rows[i] for i in full]):
            order.append(full[place])
            found[full[place]] |= {"log_prob": log_probs.float().numpy(), "rank": ranks.numpy()}
    ends = np.cumsum([len(rows[i][1]) for i in order])[:-1]
    for i, of_row in zip(order, np.split(np.concatenate(sums), ends), strict=True):
        found[i]["collision"] = of_row
    return found


@contextmanager
def _collisions() -> Iterator[list[np.ndarray]]:
    """The package's scores note Σp² too: log Σp² = logsumexp(2z) − 2·logsumexp(z), z the logits."""
    sums: list[np.ndarray] = []
    scores = package._scores

    def with_sums(logits: torch.Tensor, targets: torch.Tensor) -> Any:
        for part in logits.split(64):
            z = part.float()
            sums.append(((2 * z).logsumexp(-1) - 2 * z.logsumexp(-1)).exp().numpy())
        return scores(logits, targets)

    package._scores = with_sums
    try:
        yield sums
    finally:
        package._scores = scores


def judged(model: PreTrainedModel, rows: Sequence[Row]) -> np.ndarray:
    """Mean log-probability per token of each text."""
    scored = {i: x.mean().item() for i, x, _ in response_log_probs(model, rows)}
    return np.array([scored[i] for i in range(len(rows))])


def fine_tuned(
    student: Path, rows: Sequence[Row], steps: int, seed: int, rate: float = 1e-4, batch: int = 8
) -> PreTrainedModel:
    """All weights, AdamW, cosine with 10% warm-up; the loss is over the response's tokens.

    Matrix products in bfloat16, weights and their updates in float32.
    """
    torch.manual_seed(seed)
    model = load(student).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    draw, order = random.Random(seed), []
    for step in range(steps):
        while len(order) < batch:
            epoch = list(range(len(rows)))
            draw.shuffle(epoch)
            order += epoch
        chosen, order = [rows[i] for i in order[:batch]], order[batch:]
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / max(1.0, 0.1 * steps))
            group["lr"] = rate * warm * (1 + np.cos(np.pi * step / steps)) / 2
        tokens = sum(len(y) for _, y in chosen)
        for part in _parts(chosen):
            (_loss(model, part) / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval()


def _parts(rows: Sequence[Row], tokens: int = 2560) -> list[list[Row]]:
    """Rows of like length together, about so many tokens at a time."""
    parts: list[list[Row]] = []
    for row in sorted(rows, key=lambda r: -len(r[0]) - len(r[1])):
        width = len(parts[-1][0][0]) + len(parts[-1][0][1]) if parts else tokens
        if not parts or (len(parts[-1]) + 1) * width > tokens:
            parts.append([])
        parts[-1].append(row)
    return parts


def _loss(model: PreTrainedModel, rows: Sequence[Row]) -> torch.Tensor:
    """−Σ log p over the response tokens."""
    width = max(len(x) + len(y) for x, y in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, (x, y) in enumerate(rows):
        n = len(x) + len(y)
        ids[i, :n] = torch.tensor(x + y)
        labels[i, len(x) : n] = torch.tensor(y)
    with torch.autocast("cpu", torch.bfloat16):
        # No mask: what is padded stands behind everything that counts, and attention is causal.
        hidden = model.base_model(ids)[0][:, :-1]
        trained = labels[:, 1:] != -100
        logits = model.get_output_embeddings()(hidden[trained])
    return torch.nn.functional.cross_entropy(
        logits.float(), labels[:, 1:][trained], reduction="sum"
    )
