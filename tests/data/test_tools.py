"""What prompts offer and answers call, as tables and servers have it."""

import json
import re

import pytest
from datasets import Dataset, Features, Json, List, Value

from persyn_datasets import InputError, load_prompts
from persyn_datasets.data.prompts import prompt_id, to_messages
from persyn_datasets.data.tools import to_calls, to_tools

USER = [{"role": "user", "content": "Is it warm in Rome?"}]
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time: ü."}}
TOOLS = [WEATHER, CLOCK]
ZONED = {"type": "object", "properties": {"zone": {"type": "number", "default": None}}}


def written(folder, suffix, rows):
    file = folder / f"prompts{suffix}"
    if suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(file)
    elif suffix == ".csv":
        texts = [row | {"tools": row["tools"] and json.dumps(row["tools"])} for row in rows]
        Dataset.from_list(texts).to_csv(file, index=False)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_tools(tmp_path, suffix, streaming):
    rows = [
        {"prompt": "Is it warm in Rome?", "tools": TOOLS},
        {"prompt": "Is it late?", "tools": [CLOCK]},
        {"prompt": "Is it?", "tools": None},
    ]
    prompts = list(load_prompts(written(tmp_path, suffix, rows), streaming=streaming))
    assert [row["tools"] and json.loads(row["tools"]) for row in prompts] == [
        row["tools"] for row in rows
    ]
    assert all(isinstance(row["tools"], str | None) for row in prompts)
    for row in prompts:
        assert row["prompt_id"] == prompt_id(row["messages"], row["tools"] or "")


def test_what_is_written_as_none_stays_where_the_column_says_so(tmp_path):
    tool = {"type": "function", "function": {"name": "clock", "parameters": ZONED}}
    features = Features({"prompt": Value("string"), "tools": List(Json())})
    rows = {"prompt": ["Is it late?"], "tools": [[json.dumps(tool)]]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    [found] = load_prompts(str(tmp_path / "a.parquet"))
    assert json.loads(found["tools"]) == [tool]


def test_a_prompt_is_another_with_other_tools():
    alone = prompt_id(USER)
    assert alone == prompt_id(USER, "") == prompt_id(USER, to_tools(None, "here"))
    offered = [to_tools(tools, "here") for tools in (TOOLS, [WEATHER], [CLOCK, WEATHER])]
    assert len({alone, *(prompt_id(USER, tools) for tools in offered)}) == 4
    spaced = json.dumps(TOOLS, indent=2)
    assert prompt_id(USER, to_tools(spaced, "here")) == prompt_id(USER, offered[0])


@pytest.mark.parametrize("nothing", [None, [], "", " ", "[]", "null"])
def test_no_tools(nothing):
    assert to_tools(nothing, "here") == ""


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (["hammer"], "item 0 is 'hammer'"),
        ([WEATHER, {"name": "clock"}], "item 1 is {'name': 'clock'}"),
        ([{"type": "function", "function": {"name": ""}}], "item 0 is"),
        ([{"type": "retrieval", "function": {"name": "f"}}], "item 0 is"),
        ([{"type": "function", "function": {"name": "f", "parameters": [1]}}], "item 0 is"),
        ('{"name": "f"}', "found a dict"),
        (7, "found a int"),
        ("a hammer", "'a hammer' is not JSON"),
        ("[NaN]", "'[NaN]' is not JSON"),
    ],
)
def test_what_are_no_tools_is_named_with_its_place(cell, found):
    with pytest.raises(InputError, match=re.escape(f"here: {found}")) as error:
        to_tools(cell, "here")
    assert "'function'" in str(error.value) and "Rename" in str(error.value)


def test_a_row_without_tools_of_that_form_is_named(tmp_path):
    rows = [{"prompt": "a", "tools": TOOLS}, {"prompt": "b", "tools": ["hammer"]}]
    with pytest.raises(InputError, match=r"prompts\.jsonl, row 1, column 'tools': item 0"):
        load_prompts(written(tmp_path, ".jsonl", rows))


def test_calls_in_a_prompt_are_refused():
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    with pytest.raises(InputError, match="here: message 1 has tool_calls"):
        to_messages([*USER, called, *USER], "here")


def call(arguments, name="weather", **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}} | more


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (
            call('{"city": "Rome", "days": 0.9549}', id="c1", index=0),
            {"city": "Rome", "days": 0.9549},
        ),
        (call({"city": "Rome", "unit": None}), {"city": "Rome", "unit": None}),
        (call(""), {}),
        (call(None), {}),
        (call("{}"), {}),
        (call('{"text": "\\ud800 ü"}'), {"text": "? ü"}),
        ({"function": {"name": "weather", "arguments": {"a": [1, {}]}}}, {"a": [1, {}]}),
    ],
)
def test_calls_as_servers_write_them(given, kept):
    assert json.loads(to_calls([given, given])) == [call(kept)] * 2
    assert to_calls(json.dumps([given])) == to_calls([given])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (call('{"city": "Ro'), "not JSON"),
        (call('{"city": NaN}'), "not JSON"),
        (call('["Rome"]'), "no object"),
        (call(7), "no object"),
        (call("{}", name=""), "without a function's name"),
        ({"name": "weather", "arguments": {}}, "without a function's name"),
        ("weather", "without a function's name"),
        (call({"n": 10**30}), "cannot read"),
    ],
)
def test_calls_that_cannot_be_kept(given, found):
    with pytest.raises(ValueError, match=found):
        to_calls([given])
    assert to_calls(None) == to_calls([]) == to_calls("") == ""
