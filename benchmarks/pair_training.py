"""The two other ways of `router_training`: one pass per pair, and TRL's RewardTrainer.

A call with prompts and their rewards sets one up; a call of its result trains, and returns a
function prompts → scores (prompts, teachers).
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

from persyn_datasets.router.model import forward

N = len(shapes.TEACHERS)
PAIRS = list(combinations(range(N), 2))


class PairTrainer(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        z = inputs.pop("z")
        return -F.logsigmoid((z * model(**inputs).logits).sum(-1)).mean()


def by_pairs(
    folder: str, texts: list[str], rewards: np.ndarray, work: Path, **options: Any
) -> Callable[[], Any]:
    """A transformers Trainer whose rows are the pairs, each with its prompt; −log σ(Zᵀπ(x))."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    set_seed(0)  # the head that `train_router` starts from
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=N)
    one = torch.eye(N)
    rows = [
        {"input_ids": ids, "z": (one[b] - one[a]) * (1 if r[b] > r[a] else -1)}
        for ids, r in zip(tokenizer(texts)["input_ids"], rewards, strict=True)
        for a, b in PAIRS
    ]

    def collate(batch: list[Any]) -> Any:
        padded = tokenizer.pad(
            {"input_ids": [row["input_ids"] for row in batch]}, return_tensors="pt"
        )
        return {**padded, "z": torch.stack([row["z"] for row in batch])}

    trainer = PairTrainer(model, arguments(work, **options), collate, train_dataset=rows)  # type: ignore[arg-type]

    def train() -> Callable[[list[str]], np.ndarray]:
        trainer.train()
        return lambda prompts: forward(model.eval(), tokenizer, prompts).numpy()

    return train


def by_reward_trainer(
    folder: str, texts: list[str], rewards: np.ndarray, work: Path, **options: Any
) -> Any:
    from trl import RewardConfig, RewardTrainer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    known = lambda text, t: f"{text}\n{shapes.TEACHERS[t]}"  # noqa: E731
    rows = [
        {
            "chosen": known(text, a if r[a] > r[b] else b),
            "rejected": known(text, b if r[a] > r[b] else a),
        }
        for text, r in zip(texts, rewards, strict=True)
        for a, b in PAIRS
    ]
    config = RewardConfig(
        **arguments(work, **options).to_dict() | {"max_length": None, "disable_dropout": False}
    )
    trainer = RewardTrainer(
        model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )

    def train() -> Callable[[list[str]], np.ndarray]:
        trainer.train()
        every = lambda prompts: [known(text, t) for text in prompts for t in range(N)]  # noqa: E731
        return lambda prompts: (
            forward(model.eval(), tokenizer, every(prompts)).numpy().reshape(len(prompts), N)
        )

    return train


def arguments(work: Path, **options: Any) -> TrainingArguments:
    """As in `train_router`."""
    quiet = {
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    plain = {"remove_unused_columns": False, "dataloader_pin_memory": False, "optim": "adafactor"}
    return TrainingArguments(output_dir=str(work), **(quiet | plain | options))
