import json

import pytest
from datasets import Dataset

from persyn_datasets import InputError, Teacher
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.engines import Request, recorded
from persyn_datasets.engines.account import Account

CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "Two?"}]
ROWS = [
    {"prompt": [{"role": "user", "content": "One?"}], "teacher": "a", "response": "first"},
    {"prompt": [{"role": "user", "content": "One?"}], "teacher": "a", "response": "second"},
    {"prompt": [{"role": "user", "content": "One?"}], "teacher": "b", "response": ""},
    {"prompt": CHAT, "teacher": "b", "response": "two"},
]


@pytest.fixture
def answers(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


def ask(path, name, messages):
    teacher = Teacher(
        path, name=name, engine="recorded", system_prompt="matched on the prompt, not on this"
    )
    [(index, response)] = recorded.generate(
        [Request(teacher, prompt_id(messages), teacher.conversation(messages))], Account()
    )
    assert index == 0 and response["teacher"] == name
    return response


def test_answers_are_matched_on_prompt_and_teacher(answers):
    one = [{"role": "user", "content": "One?"}]
    assert ask(answers, "a", one) == {
        "teacher": "a",
        "text": "first",
        "reasoning": "",
        "finish_reason": "stop",
        "error": "",
        "prompt_tokens": None,
        "completion_tokens": None,
        "reasoning_tokens": 0,
    }
    assert ask(answers, "b", CHAT)["text"] == "two"


def test_sample_j_is_the_jth_answer(answers):
    teacher, one = Teacher(answers, name="a", engine="recorded"), ROWS[0]["prompt"]
    requests = [Request(teacher, prompt_id(one), one, sample) for sample in (1, 0, 2)]
    found = [response for _, response in recorded.generate(requests, Account())]
    assert [r["text"] for r in found] == ["second", "first", ""]
    assert "no answer number 3 of 'a'" in found[2]["error"]


@pytest.mark.parametrize(
    ("name", "messages"), [("a", CHAT), ("b", ROWS[0]["prompt"]), ("c", CHAT), ("a", CHAT[1:])]
)
def test_a_missing_or_empty_answer_is_an_error(answers, name, messages):
    response = ask(answers, name, messages)
    assert (response["text"], response["finish_reason"]) == ("", "error")
    assert f"no answer of '{name}'" in response["error"] and answers in response["error"]


def test_check(answers, tmp_path):
    recorded.check(Teacher(answers, name="a", engine="recorded"))
    with pytest.raises(
        InputError, match=r"'z': .*answers\.jsonl has no answers of it; it has a, b"
    ):
        recorded.check(Teacher(answers, name="z", engine="recorded"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x", "answer": "y"}\n')
    with pytest.raises(
        InputError, match=r"bad\.jsonl: recorded answers need .*; missing teacher, response"
    ):
        recorded.check(Teacher(str(tmp_path / "bad.jsonl"), name="a", engine="recorded"))
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        recorded.check(Teacher(str(tmp_path / "none.jsonl"), name="a", engine="recorded"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "found", [["0", "1"], ["007", "1.50"], ["1969-07-16", "nan"], ["True", "null"]]
)
def test_answers_are_texts_as_written(tmp_path, suffix, found):
    """Whatever they look like; "0" is an answer. So are the names of teachers."""
    rows = [{"prompt": f"{i}?", "teacher": "7", "response": text} for i, text in enumerate(found)]
    file = tmp_path / f"answers{suffix}"
    table = Dataset.from_list(rows)
    getattr(table, {".csv": "to_csv", ".jsonl": "to_json", ".parquet": "to_parquet"}[suffix])(file)
    for i, text in enumerate(found):
        response = ask(str(file), "7", [{"role": "user", "content": f"{i}?"}])
        assert (response["text"], response["error"]) == (text, "")


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (2.5, "2.5"), (True, "true")])
def test_answers_that_are_no_texts_are_their_json(tmp_path, value, text):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"prompt": "One?", "teacher": "a", "response": value}) + "\n")
    assert ask(str(file), "a", [{"role": "user", "content": "One?"}])["text"] == text


def test_answers_that_are_written_anew_are_read_anew(tmp_path):
    file = tmp_path / "answers.jsonl"
    for text in ("one", "two"):
        file.write_text(json.dumps({"prompt": "One?", "teacher": "a", "response": text}) + "\n")
        assert ask(str(file), "a", [{"role": "user", "content": "One?"}])["text"] == text


@pytest.mark.parametrize("written", [" two", "two\n", "\n\ttwo \n"])
def test_white_space_at_the_ends_of_an_answer_does_not_count(written, tmp_path):
    """As from the other engines: one leading space cost an answer 8.6 nats."""
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"prompt": "One?", "teacher": "a", "response": written}))
    one = [{"role": "user", "content": "One?"}]
    assert ask(str(file), "a", one)["text"] == "two"


THOUGHT = {"text": "It is 2.", "reasoning": "One more.", "finish_reason": "stop", "error": ""}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"response": "<think>\nOne more.\n</think>\n\nIt is 2."}, THOUGHT),
        ({"response": "One more.\n</think>\n\nIt is 2."}, THOUGHT),
        ({"response": "It is 2.", "reasoning": " One more.\n"}, THOUGHT),
        ({"response": "It is 2.", "reasoning_content": "One more."}, THOUGHT),
        ({"response": "It is 2.", "reasoning": None}, THOUGHT | {"reasoning": ""}),
        ({"response": "<think>\nOne mo"}, {"text": "", "reasoning": "One mo", "error": ""}),
        ({"response": "", "reasoning": "One mo"}, {"text": "", "reasoning": "One mo", "error": ""}),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_recorded_thought_is_apart_from_the_answer(row, expected, suffix, tmp_path):
    """As from the other engines, in the text or beside it; a cut-off one is no failure."""
    one = [{"role": "user", "content": "One?"}]
    file = tmp_path / f"answers{suffix}"
    table = Dataset.from_list([{"prompt": "One?", "teacher": "a"} | row])
    table.to_json(file) if suffix == ".jsonl" else table.to_parquet(file)
    found = ask(str(file), "a", one)
    assert expected.items() <= found.items()
    assert found["finish_reason"] == ("stop" if found["text"] else "length")


def test_a_thought_without_an_answer_is_an_error(tmp_path):
    """It ended, and nothing came after it."""
    file = tmp_path / "answers.jsonl"
    text = "<think>\nOne more.\n</think>"
    file.write_text(json.dumps({"prompt": "One?", "teacher": "a", "response": text}))
    found = ask(str(file), "a", [{"role": "user", "content": "One?"}])
    assert (found["text"], found["reasoning"]) == ("", "One more.") and found["error"]
