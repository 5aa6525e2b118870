"""A build of prompts that offer functions: answered by a server, published, and read by TRL."""

import json
import sys
from pathlib import Path

import pytest
from chat_server import ChatServer, completion
from datasets import Dataset, load_dataset
from pool import make_recipe, write_lines

from persyn_datasets import InputError, PersynBuilder, Recipe
from persyn_datasets.data.tools import to_tools

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "scripts"))

PLACE = {"type": "object", "properties": {"city": {"type": "string"}, "at": {"type": "array"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
# Numbers that `datasets` would write otherwise, if it wrote them.
CALLS = {
    "Rome?": [("weather", {"city": "Rome", "at": [41.8933203, 1e-12]})],
    "Rome and now?": [("weather", {"city": "Rome"}), ("clock", {})],
}
ROWS = [
    {"prompt": "Rome?", "tools": [WEATHER], "source": "made"},
    {"prompt": "Rome and now?", "tools": [WEATHER, CLOCK], "source": "made"},
    {"prompt": "Who are you?", "tools": [CLOCK], "source": "made"},
    {"prompt": "Why?", "tools": None, "source": "made"},
]


def reply(request, nth):
    calls = CALLS.get(request["messages"][-1]["content"], []) if request.get("tools") else []
    body = completion(None if calls else "It is so.", "tool_calls" if calls else "stop")
    body["choices"][0]["message"]["tool_calls"] = [
        {"id": "1", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}}
        for n, a in calls
    ]
    return 200, {}, body


def in_hub_form(calls):
    return [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]


def recipe_of(folder, model, url, **more):
    folder.mkdir(exist_ok=True)
    values = make_recipe(folder, model)
    teachers = [{"name": n, "model": "m", "engine": "endpoint", "base_url": url} for n in "ab"]
    prompts = {"path": write_lines(folder / "offers.jsonl", ROWS), "column": "prompt"}
    values |= {"prompts": prompts, "strategy": "random", "teachers": teachers}
    return Recipe.from_dict(values | more)


def build_of(recipe, output):
    builder = PersynBuilder(recipe, output)
    builder.download_and_prepare()
    return builder


def prepared(rows, model):
    """Token ids and labels by `SFTTrainer` itself."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    config = trl.SFTConfig(
        output_dir=model, max_length=None, shuffle_dataset=False, use_cpu=True, bf16=False
    )
    trainer = trl.SFTTrainer(model, config, train_dataset=rows)
    return trainer.train_dataset.to_list()


@pytest.fixture
def built(chat_model, tmp_path):
    with ChatServer(reply) as server:
        yield build_of(recipe_of(tmp_path, chat_model, server.url), tmp_path / "out"), server


def test_calls_and_tools_are_published(built, chat_model, tmp_path):
    builder, server = built
    offered = {body["messages"][-1]["content"]: body.get("tools") for body in server.bodies}
    assert offered == {row["prompt"]: row["tools"] for row in ROWS}
    train = load_dataset(str(builder.folder), split="train")
    for row, written in zip(train, ROWS, strict=True):
        assert row["tools"] == (to_tools(written["tools"], "here") or None)
        [said] = row["completion"]
        calls = CALLS.get(written["prompt"])
        assert said.get("tool_calls") == (in_hub_form(calls) if calls else None)
        assert said == {"role": "assistant", "content": "" if calls else "It is so."} | (
            {"tool_calls": in_hub_form(calls)} if calls else {}
        )
        assert (row["error"], row["source"]) == ("", "made")
    chats = load_dataset(str(builder.folder), "messages", split="train")
    assert chats["tools"][:] == train["tools"][:]
    assert chats["messages"][:] == [row["prompt"] + row["completion"] for row in train]
    # As they were written, whatever a reader makes of it.
    for folder, column in (("data", "completion"), ("messages", "messages")):
        [file] = (builder.folder / folder).glob("*train*.parquet")
        cells = Dataset.from_parquet(str(file)).data.column(column).to_pylist()
        assert "[41.8933203, 1e-12]" in cells[0][-1]


def test_trl_trains_on_tools_and_calls(built, tmp_path):
    students = pytest.importorskip("students", reason="TRL is not installed")
    builder, _ = built
    model = students.save_student("qwen3", tmp_path / "student")
    tokenizer = students.tokenizer_for((students.TEMPLATES / "qwen3.jinja").read_text())
    for rows in (
        load_dataset(str(builder.folder), split="train"),
        load_dataset(str(builder.folder), "messages", split="train"),
    ):
        for row, written in zip(prepared(rows, model), ROWS, strict=True):
            text = tokenizer.decode(row["input_ids"])
            assert ("<tools>" in text) == bool(written["tools"])
            calls = CALLS.get(written["prompt"], [])
            assert text.count("<tool_call>\n{") - 1 * bool(written["tools"]) == len(calls)


def test_what_is_published_is_a_recorded_teacher(built, chat_model, tmp_path):
    """The same calls, and nothing else, on the same tools."""
    builder, _ = built
    [file] = builder.folder.glob("data/*train*.parquet")
    columns = {"prompt": "prompt", "response": "completion"}  # each has all answers
    engine = {"model": str(file), "engine": "recorded", "columns": columns}
    teachers = [engine | {"name": name} for name in "ab"]
    recipe = recipe_of(tmp_path / "next", chat_model, "", teachers=teachers)
    again = build_of(recipe, tmp_path / "again")
    first = {row["prompt_id"]: row["completion"] for row in builder.as_dataset(split="train")}
    second = {row["prompt_id"]: row["completion"] for row in again.as_dataset(split="train")}
    assert second == first and len(first) == 4


def test_who_cannot_call_is_refused_before_anybody_is_asked(chat_model, tmp_path, asked):
    local = [{"name": name, "model": chat_model} for name in ("local", "other")]
    with pytest.raises(InputError, match=r"'local'.*'transformers'"):
        build_of(recipe_of(tmp_path, chat_model, "", teachers=local), tmp_path)
    with pytest.raises(InputError, match="strategy persyn"):
        build_of(recipe_of(tmp_path, chat_model, "http://x/v1", strategy="persyn"), tmp_path)
    assert asked == []
