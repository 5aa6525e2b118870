"""log p_θ of responses' tokens, as the model's own forward has it, at less cost.

A prompt is read once for all its responses, and only the responses' positions go through the head,
which is the model's own: its forward is called with the hidden states in place of its body. Whether
a model allows that is seen, not known: on the first rows both ways are compared, and where they
differ (a cache that cannot be shared, a padding that is seen), its rows are read one by one, whole.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from persyn_datasets.store.memory import in_batches, token_budget
from persyn_datasets.store.models import cache_argument

logger = logging.getLogger(__name__)

Row = tuple[list[int], list[int]]  # token ids of a context and of its response
Scored = tuple[torch.Tensor, torch.Tensor]  # log-probabilities (float32) and ranks (int64)
# A GPU is to be filled; on a CPU the logits are to stay in the cache.
LOGITS_AT_ONCE, CACHED = (2**26, 2**26) if torch.cuda.is_available() else (2**24, 2**18)
# Mean difference of a row's log-probabilities by both ways, in nats per token, beyond which they
# are not the same. Batches of another shape round otherwise, about as much as bfloat16 rounds at
# all: tokens of SmolLM2-135M differ by 0.037 at most (the mean of a row by 0.011) on 25 answers to
# GSM8K, and by 0.033 from float32. Such a model is to pass. float16 has three bits more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}

_exact: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.inference_mode()
def response_log_probs(
    model: PreTrainedModel, rows: Sequence[Row]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """log p_θ(y_t | y_<t, x) and the rank of y_t, of (context, response) rows of token ids.

    A rank is the number of tokens that the model finds likelier, plus 1. No context or response may
    be empty.

    Yields (index, float32, int64), each with one value per response token, in an order of its
    choice.
    """
    if not rows:
        return
    if model not in _exact:
        _exact[model] = _shares(model, _probe(rows))
    way = _shared if _exact[model] else _whole
    for i, (log_probs, ranks) in way(model, rows):
        yield i, log_probs, ranks


def _probe(rows: Sequence[Row]) -> list[Row]:
    """What could go wrong: the longest, two responses to one prompt, prompts of other lengths."""
    by_length = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))
    (x, y), (short, z) = by_length[-1], by_length[0]
    return [(x, y), (x, y[: len(y) // 2 + 1]), (x[len(x) // 2 :], z), (short, z)]


def _shares(model: PreTrainedModel, rows: list[Row]) -> bool:
    """Whether the quick way gives what the model's own forward gives."""
    own = dict(_whole(model, rows))
    try:
        quick = dict(_shared(model, rows))
        apart = max((quick[i][0] - own[i][0]).abs().mean().item() for i in own)
        why = f"differ by {apart:.3g} per token"
        exact = apart <= TOLERANCE[model.dtype]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's code raises: it is said, and does without
        why, exact = f"end in {type(error).__name__}: {error}", False
    if not exact:
        logger.warning(
            "%s: log-probabilities from a prompt that is read once for all its responses %s, so "
            "each response is read together with its prompt: correct, but slower.",
            type(model).__name__,
            why,
        )
    return exact


def response_logits(
    model: PreTrainedModel, context: list[int], response: list[int]
) -> torch.Tensor:
    """The logits that predict each token of a response, by the model's plain forward: (tokens,
    vocabulary), in the model's dtype.
    """
    ids = torch.tensor([context + response], device=model.device)
    # Position t predicts token t + 1: the last of the context gives the first of the response, and
    # the last of the response nothing that counts. Where a model keeps all logits, so do we.
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    kept = {"logits_to_keep": len(response) + 1} if keeps else {}
    logits: torch.Tensor = model(ids, use_cache=False, **kept).logits
    return logits[0, -len(response) - 1 : -1]


def _whole(model: PreTrainedModel, rows: Sequence[Row]) -> Iterator[tuple[int, Scored]]:
    """Row by row, by the model's plain forward: nothing is shared or padded."""
    for i, (x, y) in enumerate(rows):
        yield i, _scores(response_logits(model, x, y), torch.tensor(y, device=model.device))


def _shared(model: PreTrainedModel, rows: Sequence[Row]) -> Iterator[tuple[int, Scored]]:
    """Prompts once for all their responses; responses batched by length, whatever their prompts."""
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, (x, _) in enumerate(rows):
        # Without its last token, which goes with the response: it predicts the first.
        of_prompt.setdefault(tuple(x[:-1]), []).append(i)
    prompts = list(of_prompt)
    # Two loops of like length: prompts whose cache fits into memory together, and within them
    # responses, shortest padding first, each with its own prompt's part of that cache.
    budget = token_budget(model)

    def window(some: list[int]) -> list[tuple[int, Scored]]:
        mask, cache = _read(model, [prompts[p] for p in some])
        places = [(place, i) for place, p in enumerate(some) for i in of_prompt[prompts[p]]]

        def batch(of: list[int]) -> list[tuple[int, Scored]]:
            prompt = torch.tensor([places[b][0] for b in of])
            picked = _select(cache, prompt.to(model.device))
            ours = [rows[places[b][1]] for b in of]
            scores = _responses(model, ours, mask[prompt], picked)
            return [(places[b][1], one) for b, one in zip(of, scores, strict=True)]

        # What a response costs: its prompt's padded cache, the prompt's last token, and itself.
        lengths = [mask.shape[1] + 1 + len(rows[i][1]) for _, i in places]
        return [scored for part in in_batches(lengths, budget, batch) for scored in part]

    for part in in_batches([len(p) for p in prompts], budget, window):
        yield from part


def _read(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]]
) -> tuple[torch.Tensor, DynamicCache]:
    """A mask (prompts, width), padded on the left, and the cache of the prompts."""
    width = max(map(len, prompts))
    # Padded on the left, so that each prompt ends where its responses begin.
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    cache = DynamicCache(config=model.config)
    if width:
        # Positions count real tokens only: padding must not move a prompt.
        _body(model, ids, mask, mask.cumsum(-1) - 1, cache)
    return mask, cache


def _select(encoded: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A cache of its own for these rows: layers replace their tensors, and never write
    into them.
    """
    cache = copy(encoded)
    cache.layers = [copy(layer) for layer in encoded.layers]
    cache.batch_select_indices(rows)
    return cache


def _responses(
    model: PreTrainedModel, rows: Sequence[Row], prompt_mask: torch.Tensor, cache: DynamicCache
) -> list[Scored]:
    """One batch, whose prompts are in the cache (left-padded, as the mask says)."""
    lengths = torch.tensor([len(y) for _, y in rows])
    width = int(lengths.max())
    # The prompt's last token goes first: its hidden state gives log p(y_1 | x).
    ids = torch.tensor([x[-1:] + y + [0] * (width - len(y)) for x, y in rows])
    positions = torch.arange(width + 1)
    mask = torch.cat([prompt_mask, (positions <= lengths[:, None]).long()], dim=-1)
    # A response goes on at the position where its own prompt ends, whatever the batch's padding.
    output = _body(model, ids, mask, prompt_mask.sum(-1, keepdim=True) + positions, cache)
    before = (positions < lengths[:, None]).to(model.device)  # the next token is of the response
    targets = torch.tensor([t for _, y in rows for t in y], device=model.device)
    log_probs, ranks = _head(model, type(output), output[0][before], targets)
    return list(zip(log_probs.split(lengths.tolist()), ranks.split(lengths.tolist()), strict=True))


def _body(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: DynamicCache,
) -> Any:
    """What the model has without its head; [0] are the hidden states (rows, length, size). The
    cache grows by these rows.
    """
    trunk = _trunk(model)
    return trunk(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=positions.clamp(min=0).to(model.device),
        use_cache=True,
        **{cache_argument(trunk): cache},
    )


def _trunk(model: PreTrainedModel) -> Any:
    """What the model's forward calls for hidden states."""
    decoder = model.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model


def _head(
    model: PreTrainedModel,
    output: Callable[..., Any],
    hidden: torch.Tensor,
    targets: torch.Tensor,
) -> Scored:
    """log p and rank of each target, by the model's own forward with `hidden` (positions, size) for
    what its body gives. The logits are made a few positions at a time.
    """
    body = _trunk(model)
    # Soft caps, scales and tied heads differ by architecture, so the head is not done by hand: the
    # body is put aside, and the model's forward finds these hidden states in its place.
    size = max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    parts = []
    try:
        for states, some in zip(hidden.split(size), targets.split(size), strict=True):
            given = output(last_hidden_state=states[None])
            body.forward = lambda *_, given=given, **__: given
            logits = model(some[None], use_cache=False).logits[0]
            parts.append(_scores(logits, some))
    finally:
        body.__dict__.pop("forward", None)
    return torch.cat([p for p, _ in parts]), torch.cat([r for _, r in parts])


def _scores(logits: torch.Tensor, targets: torch.Tensor) -> Scored:
    """The target's logit and the sum are rounded alike, so that log p is never above 0."""
    log_probs, ranks = [], []
    # log p(y_t) = logit of y_t − log Σ_v exp(logit of v), both from the same rounded logits.
    rows = max(1, CACHED // logits.shape[-1])  # what is read three times stays in the cache
    for some, of in zip(logits.split(rows), targets.split(rows), strict=True):
        some = some.float()
        log_probs.append(-F.cross_entropy(some, of, reduction="none"))
        above = some.gt_(some.gather(-1, of[:, None]))  # in place
        ranks.append(above.sum(-1).long() + 1)  # exact: a vocabulary is smaller than 2**24
    return torch.cat(log_probs).cpu(), torch.cat(ranks).cpu()
