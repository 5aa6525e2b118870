"""On the small pool of recorded answers."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, load_dataset
from pool import answer, make_recipe, write_lines

from persyn_datasets import InputError, PersynBuilder, Recipe, plan
from persyn_datasets.data.schema import SYNTHESIZED
from persyn_datasets.strategies.second_opinion import keep_better, least_sure

NAMES = ["a", "b", "c"]


def test_the_least_sure_are_those_whose_two_best_are_nearest():
    scores = [[0.6, 0.3, 0.1], [0.5, 0.45, 0.05], [0.1, 0.1, 0.8], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0]]
    routed = Dataset.from_dict({"router_scores": scores, "teacher": ["a", "a", "c", "a", "a"]})
    rows, second = least_sure(routed, NAMES, 0.6)
    assert rows.tolist() == [1, 0, 2] and second == ["b", "b", "a"]
    rows, _ = least_sure(routed, NAMES, 1.0)
    assert rows.tolist() == [1, 0, 2, 3]  # the last one has no other teacher
    assert least_sure(routed, NAMES, 0.19)[1] == []


def test_a_budget_may_have_taken_another_teacher_than_the_best():
    routed = Dataset.from_dict({"router_scores": [[0.6, 0.3, 0.1]], "teacher": ["b"]})
    assert least_sure(routed, NAMES, 1.0)[1] == ["a"]


@pytest.fixture(scope="module")
def built(tmp_path_factory, chat_model):
    folder = tmp_path_factory.mktemp("second")
    values = make_recipe(folder, chat_model, second_opinion=0.5)
    builder = PersynBuilder(Recipe.from_dict(values), folder / "out")
    builder.download_and_prepare()
    return builder, values


def test_the_better_answer_is_kept_and_both_are_there(built):
    builder, _ = built
    data, both = (
        builder.as_dataset(split="train"),
        load_dataset(str(builder.folder), "second_opinions")["train"],
    )
    chosen = {
        row["prompt_id"]: row for row in load_dataset(str(builder.folder), "routing")["train"]
    }
    assert len(both) == 12 and len(data) == 24
    answers = {row["prompt_id"]: row for row in data}
    better = 0
    for row in both:
        first, second = row["responses"]
        assert first["teacher"] == chosen[row["prompt_id"]]["teacher"] != second["teacher"]
        kept = max(row["responses"], key=lambda r: (r["reward"], r is first))
        assert answers[row["prompt_id"]]["teacher"] == kept["teacher"]
        assert answers[row["prompt_id"]]["completion"][0]["content"] == kept["text"]
        assert kept["text"] == answer(kept["teacher"], row["messages"][0]["content"])
        better += kept is second
    for key, row in answers.items():
        if key not in set(both["prompt_id"]):
            assert row["teacher"] == chosen[key]["teacher"]
    assert builder.stats["second_opinions"] == {"asked": 12, "better": better}
    assert builder.stats["generations"] == 16 * 3 + 8 + 12
    card = (builder.folder / "README.md").read_text()
    assert "| `second_opinions` | `train` |" in card and "config_name: second_opinions" in card


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(0.5, 0.5, "a"), (0.5, 0.6, "b"), (None, 0.1, "b"), (0.1, None, "a"), (None, None, "a")],
)
def test_of_equals_and_of_failures_the_first_stays(first, second, kept):
    routed = Dataset.from_dict(
        {
            "prompt_id": ["x"],
            "messages": [[{"role": "user", "content": "?"}]],
            "teacher": ["a"],
            "router_scores": [[0.5, 0.4, 0.1]],
        }
    )

    def answer_all(rows):
        more = {
            "prompt": rows["messages"][:],
            "completion": [[{"role": "assistant", "content": "!"}]] * len(rows),
        }
        more |= {
            "finish_reason": ["stop"],
            "prompt_tokens": [1],
            "completion_tokens": [1],
            "error": [""],
        }
        columns = rows.remove_columns(["messages", "router_scores"]).to_dict() | more
        return Dataset.from_dict(
            columns, features=Features({**rows.select_columns("teacher").features, **SYNTHESIZED})
        )

    def judge(rows):
        responses = [
            r | {"reward": v} for r, v in zip(rows["responses"][0], (first, second), strict=True)
        ]
        return rows.remove_columns("responses").add_column("responses", [responses])

    answered, both, better = keep_better(
        routed, answer_all(routed), np.array([0]), ["b"], answer_all, judge
    )
    assert answered["teacher"][:] == [kept] and better == (kept == "b")
    assert [r["teacher"] for r in both["responses"][0]] == ["a", "b"]


def test_without_it_nothing_of_it_stays(built, tmp_path):
    builder, values = built
    again = PersynBuilder(Recipe.from_dict(values | {"second_opinion": 0.0}), builder.output)
    again.download_and_prepare()
    assert not (builder.folder / "second_opinions").exists()
    assert again.stats["second_opinions"] is None


def test_what_cannot_be_judged_is_refused_before(tmp_path, chat_model):
    values = make_recipe(tmp_path, chat_model, second_opinion=0.5)
    prompts = plan.calibration(Recipe.from_dict(values), Recipe.from_dict(values).prompts.load())
    asked = {messages[0]["content"] for messages in prompts["messages"]}
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    write_lines(
        tmp_path / "prompts.jsonl",
        [r if r["prompt"] in asked else r | {"answer": ""} for r in rows],
    )
    with pytest.raises(InputError, match="The answer '' to the prompt"):
        plan.check(Recipe.from_dict(values))
    plan.check(Recipe.from_dict(values | {"second_opinion": 0.0}))
    with pytest.raises(InputError, match=r"second_opinion is 1\.5; expected a share from 0 to 1"):
        Recipe.from_dict(values | {"second_opinion": 1.5})
