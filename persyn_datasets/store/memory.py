"""How much of a model's work fits into the device at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from persyn_datasets.config.errors import BuildError
from persyn_datasets.store.models import batches, free

if TYPE_CHECKING:  # its import takes seconds, and no annotation needs it at run time
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A CPU wants to stay in its cache: this was fastest of 512 to 8192 tokens.
CPU_TOKENS = 1024
# Of a GPU's free memory, what a batch may take: a cache, a copy of it, and what the layers make.
SHARE = 0.5
MOST_TOKENS = 131_072


def token_budget(model: PreTrainedModel) -> int:
    """Tokens, with padding, that a batch may have: on a GPU as many as its free memory holds."""
    if model.device.type != "cuda":
        return CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(model.device)
    ours = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return max(1, min(MOST_TOKENS, int(SHARE * (free + ours) / bytes_per_token(model))))


def bytes_per_token(model: PreTrainedModel) -> int:
    """Of keys and values in all layers, twice, and of what one layer makes: an estimate, which
    `in_batches` corrects.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    values = 4 * config.num_hidden_layers * heads * size + 8 * config.hidden_size + 3 * inner
    return int(values * model.dtype.itemsize)


class OneDevice:
    """Beside a `TrainingArguments`: trains on one GPU, however many there are.

    A Trainer that sees several multiplies the batch by their number, and the same recipe would give
    another model.
    """

    @property
    def n_gpu(self) -> int:
        found: int = super().n_gpu  # type: ignore[misc]
        return min(1, found)


def in_passes(work: Callable[[int, int], T], batch_size: int, accumulation: int, remedy: str) -> T:
    """`work(rows of a pass, passes of a step)`; where the device's memory is too small, anew with
    half the rows in a pass and twice the passes: the same steps on the same rows.

    Transformers' `auto_find_batch_size` halves the rows alone, which are then other steps.

    Args:
        remedy: what helps where one row alone is too much.

    Raises:
        BuildError: one row alone is too much.
    """
    while True:
        try:
            return work(batch_size, accumulation)
        except torch.OutOfMemoryError as error:
            if batch_size == 1:
                raise BuildError(
                    "Training on one row at a time does not fit into the device's memory. "
                    f"{remedy} All answers are kept: run the same command again."
                ) from error
        free()  # out of the handler, whose traceback holds the model
        half = 1 if batch_size % 2 else batch_size // 2
        batch_size, accumulation = half, accumulation * (batch_size // half)
        logger.warning("Out of memory: trained anew, with %d rows in a pass.", batch_size)


def in_batches(
    lengths: Sequence[int], tokens: int, work: Callable[[list[int]], T], rows: int | None = None
) -> Iterator[T]:
    """`work` of positions, batch by batch as `batches` makes them; where the device's memory is too
    small, with half the tokens from there on.

    Raises:
        BuildError: one position alone is too much.
    """
    waiting = [list(batch) for batch in batches(lengths, tokens, rows)]
    while waiting:
        batch = waiting.pop(0)
        try:
            done = work(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise BuildError(
                    f"A row of {lengths[batch[0]]} tokens does not fit into the device's memory "
                    "next to the model. Use a device with more memory, or remove rows that long."
                ) from error
            done = None
        if done is not None:
            yield done
            continue
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tokens = max(1, len(batch) * lengths[batch[0]] // 2)
        logger.warning("Out of memory: from now on, batches have at most %d tokens.", tokens)
        left = [*batch, *(i for others in waiting for i in others)]
        waiting = [
            [left[i] for i in of] for of in batches([lengths[i] for i in left], tokens, rows)
        ]
