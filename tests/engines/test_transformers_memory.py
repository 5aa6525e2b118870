from types import SimpleNamespace

import pytest
import torch
from conftest import save_model
from local_teacher import PROMPTS, answers, teacher_of

from persyn_datasets.engines import local_model
from persyn_datasets.store.models import load_causal_lm, load_tokenizer, prompt_ids

LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


LONG_ROPE = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 3.0, 2.0, 9.0],
        "original_max_position_embeddings": 64,
    },
}


def test_an_answer_is_as_long_as_its_own_prompt_leaves_room_for(chat_model):
    """And not as the longest prompt of its batch does: that answer would stay in the journal."""
    prompts = {"short": PROMPTS["id0"]} | {
        f"long{i}": [{"role": "user", "content": "b " * n}] for i, n in enumerate([235, 235, 240])
    }
    for temperature in (0, 1.0):
        teacher = teacher_of(chat_model, temperature=temperature, max_tokens=60)
        together = answers(teacher, prompts)
        assert together == {key: answers(teacher, {key: m})[key] for key, m in prompts.items()}
        assert together["short"]["completion_tokens"] == 60
        for response in together.values():
            room = 512 - response["prompt_tokens"]
            assert response["completion_tokens"] <= min(60, room)
            if response["finish_reason"] == "length":
                assert response["completion_tokens"] == min(60, room)
        assert together["long2"]["completion_tokens"] < 60


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("GPT2", {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("Gemma3", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
        ("Qwen3Next", LINEAR),
        ("Qwen3_5", LINEAR),
        ("Mamba2", {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "state_size": 8}),
        ("Phi3", LONG_ROPE),
    ],
)
def test_models_with_other_states_and_positions(kind, config, models_folder):
    """Recurrent states, positions in a table, windows: the model's own greedy text, in any batch
    and alone.
    """
    model = save_model(models_folder / kind, kind, **config)
    prompts = PROMPTS | {
        "near": [{"role": "user", "content": "b " * 235}],
        "over": [{"role": "user", "content": "c " * 50}],
    }
    teacher = teacher_of(model, temperature=0)
    together = answers(teacher, prompts)
    tokenizer, loaded = load_tokenizer(model), load_causal_lm(model)
    for key, messages in prompts.items():
        assert answers(teacher, {key: messages})[key] == together[key]
        ids = torch.tensor([prompt_ids(tokenizer, messages)])
        most = min(24, 512 - ids.shape[1])
        own = loaded.generate(ids, do_sample=False, max_new_tokens=most, pad_token_id=0)
        text = tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert together[key]["text"] == text
        assert together[key]["completion_tokens"] == own.shape[1] - ids.shape[1]


@pytest.mark.parametrize("room", [1, 2, 3])
def test_out_of_memory_halves_the_batch_and_changes_no_answer(chat_model, monkeypatch, room):
    prompts = {f"id{i}": [{"role": "user", "content": "a " * i}] for i in range(1, 12)}
    teacher = teacher_of(chat_model, temperature=1.0)
    expected = answers(teacher, prompts)
    model = load_causal_lm(chat_model)
    tried, whole = [], model.generate

    def generate(ids, **more):
        tried.append(len(ids))
        if len(ids) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n20 MiB")
        return whole(ids, **more)

    monkeypatch.setattr(model, "generate", generate)
    assert answers(teacher, prompts) == expected
    assert tried[0] == 11 and max(tried[-2:]) <= room


def test_a_row_that_the_memory_never_takes_fails_alone(chat_model, monkeypatch):
    model = load_causal_lm(chat_model)
    whole = model.generate

    def generate(ids, **more):
        if ids.shape[1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(ids, **more)

    monkeypatch.setattr(model, "generate", generate)
    found = answers(teacher_of(chat_model, temperature=0))
    assert [bool(found[key]["error"]) for key in PROMPTS] == [False, False, True]
    assert found["id2"]["finish_reason"] == "error"


def test_a_batch_takes_half_of_the_free_memory(chat_model, monkeypatch):
    """2 layers of 2 heads of 8 numbers, keys and values, each of 4 bytes: 256 bytes a token."""
    model = load_causal_lm(chat_model)
    assert local_model._bytes_per_token(model) == 2 * 2 * 2 * 8 * 4
    assert local_model.tokens_that_fit(model) == local_model.TOKENS_PER_BATCH
    fake = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    monkeypatch.setattr(local_model, "_bytes_per_token", lambda model: 256)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (512_000, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2048)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1024)
    assert local_model.tokens_that_fit(fake) == (512_000 + 1024) // 2 // 256
