"""On the small pool of recorded answers."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, load_dataset
from pool import answer, make_recipe, write_lines

from persyn_datasets import InputError, PersynBuilder, Rank, Recipe
from persyn_datasets.data.schema import SYNTHESIZED
from persyn_datasets.data.sources import load
from persyn_datasets.plan import checks
from persyn_datasets.stages.rank import combined_reward
from persyn_datasets.strategies.second_opinion import (
    RankTwo,
    Room,
    keep_better,
    least_sure,
    on_scale,
    signals_of,
)

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
            "reasoning_tokens": [0],
            "reasoning": [""],
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
    prompts = checks.calibration(Recipe.from_dict(values), load(Recipe.from_dict(values).prompts))
    asked = {messages[0]["content"] for messages in prompts["messages"]}
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    write_lines(
        tmp_path / "prompts.jsonl",
        [r if r["prompt"] in asked else r | {"answer": ""} for r in rows],
    )
    with pytest.raises(InputError, match="answer ''"):
        checks.check(Recipe.from_dict(values))
    checks.check(Recipe.from_dict(values | {"second_opinion": 0.0}))
    with pytest.raises(InputError, match=r"second_opinion is 1\.5"):
        Recipe.from_dict(values | {"second_opinion": 1.5})


def test_a_teacher_without_room_in_the_budget_is_not_asked():
    scores = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.45, 0.35, 0.2]]
    routed = Dataset.from_dict({"router_scores": scores, "teacher": ["a", "a", "a"]})
    cost = np.ones((3, 3))
    rows, second = least_sure(routed, NAMES, 1.0, Room(np.array([3, 0, 3]), cost, np.inf))
    assert set(second) == {"c"} and sorted(rows) == [0, 1, 2]
    rows, second = least_sure(routed, NAMES, 1.0, Room(np.array([0, 1, 1]), cost, np.inf))
    assert sorted(second) == ["b", "c"] and len(rows) == 2
    rows, second = least_sure(routed, NAMES, 1.0, Room(np.array([3, 3, 3]), cost, 2.5))
    assert len(rows) == 2
    cost[:, 1] = 9.0
    rows, second = least_sure(routed, NAMES, 1.0, Room(np.array([3, 3, 3]), cost, 2.5))
    assert second == ["c", "c"]
    assert least_sure(routed, NAMES, 1.0, Room(np.zeros(3), cost, np.inf))[1] == []


@pytest.mark.parametrize("most", [0.0, 0.25])
def test_a_builds_budget_holds_for_second_answers_too(chat_model, tmp_path, most):
    """`max_share: 0` takes a teacher out, also as the second one; a share is kept."""
    values = make_recipe(tmp_path, chat_model, second_opinion=1.0)
    values["budget"] = {"max_share": {"adder": most}}
    builder = PersynBuilder(Recipe.from_dict(values), tmp_path / "out")
    builder.download_and_prepare()
    both = load_dataset(str(builder.folder), "second_opinions")["train"]
    routing = load_dataset(str(builder.folder), "routing")["train"]
    asked = routing["teacher"][:] + [row[1]["teacher"] for row in both["responses"]]
    assert asked.count("adder") <= most * 24 and len(both) > 0
    assert builder.as_dataset(split="train")["teacher"][:].count("adder") <= most * 24


def two(first, second):
    return np.array([[first, second]])


def test_two_answers_are_judged_by_the_calibrations_ranges():
    """A thousandth of quality is not all of it, where the calibration's answers are .4 apart."""
    r_q = np.array([[0.2, 0.6], [0.5, 0.9]])
    r_l = np.array([[-3.5, -0.5], [-3.0, -1.0]])
    q = on_scale(two(0.501, 0.500), r_q, "prompt")
    learnable = on_scale(two(-3.0, -0.5), r_l, "prompt")
    np.testing.assert_allclose(q, [[0.001 / 0.4, 0]], rtol=1e-6)
    np.testing.assert_allclose(learnable, [[0, 1.0]])
    reward = 0.6 * q + 0.4 * learnable
    assert reward[0, 1] > reward[0, 0]


@pytest.mark.parametrize("how", ["prompt", "zscore", "corpus", "rank"])
def test_the_scale_of_a_signal_that_never_differs_does_not_decide(how):
    same, nan = np.full((3, 4), 0.7), np.full((3, 4), np.nan)
    assert len(set(on_scale(two(0.7, 0.7), same, how)[0])) == 1
    assert np.isnan(on_scale(two(np.nan, np.nan), same, how)).all()
    assert on_scale(two(0.1, 0.2), nan, how).tolist() == [[0.1, 0.2]]
    scaled = on_scale(two(np.nan, 0.9), np.array([[0.1, 0.9], [0.2, np.nan]]), how)
    assert np.isnan(scaled[0, 0]) and np.isfinite(scaled[0, 1])


@pytest.mark.parametrize("how", ["prompt", "zscore", "corpus", "rank", "none"])
def test_the_order_of_two_is_nearer_to_the_whole_pools_than_by_the_two_alone(how):
    """Of 400 prompts with 19 teachers, graded quality: the best against the second best."""
    draw = np.random.default_rng(0)
    r_q = draw.beta(2, 2, (400, 19))
    r_l = draw.normal(-1, 0.3, (400, 1)) + draw.normal(0, 0.4, (400, 19))
    pool = combined_reward(r_q, r_l, 0.4, how)
    best = np.argsort(-pool, -1)[:, :2]
    pair_q, pair_l = (np.take_along_axis(x, best, -1) for x in (r_q, r_l))
    on_calibration = 0.6 * on_scale(pair_q, r_q, how) + 0.4 * on_scale(pair_l, r_l, how)
    alone = combined_reward(pair_q, pair_l, 0.4, how)
    changed, changed_alone = (int((r[:, 1] > r[:, 0]).sum()) for r in (on_calibration, alone))
    assert changed <= changed_alone
    if how in ("prompt", "zscore"):
        assert changed < 0.5 * changed_alone, (how, changed, changed_alone)


@pytest.mark.parametrize("column", ["learnability", "rsr"])
def test_ranked_responses_keep_their_raw_signals(column):
    kind = {"learnability": "log-probability", "rsr": "rsr"}[column]
    calibration = [
        [
            {"teacher": t, "quality": q, "learnability": -q, "rsr": q, "error": ""}
            for t, q in zip("ab", (0.0, 1.0), strict=True)
        ]
    ] * 2
    row = [
        {"teacher": "a", "quality": 0.5, "learnability": -3.0, "rsr": 9.0, "error": ""},
        {"teacher": "b", "quality": 0.5, "learnability": -0.5, "rsr": 2.0, "error": ""},
        {"teacher": "a", "quality": None, "learnability": None, "rsr": None, "error": "gone"},
    ]
    ranked = Dataset.from_dict({"prompt_id": ["x", "y"], "responses": calibration})
    scored = Dataset.from_dict({"prompt_id": ["z", "w"], "responses": [row[:2], row[1:]]})
    rank = RankTwo(Rank(0.4, "none", kind), column, "prompt", *signals_of(ranked, column))
    found = scored.with_format("arrow").map(rank, batched=True).with_format(None)
    for before, after in zip((row[:2], row[1:]), found["responses"], strict=True):
        assert [{k: r[k] for k in ("quality", "learnability", "rsr")} for r in after] == [
            {k: r[k] for k in ("quality", "learnability", "rsr")} for r in before
        ]
    assert found["best_teacher"][:] == ["b", "b"]
    assert found["responses"][1][1]["reward"] is None
