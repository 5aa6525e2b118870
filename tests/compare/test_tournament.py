"""The statistics of the tournament against SciPy, and what it makes of signals that are known."""

import numpy as np
import pytest
from datasets import Dataset
from pool import make_recipe
from scipy import stats

from persyn_datasets import InputError, Recipe
from persyn_datasets.compare import tournament
from persyn_datasets.config.errors import BuildError

TEACHERS = [f"t{i}" for i in range(8)]


def test_correlations_are_scipys():
    draw = np.random.default_rng(3)
    values, gains = draw.normal(size=(30, 8)), draw.normal(size=(20, 8))
    values[:, 3] = values[:, 5]  # a tie
    values[2, 4] = np.nan
    sizes = np.array([1.0, 2, 2, 7, 8, 70, 70, 405])
    found = tournament.correlations({"a": values, "size": sizes}, gains)
    for name, x in (("a", np.nanmean(values, 0)), ("size", sizes)):
        y = gains.mean(0)
        assert found[name]["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
        assert found[name]["tau"] == pytest.approx(stats.kendalltau(x, y).statistic)
        assert -1 <= found[name]["low"] <= found[name]["high"] <= 1


def test_the_interval_covers_what_luck_can_do_and_no_more():
    """A signal that is the gain, with noise: above 0. Noise alone: its interval has 0 in it."""
    draw = np.random.default_rng(0)
    worth = np.linspace(0, 1, 12)
    gains = worth + draw.normal(scale=0.3, size=(60, 12))
    like = worth + draw.normal(scale=0.3, size=(60, 12))
    noise = np.broadcast_to(draw.permutation(worth), (60, 12)) + draw.normal(size=(60, 12))
    found = tournament.correlations({"like": like, "noise": noise}, gains)
    assert found["like"]["low"] > 0.5
    assert found["noise"]["low"] < 0 < found["noise"]["high"]


def rows(worth, draw, n=40):
    """n prompts; answers of length 10·k, as likely as −worth, that help the target by worth."""
    lines = []
    for i in range(n):
        responses = [
            {
                "teacher": name,
                "sample": 0,
                "text": "x" * (10 * k + 1),
                "reasoning": "",
                "finish_reason": "stop",
                "prompt_tokens": 1,
                "completion_tokens": 1,
                "error": "",
                "quality": float(draw.random() < 0.8),
                "learnability": -worth[k] + draw.normal(scale=0.1),
                "rsr": 1.0 + draw.normal(scale=0.1),
                "target": worth[k] + draw.normal(scale=0.1),
                "reward": draw.random(),
                "rank": 1,
            }
            for k, name in enumerate(TEACHERS)
        ]
        messages = [{"role": "user", "content": f"{i}?"}]
        lines.append({"prompt_id": str(i), "messages": messages, "responses": responses})
    return Dataset.from_list(lines)


@pytest.fixture
def recipe(tmp_path, chat_model):
    values = make_recipe(tmp_path, chat_model)
    one = values["teachers"][0]
    teachers = [
        one | {"name": n, "size": 2.0**i, "family": "ab"[i % 2]} for i, n in enumerate(TEACHERS)
    ]
    target = {"path": "nowhere.jsonl", "response_column": "solution"}
    student = {"model": chat_model, "family": "a"}
    return Recipe.from_dict(values | {"teachers": teachers, "target": target, "student": student})


def test_the_signal_that_predicts_the_gain_wins(recipe):
    draw = np.random.default_rng(1)
    worth = draw.permutation(np.linspace(0, 1, 8))
    gains = {"log-likelihood": worth + draw.normal(scale=0.2, size=(50, 8))}
    made = tournament.play(recipe, rows(worth, draw), gains)
    of = made["signals"]["log-likelihood"]
    assert set(of) == {
        "quality",
        "log-probability",
        "rsr",
        "target",
        "reward",
        "length",
        "size",
        "same family",
    }
    assert of["target"]["rho"] > 0.9 > -0.9 > of["log-probability"]["rho"]
    assert made["winner"]["learnability"] == "target" and made["winner"]["low"] > 0
    assert made["same_family"]["target"] in (0.0, 1.0) or 0 < made["same_family"]["target"] < 1
    assert made["with_length"]["target"] == pytest.approx(
        stats.spearmanr(worth, range(8)).statistic, abs=0.15
    )
    assert [len(line) for line in made["candidates"]] == [8] * 10


def test_where_nothing_predicts_there_is_no_winner(recipe):
    draw = np.random.default_rng(2)
    worth = draw.permutation(np.linspace(0, 1, 8))
    gains = {"log-likelihood": draw.normal(size=(50, 8))}
    assert tournament.play(recipe, rows(worth, draw), gains)["winner"] is None


def test_probes_and_signals_share_no_prompt(recipe):
    draw = np.random.default_rng(4)
    ranked = rows(np.zeros(8), draw, 9)
    broken = ranked[0] | {"responses": [r | {"error": "no luck"} for r in ranked[0]["responses"]]}
    ranked = Dataset.from_list([*ranked, broken | {"prompt_id": "failed"}])
    trained, measured = tournament.halves(ranked)
    assert len(trained) == 4 and len(measured) == 5
    assert not set(trained["prompt_id"]) & set(measured["prompt_id"])
    examples = tournament.probes(trained, TEACHERS)
    assert list(examples) == TEACHERS and len(examples["t3"]) == 4
    assert examples["t3"][0]["completion"] == [{"role": "assistant", "content": "x" * 31}]
    with pytest.raises(BuildError):
        tournament.halves(Dataset.from_list([broken]))


def test_three_teachers_are_too_few(tmp_path, chat_model):
    with pytest.raises(InputError, match="teachers"):
        tournament.check(Recipe.from_dict(make_recipe(tmp_path, chat_model)))
