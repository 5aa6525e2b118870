import json
from dataclasses import replace

import pytest

from persyn_datasets import InputError, Price, Sampling, Teacher
from persyn_datasets.store.identity import teacher_identity

USER, SYSTEM = {"role": "user", "content": "q"}, {"role": "system", "content": "own"}
SHOTS = ({"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"})


@pytest.mark.parametrize(
    ("system_prompt", "examples", "messages", "seen"),
    [
        (None, (), [USER], [("user", "q")]),
        (None, (), [SYSTEM, USER], [("system", "own"), ("user", "q")]),
        ("be brief", (), [USER], [("system", "be brief"), ("user", "q")]),
        ("be brief", (), [SYSTEM, USER], [("system", "be brief\n\nown"), ("user", "q")]),
        (
            None,
            SHOTS,
            [SYSTEM, USER],
            [("system", "own"), ("user", "1?"), ("assistant", "2"), ("user", "q")],
        ),
    ],
)
def test_a_teacher_sees_its_own_conversation(system_prompt, examples, messages, seen):
    before = json.dumps(messages)
    conversation = Teacher("m", system_prompt=system_prompt, examples=examples).conversation(
        messages
    )
    assert [(m["role"], m["content"]) for m in conversation] == seen
    assert json.dumps(messages) == before


FULL = Teacher(
    "http-model",
    name="t",
    engine="endpoint",
    revision="main",
    base_url="http://h/v1",
    api_key_env="KEY",
    system_prompt="s",
    examples=SHOTS,
    sampling=Sampling(0.3, 0.9, 5, 7, ("x",)),
    price=Price(1, 2),
    size=3,
    family="f",
)


def test_identity_is_all_that_can_change_a_response_and_nothing_else():
    changed = {
        "model": "n",
        "revision": "v2",
        "base_url": "http://g/v1",
        "system_prompt": None,
        "examples": (),
        "sampling": Sampling(),
    }
    identities = [teacher_identity(FULL)] + [
        teacher_identity(replace(FULL, **{k: v})) for k, v in changed.items()
    ]
    for field, value in {
        "temperature": 0.4,
        "top_p": 1.0,
        "max_tokens": 6,
        "seed": 8,
        "stop": (),
    }.items():
        identities.append(
            teacher_identity(replace(FULL, sampling=replace(FULL.sampling, **{field: value})))
        )
    assert len({json.dumps(i, sort_keys=True) for i in identities}) == 1 + 6 + 5
    same = {
        "name": "u",
        "price": None,
        "size": 9,
        "family": None,
        "license": "mit",
        "api_key_env": None,
    }
    assert teacher_identity(replace(FULL, **same)) == teacher_identity(FULL)
    assert teacher_identity(Teacher("m")) == teacher_identity(Teacher("m", sampling=Sampling()))


def test_identity_of_a_local_model_follows_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = teacher_identity(Teacher(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert teacher_identity(Teacher(str(tmp_path))) != before


def test_round_trip_through_json_and_no_secret(monkeypatch):
    monkeypatch.setenv("KEY", "hush")
    text = json.dumps(FULL.to_dict())
    assert Teacher.from_dict(json.loads(text)) == FULL
    assert "hush" not in text + repr(FULL) + json.dumps(teacher_identity(FULL))


def test_defaults_and_forms():
    assert Teacher("org/m").name == "org/m"
    assert Sampling(stop="###").stop == ("###",)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(temperature=-1), r"sampling\.temperature is -1; expected 0"),
        (lambda: Sampling(top_p=0), r"sampling\.top_p is 0; expected"),
        (lambda: Sampling(top_p=1.1), r"sampling\.top_p is 1.1; expected"),
        (lambda: Sampling(max_tokens=0), r"sampling\.max_tokens is 0; expected"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(InputError, match=message):
        make()


STATED = {
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "extra_body": {"provider": {"order": ["a"]}},
}
DRAWN = {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}
DRAWN |= {"presence_penalty": 0.5, "frequency_penalty": -0.5}


def test_what_came_after_0_1_0_is_in_the_identity_only_where_it_is_stated():
    before = teacher_identity(FULL)
    assert set(before["sampling"]) == {"temperature", "top_p", "max_tokens", "seed", "stop"}
    assert not set(STATED) & set(before)
    identities = [before, *(teacher_identity(replace(FULL, **{k: v})) for k, v in STATED.items())]
    for key, value in DRAWN.items():
        sampling = replace(FULL.sampling, **{key: value})
        identities.append(teacher_identity(replace(FULL, sampling=sampling)))
    assert len({json.dumps(i, sort_keys=True) for i in identities}) == 1 + 4 + 5


def test_how_a_teacher_is_asked_survives_a_recipe():
    teacher = replace(FULL, **STATED, sampling=replace(FULL.sampling, **DRAWN))
    assert Teacher.from_dict(json.loads(json.dumps(teacher.to_dict()))) == teacher


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"extra_body": {"max_completion_tokens": 9}}, "max_completion_tokens"),
        ({"extra_body": {"n": 4}}, "'n'"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template'"),
        ({"chat_template_kwargs": {"tokenize": True}}, "tokenize"),
    ],
)
def test_what_other_keys_say_is_refused(values, named):
    with pytest.raises(InputError, match=named):
        Teacher("m", **values)


@pytest.mark.parametrize(("key", "value"), [("top_k", 0), ("min_p", 2), ("presence_penalty", 3)])
def test_what_cannot_be_drawn_is_refused(key, value):
    with pytest.raises(InputError, match=key):
        Sampling(**{key: value})
