"""Thoughts of local models: where a prompt opens one, and how many tokens it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persyn_datasets.data.reasoning import opened_by
from persyn_datasets.engines import Response
from persyn_datasets.store.models import text_ids

if TYPE_CHECKING:  # its import takes a second, and who asks for an engine's facts needs none of it
    from transformers import PreTrainedTokenizerBase

LAST_TOKENS = 16  # of a prompt; more than any tag has


def opening(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The tag with which a prompt of these ids opens a thought; empty: it opens none."""
    return opened_by(str(tokenizer.decode(ids[-LAST_TOKENS:])))


def with_count(response: Response, tokenizer: PreTrainedTokenizerBase) -> Response:
    """The response with the tokens of its thought, as this tokenizer encodes it."""
    if response["finish_reason"] != "error":
        response["reasoning_tokens"] = len(text_ids(tokenizer, response["reasoning"]))
    return response
