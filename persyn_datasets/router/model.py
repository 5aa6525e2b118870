"""The router π: a plain `transformers` sequence classifier whose labels are the teachers.

Trained on pairs of teachers by Bradley–Terry: for teachers A and B on prompt x, with Z −1 at A and
+1 at B, P(B preferred) = σ(Zᵀ π(x)) (paper §3). All pairs of a prompt share one encoding of the
prompt.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HOME
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.recipe import apply_overrides, teachers_from
from persyn_datasets.config.teacher import Message, Teacher
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.router.bradley_terry import (
    WithFeatures,
    bradley_terry_loss,
    fit_head,
    head_of,
    preferences,
)
from persyn_datasets.router.ceiling import ceiling, sampled_rewards
from persyn_datasets.router.drift import profile, unlike
from persyn_datasets.router.metrics import router_metrics
from persyn_datasets.store.identity import content_hash
from persyn_datasets.store.journal import digest
from persyn_datasets.store.models import (
    batches,
    device,
    dtype,
    free,
    load_classifier,
    load_tokenizer,
)

TOKENS_PER_BATCH = {
    "cuda": 16_384,
    "cpu": 1024,
}  # what the processor's cache holds is quickest there


def router_text(messages: Sequence[Message]) -> str:
    """What the router reads: a single user message as it is, so that plain pipelines work on plain
    prompts.
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


@dataclass(frozen=True)
class Router:
    """A trained router, by where it is stored: cheap to copy and to pickle; the model is loaded
    when first used.

    Any `AutoModelForSequenceClassification` or `pipeline("text-classification")` opens it too.

    Attributes:
        path: Hub id or local folder.
        revision: commit on the Hub.
        content: hash of its files or commit, so that caches notice another router at the same
            place.
    """

    path: str
    revision: str | None = None
    content: str | None = None

    @classmethod
    def from_pretrained(cls, path: str, revision: str | None = None) -> "Router":
        """Open a router: a folder, or one on the Hub at a branch, tag or commit.

        Raises:
            InputError: nothing is there, or it is not a router of ours.
        """
        content = content_hash(str(path))
        _read_config(str(path), revision)
        if (
            content is None
        ):  # on the Hub: from now on this very commit, whatever becomes of the branch
            file = try_to_load_from_cache(str(path), "config.json", revision=revision)
            assert isinstance(file, str)
            revision = content = Path(file).parent.name
        return cls(str(path), revision, content)

    @property
    def config(self) -> Any:
        return _config(self.path, self.revision, self.content)

    @property
    def names(self) -> list[str]:
        """The teachers' names, in the order of the scores."""
        return [self.config.id2label[i] for i in range(self.config.num_labels)]

    @property
    def teachers(self) -> list[Teacher]:
        """See `teachers_with`."""
        return self.teachers_with()

    def teachers_with(
        self, overrides: Iterable[str] = (), names: Sequence[str] | None = None
    ) -> list[Teacher]:
        """The teachers as they were asked; empty if the router was trained without their
        specifications.

        A router from the Hub is data: that a teacher of it runs code here, or gets your prompts at
        a server or your key from a variable, counts only if you say so too.

        Args:
            overrides: `teachers.PLACE.KEY=VALUE`, PLACE counting from 0 in the router's order.
            names: only these.

        Raises:
            InputError: an override that is missing, or wrong.
        """
        specifications = deepcopy(self.config.persyn["teachers"])
        chosen = {
            str(i): t for i, t in enumerate(specifications) if names is None or t["name"] in names
        }
        values = {"teachers": chosen}
        apply_overrides(
            values, overrides, "" if Path(self.path).is_dir() else f"The router {self.path}"
        )
        return teachers_from(values, self.path)

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return load_classifier(self.path, self.revision).num_parameters()

    @property
    def metrics(self) -> dict[str, Any] | None:
        """See `metrics.router_metrics`; None if it was not evaluated."""
        return self.config.persyn.get("metrics")

    def scores(self, prompts: Sequence[list[Message]]) -> np.ndarray:
        """o = π(x) for each prompt: float32 (prompts, teachers)."""
        model, tokenizer = self._load()
        return _forward(model, tokenizer, [router_text(m) for m in prompts]).numpy()

    def read(self, prompts: Sequence[list[Message]]) -> tuple[np.ndarray, np.ndarray]:
        """o = π(x), and what the last layer sees of each prompt: float32 (prompts, teachers) and
        (prompts, width).
        """
        model, tokenizer = self._load()
        parent, leaf, head = head_of(model)
        setattr(parent, leaf, WithFeatures(head))
        try:
            both = _forward(model, tokenizer, [router_text(m) for m in prompts]).numpy()
        finally:
            setattr(parent, leaf, head)
        return both[:, : len(self.names)], both[:, len(self.names) :]

    def profile(self, prompts: Sequence[list[Message]]) -> dict[str, Any]:
        """What is typical of these prompts: see `likeness`."""
        return profile(*self.read(prompts), prompts)

    def unlike(self, prompts: Sequence[list[Message]]) -> list[str]:
        """Warnings, with numbers, if these prompts look unlike the calibration prompts: see
        `likeness`.

        None from a router that was not told what is typical: a build does
        `record(typical=profile(held_out))`.
        """
        typical = self.config.persyn.get("typical")
        return unlike(typical, *self.read(prompts), prompts) if typical else []

    def evaluate(
        self, held_out: Dataset, trained_on: Dataset, teachers: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """`metrics.router_metrics` on rows of `Rank`; `trained_on` names the best single teacher.

        With several responses of each teacher to a prompt there is a `ceiling`, too: see
        `ceiling.ceiling`. The router may pick these `teachers` only (default: all); the others
        still count for the oracle. A prompt that stands in several rows counts once.
        """
        rewards, before = (rewards_of(ranked, self.names) for ranked in (held_out, trained_on))
        available = [teachers is None or name in teachers for name in self.names]
        scores = np.where(available, self.scores(held_out["messages"]), -np.inf)
        ids = held_out["prompt_id"]
        metrics = router_metrics(scores, rewards, before, self.names, prompt_ids=ids)
        sampled = sampled_rewards(held_out, self.names)
        if sampled.shape[-1] > 1:
            metrics["ceiling"] = ceiling(
                scores, sampled, self.names.index(metrics["best_single_teacher"])
            )
        return metrics

    def record(self, **facts: Any) -> "Router":
        """Write facts (JSON values) into the stored config of a local router."""
        self.config.persyn |= facts
        self.config.save_pretrained(self.path)
        return Router.from_pretrained(self.path)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        where = self.path, self.revision
        return load_classifier(*where), load_tokenizer(*where)

    def save_pretrained(self, folder: str) -> None:
        model, tokenizer = self._load()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@lru_cache(maxsize=8)
def _config(path: str, revision: str | None, content: str | None) -> Any:
    return _read_config(path, revision)


def _read_config(path: str, revision: str | None) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"No router at {path!r}: {error}") from error
    if not hasattr(config, "persyn"):
        raise InputError(
            f"{path!r} is a model, but no PerSyn router: its config has no entry 'persyn'."
        )
    return config


@torch.inference_mode()
def _forward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> torch.Tensor:
    """The classifier's outputs, float32 (texts, outputs). Batches hold texts of like length."""
    ids: Any = tokenizer(list(texts), truncation=True)["input_ids"]
    rows: dict[int, torch.Tensor] = {}
    for batch in batches([len(row) for row in ids], TOKENS_PER_BATCH[model.device.type]):
        encoded: Any = {"input_ids": [ids[i] for i in batch]}
        padded = tokenizer.pad(encoded, padding_side="right", return_tensors="pt")
        rows.update(zip(batch, model(**padded.to(model.device)).logits.float().cpu(), strict=True))
    return torch.stack([rows[i] for i in range(len(ids))])


def train_router(
    pairs: Dataset,
    backbone: str,
    *,
    revision: str | None = None,
    teachers: Sequence[Teacher] = (),
    freeze_backbone: bool = False,
    epochs: float = 2,
    learning_rate: float = 1e-5,
    batch_size: int = 16,
    gradient_accumulation_steps: int = 1,
    max_length: int = 1024,
    seed: int = 0,
    output_dir: str | None = None,
) -> Router:
    """Train a router on the pairs of `Pairify`, with one forward pass per prompt.

    Args:
        pairs: rows of `prompt_id`, `messages`, `teacher_a`, `teacher_b`, `label`.
        backbone: Hub id or folder of a model that `AutoModelForSequenceClassification` opens.
        teachers: their specifications, kept in the router's config; they fix the order of its
            outputs. A teacher that no pair compares (all its responses failed) gets no output.
        freeze_backbone: fit only the head, to the optimum and in seconds (the next four are not
            used): for small calibration sets and for CPUs. Its ridge penalty is chosen by
            cross-validation over the prompts.
        batch_size: prompts per forward pass.
        gradient_accumulation_steps: forward passes per step of the optimizer.
        max_length: tokens of a prompt that the router reads.
        output_dir: where the router is kept. Default: a folder of the Hugging Face cache, named by
            the content of the pairs and all settings; a router that is there already is not trained
            again.

    Raises:
        InputError: there are no pairs, or they compare teachers that `teachers` does not name.
    """
    compared = set(pairs.unique("teacher_a")) | set(pairs.unique("teacher_b"))
    names = [t.name for t in teachers if t.name in compared] if teachers else sorted(compared)
    if not compared or compared != set(names):
        expected = f"some of {[t.name for t in teachers]}" if teachers else "at least one pair"
        raise InputError(
            f"pairs: they compare the teachers {sorted(compared)}; expected {expected}."
        )
    training: dict[str, Any] = {
        "backbone": backbone,
        "revision": revision,
        "freeze_backbone": freeze_backbone,
    }
    if not freeze_backbone:
        training |= {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size}
        training |= {"gradient_accumulation_steps": gradient_accumulation_steps}
    training |= {"max_length": max_length, "seed": seed, "pairs": len(pairs)}
    specifications = [t.to_dict() for t in teachers if t.name in names]
    address = digest([pairs._fingerprint, content_hash(backbone), training, specifications])
    folder = output_dir or str(Path(HF_HOME) / "persyn" / "routers" / address)
    if not output_dir and (Path(folder) / "tokenizer_config.json").exists():
        return Router.from_pretrained(folder)

    config: Any = AutoConfig.from_pretrained(backbone, revision=revision, num_labels=len(names))
    config.id2label, config.label2id = (
        dict(enumerate(names)),
        {name: i for i, name in enumerate(names)},
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(backbone, revision=revision)
    positions = getattr(config, "max_position_embeddings", max_length)
    tokenizer.model_max_length = min(max_length, tokenizer.model_max_length, positions)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    free()  # what answered or scored before: the router needs the memory
    set_seed(seed)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        backbone, revision=revision, config=config, dtype=torch.float32, use_safetensors=True
    ).to(device())

    prompts, prefer = preferences(pairs, names)
    texts = [router_text(m) for m in prompts]
    if freeze_backbone:
        training["ridge"] = _fit_head(model, tokenizer, texts, prefer)
    else:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            # AdamW's two moments alone are 12 GB at 1.5B: with them it would not fit in 24 GB
            optim="adafactor",
            bf16=dtype() == torch.bfloat16,
            activation_checkpointing=torch.cuda.is_available(),
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=seed,
        )
        _fine_tune(model, tokenizer, texts, prefer, arguments)
    training |= {"prompts": len(prompts), "digest": address}
    model.config.persyn = {"teachers": specifications, "training": training}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # last: says that the router is whole
    return Router.from_pretrained(folder)


def _fit_head(model: Any, tokenizer: Any, texts: Sequence[str], prefer: torch.Tensor) -> float:
    """Fit the last linear layer to the pairs; returns the ridge that cross-validation chose."""
    parent, leaf, head = head_of(model)
    setattr(
        parent, leaf, nn.Identity()
    )  # now the model's logits are the features that its head would see
    features = _forward(model.eval(), tokenizer, texts)
    weight, bias, ridge = fit_head(features, prefer, with_bias=head.bias is not None)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(bias)
    setattr(parent, leaf, head)
    return ridge


class _BradleyTerryTrainer(Trainer):
    pairs_per_prompt: float

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        prefer = inputs.pop("prefer")
        outputs = model(**inputs)
        loss = bradley_terry_loss(outputs.logits.float(), prefer) / (
            len(prefer) * self.pairs_per_prompt
        )
        return (loss, outputs) if return_outputs else loss


def _fine_tune(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    prefer: torch.Tensor,
    arguments: TrainingArguments,
) -> None:
    ids = tokenizer(list(texts), truncation=True)["input_ids"]

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        encoded = {"input_ids": [ids[i] for i in rows]}
        return {
            **tokenizer.pad(encoded, padding_side="right", return_tensors="pt"),
            "prefer": prefer[rows],
        }

    rows: Any = list(range(len(ids)))
    trainer = _BradleyTerryTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collate
    )
    trainer.pairs_per_prompt = float(prefer.sum() / len(prefer))
    trainer.train()
