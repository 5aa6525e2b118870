"""A router behind real vLLM's `/classify`. `make test-vllm` brings what it needs."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import save_model
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
NAMES = ["ant", "mole", "wasp"]
HEADS = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
TEXTS = ["What is 7 times 8?", "Name a bird.", "x", *(f"Tell me of {name}" for name in NAMES)]


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def router(tmp_path):
    rows = [
        {"prompt_id": str(i), "messages": user(f"Tell me of {best} {i}"), "margin": 1.0}
        | {"teacher_a": other, "teacher_b": best, "label": 1}
        for i in range(12)
        for best in [NAMES[i % 3]]
        for other in NAMES
        if other != best
    ]
    backbone = save_model(tmp_path / "backbone", **HEADS)
    teachers = [Teacher("org/m", name=name) for name in NAMES]
    return train_router(
        Dataset.from_list(rows),
        backbone,
        teachers=teachers,
        output_dir=str(tmp_path / "router"),
        freeze_backbone=True,
    )


def test_vllm_chooses_as_the_router_does(router, tmp_path):
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
