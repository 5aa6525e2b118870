"""What a router must be judged by, against plain loops; and that nothing judges itself."""

import numpy as np
import pytest

from persyn_datasets.router.crossfit import (
    Calibration,
    best_per_group,
    cross_fitted,
    group_means,
    nearest,
)

NAMES = ["a", "b", "c"]


def two_kinds(prompts=400, seed=0, width=6):
    """Two kinds of prompts, that a feature separates; teacher a is good at one, b at the other."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, prompts)
    x = rng.normal(size=(prompts, width))
    x[:, 0] += 6 * kind
    worth = np.where(kind[:, None] == 0, [0.9, 0.4, 0.5], [0.4, 0.9, 0.5])
    return x, (rng.random((prompts, 3)) < worth).astype(float), kind


def test_a_router_that_reads_the_prompt_beats_single_shares_and_random_but_not_the_groups():
    x, rewards, kind = two_kinds()
    m = cross_fitted(Calibration(x, rewards, np.array(["sum", "product"])[kind]), NAMES)
    assert m["cross_fitted"] and m["prompts"] == 400
    for line in ("best single", "random", "shares at random"):
        assert m["against"][line]["low"] > 0 and m["against"][line]["p"] < 0.01, line
    assert m["against"]["best per group"]["low"] <= 0
    by_cluster = cross_fitted(Calibration(x, rewards), NAMES)["reward"]["best per group"]
    assert by_cluster == pytest.approx(m["reward"]["best per group"], abs=0.06)


def test_rewards_that_have_nothing_to_do_with_the_prompt_give_no_lead():
    """Fitted and judged on the same prompts, this router would lead by a tenth."""
    leads = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, rewards = rng.normal(size=(60, 40)), rng.integers(0, 2, (60, 3)).astype(float)
        m = cross_fitted(Calibration(x, rewards), NAMES)
        leads.append(m["advantage_over_random"]["mean"])
    assert abs(np.mean(leads)) < 0.05


def test_prompts_of_which_all_failed_are_left_out():
    x, rewards, kind = two_kinds(60)
    rewards[3] = np.nan
    rewards[5, 1] = np.nan
    assert cross_fitted(Calibration(x, rewards, kind.astype(str)), NAMES)["prompts"] == 59


def test_shrunk_group_means_by_hand():
    """Two groups of equal size: the kept part is t² / (t² + s²/n)."""
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 40)
    rewards = rng.normal(size=(80, 2)) + np.where(groups[:, None] == 0, [1.0, 0.0], [0.0, 1.0])
    found = group_means(groups, rewards, 3)
    y = rewards - rewards.mean(1, keepdims=True)
    overall, means = y.mean(0), np.stack([y[:40].mean(0), y[40:].mean(0)])
    within = sum(((y[groups == g] - means[g]) ** 2).sum(0) for g in (0, 1)) / 78
    between = np.mean([40 * (means[g] - overall) ** 2 - within for g in (0, 1)]) / 40
    kept = between / (between + within / 40)
    assert 0.5 < kept.min() < 1
    for g in (0, 1):
        np.testing.assert_allclose(found[g], rewards.mean(0) + kept * (means[g] - overall))
    np.testing.assert_allclose(found[2], rewards.mean(0))  # nobody is there


def test_groups_that_do_not_matter_are_shrunk_away():
    rng = np.random.default_rng(1)
    groups = np.arange(300) % 60
    rewards = rng.random((300, 3)) + [0, 0.2, 0]
    found = group_means(groups, rewards, 60)
    assert (found.argmax(1) == 1).mean() > 0.9
    assert found.std(0).max() < 0.4 * np.std([rewards[groups == g].mean(0) for g in range(60)])


def test_a_group_that_nobody_has_seen_gets_the_means_over_all():
    x, rewards, kind = two_kinds(100)
    of = best_per_group(x, rewards, np.array(["sum", "product"])[kind])
    scores = of(x[:2], np.array(["zebra", "sum"]))
    np.testing.assert_allclose(scores[0], rewards.mean(0))
    assert scores[1].argmax() == 0


def test_nearest_neighbours_by_sorting():
    x, rewards, _ = two_kinds(120)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    worth = {}
    for count in (10, 20, 50, 100):
        gained = []
        for i in range(120):
            alike = unit @ unit[i]
            alike[i] = -9
            near = sorted(range(120), key=lambda j: -alike[j])[:count]
            gained.append(rewards[i, rewards[near].mean(0).argmax()])
        worth[count] = np.mean(gained)
    count = max(worth, key=worth.__getitem__)
    asked = np.random.default_rng(5).normal(size=(7, 6))
    expected = [
        rewards[sorted(range(120), key=lambda j: -(unit[j] @ row / np.linalg.norm(row)))[:count]]
        for row in asked
    ]
    np.testing.assert_allclose(nearest(x, rewards)(asked), [r.mean(0) for r in expected])
