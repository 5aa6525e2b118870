"""A prompt that stands in several rows counts once, whatever is measured on the rows."""

import json

import numpy as np
import pytest
from conftest import save_model
from datasets import Dataset, load_dataset
from pool import make_recipe, write_lines

from persyn_datasets import Pairify, PersynBuilder, Recipe, Teacher, train_router
from persyn_datasets.config.reward import Reward
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.report.luck import luck
from persyn_datasets.report.measure import measure_routing
from persyn_datasets.report.thinking import measure
from persyn_datasets.router.add_teacher import add_teacher
from persyn_datasets.router.temperature import calibrate
from persyn_datasets.stages.rank import Rank
from persyn_datasets.strategies.baselines import mean_rewards
from persyn_datasets.strategies.budget import expectations

NAMES = ["zebra", "ant", "mole"]
REWARD = Reward(alpha=0.0, normalize="none")


def ranked(n, start=0, names=NAMES, samples=2):
    """Rows of Rank, two noisy answers of each teacher; a third of the prompts suit each."""
    random, rows = np.random.default_rng(start), []
    for i in range(start, start + n):
        messages = [{"role": "user", "content": f"Tell me of {i} {('dog', 'cat', 'owl')[i % 3]}"}]
        responses = [
            {
                "teacher": name,
                "sample": sample,
                "text": "four " * int(random.integers(1, 9)),
                "reasoning": "hm " * int(random.integers(1, 9)) if place == 0 else "",
                "reasoning_tokens": None,
                "error": "",
                "finish_reason": "stop",
                "prompt_tokens": 5,
                "completion_tokens": int(random.integers(3, 9)),
                "quality": float((place == i % 3) + random.normal()),
                "learnability": float(random.normal()),
                "rsr": None,
            }
            for place, name in enumerate(names)
            for sample in range(samples)
        ]
        rows.append(
            {"prompt_id": prompt_id(messages), "messages": messages, "responses": responses}
        )
    return Dataset.from_list(rows).map(Rank(alpha=0.0, normalize="none"), batched=True)


def four_times(rows):
    return Dataset.from_list([row for row in rows.to_list() for _ in range(4)], rows.features)


@pytest.fixture(scope="module")
def router(tmp_path_factory):
    folder = tmp_path_factory.mktemp("router")
    backbone = save_model(folder / "b", kind="Bert", head="MaskedLM", initializer_range=0.1)
    rows = ranked(60)
    return train_router(
        rows.map(Pairify(), batched=True, remove_columns=rows.column_names),
        backbone,
        teachers=[Teacher(f"org/{n}", name=n) for n in NAMES],
        freeze_backbone=True,
        output_dir=str(folder / "r"),
    )


@pytest.fixture(scope="module")
def rows():
    return ranked(40, start=500)


def test_what_a_router_is_worth(router, rows):
    seen = ranked(60)
    once = router.evaluate(rows, seen)
    assert once["ceiling"]["prompts"] == 40
    assert router.evaluate(four_times(rows), four_times(seen)) == once


def test_rows_that_differ_count_with_their_mean(router):
    [one], [other] = ranked(1, start=3).to_list(), ranked(1, start=3).to_list()
    for response in other["responses"]:
        response["reward"] += 2.0
    both = Dataset.from_list([one, other, *ranked(5, start=700).to_list()])
    found = router.evaluate(both, ranked(60))
    assert (found["prompts"], found["ceiling"]["prompts"]) == (6, 6)
    first = router.evaluate(both.select([0, *range(2, 7)]), ranked(60))
    # One of six prompts is worth 1 more, whoever answers.
    assert found["reward"]["router"] == pytest.approx(first["reward"]["router"] + 1 / 6)
    assert found["ceiling"]["apparent"] == pytest.approx(first["ceiling"]["apparent"])


def test_the_temperature(router, rows, tmp_path):
    _, once = calibrate(router, rows, str(tmp_path / "once"))
    _, again = calibrate(router, four_times(rows), str(tmp_path / "again"))
    assert again == once


def test_what_a_budget_goes_by(router, rows):
    once, again = (expectations(router, r, r) for r in (rows, four_times(rows)))
    assert again["reward"] == pytest.approx(once["reward"], rel=1e-9)
    uneven = Dataset.from_list(rows.to_list() + 9 * rows.to_list()[:3])
    found = expectations(router, uneven, rows)["reward"]
    assert found == pytest.approx(expectations(router, rows, rows)["reward"])


def test_luck_and_the_best_single_teacher(rows):
    uneven = Dataset.from_list(rows.to_list() + 9 * rows.to_list()[:3], rows.features)
    once, again = luck(rows, NAMES, REWARD), luck(uneven, NAMES, REWARD)
    for key in ("oracle", "shuffled", "with_length", "largest_mean", "most_wins", "best_single"):
        assert again[key] == (
            pytest.approx(once[key]) if isinstance(once[key], float) else once[key]
        )
    assert mean_rewards(uneven, NAMES) == pytest.approx(mean_rewards(rows, NAMES))


def test_how_sure_a_router_may_be(router, rows):
    p = np.exp(router.scores(rows["messages"]))
    routed = Dataset.from_dict(
        {"prompt_id": rows["prompt_id"], "router_scores": (p / p.sum(-1, keepdims=True)).tolist()}
    )
    facts = {"temperature": 1.0, "before": None, "after": None}
    once, again = (
        measure_routing(r, routed, NAMES, facts)["reliability"] for r in (rows, four_times(rows))
    )
    assert again == once


def test_what_thinking_gains(rows):
    once, again = (measure(r)["by_difficulty"] for r in (rows, four_times(rows)))
    assert sum(third["prompts"] for third in once) == 40
    assert again == once


def test_a_teacher_that_joins(router, tmp_path):
    names = [*NAMES, "newt"]
    anchors, newt = ranked(40, start=900, names=names), Teacher("org/newt", name="newt")
    once = add_teacher(router, anchors, newt, str(tmp_path / "once"))
    again = add_teacher(router, four_times(anchors), newt, str(tmp_path / "again"))
    assert again.config.persyn["added"] == once.config.persyn["added"]
    assert np.allclose(again.scores(anchors["messages"]), once.scores(anchors["messages"]))


def test_a_build_whose_calibration_has_prompts_twice(chat_model, tmp_path):
    values = make_recipe(tmp_path, chat_model, calibration={"size": 44, "seed": 3})
    file = tmp_path / "prompts.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_lines(file, [row for row in rows for _ in range(2)])
    builder = PersynBuilder(Recipe.from_dict(values), tmp_path / "out")
    builder.download_and_prepare()
    assert len(builder.as_dataset(split="train")) == 2 * len(rows)
    held_out = load_dataset(str(builder.folder), "calibration", split="test")["prompt_id"]
    once = set(held_out)
    assert 0 < np.sum(builder.stats["analysis"]["confusion"]) == len(once) < len(held_out)
