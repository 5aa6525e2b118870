"""Learnability: how likely the student finds a response, r_l(y, θ) = (1/|y|) Σ_t log p_θ(y_t |
y_<t, x).

From the same forward pass, the Rank-Surprisal Ratio RSR = Σ_t min(rank_t, 100) / Σ_t −log p_θ(y_t |
y_<t, x), where rank_t counts the tokens that the student finds likelier, plus 1 (arXiv 2601.14249,
Eq. 7): lower is better.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import repeat
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.student import Student
from persyn_datasets.config.teacher import Message
from persyn_datasets.store.models import (
    batches,
    context_length,
    load_causal_lm,
    load_tokenizer,
    prompt_ids,
    text_ids,
)

# A CPU wants to stay in its cache (this was fastest of 512 to 8192 tokens), a GPU to be filled.
TOKENS_PER_BATCH, LOGITS_AT_ONCE = (16_384, 2**26) if torch.cuda.is_available() else (1024, 2**20)
HIGHEST_RANK = 100


class Signals(TypedDict):
    """What the student says of a response; None where it has no token.

    learnability: mean natural-log probability per token.
    rsr: Rank-Surprisal Ratio.
    tokens: of the response, by the student's tokenizer.
    """

    learnability: float | None
    rsr: float | None
    tokens: int


def signals(
    student: Student, rows: Sequence[tuple[list[Message], str]]
) -> Iterator[tuple[int, Signals]]:
    """Score (messages, response text) rows with the student.

    The prompt is formatted by the student's own chat template (`models.PLAIN_TEMPLATE` for a base
    student); the response is its text, without an end-of-turn token, so that truncated responses
    compare. What does not fit into the student's context is cut off at the end of the response.

    Yields:
        (index of the row, its signals), in an order of the function's choice.

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
                f"The prompt {messages[-1]['content'][:60]!r} has {len(x)} tokens for the student "
                f"{student.model!r}, "
                f"whose context is {limit}; remove the prompt."
            )
        y = y[: limit - len(x)]
        if y:
            encoded.append((i, x, y))
        else:
            yield i, Signals(learnability=None, rsr=None, tokens=0)
    for place, log_probs, ranks in response_log_probs(model, [(x, y) for _, x, y in encoded]):
        surprisal = -log_probs.sum()
        rsr = ranks.clamp(max=HIGHEST_RANK).sum() / surprisal
        i, _, y = encoded[place]
        yield i, Signals(learnability=-surprisal.item() / len(y), rsr=rsr.item(), tokens=len(y))


@torch.inference_mode()
def response_log_probs(
    model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """log p_θ(y_t | y_<t, x) and the rank of y_t, of (prompt, response) rows of token ids.

    Yields (index, float32, int64), each with one value per response token.

    A prompt is encoded once for all its responses; these are batched by length, whatever their
    prompts. Only their positions go through the language-model head, a slice of the vocabulary at a
    time, so that no tensor of batch × length × vocabulary is ever made.
    """
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, (x, _) in enumerate(rows):
        # Without its last token, which goes with the response: it predicts the first.
        of_prompt.setdefault(tuple(x[:-1]), []).append(i)
    prompts = list(of_prompt)
    for window in batches(list(map(len, prompts)), TOKENS_PER_BATCH):
        width = max(len(prompts[p]) for p in window)
        mask = torch.tensor(
            [[0] * (width - len(prompts[p])) + [1] * len(prompts[p]) for p in window]
        )
        ids = torch.tensor([[0] * (width - len(prompts[p])) + list(prompts[p]) for p in window])
        encoded = DynamicCache(config=model.config)
        if width:
            _hidden(model, ids, mask, mask.cumsum(-1) - 1, encoded)
        places = [(place, i) for place, p in enumerate(window) for i in of_prompt[prompts[p]]]
        for batch in batches([width + 1 + len(rows[i][1]) for _, i in places], TOKENS_PER_BATCH):
            prompt = torch.tensor([places[b][0] for b in batch])
            ours = [rows[places[b][1]] for b in batch]
            scores = _responses(
                model, ours, mask[prompt], _select(encoded, prompt.to(model.device))
            )
            yield from ((places[b][1], *of_row) for b, of_row in zip(batch, scores, strict=True))


def _select(encoded: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A cache of its own for these rows: layers replace their tensors, and never write into
    them.
    """
    cache = copy(encoded)
    cache.layers = [copy(layer) for layer in encoded.layers]
    cache.batch_select_indices(rows)
    return cache


def _responses(
    model: PreTrainedModel,
    rows: Sequence[tuple[list[int], list[int]]],
    prompt_mask: torch.Tensor,
    cache: DynamicCache,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The log-probabilities and ranks of one batch, whose prompts are in the cache (left-padded, as
    the mask says).
    """
    lengths = torch.tensor([len(y) for _, y in rows])
    width = int(lengths.max())
    ids = torch.tensor([x[-1:] + y + [0] * (width - len(y)) for x, y in rows])
    positions = torch.arange(width + 1)
    mask = torch.cat([prompt_mask, (positions <= lengths[:, None]).long()], dim=-1)
    hidden = _hidden(model, ids, mask, prompt_mask.sum(-1, keepdim=True) + positions, cache)
    hidden = hidden[
        (positions < lengths[:, None]).to(model.device)
    ]  # whose next token is of the response
    targets = torch.tensor([t for _, y in rows for t in y], device=model.device)
    log_probs, ranks = (t.cpu() for t in _head(model, hidden, targets))
    return zip(log_probs.split(lengths.tolist()), ranks.split(lengths.tolist()), strict=True)


def _hidden(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: DynamicCache,
) -> torch.Tensor:
    """The last hidden states (rows, length, size); the cache grows by these rows."""
    return model.base_model(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=positions.clamp(min=0).to(model.device),
        past_key_values=cache,
        use_cache=True,
    )[0]


def _head(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and rank of each target: float32 and int64, (positions,).

    The vocabulary goes by in slices, so that their logits stay in the cache.
    """
    head: Any = model.get_output_embeddings()
    target = (hidden.float() * head.weight[targets].float()).sum(-1, keepdim=True)
    target = _scaled(model, target if head.bias is None else target + head.bias[targets, None])
    log_sum, rank = torch.full_like(target[:, 0], -torch.inf), torch.ones_like(target[:, 0])
    width = max(1, LOGITS_AT_ONCE // len(targets))
    biases = repeat(None) if head.bias is None else head.bias.split(width)
    for w, b in zip(head.weight.split(width), biases, strict=False):
        logits = _scaled(model, F.linear(hidden, w, b).float())
        log_sum = log_sum.logaddexp(logits.logsumexp(-1))
        above = logits.gt_(target)
        itself = above.gather(-1, targets.clamp(0, len(w) - 1)[:, None])[
            :, 0
        ]  # by rounding it may be above itself
        rank += above.sum(-1) - itself * ((targets >= 0) & (targets < len(w)))
        targets = targets - len(w)
    return target[:, 0] - log_sum, rank.long()


def _scaled(model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
    """What the model does to its head's output."""
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits
