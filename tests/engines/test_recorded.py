import json
from dataclasses import replace

import pytest
from datasets import Dataset

from persyn_datasets import InputError, Recipe, Teacher
from persyn_datasets.config.prompts import Prompts
from persyn_datasets.config.student import Student
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.data.sources import prompts_of
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
        "tool_calls": "",
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
    with pytest.raises(InputError, match=r"'z'.*answers\.jsonl.*a, b"):
        recorded.check(Teacher(answers, name="z", engine="recorded"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x", "answer": "y"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl.*teacher, response"):
        recorded.check(Teacher(str(tmp_path / "bad.jsonl"), name="a", engine="recorded"))
    with pytest.raises(InputError, match=r"none\.jsonl"):
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


WIDE = [
    {
        "uuid": str(i),
        "instruction": f"{i}?",
        "a.v1": {"content": f"a on {i}", "score": 0.5},
        "b": {"content": None if i == 1 else f"b on {i}", "score": 0.1},
        "c": f"c on {i}",
    }
    for i in range(3)
]


@pytest.fixture(params=["jsonl", "parquet"])
def wide(request, tmp_path):
    """A row for each prompt, a column for each teacher, as in Magpie's Zoo."""
    file = tmp_path / f"zoo.{request.param}"
    table = Dataset.from_list(WIDE)
    table.to_json(file) if request.param == "jsonl" else table.to_parquet(file)
    return str(file)


def of_wide(wide, name, response, **more):
    columns = {"prompt": "instruction", "response": response} | more
    return Teacher(wide, name=name, engine="recorded", columns=columns)


def test_a_column_for_each_teacher(wide):
    teachers = [
        of_wide(wide, "x", "a.v1.content"),
        of_wide(wide, "y", "b.content"),
        of_wide(wide, "z", "c"),
    ]
    prompts = [[{"role": "user", "content": f"{i}?"}] for i in (2, 1, 7)]
    requests = [Request(t, prompt_id(m), m) for m in prompts for t in teachers]
    for teacher in teachers:
        recorded.check(teacher)
    found = dict(recorded.generate(requests, Account()))
    texts = [found[i]["text"] for i in range(9)]
    assert texts == ["a on 2", "b on 2", "c on 2", "a on 1", "", "c on 1", "", "", ""]
    assert [bool(found[i]["error"]) for i in range(9)] == [not text for text in texts]


def test_a_column_may_name_the_teacher(answers, tmp_path):
    rows = [{"q": row["prompt"], "by": row["teacher"], "a": row["response"]} for row in ROWS]
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "q", "teacher": "by", "response": "a"}
    teacher = Teacher(str(file), name="b", engine="recorded", columns=columns)
    recorded.check(teacher)
    [(_, response)] = recorded.generate([Request(teacher, prompt_id(CHAT), CHAT)], Account())
    assert response["text"] == "two"
    with pytest.raises(InputError, match="it has those of a, b"):
        recorded.check(replace(teacher, name="z"))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"response": "d.content"}, "'d.content', and .* no such column; it has .*, a.v1, b, c"),
        ({"response": "b.text"}, "'b.text', and the column 'b' .* the fields content, score"),
        ({"response": "b"}, "'b', which has the fields .*, e.g. b.content"),
        ({"response": "c.content"}, "the column 'c' .* has no fields"),
        ({"response": "c", "prompt": "question"}, "columns.prompt is 'question'"),
        ({"response": "c", "teacher": "model"}, "columns.teacher is 'model'"),
    ],
)
def test_columns_that_are_not_there(wide, columns, said):
    teacher = of_wide(wide, "x", **columns)
    with pytest.raises(InputError, match=said):
        recorded.check(teacher)


@pytest.mark.parametrize("columns", [{"response": "c"}, {"prompt": "a", "response": "b", "x": "c"}])
def test_columns_say_prompt_and_response(columns):
    with pytest.raises(InputError, match="'x': columns has .*; expected prompt and response"):
        Teacher("answers.jsonl", name="x", engine="recorded", columns=columns)


def test_answers_beside_the_prompts_are_no_property_of_these(wide, chat_model):
    recipe = Recipe(
        name="zoo",
        student=Student(chat_model),
        prompts=Prompts(wide, column="instruction"),
        teachers=(of_wide(wide, "x", "a.v1.content"), of_wide(wide, "z", "c")),
    )
    assert set(prompts_of(recipe).column_names) == {"prompt_id", "messages", "uuid", "b"}


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


def test_a_thought_in_the_columns_that_are_named(tmp_path):
    file = tmp_path / "wide.parquet"
    Dataset.from_list(
        [{"q": "One?", "m": {"text": "It is 2.", "thought": "One more."}}]
    ).to_parquet(file)
    columns = {"prompt": "q", "response": "m.text", "reasoning": "m.thought"}
    teacher = Teacher(str(file), name="m", engine="recorded", columns=columns)
    one = [{"role": "user", "content": "One?"}]
    [(_, found)] = recorded.generate([Request(teacher, prompt_id(one), one)], Account())
    assert THOUGHT.items() <= found.items()


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "two", "reasoning_content": "one and one"},
        {"role": "assistant", "content": "<think>one and one</think>\n\ntwo"},
    ],
)
def test_a_completion_is_the_text_of_its_message(message, tmp_path):
    file = tmp_path / "a.parquet"
    row = {"prompt": CHAT, "teacher": "b", "response": [message]}
    Dataset.from_list([row]).to_parquet(str(file))
    found = ask(str(file), "b", CHAT)
    assert (found["text"], found["reasoning"]) == ("two", "one and one")


@pytest.mark.parametrize("said", [[{"role": "user", "content": "a"}] * 2, ["a"], [[1]]])
def test_another_list_is_no_answer(said, tmp_path):
    file = tmp_path / "a.parquet"
    Dataset.from_list([{"prompt": CHAT, "teacher": "b", "response": said}]).to_parquet(str(file))
    with pytest.raises(InputError, match="row 0"):
        ask(str(file), "b", CHAT)
