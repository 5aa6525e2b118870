"""A router behind real vLLM's `/classify`. `make test-vllm` brings what it needs."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers
from conftest import make_tokenizer
from datasets import Dataset
from huggingface_hub.utils import httpx
from real_server import server

from persyn_datasets import Teacher, train_router

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not find_spec("vllm"), reason="vllm is not installed: `make test-vllm` brings its own"
    ),
]
TEMPLATE = "{{ messages }}"
NAMES = ["ant", "mole", "wasp"]
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 130,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Bert": {},
    "Roberta": {},
    "ModernBert": {"cls_token_id": 1, "sep_token_id": 2},
}
TEXTS = ["What is 7 times 8?", "Name a bird.", "x", *(f"Tell me of {name}" for name in NAMES)]


def user(text):
    return [{"role": "user", "content": text}]


def save_backbone(folder, kind):
    """A random model without a head, as pretrained ones come."""
    tokenizer = make_tokenizer(TEMPLATE)
    values = SIZES | {"vocab_size": len(tokenizer)} | KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**values)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train(backbone, output):
    rows = [
        {"prompt_id": str(i), "messages": user(f"Tell me of {best} {i}"), "margin": 1.0}
        | {"teacher_a": other, "teacher_b": best, "label": 1}
        for i in range(12)
        for best in [NAMES[i % 3]]
        for other in NAMES
        if other != best
    ]
    teachers = [Teacher("org/m", name=name) for name in NAMES]
    return train_router(
        Dataset.from_list(rows),
        backbone,
        teachers=teachers,
        output_dir=str(output),
        freeze_backbone=True,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_chooses_as_the_router_does(kind, tmp_path):
    router = train(save_backbone(tmp_path / "backbone", kind), tmp_path / "router")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", router.path]
    command += ["--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    command += ["--served-model-name", "router"]
    scores = router.scores([user(text) for text in TEXTS])
    with server(tmp_path / "log", *command) as base_url:
        url = f"{base_url.removesuffix('/v1')}/classify"
        answer = httpx.post(url, json={"model": "router", "input": TEXTS}, timeout=60)
        found = answer.raise_for_status().json()["data"]
        # With a template of its own it would read the messages as another text than the router.
        messages = httpx.post(url, json={"model": "router", "messages": user(TEXTS[0])}, timeout=60)
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert np.allclose([row["probs"] for row in found], expected, atol=1e-3)
    assert [row["label"] for row in found] == [NAMES[i] for i in scores.argmax(1)]
    assert messages.status_code == 400 and "chat template" in messages.text
