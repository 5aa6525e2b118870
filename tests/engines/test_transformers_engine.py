import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from local_teacher import PROMPTS, answers, teacher_of

from persyn_datasets import InputError, Sampling, Teacher
from persyn_datasets.engines import Request, local_model
from persyn_datasets.engines import transformers as engine
from persyn_datasets.engines.account import Account
from persyn_datasets.store.models import load_causal_lm, load_tokenizer, prompt_ids


def variant(model, folder, **generation_config):
    """The same weights with other generation defaults."""
    shutil.copytree(model, folder)
    file = Path(folder) / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | generation_config))
    return str(folder)


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}]
)
def test_a_prompt_gets_the_same_text_alone_and_in_any_batch(chat_model, monkeypatch, sampling):
    teacher = teacher_of(chat_model, **sampling)
    together = answers(teacher)
    backwards = answers(teacher, dict(reversed(PROMPTS.items())))
    alone = {key: answers(teacher, {key: m})[key] for key, m in PROMPTS.items()}
    monkeypatch.setattr(local_model, "TOKENS_PER_BATCH", 1)
    assert together == backwards == alone == answers(teacher)
    assert len({r["text"] for r in together.values()}) == len(PROMPTS)


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0}, {"temperature": 1.0, "frequency_penalty": 0.5}, {"stop": ("K",)}],
)
def test_rows_that_ended_leave_the_batch_and_change_no_other(
    chat_model, tmp_path, monkeypatch, sampling
):
    model = variant(chat_model, tmp_path / "v", eos_token_id=[2, *range(60, 64)])
    teacher = teacher_of(model, max_tokens=40, **sampling)
    prompts = {str(i): [{"role": "user", "content": f"{i} of " * i}] for i in range(1, 17)}
    alone = {key: answers(teacher, {key: m})[key] for key, m in prompts.items()}
    loaded = load_causal_lm(model)
    whole, rows = loaded.generate, []

    def generate(ids, **more):
        rows.append(len(ids))
        return whole(ids, **more)

    monkeypatch.setattr(loaded, "generate", generate)
    assert answers(teacher, prompts) == alone
    assert rows[0] == 16 > rows[-1] and rows == sorted(rows, reverse=True)


def test_the_sample_depends_on_seed_and_prompt_id(chat_model):
    one = answers(teacher_of(chat_model, temperature=1.0, seed=1))
    assert one == answers(teacher_of(chat_model, temperature=1.0, seed=1))
    two = answers(teacher_of(chat_model, temperature=1.0, seed=2))
    assert one != two
    teacher = teacher_of(chat_model, temperature=1.0, seed=1)
    second = [
        Request(teacher, key, teacher.conversation(m), sample=1) for key, m in PROMPTS.items()
    ]
    assert {
        second[i].prompt_id: response for i, response in engine.generate(second, Account())
    } == two
    twins = answers(
        teacher_of(chat_model, temperature=1.0), {"x": PROMPTS["id0"], "y": PROMPTS["id0"]}
    )
    assert twins["x"]["text"] != twins["y"]["text"]


@pytest.mark.parametrize("fixture", ["chat_model", "base_model"])
def test_greedy_is_the_models_own_greedy(fixture, request, tmp_path):
    """Also for a model that ships sampling defaults, and with several end tokens (as Llama
    3 has).
    """
    plain = request.getfixturevalue(fixture)
    tokenizer, model = load_tokenizer(plain), load_causal_lm(plain)
    ends = [tokenizer.eos_token_id, *range(3, 20)]
    shipped = {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 5,
        "repetition_penalty": 1.7,
        "max_length": 3,
        "eos_token_id": ends,
    }
    found = answers(teacher_of(variant(plain, tmp_path / "v", **shipped), temperature=0))
    reasons = set()
    for key, messages in PROMPTS.items():
        ids = torch.tensor([prompt_ids(tokenizer, messages)])
        new = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=ends,
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()
        ended = new[-1] in ends
        assert (
            found[key]["text"]
            == tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True).strip()
        )
        assert found[key]["finish_reason"] == ("stop" if ended else "length")
        assert found[key]["completion_tokens"] == len(new)
        assert found[key]["prompt_tokens"] == ids.shape[1]
        reasons.add(found[key]["finish_reason"])
    assert "stop" in reasons


def test_finish_reasons_and_token_counts(chat_model, tmp_path):
    model = variant(chat_model, tmp_path / "v", eos_token_id=[2, *range(60, 70)])
    prompts = {str(i): PROMPTS["id0"] for i in range(40)}
    responses = answers(teacher_of(model, temperature=1.5, max_tokens=12), prompts)
    tokenizer, stopped = load_tokenizer(model), 0
    for response in responses.values():
        if response["finish_reason"] == "length":
            assert response["completion_tokens"] == 12
        else:
            stopped += 1
            # An end token more than the text; a text at its start or end may have lost white space.
            assert response["completion_tokens"] <= 12
            if len(response["text"]) > 2 and not response["error"]:
                assert (
                    response["completion_tokens"]
                    > len(tokenizer(response["text"])["input_ids"]) - 1
                )
    assert 0 < stopped < 40


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_a_stop_string_ends_the_text_before_it(chat_model, tmp_path, pad_is_eos):
    model = chat_model
    if pad_is_eos:
        model = shutil.copytree(chat_model, tmp_path / "v")
        config = json.loads((model / "tokenizer_config.json").read_text()) | {"pad_token": "</s>"}
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        assert load_tokenizer(str(model)).pad_token_id == 2
    free = answers(teacher_of(str(model), temperature=1.0))
    stop = free["id0"]["text"][6:8]
    stopping = teacher_of(str(model), temperature=1.0, stop=(stop, "never this"))
    together = answers(stopping)
    assert together["id0"]["text"] == free["id0"]["text"].partition(stop)[0].strip()
    assert together["id0"]["finish_reason"] == "stop"
    assert together["id0"]["completion_tokens"] < free["id0"]["completion_tokens"]
    others = [r for r in together.values() if stop not in free["id1"]["text"]]
    assert (
        others
        and max(r["completion_tokens"] for r in others) > together["id0"]["completion_tokens"]
    )
    assert together == {key: answers(stopping, {key: m})[key] for key, m in PROMPTS.items()}


def test_an_empty_response_is_an_error_that_was_paid_for(chat_model, tmp_path):
    every = variant(chat_model, tmp_path / "v", eos_token_id=list(range(106)))
    response = answers(teacher_of(every, temperature=0))["id0"]
    assert response["error"] == "empty response"
    assert (response["text"], response["finish_reason"], response["completion_tokens"]) == (
        "",
        "stop",
        1,
    )


def test_one_refused_prompt_fails_alone(chat_model):
    refused = {"bad": [{"role": "system", "content": "refuse me"}, *PROMPTS["id0"]]}
    responses = answers(teacher_of(chat_model, temperature=0), PROMPTS | refused)
    assert "no system messages" in responses["bad"]["error"]
    assert responses["bad"]["finish_reason"] == "error"
    assert [responses[key]["error"] for key in PROMPTS] == [""] * 3


def test_teachers_of_several_models_and_samplings_in_one_call(chat_model, base_model):
    teachers = [
        Teacher(chat_model, name="a", sampling=Sampling(0, max_tokens=4)),
        Teacher(base_model, name="b"),
    ]
    teachers[1:] = [
        Teacher(base_model, name="b", sampling=Sampling(0, max_tokens=6)),
        Teacher(chat_model, name="c", sampling=Sampling(0, max_tokens=8), system_prompt="the"),
    ]
    requests = [Request(t, key, t.conversation(m)) for key, m in PROMPTS.items() for t in teachers]
    for i, response in engine.generate(requests, Account()):
        teacher, key, *_ = requests[i]
        assert response == answers(teacher, {key: PROMPTS[key]})[key]
        assert response["teacher"] == teacher.name


def test_each_row_is_drawn_from_its_distribution():
    """χ² of 40,000 draws, 20,000 rows two times, against softmax; 5 degrees of freedom: p = 0.001
    at 20.5.
    """
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0, 0.5, 1.5])
    rows = 20_000
    sampler = local_model.SampleEachRow([f"0:{i}" for i in range(rows)])
    counts = torch.zeros(7)
    for _ in range(2):
        kept = sampler(torch.zeros(rows, 1), logits.expand(rows, -1))
        assert (torch.isfinite(kept).sum(-1) == 1).all()
        counts += kept.argmax(-1).bincount(minlength=7)
    expected = logits.softmax(-1) * 2 * rows
    assert counts[2] == 0
    possible = expected > 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 20.5


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (1 - 2**-53, 3)])
def test_a_token_of_no_probability_is_never_drawn(u, token):
    """Not even at the ends of what a stream gives; the upper one would round to 1 as float32."""
    sampler = local_model.SampleEachRow(["0:a"])
    sampler.streams = [SimpleNamespace(random=lambda: u)]
    scores = torch.tensor([[-torch.inf, 0.3, 1.0, 0.1, -torch.inf, -torch.inf]])
    assert sampler(torch.zeros(1, 1), scores).argmax().item() == token


@pytest.mark.parametrize("sampling", [{"temperature": 1e-4}, {"temperature": 1.0, "top_p": 1e-6}])
def test_temperature_and_top_p_narrow_down_to_greedy(chat_model, sampling):
    assert answers(teacher_of(chat_model, **sampling)) == answers(
        teacher_of(chat_model, temperature=0)
    )


def test_check(chat_model, tmp_path):
    engine.check(Teacher(chat_model))
    with pytest.raises(InputError, match=f"'t'.*'{tmp_path}/none'"):
        engine.check(Teacher(f"{tmp_path}/none", name="t"))
    with pytest.raises(InputError, match="'t'.*no system messages"):
        engine.check(Teacher(chat_model, name="t", system_prompt="refuse me"))


def test_penalties_by_their_definitions():
    """Repetition as transformers has it, for a row without padding; the others by hand."""
    torch.manual_seed(0)
    ids, scores = torch.tensor([[3, 4, 3, 5, 5]]), torch.randn(1, 8)
    ours = local_model.Penalize(Sampling(repetition_penalty=1.3), [[3, 4]], 2)(ids, scores)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)(ids, scores.clone())
    assert torch.equal(ours, theirs)
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    less = scores - local_model.Penalize(sampling, [[3, 4]], 2)(ids, scores)
    expected = torch.tensor([[0, 0, 0, 0.75, 0, 1.0, 0, 0]])  # 3 once in the answer, 5 twice
    assert torch.allclose(less, expected, atol=1e-6)


def test_how_it_is_drawn_holds_and_depends_on_no_other_row(chat_model):
    """`top_k=1` is greedy at any temperature; a penalty is of the own tokens of a row."""
    prompts = {"a": "the", "b": "the other day " * 3}
    greedy = Sampling(temperature=0, max_tokens=12)
    penalized = replace(greedy, repetition_penalty=1.5, frequency_penalty=1.0)

    def said(sampling, *keys):
        teacher = Teacher(chat_model, name="t", sampling=sampling)
        requests = [Request(teacher, k, [{"role": "user", "content": prompts[k]}]) for k in keys]
        return {requests[i].prompt_id: r["text"] for i, r in engine.generate(requests, Account())}

    plain = said(greedy, "a", "b")
    for narrow in ({"top_k": 1}, {"min_p": 1.0}):
        assert said(replace(greedy, temperature=1.0, **narrow), "a", "b") == plain
    together = said(penalized, "a", "b")
    assert together == said(penalized, "a") | said(penalized, "b") != plain
