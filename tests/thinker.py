"""A tiny real model that thinks: it writes `3+4</think>` and `7.` after any prompt, greedily.

Each token decides the next one alone: attention and MLP add nothing, embeddings are unit vectors,
and the head maps each to its successor. So it says the same in every engine.
"""

from itertools import pairwise
from pathlib import Path

import torch
from conftest import make_tokenizer
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

# Opens the thought, as DeepSeek's and Qwen3-Thinking's do, or closes an empty one, as Qwen3's.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% elif opens is not defined or opens %}<think>{% endif %}{% endif %}"
)
SAYS = [
    ">",
    "<think>",
    "3",
    "+",
    "4",
    "</think>",
    "\u010a",
    "7",
    ".",
    "</s>",
]  # \u010a: a line's end
THOUGHT, ANSWER = "3+4", "7."


def save_thinker(folder: Path) -> str:
    """Saves it."""
    return save_speaker(folder, TEMPLATE, SAYS, ["<think>", "</think>"])


def save_speaker(folder: Path, template: str, says: list[str], added: list[str]) -> str:
    """Saves a model that says these tokens, one after the other, each of which comes once; its
    heads are of 64, which vLLM can do on a CPU.
    """
    tokenizer = make_tokenizer(template)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), 128))
        model.lm_head.weight.zero_()
        for before, after in pairwise(tokenizer.convert_tokens_to_ids(says)):
            model.lm_head.weight[after, before] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
