"""Training a router on pairs of teachers: Bradley–Terry (paper §3), or, where the backbone is
frozen, a ridge regression of the rewards behind the pairs (see `regression`).

All pairs of a prompt share one encoding of the prompt, so that training costs one forward pass per
prompt, not one per pair.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub.constants import HF_HOME
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.router.bradley_terry import bradley_terry_loss, preferences
from persyn_datasets.router.heads import head_of
from persyn_datasets.router.model import Router, forward, router_text
from persyn_datasets.router.older_versions import LAST_FILE, save_router
from persyn_datasets.router.regression import Head, fit_rewards, rewards_of_pairs
from persyn_datasets.store import own
from persyn_datasets.store.identity import weights_of
from persyn_datasets.store.journal import digest
from persyn_datasets.store.memory import OneDevice, in_passes
from persyn_datasets.store.models import check_whole, device, dtype, free
from persyn_datasets.store.progress import Bar


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
        pairs: rows of `prompt_id`, `messages`, `teacher_a`, `teacher_b`, `label` and, for a frozen
            backbone, `margin` (default: 1).
        backbone: Hub id or folder of a model that `AutoModelForSequenceClassification` opens. The
            head of one that is a classifier already is replaced.
        teachers: their specifications, kept in the router's config; they fix the order of its
            outputs. A teacher that no pair compares (all its responses failed) gets no output.
        freeze_backbone: fit only the head, to the optimum and in seconds (the next four are not
            used): for small calibration sets and for CPUs. See `regression.fit_rewards`.
        batch_size: prompts per forward pass.
        gradient_accumulation_steps: forward passes per step of the optimizer.
        max_length: tokens of a prompt that the router reads.
        output_dir: where the router is kept. Default: a folder of the Hugging Face cache, named by
            the content of the pairs and all settings; a router that is there already is not trained
            again.

    Raises:
        InputError: there are no pairs, or they compare teachers that `teachers` does not name; the
            backbone cannot be a router.
        BuildError: one prompt at a time is too much for the device's memory. Before that, passes
            get smaller, and a step has more of them.
    """
    names = _names(pairs, teachers)
    prompts, prefer = preferences(pairs, names)
    rewards = rewards_of_pairs(pairs, names)[1] if freeze_backbone else None
    steps: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
    }
    training: dict[str, Any] = {
        "backbone": backbone,
        "revision": revision,
        "freeze_backbone": freeze_backbone,
        **({"fit": "ridge regression of rewards"} if freeze_backbone else steps),
        "max_length": max_length,
        "seed": seed,
        "pairs": len(pairs),
    }
    specifications = [t.to_dict() for t in teachers if t.name in names]
    own.remember(specifications)
    learned_from = prefer.numpy() if rewards is None else rewards
    address = _address(prompts, learned_from, names, specifications, training)
    folder = output_dir or str(Path(HF_HOME) / "persyn" / "routers" / address)
    if not output_dir and (Path(folder) / LAST_FILE).exists():
        return Router.from_pretrained(folder)

    free()  # what answered or scored before: the router needs the memory
    texts = [router_text(m) for m in prompts]

    def fine_tuned(rows: int, passes: int) -> tuple[Any, Any]:
        set_seed(seed)
        model, tokenizer = open_backbone(backbone, names, revision, max_length)
        smaller = steps | {"batch_size": rows, "gradient_accumulation_steps": passes}
        _fine_tune(model, tokenizer, texts, prefer, _arguments(folder, seed, **smaller))
        return model, tokenizer

    if rewards is not None:
        set_seed(seed)
        model, tokenizer = open_backbone(backbone, names, revision, max_length)
        training |= _fit_head(model, tokenizer, texts, rewards).facts
    else:
        remedy = "Lower router.max_length, set router.freeze_backbone, or take a smaller backbone."
        model, tokenizer = in_passes(fine_tuned, batch_size, gradient_accumulation_steps, remedy)
    training |= {"prompts": len(prompts), "digest": address}
    model.config.persyn = {"teachers": specifications, "training": training}
    save_router(model, tokenizer, folder)
    return Router.from_pretrained(folder)


def _address(
    prompts: Any, learned_from: np.ndarray, names: list[str], specifications: Any, training: Any
) -> str:
    """What the weights depend on, by content: neither a path nor a fingerprint stands for it."""
    compared = hashlib.sha256(learned_from.tobytes()).hexdigest()
    weights = weights_of(training["backbone"], training["revision"])
    return digest([prompts, compared, names, specifications, weights, training])


def _arguments(
    folder: str,
    seed: int,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    gradient_accumulation_steps: int,
) -> TrainingArguments:
    return _Arguments(
        output_dir=folder,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        # AdamW's two moments alone are 12 GB at 1.5B: with them it would not fit in 24 GB.
        optim="adafactor",
        bf16=dtype() == torch.bfloat16,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
    )


def _names(pairs: Dataset, teachers: Sequence[Teacher]) -> list[str]:
    """The teachers that the pairs compare, in the order of the router's outputs."""
    compared = set(pairs.unique("teacher_a")) | set(pairs.unique("teacher_b"))
    names = [t.name for t in teachers if t.name in compared] if teachers else sorted(compared)
    if not compared or compared != set(names):
        expected = f"some of {[t.name for t in teachers]}" if teachers else "at least one pair"
        raise InputError(
            f"pairs: they compare the teachers {sorted(compared)}; expected {expected}."
        )
    return names


def open_backbone(
    backbone: str, names: Sequence[str], revision: str | None = None, max_length: int = 1024
) -> tuple[Any, Any]:
    """A backbone as a classifier with one output for each of `names`, and its tokenizer.

    Raises:
        InputError: no single linear layer gives its labels, or no token pads.
        OSError, ValueError, RuntimeError: its files are not there, or not whole.
    """
    of: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    config: Any = AutoConfig.from_pretrained(backbone, **of)
    was_classifier = any("Classification" in name for name in config.architectures or ())
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = None  # a reward model's "regression" would change what pipelines return
    tokenizer: Any = AutoTokenizer.from_pretrained(backbone, **of)
    # A router reads text. With a template vLLM's `/classify` would wrap `messages` in it.
    tokenizer.chat_template = None
    tokenizer.pad_token = _pad_token(tokenizer)
    for part in (config, config.get_text_config()):  # which of them counts differs by architecture
        part.num_labels = len(names)
        part.pad_token_id = tokenizer.pad_token_id
    model, found = AutoModelForSequenceClassification.from_pretrained(
        backbone,
        **of,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # another classifier's head
        output_loading_info=True,
    )
    tokenizer.model_max_length = min(max_length, tokenizer.model_max_length, _positions(model))
    _, _, head = head_of(model)
    check_whole(_missing_in_body(model, head, found))
    if was_classifier:
        nn.init.normal_(head.weight, std=getattr(config, "initializer_range", 0.02))
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    return model.to(device()), tokenizer


def _missing_in_body(model: Any, head: nn.Linear, found: dict[str, Any]) -> set[str]:
    """Weights that the backbone lacks, or has in another shape. Its head is to be learned; some
    encoders come without the layers before it, of which a pooler is in the body.
    """
    of_head = {
        name for name, p in model.named_parameters() if any(p is q for q in head.parameters())
    }
    body = f"{model.base_model_prefix}."
    missing = {k for k in found["missing_keys"] if k.startswith(body) and "pooler" not in k}
    return (missing | {key for key, *_ in found["mismatched_keys"]}) - of_head


def _pad_token(tokenizer: Any) -> str:
    """A token that pads, and that ends no text.

    Decoders classify by the last token that is not padding. Where the tokenizer ends each text with
    its padding token, transformers reads the token before it and vLLM the token itself.
    """
    last = tokenizer.convert_ids_to_tokens(tokenizer("x")["input_ids"][-1])
    candidates = [tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token]
    candidates += [tokenizer.bos_token, *tokenizer.all_special_tokens]
    usable = [token for token in candidates if token and token != last]
    if not usable:
        raise InputError(
            f"router.backbone: the tokenizer of {tokenizer.name_or_path!r} has no token to pad "
            "with; add one, or take another backbone."
        )
    return usable[0]


def _positions(model: Any) -> int:
    """Tokens that fit.

    RoBERTa and its kin count positions from behind the padding token's: 514 of them are 512 tokens.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 10**9
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or "position" not in name:
            continue
        if module.padding_idx is not None:
            most = min(most, module.num_embeddings - module.padding_idx - 1)
    return most


def _fit_head(model: Any, tokenizer: Any, texts: Sequence[str], rewards: np.ndarray) -> Head:
    """Fit the last linear layer to the rewards."""
    parent, leaf, layer = head_of(model)
    # Without its head the model's logits are the features that the head would see.
    setattr(parent, leaf, nn.Identity())
    with Bar("Router", len(texts), unit="prompts") as bar:
        features = forward(model.eval(), tokenizer, texts)
        bar.update(len(texts))
    head = fit_rewards(features.numpy(), rewards, with_bias=layer.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(head.weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.tensor(head.bias))
    setattr(parent, leaf, layer)
    return head


class _Arguments(OneDevice, TrainingArguments):
    pass


class _BradleyTerryTrainer(Trainer):
    pairs_per_prompt: float

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        prefer = inputs.pop("prefer")
        outputs = model(**inputs)
        loss = bradley_terry_loss(outputs.logits.float(), prefer)
        loss = loss / (len(prefer) * self.pairs_per_prompt)
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
        padded = tokenizer.pad(encoded, padding_side="right", return_tensors="pt")
        return {**padded, "prefer": prefer[rows]}

    if torch.cuda.is_available():
        checkpoint_activations(model)
    rows: Any = list(range(len(ids)))
    trainer = _BradleyTerryTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collate
    )
    trainer.pairs_per_prompt = float(prefer.sum() / len(prefer))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress())
    trainer.train()


class _Progress(TrainerCallback):
    """The steps as a bar of ours, with the stage's number."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = Bar("Router", state.max_steps, unit="steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass; transformers 5.23 gave the method a new name."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
