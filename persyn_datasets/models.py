"""Language models from the Hub or a folder, and prompts as their token ids."""

from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from persyn_datasets.teacher import Message

# For a base model, which has no chat template of its own. Recorded in cards and configs by its name, "plain".
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Prompt:\n{{ m['content'] }}\n\n"
    "{% elif m['role'] == 'assistant' %}### Response:\n{{ m['content'] }}\n\n"
    "{% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


@lru_cache(maxsize=1)
def load_tokenizer(model: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)


@lru_cache(maxsize=1)
def load_causal_lm(model: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """One model at a time stays in memory: teachers that share weights share the load."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype(), use_safetensors=True
    )
    return loaded.to(device()).eval()


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """The ids up to where the response begins, by the model's own chat template or the plain one."""
    plain = None if tokenizer.chat_template else PLAIN_TEMPLATE
    text: Any = tokenizer.apply_chat_template(messages, chat_template=plain, add_generation_prompt=True, tokenize=False)
    # A chat template writes its own BOS; the plain one leaves that to the tokenizer.
    return list(tokenizer(text, add_special_tokens=plain is not None)["input_ids"])
