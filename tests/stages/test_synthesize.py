from collections import Counter

import pytest
from datasets import Dataset
from pool import TEACHERS, CountingEngine, answer, problems

from persyn_datasets import Generate, InputError, Synthesize, Teacher
from persyn_datasets.data import schema
from persyn_datasets.engines import answered
from persyn_datasets.engines import transformers as engine


@pytest.fixture
def teachers(chat_model):
    return [Teacher(chat_model, name=n, system_prompt=f"You are the {n}.") for n in TEACHERS]


@pytest.fixture
def routed():
    rows = [
        {"prompt": p, "teacher": TEACHERS[i % 3], "source": i}
        for i, (p, _) in enumerate(problems(9))
    ]
    return Dataset.from_list(rows)


def counting(monkeypatch, **options):
    counter = CountingEngine(**options)
    monkeypatch.setattr(engine, "generate", counter)
    return counter


def test_each_prompt_is_answered_once_by_its_own_teacher(monkeypatch, teachers, routed):
    counter = counting(monkeypatch)
    done = routed.map(Synthesize(teachers), batched=True, batch_size=None)
    assert Counter(counter.asked) == Counter(zip(routed["teacher"], routed["prompt"], strict=True))
    for row, prompt, teacher in zip(done, routed["prompt"], routed["teacher"], strict=True):
        assert row["prompt"] == [
            {"role": "user", "content": prompt}
        ]  # without the teacher's system prompt
        assert row["completion"] == [{"role": "assistant", "content": answer(teacher, prompt)}]
        assert (row["teacher"], row["finish_reason"], row["error"]) == (teacher, "stop", "")
        assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 5)
    assert done["source"] == routed["source"]


def test_answers_of_the_calibration_are_not_bought_again(monkeypatch, teachers, routed):
    counter = counting(monkeypatch)
    routed.select(range(6)).map(Generate(teachers), batched=True)
    assert len(counter.asked) == 18
    whole = routed.map(Synthesize(teachers), batched=True, batch_size=None)
    assert counter.asked[18:] == list(zip(routed["teacher"], routed["prompt"], strict=True))[6:]
    streamed = routed.to_iterable_dataset().map(Synthesize(teachers), batched=True, batch_size=2)
    assert [r["completion"] for r in streamed] == whole["completion"]
    assert len(counter.asked) == 21


def test_a_failed_row_stays_and_is_asked_for_again(monkeypatch, teachers, routed):
    bad = routed["prompt"][4]
    counting(monkeypatch, fails=lambda _, prompt: prompt == bad)
    done = routed.map(
        Synthesize(teachers), batched=True, batch_size=None, load_from_cache_file=False
    )
    assert [i for i, e in enumerate(done["error"]) if e] == [4]
    assert (done[4]["completion"], done[4]["error"]) == ([], "the server is on fire")
    counter = counting(monkeypatch)
    done = routed.map(
        Synthesize(teachers), batched=True, batch_size=None, load_from_cache_file=False
    )
    assert counter.asked == [(TEACHERS[1], bad)] and not any(done["error"])


def test_conversations_keep_all_turns(monkeypatch, teachers):
    counting(monkeypatch)
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "2 plus 2?")]
    messages = [{"role": r, "content": c} for r, c in turns]
    done = Synthesize(teachers)({"messages": [messages], "teacher": ["adder"]})
    assert (done["prompt"], done["completion"][0][0]["content"]) == ([messages], "The answer is 4.")


def test_bad_input(teachers):
    with pytest.raises(InputError, match=r"'nobody'.*adder, multiplier, guesser"):
        Synthesize(teachers)({"prompt": ["1 plus 1?"], "teacher": ["nobody"]})
    with pytest.raises(InputError, match="'adder'"):
        Synthesize([teachers[0], teachers[0]])


THINKS = "<think>\n3+4\n</think>\n\n7."


def thinking(requests, account):
    for i, request in enumerate(requests):
        cut = "cut" in request.messages[-1]["content"]
        yield (
            i,
            answered(request.teacher, "<think>3+" if cut else THINKS, "length" if cut else "stop"),
        )


@pytest.mark.parametrize(
    ("keep", "content", "column"),
    [("inline", THINKS, ""), ("column", "7.", "3+4"), ("drop", "7.", "")],
)
def test_where_a_thought_goes(monkeypatch, teachers, keep, content, column):
    monkeypatch.setattr(engine, "generate", thinking)
    rows = Dataset.from_list([{"prompt": p, "teacher": "adder"} for p in ("3 + 4?", "cut")])
    done = rows.map(Synthesize(teachers, keep_reasoning=keep), batched=True, batch_size=None)
    assert {*done.features} == {*rows.features, *schema.SYNTHESIZED}
    assert done[0]["completion"] == [{"role": "assistant", "content": content}]
    assert (done[0]["reasoning"], done[0]["error"]) == (column, "")
    assert (done[1]["completion"], done[1]["finish_reason"]) == ([], "length")
    assert done[1]["error"]
