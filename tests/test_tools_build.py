"""A build of prompts that offer functions: answered by a server, published, and read by TRL."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from chat_server import ChatServer, completion
from datasets import Dataset, concatenate_datasets, load_dataset
from pool import make_recipe, write_lines

from persyn_datasets import InputError, PersynBuilder, Recipe, Router, Student, load_prompts
from persyn_datasets.compare.compare import check
from persyn_datasets.config.evaluation import HeldOut
from persyn_datasets.config.prompts import Prompts
from persyn_datasets.config.target import Target
from persyn_datasets.data.sources import load
from persyn_datasets.data.tools import to_calls, to_tools
from persyn_datasets.reuse import synthesize
from persyn_datasets.signals.learnability import signals
from persyn_datasets.signals.trained_text import ChatFormat, Row

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


def prepared(rows, model, tokenizer=None):
    """Token ids and labels by `SFTTrainer` itself."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    config = trl.SFTConfig(
        output_dir=model, max_length=None, shuffle_dataset=False, use_cpu=True, bf16=False
    )
    trainer = trl.SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
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


def test_who_cannot_call_is_refused_before_anybody_is_asked(
    chat_model, tmp_path, asked, monkeypatch
):
    local = [{"name": name, "model": chat_model} for name in ("local", "other")]
    with pytest.raises(InputError, match=r"'local'.*'transformers'"):
        build_of(recipe_of(tmp_path, chat_model, "", teachers=local), tmp_path)
    scored = {"strategy": "persyn", "calibration": {"size": 4}}
    recipe = recipe_of(tmp_path, chat_model, "http://x/v1", quality="math-verify", **scored)
    with pytest.raises(InputError, match="quality.*math-verify"):
        build_of(recipe, tmp_path)
    recipe = recipe_of(tmp_path, chat_model, "http://x/v1", quality=rewards(monkeypatch), **scored)
    with pytest.raises(InputError, match="student.*leaves out `tools`"):
        build_of(recipe, tmp_path)
    assert asked == []


def test_students_are_not_measured_on_calls(chat_model, tmp_path):
    rows = [row | {"answer": "5"} for row in ROWS]
    path = write_lines(tmp_path / "held_out.jsonl", rows)
    for source in (Target(path, response_column="answer"), HeldOut(path, answer_column="answer")):
        with pytest.raises(InputError, match="'tools'"):
            load(source)
    with ChatServer(reply) as server:
        recipe = recipe_of(tmp_path, chat_model, server.url)
        with pytest.raises(InputError, match="compared without functions"):
            check(recipe, [PersynBuilder(recipe, tmp_path / "out")], 1, False)
        assert server.count == 0


def rewards(monkeypatch):
    """The dotted path of a reward of calls."""
    module = ModuleType("rewards_of_calls")
    module.calls = lambda completions, **_: [
        float(len(said[0].get("tool_calls", []))) + len(said[0]["content"]) / 1000
        for said in completions
    ]
    monkeypatch.setitem(sys.modules, "rewards_of_calls", module)
    return "rewards_of_calls.calls"


def talkative(request, nth):
    """The model `a` calls twice as often, `b` says more."""
    prompt, model = request["messages"][-1]["content"], request["model"]
    calls = [("weather", {"city": prompt, "at": [0.9549]})] * (2 if model == "a" else 1)
    body = completion(f"I look up {prompt}" if model == "b" else None, "tool_calls")
    body["choices"][0]["message"]["tool_calls"] = [
        {"id": "1", "type": "function", "function": {"name": n, "arguments": json.dumps(x)}}
        for n, x in calls
    ]
    return 200, {}, body


def test_calls_are_scored_routed_and_trained_on(chat_model, tmp_path, monkeypatch):
    """What the student is scored on is what `SFTTrainer` makes of the published rows."""
    students = pytest.importorskip("students", reason="TRL is not installed")
    student = students.save_student("qwen3", tmp_path / "student")
    rows = [
        {"prompt": f"Is it warm in {c}?", "tools": [WEATHER, CLOCK]} for c in "ABCDEFGHIJKLMNOP"
    ]
    with ChatServer(talkative) as server:
        recipe = recipe_of(tmp_path, chat_model, server.url, strategy="persyn").to_dict()
        recipe["prompts"] = {"path": write_lines(tmp_path / "p.jsonl", rows), "column": "prompt"}
        recipe |= {"student": {"model": student}, "quality": rewards(monkeypatch)}
        recipe |= {"calibration": {"size": 12, "seed": 3}, "second_opinion": 0.25}
        for teacher in recipe["teachers"]:
            teacher["model"] = teacher["name"]
        builder = build_of(Recipe.from_dict(recipe), tmp_path / "out")
        bodies = len(server.bodies)
        build_of(Recipe.from_dict(recipe), tmp_path / "again")
        assert len(server.bodies) == bodies  # all from the journal
        reused(builder, tmp_path)
    form, folder = ChatFormat(Student(student)), str(builder.folder)
    calibration = concatenate_datasets(list(load_dataset(folder, "calibration").values()))
    offered = to_tools([WEATHER, CLOCK], "here")
    of_student = []
    for row in calibration:
        assert row["tools"] == offered and row["best_teacher"] == "a"
        for r in row["responses"]:
            assert len(json.loads(r["tool_calls"])) == (2 if r["teacher"] == "a" else 1)
            assert r["quality"] == pytest.approx(len(json.loads(r["tool_calls"])), abs=0.1)
            of_student.append(Row(row["messages"], r["text"], offered, r["tool_calls"]))
    found = dict(signals(Student(student), of_student))
    measured = [r["learnability"] for row in calibration for r in row["responses"]]
    assert [found[i]["learnability"] for i in range(len(found))] == pytest.approx(
        measured, abs=1e-4
    )
    pairs = load_dataset(folder, "preferences", split="train")
    assert {len(p["chosen"][0]["tool_calls"]) for p in pairs} == {2}
    assert {len(p["rejected"][0]["tool_calls"]) for p in pairs} == {1}
    assert set(pairs["tools"]) == {offered}
    assert chosen_by_dpo(pairs, student, form.tokenizer, tmp_path) == [2] * len(pairs)
    train = load_dataset(folder, split="train")
    published = [
        Row(r["prompt"], said["content"], r["tools"], to_calls(said["tool_calls"]))
        for r in train
        for said in r["completion"]
    ]
    assert len(published) == 16 and builder.stats["second_opinions"]["asked"] == 4
    ids = [row["input_ids"] for row in prepared(train, student, form.tokenizer)]
    exact = [r._replace(calls=exactly(r.calls)) for r in published]
    assert [text.ids for text in form.render(exact)] == ids
    assert builder.stats["max_length"] == max(map(len, ids))


def chosen_by_dpo(pairs, student, tokenizer, folder):
    """How often each chosen answer calls, as `DPOTrainer` prepares it."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    config = trl.DPOConfig(
        output_dir=str(folder / "dpo"), use_cpu=True, bf16=False, max_length=None
    )
    trainer = trl.DPOTrainer(student, args=config, train_dataset=pairs, processing_class=tokenizer)
    rows = trainer.train_dataset
    assert all('{"name": "weather"' in tokenizer.decode(ids) for ids in rows["rejected_ids"])
    assert all("<tools>" in tokenizer.decode(ids) for ids in rows["prompt_ids"])
    return [tokenizer.decode(ids).count('{"name": "weather"') for ids in rows["chosen_ids"]]


def reused(builder, folder):
    """The router assigns new prompts that offer functions; the answers hold the calls."""
    rows = [{"prompt": f"Is it wet in {c}?", "tools": [WEATHER]} for c in "ABC"]
    path = write_lines(folder / "new.jsonl", rows)
    router = Router.from_pretrained(str(builder.output / "router"))
    counts = synthesize(router, load_prompts(path), folder / "more", Prompts(path))
    made = load_dataset(str(folder / "more"), split="train")
    chats = load_dataset(str(folder / "more"), "messages", split="train")
    assert counts.total() == len(made) == len(chats) == 3
    for row, chat in zip(made, chats, strict=True):
        assert row["tools"] == chat["tools"] == to_tools([WEATHER], "here")
        assert row["prompt"] + row["completion"] == chat["messages"]
        assert {c["function"]["name"] for c in chat["messages"][-1]["tool_calls"]} == {"weather"}


def exactly(calls):
    """As the teacher wrote the number, which `datasets` 5.2 reads with an error."""
    return calls.replace("0.9549000000000001", "0.9549")
