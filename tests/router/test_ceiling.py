import numpy as np
import pytest
from datasets import Dataset, load_dataset
from pool import TEACHERS as NAMES
from pool import answer, make_recipe, problems, write_lines

from persyn_datasets import PersynBuilder, Recipe
from persyn_datasets.report import text as report
from persyn_datasets.router.ceiling import ceiling, in_words, sampled_rewards

PROMPTS, TEACHERS = 2000, 5
RNG = np.random.default_rng(0)
TASTE = RNG.normal(size=(PROMPTS, TEACHERS)) * 0.3  # what is predictable from the prompt
LEVEL = np.array([0.0, 0.0, 0.5, 0.0, 0.0])
SINGLE = 2


def simulated(expected, noise, samples):
    return expected[..., None] + noise * RNG.normal(size=(*expected.shape, samples))


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_luck_alone_looks_like_a_lead_and_is_none(samples):
    """Every prompt has the same best teacher, so that no router can lead by anything."""
    expected = np.tile(LEVEL, (PROMPTS, 1))
    found = ceiling(RNG.normal(size=expected.shape), simulated(expected, 1.0, samples), SINGLE)
    assert found["apparent"]["low"] > 0.3
    assert found["predictable"]["mean"] < 0 and found["router"]["mean"] == pytest.approx(
        -0.4, abs=0.1
    )
    assert "Ann alone may be enough" in in_words(found, "Ann")


def test_a_lead_without_luck_is_all_predictable_and_a_router_that_knows_gets_it():
    expected = TASTE + LEVEL
    truth = (expected.max(-1) - expected[:, SINGLE]).mean()
    found = ceiling(expected, simulated(expected, 0.0, 4), SINGLE)
    for name in ("apparent", "predictable", "router"):
        assert found[name]["mean"] == pytest.approx(truth)
    assert found["left"] == pytest.approx({"mean": 0, "low": 0, "high": 0})
    assert "not proven to miss anything" in in_words(found, "Ann")


def test_the_truth_lies_between_and_more_samples_come_nearer():
    expected = TASTE + LEVEL
    truth = (expected.max(-1) - expected[:, SINGLE]).mean()
    few, many = (ceiling(0 * expected, simulated(expected, 0.5, k), SINGLE) for k in (2, 16))
    for found in (few, many):
        assert found["predictable"]["mean"] < truth < found["apparent"]["mean"]
        lead = found["predictable"]
        assert lead["low"] < lead["mean"] < lead["high"]
    assert few["predictable"]["mean"] < many["predictable"]["mean"]
    assert many["apparent"]["mean"] < few["apparent"]["mean"]
    # A router that always names the first teacher leaves more than there is.
    assert many["router"]["mean"] == pytest.approx(-0.5, abs=0.05)
    assert many["left"]["mean"] == pytest.approx(
        many["predictable"]["mean"] - many["router"]["mean"]
    )
    assert "more calibration prompts or a larger backbone can help" in in_words(many, "Ann")


def test_against_brute_force():
    rewards, scores = RNG.normal(size=(30, 4, 5)), RNG.normal(size=(30, 4))
    found = ceiling(scores, rewards, 1)
    apparent, predictable, router = [], [], []
    for r, o in zip(rewards, scores, strict=True):
        a = [np.mean([r[t][s] for s in (0, 2, 4)]) for t in range(4)]
        b = [np.mean([r[t][s] for s in (1, 3)]) for t in range(4)]
        apparent.append((max(a) - a[1] + max(b) - b[1]) / 2)
        predictable.append((b[int(np.argmax(a))] - b[1] + a[int(np.argmax(b))] - a[1]) / 2)
        best = int(np.argmax(o))
        router.append((a[best] - a[1] + b[best] - b[1]) / 2)
    means = [found[name]["mean"] for name in ("apparent", "predictable", "router")]
    assert means == pytest.approx([np.mean(apparent), np.mean(predictable), np.mean(router)])


def test_rewards_of_samples_failures_among_them():
    def response(teacher, sample, reward):
        return {"teacher": teacher, "sample": sample, "reward": reward}

    rows = [
        [
            response("b", 1, 0.4),
            response("a", 0, 0.9),
            response("a", 1, 0.5),
            response("b", 0, None),
        ],
        [response(t, s, None) for t in "ab" for s in (0, 1)],
        [
            response("a", 0, 0.1),
            response("a", 1, 0.2),
            response("b", 0, 0.3),
            response("z", 0, -9.0),
        ],
    ]
    rewards = sampled_rewards(Dataset.from_list([{"responses": row} for row in rows]), ["a", "b"])
    np.testing.assert_array_equal(
        rewards[0], [[0.9, 0.5], [0.4, 0.4]]
    )  # the failed one is as bad as the worst
    assert np.isnan(rewards[1]).all()
    np.testing.assert_array_equal(rewards[2], [[0.1, 0.2], [0.3, 0.1]])  # z is not among the names
    assert ceiling(np.zeros((3, 2)), rewards, 0)["prompts"] == 2


def test_a_build_with_samples_says_it(chat_model, tmp_path):
    """The adder and the multiplier err in their second answer; the guesser always."""
    values = make_recipe(tmp_path, chat_model, calibration={"size": 16, "seed": 3, "samples": 2})
    rows = [
        {"prompt": p, "teacher": t, "response": answer(t, p)} for p, _ in problems() for t in NAMES
    ]
    second = [row | {"response": "Perhaps it is 1234567."} for row in rows]
    write_lines(tmp_path / "answers.jsonl", rows + second)
    builder = PersynBuilder(Recipe.from_dict(values), tmp_path / "out")
    builder.download_and_prepare()
    stats = builder.stats
    found = stats["router"]["ceiling"]
    assert (found["samples"], found["prompts"]) == (2, 4)
    assert stats["generations"] == 2 * 16 * 3 + 24 - 16
    for text in (
        report.describe(builder.recipe, stats),
        (builder.folder / "README.md").read_text(),
    ):
        words = in_words(found, stats["router"]["best_single_teacher"])
        assert words in " ".join(text.split())
    calibration = load_dataset(str(builder.folder), "calibration", split="train")
    for row in calibration:
        assert [(r["teacher"], r["sample"]) for r in row["responses"]] == [
            (t, j) for t in NAMES for j in (0, 1)
        ]
        assert all(r["quality"] == 0 for r in row["responses"] if r["sample"] == 1)
    assert set(builder.as_dataset(split="train")["finish_reason"]) == {"stop"}
