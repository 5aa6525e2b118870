import json
from collections import Counter

import pytest
from datasets import load_dataset
from pool import build, counting, make_recipe, problems, table

from persyn_datasets import (
    BuildError,
    PersynBuilder,
    Recipe,
)


def test_a_second_build_does_nothing_and_another_alpha_generates_nothing(
    chat_model, tmp_path, monkeypatch
):
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    counter = counting(monkeypatch)
    first = build(values, tmp_path / "out")
    calibrated, asked = {p for _, p in counter.asked[:48]}, Counter(counter.asked)
    assert (len(calibrated), max(asked.values()), len(asked)) == (
        16,
        1,
        56,
    )  # c·|M| + N − c, none of them twice
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*") if f.is_file()}
    build(values, tmp_path / "out")
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*") if f.is_file()} == files
    before = table(first, "calibration").to_list()

    # With α = 1 the student's likings decide alone.
    second = build(values | {"reward": {"alpha": 1.0}}, tmp_path / "out")
    new = counter.asked[56:]
    assert not {p for _, p in new} & calibrated and max(Counter(counter.asked).values()) == 1
    for old, row in zip(before, table(second, "calibration"), strict=True):
        assert [r["text"] for r in row["responses"]] == [r["text"] for r in old["responses"]]
        best = max(row["responses"], key=lambda r: r["learnability"])
        assert row["best_teacher"] == best["teacher"]
    assert second.as_dataset(split="train")["teacher"] == table(second, "routing")["teacher"]
    assert (
        json.loads((tmp_path / "out/router/config.json").read_text())["persyn"]["reward"]["alpha"]
        == 1.0
    )


def test_changed_prompts_are_noticed(chat_model, tmp_path):
    build(make_recipe(tmp_path, chat_model), tmp_path / "out")
    values = make_recipe(tmp_path, chat_model)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "prompts.jsonl").write_text("".join(lines[:20]))
    builder = build(values, tmp_path / "out")
    assert (builder.stats["rows"], len(builder.as_dataset(split="train"))) == (20, 20)


def test_builds_do_not_mix_up_in_load_datasets_cache(done, chat_model, tmp_path):
    """`load_dataset` (5.2) keys a local folder by its last name, here always `dataset`, and its
    README's configs.
    """
    values = make_recipe(tmp_path, chat_model, calibration={"size": 14})
    assert len(done.as_dataset(split="train")) == 24
    assert len(table(build(values, tmp_path / "out"), "routing")) == 24
    sizes = [
        len(table(done, "calibration")),
        len(load_dataset(str(tmp_path / "out/dataset"), "calibration")["train"]),
    ]
    assert sizes == [12, 10]


def test_failed_rows_go_to_their_own_split(chat_model, tmp_path, monkeypatch):
    lost = problems()[5][0]
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    counting(monkeypatch, fails=lambda _, prompt: prompt == lost)
    builder = build(values, tmp_path / "out")
    train, failed = (builder.as_dataset(split=s) for s in ("train", "failed"))
    assert [row["prompt"][0]["content"] for row in failed] == [lost]
    assert (failed[0]["error"], failed[0]["completion"]) == ("the server is on fire", [])
    assert len(train) == 23 and all(row["completion"] and not row["error"] for row in train)
    assert builder.stats["failed"] == 1
    assert "1 of 24 prompts have no answer" in (builder.folder / "README.md").read_text()
    # The split is gone when the answer has come.
    counting(monkeypatch)
    fixed = build(values | {"reward": {"seed": 1}}, tmp_path / "out")
    assert list(fixed.as_dataset()) == ["train"]


@pytest.mark.parametrize("stop_after", [20, 50])  # in the calibration, and in the synthesis
def test_an_interrupted_build_goes_on(chat_model, tmp_path, monkeypatch, stop_after):
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    counter = counting(monkeypatch, stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        build(values, tmp_path / "out")
    assert PersynBuilder(Recipe.from_dict(values), tmp_path / "out").stats is None
    rest = counting(monkeypatch)
    builder = build(values, tmp_path / "out")
    assert (len(counter.asked), len(rest.asked)) == (stop_after, 56 - stop_after)
    assert not set(counter.asked) & set(rest.asked)
    assert len(builder.as_dataset(split="train")) == 24


def test_an_interrupted_change_does_not_leave_the_first_build_as_done(
    chat_model, tmp_path, monkeypatch
):
    """The router and part of the tables are the second recipe's by then."""
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    counting(monkeypatch)
    first = table(build(values, tmp_path / "out"), "calibration").to_list()
    counting(monkeypatch, stop_after=0)
    with pytest.raises(KeyboardInterrupt):
        build(values | {"calibration": {"size": 18, "seed": 9}}, tmp_path / "out")
    counting(monkeypatch)
    builder = build(values, tmp_path / "out")
    assert Recipe.load(str(tmp_path / "out/dataset/recipe.yaml")) == builder.recipe
    assert table(builder, "calibration").to_list() == first


def test_a_calibration_that_failed_says_why(chat_model, tmp_path, monkeypatch):
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    counting(monkeypatch, fails=lambda *_: True)
    with pytest.raises(
        BuildError,
        match="48 of 48 .*max_failed .*5%.*16 × 'adder': the server is on fire",
    ):
        build(values, tmp_path / "out")
    counting(monkeypatch)
    assert (
        len(build(values, tmp_path / "out").as_dataset(split="train")) == 24
    )  # nothing of it sticks


def test_a_hold_out_that_failed_says_why(chat_model, tmp_path, monkeypatch):
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    counting(monkeypatch)
    held = table(build(values, tmp_path / "a"), "calibration", "test")["messages"]
    lost = {m[0]["content"] for m in held}
    monkeypatch.setenv("PERSYN_JOURNAL", str(tmp_path / "another"))
    counting(monkeypatch, fails=lambda _, prompt: prompt in lost)
    with pytest.raises(BuildError, match="12 × the server is on fire"):
        build(values | {"max_failed": 0.5}, tmp_path / "b")


def test_rewards_that_are_all_equal_say_so(chat_model, tmp_path):
    values = make_recipe(
        tmp_path, chat_model, reward={"alpha": 0}, quality="test_builder_again.the_same_for_all"
    )
    with pytest.raises(BuildError, match="rewards"):
        build(values, tmp_path / "out")


def the_same_for_all(completions, **columns):
    return [0.5] * len(completions)
