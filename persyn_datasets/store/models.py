"""Language models from the Hub or a folder, and prompts as their token ids.

What takes seconds to import is imported by what needs it: who renders a prompt needs no torch.
"""

from __future__ import annotations

import gc
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from persyn_datasets.config.teacher import Message, fold_system
from persyn_datasets.store.identity import facts_here
from persyn_datasets.store.templates import at_date

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# For a base model, which has no chat template: it is asked, scored, trained and published with this
# one. Recorded in cards and configs by its name, "plain".
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Prompt:\n{{ m['content'] }}\n\n"
    "{% elif m['role'] == 'assistant' %}### Response:\n{{ m['content'] }}{{ eos_token }}\n\n"
    "{% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)

logger = logging.getLogger(__name__)
_MARK = "\ufdd0"  # no character, by Unicode: no text has it


def device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_device(rank: int | None) -> None:
    """Of `map(stage, with_rank=True, num_proc=…)`: each process works on a GPU of its own."""
    import torch

    if rank is not None and torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())


def dtype() -> torch.dtype:
    import torch

    return (
        torch.bfloat16
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        else torch.float32
    )


# By what was loaded (an auto class), one model each, and a few tokenizers; see `free`.
_models: dict[Any, tuple[Any, PreTrainedModel]] = {}
_tokenizers: dict[Any, PreTrainedTokenizerBase] = {}
TOKENIZERS_KEPT = 8


def load_tokenizer(
    model: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    key = model, revision, trust_remote_code, facts_here(model, revision)
    tokenizer = _tokenizers.get(key)  # kept, since an endpoint's thread may load another
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(
            model, revision=revision, trust_remote_code=trust_remote_code
        )
        for oldest in list(_tokenizers)[: 1 - TOKENIZERS_KEPT]:
            _tokenizers.pop(oldest, None)
        _tokenizers[key] = tokenizer
    return tokenizer


def load_causal_lm(
    model: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A language model, for answers and their log-probabilities; see `_load`."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    loaded: PreTrainedModel = _load(AutoModelForCausalLM, model, revision, trust_remote_code)
    # Only the special tokens: a length or sampling default that a model ships is not what the
    # user asked for.
    shipped = loaded.generation_config
    loaded.generation_config = GenerationConfig(
        bos_token_id=shipped.bos_token_id,
        eos_token_id=shipped.eos_token_id,
        pad_token_id=shipped.pad_token_id,
    )
    return loaded


def load_classifier(
    model: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A sequence classifier: a reward model, or a router; see `_load`."""
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, model, revision, trust_remote_code)


def _load(kind: Any, model: str, revision: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """One model of each kind at a time is in memory: teachers that share weights share the load,
    and a student and a reward model may take turns.

    Files that changed since they were read are read again, and so is a branch on the Hub that has
    moved, once somebody has looked (`identity.commit_of`). Give the commit as `revision` where the
    result is kept under its name.

    Raises:
        OSError, ValueError, RuntimeError: its files are not there, or not whole, or do not fit its
            config.
    """
    key = model, revision, trust_remote_code, facts_here(model, revision), dtype(), device()
    if _models.get(kind, (None,))[0] != key:
        _models.pop(kind, None)  # before the next one is loaded: two might not fit
        loaded, found = kind.from_pretrained(
            model,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype(),
            use_safetensors=True,
            output_loading_info=True,
        )
        check_whole(found["missing_keys"])
        _models[kind] = key, loaded.to(device()).eval()
    return _models[kind][1]


def check_whole(missing: Collection[str]) -> None:
    """Raises `OSError`: weights are missing. transformers would draw them, and any two loads of the
    model would say something else.
    """
    if missing:
        raise OSError(f"its files lack {len(missing)} of its weights, e.g. {min(missing)}.")


def free() -> None:
    """Free the memory of all models: call it before something else needs the device (a training, a
    process of vLLM).
    """
    import torch

    _models.clear()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The model's own chat template, or the plain one, which begins as the tokenizer's texts do.

    Every text is rendered by it, and encoded without special tokens besides: the same ids for a
    prompt that is asked, scored and trained.
    """
    if tokenizer.chat_template:
        return str(tokenizer.get_chat_template())
    bos = tokenizer.bos_token_id
    begins = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    return ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text as it reads: a special token's string in it is text, not the token."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@lru_cache(maxsize=TOKENIZERS_KEPT)
def _special(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], re.Pattern[str]]:
    """The strings of its special tokens, longest first; kept, since some have thousands."""
    strings = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest = sorted(strings, key=lambda string: (-len(string), string))
    return longest, re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _special_strings(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Those that are in a text."""
    strings, pattern = _special(tokenizer)
    return [string for string in strings if string in text] if pattern.search(text) else []


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    switches: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """The ids up to where the response begins, by the model's own chat template or the plain one.

    Only the template writes special tokens: where a message contains the string of one
    (`<|im_end|>`), it is text, so that a prompt cannot end its turn and speak for somebody else.
    `switches` are the template's own, `chat_template_kwargs`.
    """
    found = _special_strings(tokenizer, "\n".join(m["content"] for m in messages))
    if found:
        messages = [m | {"content": m["content"].replace(_MARK, "")} for m in messages]
    # Special tokens' strings in messages are hidden from the template's own encoding behind marks,
    # and put back as plain text afterwards.
    for k, string in enumerate(found):
        messages = [
            m | {"content": m["content"].replace(string, f"{_MARK}{k}{_MARK}")} for m in messages
        ]
    text = _rendered(tokenizer, messages, switches)
    first, *rest = re.split(f"{_MARK}(\\d+){_MARK}", text) if found else [text]
    ids = list(tokenizer(first, add_special_tokens=False)["input_ids"])
    for place, after in zip(rest[::2], rest[1::2], strict=True):
        ids += text_ids(tokenizer, found[int(place)]) + list(
            tokenizer(after, add_special_tokens=False)["input_ids"]
        )
    return ids


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], switches: Mapping[str, Any]
) -> str:
    """The prompt as a text. A template that refuses a system message, as Gemma 2's and Mistral's
    first ones do, gets it at the beginning of the first user turn.
    """

    def render(conversation: list[Message]) -> str:
        text: Any = tokenizer.apply_chat_template(
            conversation,
            chat_template=at_date(template_of(tokenizer)),
            add_generation_prompt=True,
            tokenize=False,
            **switches,
        )
        return str(text)

    try:
        return render(messages)
    except TemplateError as refusal:
        if messages[0]["role"] != "system":
            raise
        try:
            text = render(fold_system(messages))
        except TemplateError:
            raise refusal from None  # of the conversation as it is
        _say_folded(tokenizer.name_or_path)
        return text


@lru_cache
def _say_folded(model: str) -> None:
    logger.warning(
        "The chat template of %s refuses system messages; they are put before the first user "
        "message.",
        model,
    )


def cache_argument(model: Any) -> str:
    """The name by which a model's forward takes a cache: transformers 5.24 has renamed it."""
    known = signature(model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def batches(lengths: Sequence[int], tokens: int, rows: int | None = None) -> Iterator[list[int]]:
    """Positions in batches of like length, longest first, so that padding is least and the first
    batch the largest.

    A batch has at most `tokens` tokens with padding (but at least one row) and at most `rows` rows.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        size = max(1, tokens // max(1, lengths[order[start]]))
        yield order[start : start + min(size, rows or size)]
        start += min(size, rows or size)


def context_length(model: PreTrainedModel) -> int:
    """Tokens that the model can read and write in all."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 10**9


def readable(folder: str | Path) -> None:
    """Give a saved model's weights the permissions that the umask allows.

    safetensors (0.8) writes them for their owner alone: nobody else on a shared machine could load
    what was built.
    """
    mask = os.umask(0)
    os.umask(mask)
    for file in Path(folder).glob("*.safetensors"):
        file.chmod(0o666 & ~mask)
