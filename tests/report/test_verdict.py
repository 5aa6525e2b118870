"""The verdict cannot claim what the held-out prompts do not show."""

import numpy as np
import pytest

from persyn_datasets.report.verdict import FEWEST_PROMPTS, prompts_needed, proven, verdict
from persyn_datasets.report.verdict import verdict_table as table
from persyn_datasets.router.metrics import compare

NAMES = ["ann", "bob"]


def judged(difference, single=0.5):
    """A router that takes bob where `difference` is not 0, and ann, the best, elsewhere."""
    rewards = np.stack([np.full(len(difference), single), single + difference], 1)
    router = np.stack([np.zeros(len(difference)), np.where(difference != 0, 1.0, -1.0)], 1)
    best = np.broadcast_to([1.0, 0.0], rewards.shape)
    return compare({"router": router, "best single": best}, rewards, NAMES)


def test_four_lucky_prompts_of_250_are_no_proof():
    metrics = judged(np.r_[np.full(4, 0.3), np.zeros(246)])
    a = metrics["against"]["best single"]
    assert a["differs"] == 4
    assert a["p"] == pytest.approx(2 / 2**4)  # exact: all four fell the same way
    assert not proven(a)
    assert verdict(metrics).startswith("Not significantly better than sending everything to ann")
    assert "on 4 of them" in verdict(metrics)


@pytest.mark.parametrize("prompts", [2, FEWEST_PROMPTS - 1])
def test_no_verdict_on_a_handful(prompts):
    metrics = judged(np.linspace(0.3, 0.4, prompts))
    assert verdict(metrics).startswith("No verdict")
    assert "too few prompts" in table(metrics)


@pytest.mark.parametrize(("sign", "words"), [(1, "Routing beats"), (-1, "Routing is worse")])
def test_a_lead_that_is_there_is_proven_both_ways(sign, words):
    rng = np.random.default_rng(0)
    difference = sign * (0.1 + 0.2 * rng.normal(size=200)) * (rng.random(200) < 0.5)
    metrics = judged(difference)
    assert proven(metrics["against"]["best single"], worse=sign < 0)
    assert verdict(metrics).startswith(words)


def test_a_router_that_always_says_the_same_is_called_so():
    text = verdict(judged(np.zeros(50)))
    assert text.startswith("The router sends everything to ann")


def test_the_remedy_is_the_number_of_prompts_that_shows_a_lead_half_of_the_time():
    """By simulation: of that many prompts with a true lead of .02, half show one."""
    rng = np.random.default_rng(0)
    noise = 0.18 * rng.normal(size=400)
    a = judged(noise)["against"]["best single"]
    needed = prompts_needed(a, 400)
    assert needed == pytest.approx((1.96 * noise.std() / 0.02) ** 2, rel=0.15)
    draws = 0.02 + noise.std() * rng.normal(size=(2000, needed))
    shown = draws.mean(1) > 1.96 * draws.std(1) / np.sqrt(needed)
    assert shown.mean() == pytest.approx(0.5, abs=0.07)


def test_metrics_of_version_0_1_0_have_a_verdict_too():
    old = {
        "advantage": {"mean": 0.1, "low": 0.01, "high": 0.2},
        "best_single_teacher": "ann",
        "prompts": 45,
    }
    assert verdict(old).startswith("Routing beats")
    assert table(old) == ""
