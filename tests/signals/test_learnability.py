import copy

import pytest
import torch
from conftest import save_model

from persyn_datasets import InputError, Student
from persyn_datasets.signals import learnability, log_probs
from persyn_datasets.signals.learnability import signals
from persyn_datasets.store import memory
from persyn_datasets.store.models import load_causal_lm, load_tokenizer, prompt_ids

TEXTS = ["the", "the other day", "x" * 90, "a + b = c\n" * 5, " ", "Zebra? 12", "er"]
ROWS = [
    ([{"role": "user", "content": f"{i} is {'odd ' * (i % 3)}"}], text)
    for i, text in enumerate(TEXTS)
]


SHARED = [
    (ROWS[p][0], text) for text in TEXTS for p in (0, 1, 5)
]  # several responses to each of three prompts


def reference(model, messages, text):
    """−loss of the response tokens by the model itself, one row alone; the place of each in the
    sorted vocabulary.
    """
    tokenizer, loaded = load_tokenizer(model), load_causal_lm(model)
    x, y = prompt_ids(tokenizer, messages), tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        output = loaded(torch.tensor([x + y]), labels=torch.tensor([[-100] * len(x) + y]))
    order = output.logits[0, len(x) - 1 : -1].argsort(-1, descending=True).tolist()
    return -output.loss.item(), [row.index(token) + 1 for row, token in zip(order, y, strict=True)]


def check_against_reference(model, rows=ROWS):
    found = dict(signals(Student(model), rows))
    assert set(found) == set(range(len(rows)))
    for i, (messages, text) in enumerate(rows):
        mean, ranks = reference(model, messages, text)
        assert abs(found[i]["learnability"] - mean) < 1e-4
        assert found[i]["tokens"] == len(ranks)
        clipped = [min(rank, learnability.HIGHEST_RANK) for rank in ranks]
        assert found[i]["rsr"] == pytest.approx(sum(clipped) / (-mean * len(ranks)), rel=1e-4)


@pytest.mark.parametrize("fixture", ["chat_model", "base_model"])
@pytest.mark.parametrize(("batch", "logits"), [(4096, 2**20), (1, 2**20), (300, 1000), (4096, 1)])
def test_equals_the_models_own_loss(fixture, batch, logits, request, monkeypatch):
    monkeypatch.setattr(memory, "CPU_TOKENS", batch)
    monkeypatch.setattr(log_probs, "LOGITS_AT_ONCE", logits)
    monkeypatch.setattr(log_probs, "CACHED", logits)
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


def test_ranks_are_clipped(chat_model, monkeypatch):
    check_against_reference(chat_model)
    before = dict(signals(Student(chat_model), ROWS))
    monkeypatch.setattr(learnability, "HIGHEST_RANK", 5)  # the vocabulary has no rank above 100
    check_against_reference(chat_model)
    assert all(row["rsr"] <= before[i]["rsr"] for i, row in signals(Student(chat_model), ROWS))


def test_bfloat16_is_near_float32(chat_model):
    """As on GPUs. The head's sums are float32 all the same: only the hidden states are rounded, to
    8 bits.
    """
    rows = [([5, 6, 7], list(range(3, 60))), ([5, 6, 7], list(range(60, 90)))]
    exact = load_causal_lm(chat_model)
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    found = [
        {i: p for i, p, _ in log_probs.response_log_probs(model, rows)}
        for model in (exact, rounded)
    ]
    for i in range(2):
        assert found[1][i].dtype == torch.float32
        difference = (found[0][i].mean() - found[1][i].mean()).abs()
        assert 0 < difference < 0.01 * found[0][i].mean().abs()


def test_an_empty_response_has_no_signals(chat_model):
    found = dict(signals(Student(chat_model), [ROWS[0], (ROWS[1][0], "")]))
    assert found[1] == {"learnability": None, "rsr": None, "tokens": 0, "dropped": 0}
    assert found[0]["learnability"] == pytest.approx(reference(chat_model, *ROWS[0])[0], abs=1e-4)
    assert list(signals(Student(chat_model), [])) == []


def test_the_context_cuts_the_response_and_refuses_the_prompt(tmp_path):
    small, messages = (
        save_model(tmp_path, max_position_embeddings=64),
        [{"role": "user", "content": "a"}],
    )
    room = 64 - len(prompt_ids(load_tokenizer(small), messages))
    [(_, found)] = signals(Student(small), [(messages, "xy" * 50)])
    assert found["tokens"] == room
    assert found["learnability"] == pytest.approx(
        reference(small, messages, ("xy" * 50)[:room])[0], abs=1e-4
    )
    with pytest.raises(
        InputError, match=r"'aaa.*tokens for the student .*, whose context is 64; remove the prompt"
    ):
        list(signals(Student(small), [([{"role": "user", "content": "a" * 70}], "y")]))
