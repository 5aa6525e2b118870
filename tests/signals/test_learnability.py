import copy
import math

import pytest
import torch
from conftest import save_model
from transformers import LlamaConfig, LlamaForCausalLM

from persyn_datasets import BuildError, InputError, Student
from persyn_datasets.signals import learnability, log_probs
from persyn_datasets.signals.learnability import signals
from persyn_datasets.store import memory
from persyn_datasets.store.models import free, load_causal_lm, load_tokenizer, prompt_ids

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


LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
ARCHITECTURES = {
    "Gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "Granite": {"logits_scaling": 6.0},
    "Cohere": {"logit_scale": 0.25},
    "Qwen3": {},
    "Phi": {},  # a head with a bias
    "Mistral": {"sliding_window": 8},  # shorter than the prompts
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},  # positions are learned
    "HyperCLOVAX": {"logits_scaling": 0.2},
    "ModernBertDecoder": {"num_key_value_heads": 4},  # its head has layers
    "FalconH1": {  # attention and a state-space model side by side
        "lm_head_multiplier": 0.3,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "Qwen3Next": LINEAR_ATTENTION | {"num_experts": 0},
    "Qwen3_5": LINEAR_ATTENTION,
}
SHARE_NO_PROMPT = {"FalconH1", "Qwen3Next", "Qwen3_5"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_as_its_own_forward_has_it(kind, tmp_path, caplog):
    """Heads that scale, cap or transform; caches that cannot be shared, which is said once."""
    model = save_model(tmp_path, kind, **ARCHITECTURES[kind])
    check_against_reference(model)
    check_against_reference(model, SHARED)
    said = [r for r in caplog.records if r.name == log_probs.__name__]
    assert len(said) == (kind in SHARE_NO_PROMPT)


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_a_model_of_ones_own_with_another_forward(fault, chat_model, monkeypatch, caplog):
    """Whatever its body does with a cache or a mask: rows are right, and one sentence is said."""
    free()
    body = load_causal_lm(chat_model).base_model
    own = body.forward

    def forward(*args, **options):
        if options.get("past_key_values") is not None and fault == "raises":
            raise NotImplementedError("no cache")
        output = own(*args, **options)
        if options.get("past_key_values") is not None:
            output.last_hidden_state = output.last_hidden_state * 1.1
        return output

    monkeypatch.setattr(type(body), "forward", lambda self, *args, **more: forward(*args, **more))
    check_against_reference(chat_model)
    check_against_reference(chat_model, SHARED)
    [said] = [r for r in caplog.records if r.name == log_probs.__name__]
    assert "LlamaForCausalLM" in said.getMessage()
    monkeypatch.undo()
    free()


def test_too_little_memory_halves_the_batches(chat_model, monkeypatch, caplog):
    monkeypatch.setattr(memory, "CPU_TOKENS", 4096)
    check_against_reference(chat_model, SHARED)  # the model is known
    whole, sizes = log_probs._body, []

    def small(model, ids, *more):
        sizes.append(ids.numel())
        if ids.numel() > 300:
            raise torch.OutOfMemoryError
        return whole(model, ids, *more)

    monkeypatch.setattr(log_probs, "_body", small)
    check_against_reference(chat_model, SHARED)
    assert max(sizes) > 300
    assert any(r.name == memory.__name__ for r in caplog.records)

    def none(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(log_probs, "_body", none)
    with pytest.raises(BuildError, match="memory"):
        list(signals(Student(chat_model), SHARED))


def test_the_budget_of_a_gpu_is_what_is_free(chat_model, monkeypatch):
    model = load_causal_lm(chat_model)
    assert memory.token_budget(model) == memory.CPU_TOKENS
    free_bytes = 10_000 * memory.bytes_per_token(model)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free_bytes, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)
    assert memory.token_budget(model) == int(10_000 * memory.SHARE)
    # Llama 3.1 8B: 131,072 tokens' keys and values alone are 17 GB.
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        large = LlamaForCausalLM(config).to(torch.bfloat16)
    assert 131_072 * memory.bytes_per_token(large) > 2 * 17e9


def test_ranks_are_clipped(chat_model, monkeypatch):
    check_against_reference(chat_model)
    before = dict(signals(Student(chat_model), ROWS))
    monkeypatch.setattr(learnability, "HIGHEST_RANK", 5)  # the vocabulary has no rank above 100
    check_against_reference(chat_model)
    assert all(row["rsr"] <= before[i]["rsr"] for i, row in signals(Student(chat_model), ROWS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_probability_is_above_one_at_any_rounding(dtype, tmp_path):
    """As on GPUs. A sharp model, whose likeliest tokens have nearly all of the probability: the
    logit and the sum must be rounded alike.
    """
    folder = save_model(tmp_path, initializer_range=1.0, tie_word_embeddings=True)
    exact = load_causal_lm(folder)
    rounded = copy.deepcopy(exact).to(dtype)
    context = list(range(5, 40))
    with torch.inference_mode():
        likeliest = rounded(torch.tensor([context])).logits[0].argmax(-1).tolist()
    rows = [(context[: i + 1], [likeliest[i]]) for i in range(len(context))]
    rows += [([5, 6, 7], list(range(3, 60))), ([5, 6, 7], list(range(60, 90)))]
    found = {i: (p, r) for i, p, r in log_probs.response_log_probs(rounded, rows)}
    with torch.inference_mode():
        for i, (x, y) in enumerate(rows):
            logits = rounded(torch.tensor([x + y])).logits[0, len(x) - 1 : -1].float()
            own = logits.log_softmax(-1).gather(-1, torch.tensor(y)[:, None])[:, 0]
            log_p, ranks = found[i]
            assert log_p.dtype == torch.float32
            assert (log_p <= 0).all()
            assert (log_p - own).abs().mean() <= log_probs.TOLERANCE[dtype]
            assert (ranks >= 1).all()
        assert all(r.item() == 1 for _, r in list(found.values())[:5])


def test_what_the_student_is_certain_of_has_a_finite_ratio(tmp_path):
    """log p is exactly 0 where float32 cannot tell p from 1: the ratio's worst, not infinity."""
    model = save_model(tmp_path, initializer_range=1.0)
    sharp = LlamaForCausalLM.from_pretrained(model)
    sharp.model.norm.weight.data *= 20
    sharp.save_pretrained(model)
    letters = [chr(c) for c in range(33, 127)]
    found = [one for _, one in signals(Student(model), [(ROWS[1][0], c) for c in letters])]
    certain = [one for one in found if one["learnability"] == 0]
    assert certain
    assert all(math.isfinite(one["rsr"]) for one in found)
    others = [one["rsr"] for one in found if one["learnability"] < -1e-3]
    assert all(one["rsr"] > max(others) for one in certain)


ROUNDED = {
    "Llama": {},
    "Gemma2": ARCHITECTURES["Gemma2"],
    "Qwen3": {"num_hidden_layers": 12},
    "Mistral": ARCHITECTURES["Mistral"],
}


def drawn_rows():
    """Responses to prompts of many lengths, three to each, as token ids."""
    draw = torch.Generator().manual_seed(3)

    def ids(most):
        length = int(torch.randint(1, most, (1,), generator=draw))
        return torch.randint(3, 103, (length,), generator=draw).tolist()

    return [(x, ids(60)) for x in [ids(120) for _ in range(8)] for _ in range(3)]


def apart(some, others):
    """The largest mean difference of a row, in nats per token."""
    return max((some[i][0] - others[i][0]).abs().mean().item() for i in some)


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_tolerance_is_of_the_order_of_the_rounding_itself(kind, dtype, tmp_path, caplog):
    """What a batch's shape changes is less than what rounding changes, and is let pass."""
    folder = save_model(tmp_path, kind, **{"initializer_range": 0.1} | ROUNDED[kind])
    exact, rows = load_causal_lm(folder), drawn_rows()
    rounded = copy.deepcopy(exact).to(dtype)
    with torch.inference_mode():
        plain, in_full = (dict(log_probs._whole(model, rows)) for model in (rounded, exact))
    quick = {i: (p, r) for i, p, r in log_probs.response_log_probs(rounded, rows)}
    assert not caplog.records  # both ways count as the same
    assert apart(quick, plain) <= apart(plain, in_full) < log_probs.TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_fault_is_seen_through_the_rounding(dtype, chat_model, monkeypatch, caplog):
    """Of less than 0.15 nats per token, which was once let pass."""
    rounded, rows = copy.deepcopy(load_causal_lm(chat_model)).to(dtype), drawn_rows()
    with torch.inference_mode():
        plain = dict(log_probs._whole(rounded, rows))
    body = rounded.base_model
    own = body.forward

    def forward(*args, **options):
        output = own(*args, **options)
        if options.get("past_key_values") is not None:
            output.last_hidden_state = output.last_hidden_state * 1.02
        return output

    monkeypatch.setattr(type(body), "forward", lambda self, *args, **more: forward(*args, **more))
    with torch.inference_mode():
        fault = apart(dict(log_probs._shared(rounded, rows)), plain)
    assert log_probs.TOLERANCE[dtype] < fault < 0.15
    found = {i: (p, r) for i, p, r in log_probs.response_log_probs(rounded, rows)}
    assert apart(found, plain) == 0 and len(caplog.records) == 1


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
    with pytest.raises(InputError, match="'aaa.* 64"):
        list(signals(Student(small), [([{"role": "user", "content": "a" * 70}], "y")]))
