"""The target signal: how much what a student learns from a response helps the target.

    r_t(y, θ) = (1/|y|) Σ_t [log p_θ⁺(y_t | y_<t, x) − log p_θ(y_t | y_<t, x)]     (nats per token)

θ⁺ is the student after a few steps on the target, a set of reference answers of the kind it is
to become good at. For small steps θ⁺ − θ = −η ∇L_target(θ), so that to first order

    r_t ≈ (η/|y|) ⟨∇L_target(θ), ∇L_y(θ)⟩,     L_y = −log p_θ(y | x)

which is how much a step on y lowers the target's loss (LESS, arXiv 2402.04333, without a backward
pass per response; the difference of two models' log-probabilities is that of Moore & Lewis, ACL
2010, and of RHO-loss, arXiv 2206.07137). It costs one short training per student and target, and a
second pass over the responses.

Both log-probabilities are `learnability`'s: r_t is the learnability under θ⁺ minus that under θ.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.student import Student
from persyn_datasets.config.target import Target
from persyn_datasets.data.sources import load
from persyn_datasets.signals.learnability import SCORER
from persyn_datasets.signals.log_probs import Row, response_logits
from persyn_datasets.signals.trained_text import ChatFormat
from persyn_datasets.store import models
from persyn_datasets.store.identity import weights_of
from persyn_datasets.store.journal import default_root, digest
from persyn_datasets.store.meter import metered

BATCH_SIZE = 8
WARM_UP = 0.1  # of all steps


def theta_plus(student: Student, target: Target) -> Student:
    """The student after a few steps on the target: trained, or found again by its content.

    It lies in `target/` beside the journal, in safetensors, named by the student's weights, the
    target's rows and how it is trained. Several processes of a machine train it once.

    Raises:
        InputError: see `sources.load`; or a prompt of it alone fills the student's context.
    """
    data = load(target)
    texts = list(zip(data["messages"], data[target.response_column], strict=True))
    weights = weights_of(student.model, student.revision)
    content = [weights, texts, target.steps, target.learning_rate, BATCH_SIZE, WARM_UP]
    content += [SCORER, ChatFormat(student).identity()]
    folder = default_root() / "target" / digest(content)[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
            with metered("Target training", gpus=int(models.device().type == "cuda")):
                _train(student, texts, target, unfinished)
            unfinished.rename(folder)
    return replace(student, model=str(folder), revision=None)


def _train(student: Student, texts: Sequence[Any], target: Target, folder: Path) -> None:
    """Full fine-tuning in float32, the loss over the responses' tokens, as many rows as there
    are in an order that is always the same.
    """
    weights = student.model, student.revision, student.trust_remote_code
    tokenizer = models.load_tokenizer(*weights)
    models.free()  # what scored or answered before: the training needs the memory
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        student.model,
        revision=student.revision,
        trust_remote_code=student.trust_remote_code,
        dtype=torch.float32,
        use_safetensors=True,
    )
    model: Any = loaded.to(models.device())
    rows = _encoded(student, texts, models.context_length(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=target.learning_rate, weight_decay=0.0)
    # Few and small steps: θ⁺ is to point towards the target, not to arrive there.
    warm_up = max(1, round(WARM_UP * target.steps))
    schedule = get_cosine_schedule_with_warmup(optimizer, warm_up, target.steps)
    model.train()
    for batch in _batches(rows, target.steps):
        tokens = sum(len(response) for _, response in batch)
        for row in batch:  # one at a time: no padding, and little memory
            # Gradients add up to that of −(1/T) Σ log p over the T response tokens of the batch.
            (_loss(model, row) / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _encoded(student: Student, texts: Sequence[Any], limit: int) -> list[Row]:
    """As the student is trained on them and scored; cut off at the end of the response where they
    do not fit.
    """
    rows = []
    for (messages, _), text in zip(texts, ChatFormat(student).render(texts), strict=True):
        if text.start >= limit:
            raise InputError(
                f"target: the prompt {messages[-1]['content'][:60]!r} has {text.start} tokens for "
                f"the student {student.model!r}, whose context is {limit}; remove it."
            )
        rows.append((text.context, text.answer[: limit - text.start]))
    return rows


def _batches(rows: Sequence[Row], steps: int) -> Iterator[list[Row]]:
    """So many batches; the rows in a new order each time round."""
    generator = torch.Generator().manual_seed(0)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH_SIZE:
            order += torch.randperm(len(rows), generator=generator).tolist()
        yield [rows[i] for i in order[:BATCH_SIZE]]
        order = order[BATCH_SIZE:]


def _loss(model: Any, row: Row) -> torch.Tensor:
    """−Σ_t log p(y_t | y_<t, x)."""
    prompt, response = row
    logits = response_logits(model, prompt, response).float()
    targets = torch.tensor(response, device=model.device)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
