import json
import shutil

import pytest
import yaml
from datasets import Dataset, load_dataset
from pool import (
    TEACHERS,
    CountingEngine,
    answer,
    build,
    counting,
    make_recipe,
    problems,
    table,
    write_lines,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from persyn_datasets import (
    Generate,
    InputError,
    Pairify,
    PersynBuilder,
    Rank,
    Recipe,
    Route,
    Router,
    Score,
    Synthesize,
    load_prompts,
    train_router,
)
from persyn_datasets.engines import transformers as engine
from persyn_datasets.router.temperature import calibrate
from persyn_datasets.routing import hold_out
from persyn_datasets.signals import reward_model as signal
from persyn_datasets.store import models

MERGED = {p: {t: answer(t, p) for t in TEACHERS} for p, _ in problems()}


@pytest.mark.parametrize(
    "fault", ["no weights", "other shapes", "not a number", "cut off", "a layer less"]
)
def test_a_reward_model_scores_a_row_before_a_teacher_is_asked(
    fault, chat_model, reward_model, tmp_path, monkeypatch
):
    judge = tmp_path / "judge"
    shutil.copytree(reward_model, judge)
    file = judge / "model.safetensors"
    weights = load_file(file)
    if fault == "no weights":
        file.unlink()
    elif fault == "other shapes":
        name = next(name for name in weights if "down_proj" in name)
        save_file(weights | {name: weights[name][:, 1:].contiguous()}, file, {"format": "pt"})
    elif fault == "cut off":
        file.write_bytes(file.read_bytes()[:5000])
    elif fault == "a layer less":
        save_file(
            {k: w for k, w in weights.items() if "layers.1." not in k}, file, {"format": "pt"}
        )
    else:
        save_file({k: w * float("nan") for k, w in weights.items()}, file, {"format": "pt"})
    counter = counting(monkeypatch)
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    with pytest.raises(InputError, match="quality"):
        build(values | {"quality": {"reward_model": str(judge)}}, tmp_path / "out")
    assert counter.asked == []


def test_the_row_is_scored_once_and_its_model_leaves_the_memory_to_teachers(
    chat_model, reward_model, tmp_path, monkeypatch
):
    loads, held = [], []
    load, counter = signal.load_classifier, CountingEngine()
    monkeypatch.setattr(signal, "load_classifier", lambda *m: loads.append(len(held)) or load(*m))

    def generate(requests, account):
        held.append(dict(models._models))
        return counter(requests, account)

    monkeypatch.setattr(engine, "generate", generate)
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    values |= {"quality": {"reward_model": reward_model}}
    builder = PersynBuilder(Recipe.from_dict(values), tmp_path / "out")
    ranked = builder.calibrate()
    assert loads[0] == 0 and held[0] == {}  # before the first request; nothing is in memory then
    assert len(loads) == 2  # once to try it, once to score
    assert all(r["quality"] is not None for row in ranked["responses"] for r in row)
    builder.calibrate()
    assert len(loads) == 2


def test_the_tree_on_disk(done):
    assert sorted(p.name for p in done.output.iterdir()) == ["dataset", "router"]
    names = {
        "README.md",
        "recipe.yaml",
        "stats.json",
        "data",
        "calibration",
        "pairs",
        "routing",
        "messages",
        "preferences",
        "figures",
    }
    assert {p.name for p in done.folder.iterdir()} == names
    assert Recipe.load(str(done.folder / "recipe.yaml")) == done.recipe
    _, head, text = (done.folder / "README.md").read_text().split("---\n", 2)
    assert [c["config_name"] for c in yaml.safe_load(head)["configs"]] == [
        "default",
        "calibration",
        "pairs",
        "routing",
        "messages",
        "preferences",
    ]
    assert (
        "\n# tiny\n" in text
        and "\n# Router of tiny\n" in (done.output / "router/README.md").read_text()
    )
    model = AutoModelForSequenceClassification.from_pretrained(done.output / "router")
    assert set(model.config.id2label.values()) == set(TEACHERS)


def test_every_config_opens_with_load_dataset(done):
    train = load_dataset(str(done.folder))["train"]
    assert train.to_list() == done.as_dataset(split="train").to_list()
    columns = {
        "prompt_id",
        "prompt",
        "completion",
        "teacher",
        "finish_reason",
        "reasoning",
        "prompt_tokens",
        "completion_tokens",
        "reasoning_tokens",
        "error",
        "answer",
        "source",
    }
    assert set(train.column_names) == columns
    prompts = [row["prompt"][0]["content"] for row in train]
    assert prompts == [p for p, _ in problems()] and not any(train["error"])
    for prompt, row in zip(prompts, train, strict=True):
        assert row["completion"][0]["content"] == MERGED[prompt][row["teacher"]]
    calibration = load_dataset(str(done.folder), "calibration")
    assert {k: len(v) for k, v in calibration.items()} == {"train": 12, "test": 4}
    assert not set(calibration["train"]["prompt_id"]) & set(calibration["test"]["prompt_id"])
    assert set(table(done, "pairs")["prompt_id"]) == set(calibration["train"]["prompt_id"])
    routing = table(done, "routing")
    assert (routing["prompt_id"], routing["teacher"]) == (train["prompt_id"], train["teacher"])


def test_the_measured_best_teacher_is_the_one_who_can(done):
    calibration = load_dataset(str(done.folder), "calibration")
    for row in [*calibration["train"], *calibration["test"]]:
        right = "adder" if "plus" in row["messages"][0]["content"] else "multiplier"
        assert row["best_teacher"] == right
        assert {r["teacher"]: r["quality"] for r in row["responses"]} == {
            t: float(t == right) for t in TEACHERS
        }


def test_the_router_says_how_it_was_made(done):
    router, stats = Router.from_pretrained(str(done.output / "router")), done.stats
    assert router.teachers == list(done.recipe.teachers)
    assert router.config.persyn["student"]["model"] == done.recipe.student.model
    assert router.config.persyn["reward"] == {
        "alpha": 0.4,
        "normalize": "prompt",
        "learnability": "log-probability",
        "seed": 0,
    }
    assert router.metrics == stats["router"] and router.metrics["prompts"] == 16
    assert router.metrics["cross_fitted"] and router.metrics["held_out"]["prompts"] == 4
    assert (stats["generations"], stats["generate_then_select"], stats["rows"]) == (56, 72, 24)
    assert sum(t["routed"] for t in stats["per_teacher"].values()) == 24


def test_the_transforms_by_hand_give_the_same(done, tmp_path):
    """Item 5: a user's own maps, as in the README, and the builder."""
    recipe = done.recipe
    prompts = load_prompts(recipe.prompts.path, column="prompt", answer_column="answer")
    ranked = (
        prompts.shuffle(seed=3)
        .select(range(16))
        .map(Generate(recipe.teachers), batched=True, batch_size=None)
        .map(Score(recipe.student, quality="math-verify"), batched=True)
        .map(Rank(alpha=0.4), batched=True)
    )
    sides = hold_out(ranked, 0.25, seed=0)
    pairs = sides["train"].map(Pairify(), batched=True, remove_columns=ranked.column_names)
    router = train_router(
        pairs, recipe.router.backbone, teachers=recipe.teachers, freeze_backbone=True
    )
    router, _ = calibrate(router, sides["test"], str(tmp_path))
    routed = prompts.map(Route(router), batched=True)
    data = routed.map(Synthesize(recipe.teachers), batched=True, batch_size=None)
    streamed = (
        prompts.to_iterable_dataset()
        .map(Route(router), batched=True, batch_size=1000)
        .map(Synthesize(recipe.teachers), batched=True, batch_size=None)
    )

    def rows(table, like):
        return table.select_columns(like.column_names).to_list()

    for split in ("train", "test"):
        built_rows = table(done, "calibration", split)
        assert rows(sides[split], built_rows) == built_rows.to_list()
    for found, config in ((pairs, "pairs"), (routed, "routing"), (data, "default")):
        expected = table(done, config)
        assert rows(found, expected) == expected.to_list()
    assert [{k: row[k] for k in expected.column_names} for row in streamed] == expected.to_list()


def test_an_output_folder_that_holds_something_else_is_refused(done, chat_model, tmp_path):
    values = make_recipe(tmp_path, chat_model, name="other")
    with pytest.raises(InputError, match="'tiny'.*'other'.*--output"):
        PersynBuilder(Recipe.from_dict(values), done.output)
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "dataset" / "README.md").write_text("# Mine")
    with pytest.raises(InputError, match="--output"):
        PersynBuilder(Recipe.from_dict(values), tmp_path / "mine")


def test_the_hold_out_follows_the_prompt_not_its_place():
    rows = Dataset.from_list([{"prompt_id": f"p{i % 20}", "n": i} for i in range(40)])
    sides = hold_out(rows, 0.3, seed=0)
    train, test = (set(sides[s]["prompt_id"]) for s in ("train", "test"))
    assert (len(test), train & test, len(sides["train"]) + len(sides["test"])) == (6, set(), 40)
    assert set(hold_out(rows.shuffle(seed=1), 0.3, seed=0)["test"]["prompt_id"]) == test
    assert set(hold_out(rows, 0.3, seed=1)["test"]["prompt_id"]) != test


@pytest.mark.parametrize("keep", ["inline", "column"])
def test_a_teacher_that_thinks(chat_model, tmp_path, keep):
    """The adder thinks: its thoughts are in the calibration, and where `keep_reasoning` says."""
    values = make_recipe(tmp_path, chat_model, keep_reasoning=keep)
    pool = tmp_path / "answers.jsonl"
    rows = [json.loads(line) for line in pool.open()]
    for row in rows:
        if row["teacher"] == "adder":
            row["response"] = f"<think>\nI add.\n</think>\n\n{row['response']}"
    write_lines(pool, rows)
    builder = build(values | {"strategy": "best-single"}, tmp_path / "out")
    responses = [r for row in table(builder, "calibration") for r in row["responses"]]
    assert {(r["teacher"], r["reasoning"]) for r in responses} == {
        *(("adder", "I add."), ("multiplier", ""), ("guesser", ""))
    }
    assert not any("think" in r["text"] for r in responses)
    found = builder.stats["thinking"]["teachers"]["adder"]
    assert (found["answers"], found["thoughts"], found["cut_off"]) == (16, 16, 0)
    card = (tmp_path / "out/dataset/README.md").read_text()
    assert "answers that think" in card and "`reasoning`" in card

    synthesize = Synthesize(builder.recipe.teachers, keep_reasoning=keep)
    rows = Dataset.from_list([{"prompt": p, "teacher": "adder"} for p, _ in problems(2)])
    done = rows.map(synthesize, batched=True)
    for row in done:
        [message] = row["completion"]
        assert ("I add." in message["content"]) == (keep == "inline")
        assert row["reasoning"] == ("I add." if keep == "column" else "")
