import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
from datasets import Dataset, Features
from datasets.fingerprint import Hasher

from persyn_datasets import (
    Generate,
    InputError,
    Pairify,
    Price,
    Rank,
    Sampling,
    Score,
    Student,
    Teacher,
)
from persyn_datasets.data import schema
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.engines import answered, failed

GREEDY = Sampling(temperature=0, max_tokens=6)
TEACHERS = [Teacher("zeta", sampling=GREEDY), Teacher("alpha", sampling=GREEDY)]


def row(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def asked(monkeypatch):
    """Replaces the engine by one that answers last first, records what it is asked, and obeys words
    in the prompt.
    """
    asked = []

    def generate(requests, account):
        for i in reversed(range(len(requests))):
            teacher, _, messages, *_ = requests[i]
            text = messages[-1]["content"]
            if "interrupt" in text and "interrupt" not in asked:
                asked.append("interrupt")
                raise KeyboardInterrupt
            asked.append((teacher.name, text))
            if "fail" in text:
                yield i, failed(teacher, "no luck")
            elif "empty" in text:
                yield (
                    i,
                    answered(teacher, "", "stop", 1, 1),
                )
            else:
                yield (
                    i,
                    answered(teacher, f"{teacher.name}: {text}", "stop", 1, 2),
                )

    monkeypatch.setattr("persyn_datasets.engines.transformers.generate", generate)
    return asked


def test_every_teacher_answers_every_prompt_in_order(asked):
    batch = Generate(TEACHERS)({"prompt": ["one", "two"], "other": [1, 2]})
    assert batch["messages"] == [row("one"), row("two")]
    assert batch["prompt_id"] == [prompt_id(row("one")), prompt_id(row("two"))]
    assert [[(r["teacher"], r["text"]) for r in rs] for rs in batch["responses"]] == [
        [("zeta", f"zeta: {text}"), ("alpha", f"alpha: {text}")] for text in ("one", "two")
    ]
    assert len(asked) == 4


def test_nothing_is_bought_twice(asked):
    first = Generate(TEACHERS)({"prompt": ["one", "two", "one"]})
    assert sorted(asked) == sorted((t.name, p) for t in TEACHERS for p in ("one", "two"))
    assert first["responses"][0] == first["responses"][2]
    asked.clear()
    assert Generate(TEACHERS)({"prompt": ["one", "two", "one"]}) == first
    Generate(reversed(TEACHERS))({"messages": [row("two")]})
    Generate([replace(t, price=Price(1, 2), size=3.0) for t in TEACHERS])({"prompt": ["one"]})
    assert asked == []


def test_samples_are_asked_with_seeds_of_their_own(asked):
    warm = [replace(t, sampling=Sampling(0.7, seed=3)) for t in TEACHERS]
    [first] = Generate(warm)({"prompt": ["one"]})["responses"]
    [responses] = Generate(warm, samples=3)({"prompt": ["one"]})["responses"]
    assert [(r["teacher"], r["sample"]) for r in responses] == [
        (t, j) for t in ("zeta", "alpha") for j in range(3)
    ]
    assert [responses[0], responses[3]] == first and len(asked) == 6  # the first is sample 0
    Generate([replace(t, sampling=Sampling(0.7, seed=5)) for t in TEACHERS])({"prompt": ["one"]})
    assert len(asked) == 6  # sample 2 of seed 3 is sample 0 of seed 5
    with pytest.raises(InputError, match="'zeta'"):
        Generate(TEACHERS, samples=2)
    with pytest.raises(InputError, match="samples is 0"):
        Generate(warm, samples=0)


def test_a_renamed_teacher_keeps_its_answers_under_the_new_name(asked):
    Generate(TEACHERS[:1])({"prompt": ["one"]})
    [[response]] = Generate([replace(TEACHERS[0], name="new")])({"prompt": ["one"]})["responses"]
    assert (response["teacher"], response["text"]) == ("new", "zeta: one")
    assert len(asked) == 1


def test_two_names_for_one_model_each_have_their_response(asked):
    twins = [TEACHERS[0], replace(TEACHERS[0], name="twin")]
    [pair] = Generate(twins)({"prompt": ["one"]})["responses"]
    assert [r["teacher"] for r in pair] == ["zeta", "twin"]


@pytest.mark.parametrize(
    "change", [{"system_prompt": "s"}, {"sampling": Sampling(0.1)}, {"revision": "v2"}]
)
def test_another_way_of_asking_is_asked(asked, change):
    Generate(TEACHERS[:1])({"prompt": ["one"]})
    Generate([replace(TEACHERS[0], **change)])({"prompt": ["one"]})
    assert len(asked) == 2


def test_an_interrupted_run_asks_only_for_the_rest(asked):
    batch = {"prompt": ["a", "interrupt", "b", "c"]}
    with pytest.raises(KeyboardInterrupt):
        Generate(TEACHERS[:1])(batch)
    assert asked == [("zeta", "c"), ("zeta", "b"), "interrupt"]
    responses = Generate(TEACHERS[:1])(batch)["responses"]
    assert asked[3:] == [("zeta", "interrupt"), ("zeta", "a")]
    assert [r["text"] for [r] in responses] == [f"zeta: {text}" for text in batch["prompt"]]


def test_a_failure_stays_in_its_place_and_is_asked_again_an_empty_answer_is_not(asked):
    batch = {"prompt": ["one", "fail", "empty"]}
    for attempt in (1, 2):
        [[one], [broken], [empty]] = Generate(TEACHERS[:1])(batch)["responses"]
        assert (one["error"], broken["error"], empty["error"]) == ("", "no luck", "empty response")
        assert broken["text"] == "" and broken["completion_tokens"] is None
        assert asked.count(("zeta", "fail")) == attempt
    assert asked.count(("zeta", "empty")) == asked.count(("zeta", "one")) == 1


def test_dataset_and_iterable_dataset_give_the_same_rows(asked):
    prompts = Dataset.from_list(
        [{"prompt": f"{'fail' if i == 4 else ''}{i}", "level": i} for i in range(10)]
    )
    mapped = prompts.map(Generate(TEACHERS), batched=True, batch_size=None)
    streamed = prompts.to_iterable_dataset().map(Generate(TEACHERS), batched=True, batch_size=3)
    assert mapped.to_list() == list(streamed)
    assert mapped["level"] == list(range(10))
    features = Features({**prompts.features, **schema.GENERATED})
    assert {**mapped.features} == {**features}
    assert (
        prompts.map(Generate(TEACHERS), batched=True, features=features).to_list()
        == mapped.to_list()
    )


def test_the_first_failure_may_come_late(asked):
    """`map` writes rows by the thousand, and types them by the first; so `error` is a string
    everywhere.
    """
    prompts = Dataset.from_list([{"prompt": "fail" if i == 1050 else str(i)} for i in range(1100)])
    errors = [r["error"] for [r] in prompts.map(Generate(TEACHERS[:1]), batched=True)["responses"]]
    assert [i for i, error in enumerate(errors) if error] == [1050]


def test_with_a_real_model(chat_model):
    teachers = [
        Teacher(chat_model, sampling=GREEDY),
        Teacher(chat_model, name="2", system_prompt="s", sampling=GREEDY),
    ]
    prompts = Dataset.from_list([{"prompt": "the"}, {"prompt": "other"}])
    generated = prompts.map(Generate(teachers), batched=True, batch_size=None)
    assert all(
        r["completion_tokens"] <= 6 and not r["error"] for rs in generated["responses"] for r in rs
    )
    assert {**generated.features} == {**prompts.features, **schema.GENERATED}


def test_names_are_unique():
    with pytest.raises(InputError, match="teachers: .*'m'"):
        Generate([Teacher("m"), Teacher("m", revision="v2")])


def test_stages_pickle_and_hash_by_what_they_hold(chat_model, reward_model):
    quality = {"reward_model": reward_model}
    stages = [
        lambda: Generate([Teacher("m", system_prompt="s", examples=row("x"))]),
        lambda: Generate([Teacher("m", system_prompt="t")]),
        lambda: Score(student=chat_model),
        lambda: Score(student=Student(chat_model, revision="v2"), quality=quality),
        lambda: Rank(),
        lambda: Rank(alpha=0.5),
        lambda: Pairify(),
    ]
    for make in stages:
        assert pickle.loads(pickle.dumps(make())) == make()
        assert (
            Hasher.hash(make())
            == Hasher.hash(make())
            == Hasher.hash(pickle.loads(pickle.dumps(make())))
        )
    assert len({Hasher.hash(make()) for make in stages}) == len(stages)


def test_hashes_are_the_same_in_another_process():
    code = "from persyn_datasets import *; from datasets.fingerprint import Hasher\n"
    code += "stage = Generate([Teacher('m', sampling=Sampling(0.5, stop=('x',)))])\n"
    other = subprocess.run(
        [sys.executable, "-c", code + "print(Hasher.hash(stage), Hasher.hash(Rank(0.3)))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    stage = Generate([Teacher("m", sampling=Sampling(0.5, stop=("x",)))])
    assert other == [Hasher.hash(stage), Hasher.hash(Rank(0.3))]
