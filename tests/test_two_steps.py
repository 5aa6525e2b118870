"""Two real steps in a row: what the second makes of what the first one left."""

import json
import shutil
from collections import Counter

import pytest
import torch
import yaml
from datasets import load_dataset
from pool import answer, build, counting, make_recipe, problems, save, table, write_lines
from transformers import AutoModelForCausalLM

from persyn_datasets import (
    Generate,
    Pairify,
    Rank,
    Recipe,
    Route,
    Router,
    Score,
    load_prompts,
    train_router,
)
from persyn_datasets.cli import main

FIRST = 56  # c·|M| + N − c = 16 · 3 + 24 − 16


@pytest.fixture
def counted(chat_model, tmp_path, monkeypatch):
    """A finished build, its recipe's values and the engine that counted what it asked."""
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    counter = counting(monkeypatch)
    builder = build(values, tmp_path / "out")
    assert len(counter.asked) == FIRST
    return values, counter, builder


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def question(row):
    return row["messages"][-1]["content"]


def of_prompt(builder, prompt, key):
    """Teacher → what its response to a calibration prompt has under this key."""
    rows = table(builder, "calibration")
    return {
        r["teacher"]: r[key] for row in rows if question(row) == prompt for r in row["responses"]
    }


def test_a_gold_answer_is_corrected(counted, tmp_path):
    """Nothing is asked again, and the verdicts follow the new answer."""
    values, counter, builder = counted
    known = question(table(builder, "calibration")[0])
    rows = lines_of(tmp_path / "prompts.jsonl")
    for row in rows:
        if row["prompt"] == known:
            row["answer"] = "9999"  # what the guesser says
    write_lines(tmp_path / "prompts.jsonl", rows)
    again = build(values, tmp_path / "out")
    right = of_prompt(again, known, "quality")
    assert right == {"adder": 0.0, "multiplier": 0.0, "guesser": 1.0}
    assert max(Counter(counter.asked).values()) == 1


def test_a_teacher_gets_another_name(counted, tmp_path):
    values, counter, _ = counted
    values["teachers"][0]["name"] = "summer"
    again = build(values, tmp_path / "out")
    assert len(counter.asked) == FIRST
    assert "adder" not in set(table(again)["teacher"]) | set(table(again, "routing")["teacher"])
    config = json.loads((tmp_path / "out/router/config.json").read_text())
    assert set(config["id2label"].values()) == {"summer", "multiplier", "guesser"}


def test_the_teachers_change_places(counted, tmp_path):
    values, counter, builder = counted
    before = {r["prompt_id"]: r["best_teacher"] for r in table(builder, "calibration")}
    values["teachers"].reverse()
    again = build(values, tmp_path / "out")
    assert {r["prompt_id"]: r["best_teacher"] for r in table(again, "calibration")} == before
    assert max(Counter(counter.asked).values()) == 1


def test_a_teacher_leaves(counted, tmp_path):
    values, counter, _ = counted
    values["teachers"] = values["teachers"][:2]
    again = build(values, tmp_path / "out")
    assert not [name for name, _ in counter.asked[FIRST:] if name == "guesser"]
    assert max(Counter(counter.asked).values()) == 1
    assert set(table(again)["teacher"]) <= {"adder", "multiplier"}


def test_a_teacher_joins(counted, tmp_path):
    """It is asked about the calibration, and what it wins; nobody else is asked twice."""
    values, counter, _ = counted
    values["teachers"].append(values["teachers"][2] | {"name": "joker", "system_prompt": "joker"})
    again = build(values, tmp_path / "out")
    assert max(Counter(counter.asked).values()) == 1
    joined = [prompt for name, prompt in counter.asked[FIRST:] if name == "joker"]
    assert len(joined) >= len(table(again, "calibration")) == 12


def test_the_calibration_becomes_smaller_and_large_again(counted, tmp_path):
    values, counter, builder = counted
    before = table(builder).to_list()
    build(values | {"calibration": {"size": 12, "seed": 3}}, tmp_path / "out")
    between = len(counter.asked)
    again = build(values, tmp_path / "out")
    assert len(counter.asked) == between and max(Counter(counter.asked).values()) == 1
    assert table(again).to_list() == before


def test_every_prompt_is_there_twice(chat_model, tmp_path, monkeypatch):
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    rows = lines_of(tmp_path / "prompts.jsonl")
    write_lines(tmp_path / "prompts.jsonl", rows + rows)
    counter = counting(monkeypatch)
    builder = build(values, tmp_path / "out")
    assert max(Counter(counter.asked).values()) == 1
    assert len(table(builder)) == 48


def test_a_build_is_moved_and_reported(counted, tmp_path):
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert main(["report", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere/report/index.html").exists()
    assert not (tmp_path / "out").exists()


def test_a_build_is_moved_and_goes_on(counted, tmp_path):
    values, counter, _ = counted
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    build(values | {"reward": {"alpha": 1.0}}, tmp_path / "elsewhere")
    assert max(Counter(counter.asked).values()) == 1


def test_random_teachers_first_and_then_the_router(chat_model, tmp_path, monkeypatch):
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    counter = counting(monkeypatch)
    build(values | {"strategy": "random"}, tmp_path / "out-random")
    first = set(counter.asked)
    build(values, tmp_path / "out")
    assert len(first) == 24 and max(Counter(counter.asked).values()) == 1


def test_failed_rows_are_whole_in_the_next_build(chat_model, tmp_path, monkeypatch):
    values = make_recipe(tmp_path, chat_model, engine="transformers", max_failed=1.0)
    poor = {p for p, _ in problems()[:3]}
    counting(monkeypatch, fails=lambda teacher, prompt: prompt in poor)
    build(values, tmp_path / "out")
    counter = counting(monkeypatch)
    again = build(values, tmp_path / "out")
    assert {prompt for _, prompt in counter.asked} <= poor
    assert len(table(again)) == 24


def test_what_was_published_is_asked_again_as_prompts(counted, chat_model, tmp_path):
    """The dataset of one student as the prompts of the next: its answers are not taken for ours."""
    _, counter, builder = counted
    table(builder).to_json(str(tmp_path / "published.jsonl"))
    other = tmp_path / "other"
    other.mkdir()
    values = make_recipe(other, chat_model, engine="transformers")
    values["prompts"] = {"path": str(tmp_path / "published.jsonl"), "column": "prompt"}
    values["quality"] = "test_two_steps.length"
    again = build(values, tmp_path / "again")
    assert max(Counter(counter.asked).values()) == 1
    assert sorted(r["prompt"][-1]["content"] for r in table(again)) == sorted(
        p for p, _ in problems()
    )


def length(completions, **_):
    return [float(len(c[0]["content"])) for c in completions]


def test_what_was_published_is_a_recorded_teacher(counted, chat_model, tmp_path):
    """Its completions are lists of one message; each is taken as the text it holds."""
    _, _, builder = counted
    write_lines(tmp_path / "published.jsonl", table(builder).to_list())
    other = tmp_path / "other"
    other.mkdir()
    values = make_recipe(other, chat_model)
    teacher = {
        "name": "before",
        "model": str(tmp_path / "published.jsonl"),
        "engine": "recorded",
        "columns": {"prompt": "prompt", "response": "completion"},
    }
    values["teachers"].append(teacher)
    again = build(values, tmp_path / "again")
    texts = {
        r["text"]
        for row in table(again, "calibration")
        for r in row["responses"]
        if r["teacher"] == "before"
    }
    assert texts and all(text.startswith("The answer is") for text in texts)


def test_a_recorded_answer_is_corrected(chat_model, tmp_path):
    values = make_recipe(tmp_path, chat_model)
    first = build(values, tmp_path / "out")
    prompt = question(table(first, "calibration")[0])
    rows = lines_of(tmp_path / "answers.jsonl")
    for row in rows:
        if row["prompt"] == prompt and row["teacher"] == "guesser":
            row["response"] = answer("adder", prompt)
    write_lines(tmp_path / "answers.jsonl", rows)
    again = build(values, tmp_path / "out")
    of = of_prompt(again, prompt, "text")
    assert of["guesser"] == of["adder"]


def test_a_router_changes_while_its_answers_are_interrupted(chat_model, tmp_path, monkeypatch):
    """Shards of the first router are not left beside the second one's."""
    from persyn_datasets import reuse
    from persyn_datasets.engines import recorded

    values = make_recipe(tmp_path, chat_model)
    build(values, tmp_path / "out")
    shutil.copytree(tmp_path / "out/router", tmp_path / "router")
    asked = [p for p, _ in problems()]
    write_lines(tmp_path / "new.jsonl", [{"prompt": p} for p in asked])
    before = Route(Router.from_pretrained(str(tmp_path / "router")))({"prompt": asked})["teacher"]
    monkeypatch.setattr(reuse, "ROWS_PER_SHARD", 8)
    real, calls = recorded.generate, []

    def generate(requests, account):
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(requests, account)

    monkeypatch.setattr(recorded, "generate", generate)
    command = [
        "synthesize",
        str(tmp_path / "router"),
        str(tmp_path / "new.jsonl"),
        "--output",
        str(tmp_path / "answers"),
    ]
    assert main(command) == 130
    build(values | {"reward": {"alpha": 1.0}}, tmp_path / "out")
    shutil.rmtree(tmp_path / "router")
    shutil.copytree(tmp_path / "out/router", tmp_path / "router")
    assert main(command) == 0
    rows = load_dataset(str(tmp_path / "answers"), split="train")
    whole = [*command[:-1], str(tmp_path / "whole")]
    assert main(whole) == 0
    assert rows["teacher"][:8] != before[:8]  # what the first router had finished
    assert rows["teacher"][:] == load_dataset(str(tmp_path / "whole"), split="train")["teacher"][:]


def test_another_journal_under_a_finished_build(counted, tmp_path, monkeypatch):
    """A finished build is finished wherever the journal is."""
    values, counter, _ = counted
    monkeypatch.setenv("PERSYN_JOURNAL", str(tmp_path / "another"))
    build(values, tmp_path / "out")
    assert len(counter.asked) == FIRST


def test_the_same_recipe_from_another_folder(counted, tmp_path, monkeypatch):
    """Relative paths in a recipe are the working folder's: the same recipe is refused elsewhere."""
    values, counter, _ = counted
    values["prompts"]["path"] = "prompts.jsonl"
    recipe = save(tmp_path, values)
    monkeypatch.chdir(tmp_path)
    assert main(["build", recipe, "--output", str(tmp_path / "out")]) == 0
    assert len(counter.asked) == FIRST
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert main(["build", recipe, "--output", str(tmp_path / "out")]) == 1
    assert len(counter.asked) == FIRST


def test_a_price_changes_after_the_build(counted, tmp_path):
    """Nothing is bought again for it, and the build's recipe states the new one."""
    values, counter, _ = counted
    for teacher in values["teachers"]:
        teacher["price"] = {"input": 1.0, "output": 2.0}
    again = build(values, tmp_path / "out")
    assert len(counter.asked) == FIRST
    written = yaml.safe_load((again.folder / "recipe.yaml").read_text())
    assert all(t["price"]["output"] == 2.0 for t in written["teachers"])


def test_a_student_is_trained_on_between_two_routers(chat_model, tmp_path):
    """By the stages, with no folder named: other scores, other pairs, another router."""
    student = tmp_path / "student"
    shutil.copytree(chat_model, student)
    recipe = Recipe.from_dict(make_recipe(tmp_path, str(student)))
    of_prompts = recipe.prompts
    prompts = load_prompts(of_prompts.path, column="prompt", answer_column="answer")

    def trained():
        ranked = prompts.map(Generate(recipe.teachers), batched=True, batch_size=None)
        ranked = ranked.map(Score(str(student), "math-verify"), batched=True)
        ranked = ranked.map(Rank(alpha=1.0), batched=True)
        pairs = ranked.map(Pairify(), batched=True, remove_columns=ranked.column_names)
        router = train_router(pairs, chat_model, teachers=recipe.teachers, freeze_backbone=True)
        return pairs["label"][:], router.path

    first = trained()
    assert trained() == first
    train_on(student)
    labels, path = trained()
    assert labels != first[0] and path != first[1]


def train_on(folder):
    """Other weights in the same place."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.5 * weight.data.std() * torch.randn_like(weight)
    model.save_pretrained(folder)
