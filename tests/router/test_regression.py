"""The closed-form head against refits one by one, and what makes it safe."""

import numpy as np
import pytest
from datasets import Dataset

from persyn_datasets import Pairify
from persyn_datasets.router.regression import RIDGES, fit_rewards, rewards_of_pairs


def pool(prompts=60, features=6, teachers=4, noise=0.3, signal=1.0, seed=0):
    """Features, and rewards that are linear in them and noisy."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(prompts, features)) * [1, 10, 0.1, 3, 1, 1][:features] + 2
    w = signal * rng.normal(size=(features, teachers))
    standard = (x - x.mean(0)) / x.std(0)
    hard = rng.normal(size=(prompts, 1))  # the same for all teachers
    return x, standard @ w + 5 * hard + noise * rng.normal(size=(prompts, teachers)) + [
        0,
        1,
        2,
        0.5,
    ]


def solved(z, y, ridge, constant=None):
    """Penalised least squares with a constant that is not penalised, by stacked rows."""
    constant = np.ones((len(z), 1)) if constant is None else constant
    penalty = np.sqrt(ridge) * np.eye(z.shape[1])
    a = np.block([[constant, z], [np.zeros((z.shape[1], 1)), penalty]])
    return np.linalg.lstsq(a, np.r_[y, np.zeros((z.shape[1], y.shape[1]))])[0]


def test_the_ridge_is_the_one_that_refits_without_each_prompt_choose():
    x, rewards = pool(noise=2.0)
    y = rewards - rewards.mean(1, keepdims=True)
    z = (x - x.mean(0)) / x.std(0)
    errors = []
    for ridge in RIDGES:
        error = 0.0
        for i in range(len(x)):
            others = np.arange(len(x)) != i
            w = solved(z[others], y[others], ridge * len(x))
            error += ((np.r_[1, z[i]] @ w - y[i]) ** 2).sum()
        errors.append(error)
    best = RIDGES[int(np.argmin(errors))]
    assert fit_rewards(x, rewards).ridge == best
    assert RIDGES[0] < best < RIDGES[-1]  # or nothing was chosen


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_head_solves_the_penalised_least_squares(with_bias):
    x, rewards = pool()
    y = rewards - rewards.mean(1, keepdims=True)
    head = fit_rewards(x, rewards, with_bias)
    constant = np.ones((len(x), 1))
    if not with_bias:
        assert not head.bias.any()
        constant = x @ np.linalg.lstsq(x, constant)[0]
    centred = x - constant * x.mean(0)
    z = centred / centred.std(0)
    expected = np.c_[constant, z] @ solved(z, y, head.ridge * len(x), constant)
    gaps = [o - o.mean(1, keepdims=True) for o in (head(x), expected)]
    scale = (gaps[0] * gaps[1]).sum() / (gaps[1] ** 2).sum()  # the temperature
    assert scale > 0
    assert np.abs(gaps[0] - scale * gaps[1]).max() < 2e-3 * gaps[0].std()


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_planted_preference_is_found_on_new_prompts(with_bias):
    x, rewards = pool(prompts=600)
    head = fit_rewards(x[:300], rewards[:300], with_bias)
    best = rewards[300:].argmax(1)
    chosen = head(x[300:]).argmax(1)
    assert (best == np.bincount(best).argmax()).mean() < 0.6  # a constant answer would not do
    assert (best == chosen).mean() > 0.8


@pytest.mark.parametrize("with_bias", [True, False])
def test_features_that_say_nothing_give_the_teachers_means(with_bias):
    """And never cost: every prompt goes to the best single teacher."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 30)) + 3
    rewards = rng.random((200, 4)) + [0, 0.3, 0, 0.1]
    head = fit_rewards(x, rewards, with_bias)
    asked = rng.normal(size=(500, 30)) + 3
    assert (head(asked).argmax(1) == 1).mean() > 0.98


def test_it_never_leaves_a_teacher_that_dominates():
    """Rewards 0 or 1; one teacher is right far more often: over 20 draws no lead is lost."""
    lost = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(2000, 40))
        worth = np.r_[0.65, np.full(8, 0.45)] + 0.02 * x[:, :1] * rng.normal(size=9)
        rewards = (rng.random((2000, 9)) < worth).astype(float)
        head = fit_rewards(x[:150], rewards[:150])
        single = rewards[:150].mean(0).argmax()
        chosen = head(x[150:]).argmax(1)
        lost.append((worth[150:, single] - worth[np.arange(150, 2000), chosen]).mean())
    assert np.mean(lost) < 0.002


@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_its_probabilities_are_right_in_any_unit_of_reward(unit):
    x, rewards = pool(prompts=3000, noise=3.0)
    head = fit_rewards(x[:1500], unit * rewards[:1500])
    o = head(x[1500:])
    ahead, better = o[:, 0] - o[:, 1], rewards[1500:, 0] > rewards[1500:, 1]
    said = 1 / (1 + np.exp(-ahead))
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9)):
        those = (said > low) & (said < high)
        assert better[those].mean() == pytest.approx(said[those].mean(), abs=0.07)


@pytest.mark.parametrize("prompts", [1, 2, 4, 7])
def test_a_few_prompts_give_their_own_order(prompts):
    x = np.random.default_rng(0).normal(size=(prompts, 4))
    rewards = np.tile([0.0, 2.0, 1.0], (prompts, 1))
    head = fit_rewards(x, rewards)
    assert head(x).argsort(1).tolist() == [[0, 2, 1]] * prompts
    assert np.isfinite(head.weight).all()


def test_a_missing_answer_counts_as_the_lowest_and_equal_rewards_are_no_matter():
    x, rewards = pool()
    rewards[3] = np.nan
    rewards[5, 2] = np.nan
    filled = np.delete(rewards, 3, 0)
    filled[4, 2] = np.nanmin(filled[4])
    one, other = fit_rewards(x, rewards), fit_rewards(np.delete(x, 3, 0), filled)
    np.testing.assert_allclose(one.weight, other.weight)
    assert np.isfinite(fit_rewards(x, np.ones((60, 4))).weight).all()


def test_pairs_give_the_rewards_back():
    """Ties give no pair, and a failed response none; the differences are all there."""
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "d"]
    rewards = rng.integers(0, 3, (40, 4)) / 2
    rewards[rng.random((40, 4)) < 0.1] = np.nan
    rows = [
        {
            "prompt_id": f"p{i}",
            "messages": [{"role": "user", "content": str(i)}],
            "responses": [
                {"teacher": name, "reward": None if np.isnan(r) else r, "error": ""}
                for name, r in zip(names, row, strict=True)
            ],
        }
        for i, row in enumerate(rewards.tolist())
    ]
    ranked = Dataset.from_list(rows)
    pairs = ranked.map(Pairify(), batched=True, remove_columns=ranked.column_names)
    prompts, found = rewards_of_pairs(pairs, names)
    kept = [int(messages[0]["content"]) for messages in prompts]
    differ = [i for i, row in enumerate(rewards) if np.nanmax(row) > np.nanmin(row)]
    assert kept == differ
    expected = rewards[kept] - np.nanmean(rewards[kept], axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-9)
