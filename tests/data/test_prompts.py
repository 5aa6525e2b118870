import json
import re

import pytest
from datasets import Dataset

from persyn_datasets import InputError, load_prompts
from persyn_datasets.data.prompts import messages_of, prompt_id, to_messages
from persyn_datasets.data.tables import load_table

USER = [{"role": "user", "content": "Why?"}]
ROWS = [
    {"prompt": "One?", "answer": 1, "level": "easy"},
    {"prompt": "Two?", "answer": None, "level": "hard"},
]


def test_id_depends_on_the_messages_alone():
    assert prompt_id(USER) == prompt_id([{"content": "Why?", "role": "user", "name": "Eve"}])
    others = [
        [{"role": "system", "content": "Why?"}],
        [{"role": "user", "content": "Why? "}],
        USER * 2,
        [{"role": "user", "content": 'Why?"], ["user", "Why?'}],
    ]
    assert len({prompt_id(m) for m in [USER, *others]}) == 5


def test_a_string_is_one_user_message():
    assert to_messages("Why?", "here") == USER
    assert to_messages([{"role": "user", "content": "Why?", "extra": 1}], "here") == USER


SYSTEM, ASSISTANT = {"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (None, "found no value"),
        (5, "found the int 5"),
        ([], "found the list []"),
        ("  \n", "the prompt is empty"),
        ("", "the prompt is empty"),
        ([SYSTEM, ASSISTANT], "the last message is the assistant's"),
        (["Why?"], "message 0 is the str 'Why?'"),
        ([{"role": "user", "content": None}], "message 0 is the dict"),
        ([SYSTEM, {"role": "tool", "content": "x"}], "message 1 has role 'tool'"),
    ],
)
def test_what_is_not_a_prompt_is_named_with_its_place(cell, found):
    with pytest.raises(InputError, match=re.escape(f"here: {found}")) as error:
        to_messages(cell, "here")
    assert "expected" in str(error.value)


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio"])
def test_images_are_refused_in_one_sentence(kind):
    parts = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: "…"}]
    said = f"here: message 0 has a part of type '{kind}', and only text is supported;"
    with pytest.raises(InputError, match=said):
        to_messages([{"role": "user", "content": parts}], "here")


def test_messages_win_over_prompt_and_one_must_be_there():
    assert messages_of({"prompt": ["no"], "messages": [USER]}) == [USER]
    assert messages_of({"prompt": ["Why?"]}) == [USER]
    with pytest.raises(InputError, match=r"\['text'\].*'messages'.*'prompt'"):
        messages_of({"text": ["Why?"]})
    with pytest.raises(InputError, match="row 1 .*'prompt'"):
        messages_of({"prompt": ["Why?", ""]})


def write(folder, suffix):
    file = folder / f"train{suffix}"
    table = Dataset.from_list(ROWS)
    if suffix == ".parquet":
        table.to_parquet(file)
    elif suffix == ".json":
        file.write_text(json.dumps(ROWS))
    elif suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        table.to_csv(file, sep="\t" if suffix == ".tsv" else ",", index=False)
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("by", ["file", "folder", "glob"])
def test_every_format_gives_the_same_prompts(tmp_path, suffix, by):
    file = write(tmp_path, suffix)
    path = {"file": file, "folder": tmp_path, "glob": tmp_path / f"tr*{suffix}"}[by]
    prompts = load_prompts(str(path), answer_column="answer")
    assert [m[0]["content"] for m in prompts["messages"]] == ["One?", "Two?"]
    assert list(prompts["prompt_id"]) == [prompt_id(m) for m in prompts["messages"]]
    assert list(prompts["level"]) == ["easy", "hard"]
    assert "prompt" not in prompts.column_names
    assert prompts[1]["answer"] is None
    assert prompts[0]["answer"] == "1"


def test_a_column_of_messages_and_one_by_name(tmp_path):
    turns = [SYSTEM, USER[0], ASSISTANT, {"role": "user", "content": "And?"}]
    Dataset.from_list([{"chat": turns, "solution": "7"}]).to_parquet(tmp_path / "a.parquet")
    prompts = load_prompts(str(tmp_path / "a.parquet"), column="chat", answer_column="solution")
    assert prompts.to_list() == [{"prompt_id": prompt_id(turns), "messages": turns, "answer": "7"}]


def test_mistakes_in_a_table_name_row_column_and_mend(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    with pytest.raises(
        InputError,
        match=r"p\.jsonl, row 1, column 'prompt'",
    ):
        load_prompts(str(file))
    with pytest.raises(InputError, match=r"prompts\.column.*p\.jsonl.*'question'.*prompt"):
        load_prompts(str(file), column="question")
    with pytest.raises(InputError, match=r"prompts\.answer_column.*'gold'.*prompt"):
        load_prompts(str(file), answer_column="gold")
    with pytest.raises(InputError, match="'messages'.* x"):
        load_prompts(write_bytes(tmp_path / "x.csv", b"x\n1\n"))
    with pytest.raises(InputError, match=r"header\.csv"):
        load_prompts(write_bytes(tmp_path / "header.csv", b"prompt,answer\n"))


def write_bytes(file, data):
    file.write_bytes(data)
    return str(file)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "latin.csv",
            "prompt\nja\nschön\n".encode("latin1"),
            "line 3 is not UTF-8 (byte 0xf6); convert it, e.g. `iconv",
        ),
        (
            "binary.jsonl",
            b'{"prompt": "a"}\n\0\1\2',
            "line 2 holds binary data; expected text in UTF-8",
        ),
        ("empty.jsonl", b"", "the file is empty; expected prompts"),
        ("cut.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "cannot be read"),
        ("ragged.csv", b"prompt\na,1\nb,2,3,4\n", "cannot be read"),
        ("not.parquet", b"\0\1 no parquet", "Parquet"),
        ("sheet.xlsx", b"PK", "unknown format '.xlsx'; expected .jsonl, .ndjson, .json, .csv"),
        ("plain", b"x", "unknown format 'without extension'; expected"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, name, data, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        load_table(write_bytes(tmp_path / name, data))
    assert name in str(error.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl"):
        load_table(str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="none"):
        load_table(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        load_table(str(tmp_path / "empty"))
    (tmp_path / "one").mkdir()
    write(tmp_path / "one", ".jsonl")
    with pytest.raises(InputError, match='one: Unknown split "test"'):
        load_table(str(tmp_path / "one"), split="test")


def test_an_unreachable_hub_is_said_plainly(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'org/prompts' on the Hub")

    monkeypatch.setattr("persyn_datasets.data.tables.load_dataset_builder", unreachable)
    with pytest.raises(InputError, match="org/prompts"):
        load_prompts("org/prompts")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_messages_as_json_text_are_messages(tmp_path, suffix, column):
    turns = [SYSTEM, {"role": "user", "content": 'Say "hi", [1]'}]
    table = Dataset.from_dict({column: [json.dumps(turns), json.dumps(USER, indent=1), "[1, 2]?"]})
    file = tmp_path / f"t{suffix}"
    getattr(table, {".csv": "to_csv", ".jsonl": "to_json", ".parquet": "to_parquet"}[suffix])(file)
    loaded = load_prompts(str(file))
    assert loaded["messages"][:] == [turns, USER, [{"role": "user", "content": "[1, 2]?"}]]
    assert messages_of({column: [json.dumps(turns)]}) == [turns]
    assert [row["prompt_id"] for row in loaded][:2] == [prompt_id(turns), prompt_id(USER)]


@pytest.mark.parametrize("text", ["[{'role': 'user', 'content': 'Hi'}]", '[{"role": "user", "con'])
def test_messages_as_another_text_are_refused(text):
    with pytest.raises(InputError, match="row 3"):
        to_messages(text, "row 3")


def test_rows_with_texts_and_rows_with_messages(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": cell}) + "\n" for cell in ("Why?", USER)))
    for streaming in (False, True):
        rows = load_prompts(str(file), streaming=streaming)
        assert [row["messages"] for row in rows] == [USER, USER]


def test_columns_of_others_that_are_named_like_ours(tmp_path):
    """They pass through, but for those that identify a prompt."""
    row = {"prompt": "Why?", "prompt_id": 7, "teacher": "x", "router_scores": "none", "rank": "top"}
    Dataset.from_list([row]).to_parquet(tmp_path / "t.parquet")
    [got] = load_prompts(str(tmp_path / "t.parquet")).to_list()
    assert got == {k: v for k, v in row.items() if k != "prompt"} | {
        "prompt_id": prompt_id(USER),
        "messages": USER,
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_a_reference_answer_is_one_value(tmp_path, streaming):
    file = tmp_path / "aliases.parquet"
    Dataset.from_list([{"prompt": "Who?", "answer": ["Ann", "A."]}]).to_parquet(str(file))
    with pytest.raises(InputError, match=r"row 0.*'answer'"):
        list(load_prompts(str(file), answer_column="answer", streaming=streaming))
