import math

import pytest
import torch
from conftest import save_model

from persyn_datasets import InputError, Student, learnability
from persyn_datasets.learnability import mean_log_probs
from persyn_datasets.models import load_causal_lm, load_tokenizer, prompt_ids

TEXTS = ["the", "the other day", "x" * 90, "a + b = c\n" * 5, " ", "Zebra? 12", "er"]
ROWS = [([{"role": "user", "content": f"{i} is {'odd ' * (i % 3)}"}], text) for i, text in enumerate(TEXTS)]


SHARED = [(ROWS[p][0], text) for text in TEXTS for p in (0, 1, 5)]  # several responses to each of three prompts


def reference(model, messages, text):
    """(−loss of the response tokens by the model itself, one row alone; their number)."""
    tokenizer, loaded = load_tokenizer(model), load_causal_lm(model)
    x, y = prompt_ids(tokenizer, messages), tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        loss = loaded(torch.tensor([x + y]), labels=torch.tensor([[-100] * len(x) + y])).loss
    return -loss.item(), len(y)


def check_against_reference(model, rows=ROWS):
    found = {i: (mean, n) for i, mean, n in mean_log_probs(Student(model), rows)}
    assert set(found) == set(range(len(rows)))
    for i, (messages, text) in enumerate(rows):
        mean, tokens = reference(model, messages, text)
        assert abs(found[i][0] - mean) < 1e-4
        assert found[i][1] == tokens


@pytest.mark.parametrize("fixture", ["chat_model", "base_model"])
@pytest.mark.parametrize(("batch", "chunk"), [(4096, 256), (1, 256), (300, 7), (4096, 1)])
def test_equals_the_models_own_loss(fixture, batch, chunk, request, monkeypatch):
    monkeypatch.setattr(learnability, "TOKENS_PER_BATCH", batch)
    monkeypatch.setattr(learnability, "POSITIONS_PER_CHUNK", chunk)
    check_against_reference(request.getfixturevalue(fixture))
    check_against_reference(request.getfixturevalue(fixture), SHARED)


ARCHITECTURES = {
    "Gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "Granite": {"logits_scaling": 6.0},
    "Cohere": {"logit_scale": 0.25},
    "Qwen3": {},
    "Phi": {},  # a head with a bias
    "Mistral": {"sliding_window": 8},  # shorter than the prompts
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},  # positions are learned
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_heads_that_scale_or_cap_their_logits(kind, tmp_path):
    model = save_model(tmp_path, kind, **ARCHITECTURES[kind])
    check_against_reference(model)
    check_against_reference(model, SHARED)


def test_an_empty_response_is_nan(chat_model):
    found = {i: (mean, n) for i, mean, n in mean_log_probs(Student(chat_model), [ROWS[0], (ROWS[1][0], "")])}
    assert math.isnan(found[1][0]) and found[1][1] == 0
    assert found[0][0] == pytest.approx(reference(chat_model, *ROWS[0])[0], abs=1e-4)
    assert list(mean_log_probs(Student(chat_model), [])) == []


def test_the_context_cuts_the_response_and_refuses_the_prompt(tmp_path):
    small, messages = save_model(tmp_path, max_position_embeddings=64), [{"role": "user", "content": "a"}]
    room = 64 - len(prompt_ids(load_tokenizer(small), messages))
    [(_, mean, tokens)] = mean_log_probs(Student(small), [(messages, "xy" * 50)])
    assert tokens == room
    assert mean == pytest.approx(reference(small, messages, ("xy" * 50)[:room])[0], abs=1e-4)
    with pytest.raises(InputError, match=r"'aaa.*tokens for the student .*, whose context is 64; remove the prompt"):
        list(mean_log_probs(Student(small), [([{"role": "user", "content": "a" * 70}], "y")]))
