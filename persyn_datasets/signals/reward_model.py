"""Quality by a reward model: the raw output of a sequence classifier with one label for the whole
conversation, by its own chat template (paper §3, r_q for instructions: Skywork-Reward). With a
`base_url` it is asked at a server: see `reward_server`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Message
from persyn_datasets.signals import Facts, reward_server
from persyn_datasets.store.identity import weights_of
from persyn_datasets.store.models import context_length, load_classifier, load_tokenizer
from persyn_datasets.store.templates import TEMPLATE_DATE, at_date, model_writes_date

if TYPE_CHECKING:  # torch takes seconds to import, and the identity of a model needs none
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACTS = Facts(keys=("reward_model", "revision", "trust_remote_code", "base_url", "api_key_env"))
MOST_TOKENS = 16_384  # of a batch
_logger = logging.getLogger(__name__)


def score(
    rows: Sequence[tuple[list[Message], str]],
    columns: Mapping[str, list[Any]],
    reward_model: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    base_url: str | None = None,
    api_key_env: str | None = None,
) -> list[float | None]:
    """The raw scalar output (no activation) of each conversation.

    A conversation longer than the model's context has no score, and takes no part: cut, it would be
    another conversation. How many there are is logged.

    Raises:
        InputError: the model cannot be loaded, has not one label, or no chat template.
        BuildError: a conversation alone is too much for the device's memory.
    """
    if base_url:
        conversations = [[*messages, _assistant(text)] for messages, text in rows]
        return reward_server.score(conversations, reward_model, base_url, api_key_env)
    loaded, tokenizer = _load(reward_model, revision, trust_remote_code)
    ids = [_ids(tokenizer, [*messages, _assistant(text)]) for messages, text in rows]
    limit = context_length(loaded)
    scores: list[float | None] = [None] * len(rows)
    fits = [i for i, row in enumerate(ids) if len(row) <= limit]
    if len(fits) < len(rows):
        _logger.warning(
            "quality.reward_model: %d of %d conversations are longer than the %d tokens of %s; "
            "they have no reward and take no part.",
            len(rows) - len(fits),
            len(rows),
            limit,
            reward_model,
        )
    for place, value in _forward(loaded, [ids[i] for i in fits]):
        scores[fits[place]] = value
    return scores


def _forward(model: PreTrainedModel, ids: Sequence[list[int]]) -> Iterator[tuple[int, float]]:
    """(index of the row, its reward), longest rows first."""
    import torch

    from persyn_datasets.store.memory import in_batches, token_budget

    # The model's own padding, not the tokenizer's: it scores the last token that is not this.
    # Without it, row by row.
    pad = model.config.get_text_config().pad_token_id

    def values(batch: list[int]) -> list[tuple[int, float]]:
        width = len(ids[batch[0]])
        rows = [ids[i] + [pad] * (width - len(ids[i])) for i in batch]
        padded = torch.tensor(rows, device=model.device)
        lengths = torch.tensor([[len(ids[i])] for i in batch], device=model.device)
        mask = (torch.arange(width, device=model.device) < lengths).long()
        with torch.inference_mode():
            found: list[float] = model(padded, attention_mask=mask).logits[:, 0].float().tolist()
        return list(zip(batch, found, strict=True))

    tokens = min(MOST_TOKENS, token_budget(model))
    one = 1 if pad is None else None
    for part in in_batches([len(row) for row in ids], tokens, values, rows=one):
        yield from part


def check(spec: Mapping[str, Any], prompts: Any) -> None:
    """One label, a chat template, room for an answer behind each prompt. The weights score a row
    when a build begins.

    Raises:
        InputError: one of these is missing, or the model is not found.
    """
    if base_url := spec.get("base_url"):
        reward_server.check(spec["reward_model"], base_url, spec.get("api_key_env"))
        return
    import torch
    from transformers import AutoModelForSequenceClassification

    name = spec["reward_model"]
    weights = name, spec.get("revision"), bool(spec.get("trust_remote_code", False))
    config = _config(*weights)
    _check_labels(name, config.num_labels)
    try:
        with torch.device("meta"):
            AutoModelForSequenceClassification.from_config(config, trust_remote_code=weights[2])
        tokenizer = load_tokenizer(*weights)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"quality.reward_model: {name!r} is no reward model that transformers can load: "
            f"{str(error).splitlines()[0]}"
        ) from error
    _check_template(name, tokenizer)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    for row, messages in enumerate(prompts["messages"]):
        used = len(_ids(tokenizer, [*messages, _assistant("Yes.")]))
        if limit and used > limit:
            raise InputError(
                f"quality.reward_model: the prompt {messages[-1]['content'][:60]!r} (row {row}) "
                f"and a short answer are {used} tokens, and the context of {name!r} is {limit}; "
                "remove it, or take another reward model."
            )


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The model's weights, by content; and the date that its template writes, if it does.

    Raises:
        InputError: they are not found.
    """
    if base_url := spec.get("base_url"):
        return {"model": spec["reward_model"], "base_url": base_url}
    try:
        weights = {"weights": weights_of(spec["reward_model"], spec.get("revision"))}
    except InputError as error:
        raise InputError(f"quality.reward_model: {error}") from error
    dated = model_writes_date(spec["reward_model"], spec.get("revision"))
    return weights | ({"date": TEMPLATE_DATE.isoformat()} if dated else {})


def resolved(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the commit of a model on the Hub: what is scored is what its scores are kept under.

    Raises:
        InputError: it is not found.
    """
    if spec.get("base_url") or Path(spec["reward_model"]).is_dir():
        return spec
    return {**spec, "revision": identity(spec)["weights"]}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _ids(tokenizer: PreTrainedTokenizerBase, conversation: list[Message]) -> list[int]:
    text: Any = tokenizer.apply_chat_template(
        conversation, chat_template=at_date(str(tokenizer.get_chat_template())), tokenize=False
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _config(model: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"quality.reward_model: model {model!r} not found: {str(error).splitlines()[0]}"
        ) from error


def _check_labels(name: str, labels: int | None) -> None:
    if labels != 1:
        raise InputError(
            f"quality.reward_model: {name!r} has {labels} labels; a reward model has one."
        )


def _check_template(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template is None:
        raise InputError(
            f"quality.reward_model: the tokenizer of {name!r} has no chat template; expected one."
        )


def _load(
    model: str, revision: str | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        loaded = load_classifier(model, revision, trust_remote_code)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"quality.reward_model: {model!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    _check_labels(model, loaded.config.num_labels)
    tokenizer = load_tokenizer(model, revision, trust_remote_code)
    _check_template(model, tokenizer)
    config = loaded.config.get_text_config()
    if config.pad_token_id is None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        config.pad_token_id = tokenizer.pad_token_id
    return loaded, tokenizer
