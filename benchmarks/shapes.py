"""Models and prompts of real shape for the benchmarks of the router: random weights, SmolLM2's
tokenizer.
"""

import time
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

from persyn_datasets import quickstart

TEACHERS = [f"teacher-{i:02}" for i in range(19)]


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(quickstart.smollm2())


def minilm(**more: Any) -> PreTrainedConfig:
    """all-MiniLM-L6-v2: an encoder of 10.6M parameters and its embeddings."""
    shape = {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    free = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 1024,
    }
    return BertConfig(
        **({"vocab_size": 49152, "pad_token_id": 2, "initializer_range": 0.1} | shape | free | more)
    )


def smollm2(**more: Any) -> PreTrainedConfig:
    """SmolLM2-135M: a decoder of 106M parameters and its embeddings."""
    shape = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    shape |= {"intermediate_size": 1536, "max_position_embeddings": 2048}
    return LlamaConfig(
        **({"vocab_size": 49152, "pad_token_id": 2, "initializer_range": 0.1} | shape | more)
    )


def qwen(**more: Any) -> PreTrainedConfig:
    """Qwen2.5-1.5B, the paper's backbone: 1.54B parameters."""
    shape = {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    }
    return Qwen2Config(
        **({"vocab_size": 151936, "intermediate_size": 8960, "pad_token_id": 151643} | shape | more)
    )


def save(model: Any, folder: Any) -> str:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def prompts(n: int, median: float, sigma: float = 0.9) -> list[str]:
    """Texts of random words, their lengths log-normal, from 10 to 800 tokens or so."""
    rng, tok = np.random.default_rng(0), tokenizer()
    words = [tok.decode([i]) for i in rng.integers(1000, 40000, 3000)]
    lengths = np.clip(rng.lognormal(np.log(median), sigma, n), 10, 800).astype(int)
    return ["".join(rng.choice(words, k)) for k in lengths]


def matrix_rate() -> float:
    """This machine's float32 multiplications and additions per second, of matrices of a
    transformer's shape.
    """
    a, b = torch.randn(1024, 576), torch.randn(576, 1536)
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        best = max(best, 5 * 2 * 1024 * 576 * 1536 / (time.perf_counter() - start))
    return best
