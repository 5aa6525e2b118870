"""The student of this study: how it is trained, and how it answers.

A core of an AVX-512/AMX machine multiplies matrices three to six times as fast in bfloat16, so the
passes are in bfloat16 and the weights that the optimizer updates in float32 (mixed precision).
"""

import random
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from persyn_datasets.config.student import Student
from persyn_datasets.config.teacher import Message
from persyn_datasets.signals.math_verify import verdicts
from persyn_datasets.signals.trained_text import ChatFormat
from persyn_datasets.store.models import batches, load_tokenizer, prompt_ids
from studies.problems_student.problems import SHORT

BATCH, ROWS = 8, 64  # trained at a time, and answered
Example = tuple[list[Message], str]


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def fine_tuned(
    folder: Path, examples: Sequence[Example], steps: int, rate: float, seed: int
) -> PreTrainedModel:
    """All weights, AdamW, cosine with 10% warm-up; the loss is over what TRL would train: the
    answer and the end of its turn.
    """
    rows = list(ChatFormat(Student(str(folder))).render(examples))
    model = load(folder).train()
    weights = list(model.parameters())
    precise = [w.detach().float() for w in weights]
    optimizer = torch.optim.AdamW(precise, lr=rate, weight_decay=0.0, fused=True)
    draw, order = random.Random(seed), []
    for step in range(steps):
        while len(order) < BATCH:
            epoch = list(range(len(rows)))
            draw.shuffle(epoch)
            order += epoch
        batch, order = [rows[i] for i in order[:BATCH]], order[BATCH:]
        warm = min(1.0, (step + 1) / max(1.0, 0.1 * steps))
        optimizer.param_groups[0]["lr"] = rate * warm * (1 + np.cos(np.pi * step / steps)) / 2
        _loss(model, batch).backward()
        for w, p in zip(weights, precise, strict=True):
            p.grad = None if w.grad is None else w.grad.float()
            w.grad = None
        torch.nn.utils.clip_grad_norm_(precise, 1.0)
        optimizer.step()
        with torch.no_grad():
            for w, p in zip(weights, precise, strict=True):
                w.copy_(p)
    return model.eval()


def _loss(model: Any, rows: Sequence[Any]) -> torch.Tensor:
    """−log p per trained token."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        labels[i, row.loss_from : len(row.ids)] = torch.tensor(row.ids[row.loss_from :])
    # No mask: what is padded stands behind everything that counts, and attention is causal.
    hidden = model.base_model(ids)[0][:, :-1]
    trained = labels[:, 1:] != -100
    logits = model.get_output_embeddings()(hidden[trained])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][trained])


def answered(
    model: PreTrainedModel, folder: Path, problems: Dataset, most: int
) -> list[tuple[str, bool]]:
    """Greedy answers, and whether each came to its end within so many tokens."""
    tokenizer: Any = load_tokenizer(str(folder))
    asked = [prompt_ids(tokenizer, messages) for messages in problems["messages"]]
    answers = [("", False)] * len(asked)
    for places in batches([len(ids) for ids in asked], 10**9, ROWS):
        found = _greedy(model, [asked[i] for i in places], tokenizer.eos_token_id, most)
        for i, tokens in zip(places, found, strict=True):
            ended = tokens[-1] == tokenizer.eos_token_id
            answers[i] = tokenizer.decode(tokens, skip_special_tokens=True), ended
    return answers


@torch.inference_mode()
def _greedy(model: Any, prompts: list[list[int]], end: int, most: int) -> list[list[int]]:
    """What all prompts begin with is read once, and who has ended is left out."""
    cache = DynamicCache(config=model.config)
    columns = zip(*(ids[:-1] for ids in prompts), strict=False)
    prefix = [column[0] for column in takewhile(lambda c: len(set(c)) == 1, columns)]
    if prefix:
        model(torch.tensor([prefix]), past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
    ids, mask = _padded_left(prompts, len(prefix))
    new: list[list[int]] = [[] for _ in prompts]
    open_ones = list(range(len(prompts)))
    for _ in range(most):
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = model(
            ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits
        tokens = logits[:, -1].argmax(-1)
        for i, token in zip(open_ones, tokens.tolist(), strict=True):
            new[i].append(token)
        going = (tokens != end).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(open_ones):
            cache.batch_select_indices(going)
            open_ones = [open_ones[j] for j in going.tolist()]
        ids, mask = tokens[going, None], torch.nn.functional.pad(mask[going], (0, 1), value=1)
    return new


def _padded_left(prompts: list[list[int]], prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids behind the prefix, and the mask of all."""
    width = max(len(ids) for ids in prompts)
    ids = torch.zeros(len(prompts), width - prefix, dtype=torch.long)
    mask = torch.ones(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        free = width - len(prompt)
        ids[i, free:] = torch.tensor(prompt[prefix:])
        mask[i, prefix : prefix + free] = 0
    return ids, mask


def right(
    model: PreTrainedModel, folder: Path, problems: Dataset, most: int = SHORT.max_tokens
) -> dict[str, np.ndarray]:
    """`right`: 1 or 0 per problem, 0 too for an answer without an end; `text`: the answers."""
    answers = answered(model, folder, problems, most)
    pairs = [(a, text) for a, (text, _) in zip(problems["answer"], answers, strict=True)]
    ended = np.array([end for _, end in answers])
    return {
        "right": np.array(verdicts(pairs)) * ended,
        "text": np.array([text for text, _ in answers]),
    }
