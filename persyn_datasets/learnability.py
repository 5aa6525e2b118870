"""Learnability: how likely the student finds a response, r_l(y, θ) = (1/|y|) Σ_t log p_θ(y_t | y_<t, x)."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from persyn_datasets.errors import InputError
from persyn_datasets.models import batches, context_length, load_causal_lm, load_tokenizer, prompt_ids, text_ids
from persyn_datasets.student import Student
from persyn_datasets.teacher import Message

TOKENS_PER_BATCH = 4096
POSITIONS_PER_CHUNK = 256


def mean_log_probs(student: Student, rows: Sequence[tuple[list[Message], str]]) -> Iterator[tuple[int, float, int]]:
    """Score (messages, response text) rows with the student.

    The prompt is formatted by the student's own chat template (`models.PLAIN_TEMPLATE` for a base student);
    the response is its text, without an end-of-turn token, so that truncated responses compare. What does not
    fit into the student's context is cut off at the end of the response.

    Yields:
        (index of the row, mean natural-log probability per response token, number of response tokens), in an
        order of the function's choice. A row without a response token has the mean NaN.

    Raises:
        InputError: a prompt alone fills the student's context.
    """
    weights = student.model, student.revision, student.trust_remote_code
    tokenizer, model = load_tokenizer(*weights), load_causal_lm(*weights)
    limit = context_length(model)
    encoded = []
    for i, (messages, text) in enumerate(rows):
        x, y = prompt_ids(tokenizer, messages), text_ids(tokenizer, text)
        if len(x) >= limit:
            raise InputError(
                f"The prompt {messages[-1]['content'][:60]!r} has {len(x)} tokens for the student {student.model!r}, "
                f"whose context is {limit}; remove the prompt."
            )
        y = y[: limit - len(x)]
        if y:
            encoded.append((i, x, y))
        else:
            yield i, float("nan"), 0
    for places in batches([len(x) + len(y) for _, x, y in encoded], TOKENS_PER_BATCH):
        batch = [encoded[place] for place in places]
        scores = response_log_probs(model, [x for _, x, _ in batch], [y for _, _, y in batch])
        for (i, _, y), log_probs in zip(batch, scores, strict=True):
            yield i, log_probs.mean().item(), len(y)


@torch.inference_mode()
def response_log_probs(
    model: PreTrainedModel, prompts: Sequence[list[int]], responses: Sequence[list[int]]
) -> list[torch.Tensor]:
    """log p_θ(y_t | y_<t, x) for each token of each response: one float32 vector per row.

    Only the response positions go through the language-model head, in chunks, so that no tensor of
    batch × length × vocabulary is ever made.
    """
    rows = [x + y for x, y in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    predicts = torch.zeros(len(rows), width, dtype=torch.bool)  # positions whose next token is of the response
    for r, (x, row) in enumerate(zip(prompts, rows, strict=True)):
        ids[r, : len(row)], mask[r, : len(row)] = torch.tensor(row), 1
        predicts[r, len(x) - 1 : len(row) - 1] = True
    hidden = model.base_model(ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)[0]
    hidden = hidden[predicts.to(model.device)]
    targets = torch.tensor([t for y in responses for t in y], device=model.device)
    log_probs = torch.cat(
        [
            _head_log_probs(model, h, t)
            for h, t in zip(hidden.split(POSITIONS_PER_CHUNK), targets.split(POSITIONS_PER_CHUNK), strict=True)
        ]
    )
    return list(log_probs.cpu().split([len(y) for y in responses]))


def _head_log_probs(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = model.get_output_embeddings()(hidden).float()
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
