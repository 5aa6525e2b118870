from itertools import product

import numpy as np
import pytest

from persyn_datasets import InputError
from persyn_datasets.strategies.assignment import assign


def by_brute_force(reward, cost, budget, caps):
    """The largest reward of all teachers^prompts assignments; −∞ if none is within the limits."""
    prompts, teachers = reward.shape
    choices = np.array(list(product(range(teachers), repeat=prompts)))
    within = cost[np.arange(prompts), choices].sum(1) <= budget
    counts = (choices[:, :, None] == np.arange(teachers)).sum(1)
    within &= (counts <= caps).all(1)
    return reward[np.arange(prompts), choices].sum(1)[within].max(initial=-np.inf)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_optimum_of_small_sets(seed):
    random = np.random.default_rng(seed)
    prompts, teachers = int(random.integers(2, 7)), int(random.integers(2, 5))
    reward, cost = (
        random.random((prompts, teachers)),
        random.random((prompts, teachers)) * [1, 2, 5, 9][:teachers],
    )
    if seed % 4 == 0:
        reward[:, 1][random.random(prompts) < 0.5] = -np.inf  # not available
    if seed % 5 == 0:
        reward, cost = reward.round(1), cost.round()  # ties
    budget = (
        np.inf
        if seed % 3 == 0
        else np.where(reward > 0, cost, 99).min(1).sum() + cost.sum() * random.random() / 4
    )
    caps = random.integers(1, prompts + 1, teachers) if seed % 2 else np.full(teachers, prompts)
    best = by_brute_force(reward, cost, budget, caps)
    if best == -np.inf:
        with pytest.raises(InputError):
            assign(reward, cost, budget, caps)
        return
    choice, multiplier, gap = assign(reward, cost, budget, caps)
    rows = np.arange(prompts)
    assert reward[rows, choice].sum() == pytest.approx(best, abs=1e-9)
    assert (
        cost[rows, choice].sum() <= budget * (1 + 1e-9)
        and (np.bincount(choice, minlength=teachers) <= caps).all()
    )
    assert multiplier >= 0 and gap >= 0


@pytest.mark.parametrize(("share", "same_price"), [(0.25, False), (None, True)])
def test_of_many_prompts_it_is_within_the_stated_gap(share, same_price):
    """The gap is proven by the dual; it must be small, and both limits must be used up."""
    random, (prompts, teachers) = np.random.default_rng(0), (5_000, 10)
    price = np.exp(random.normal(size=teachers))
    reward = (0.02 * price + 0.1 * random.normal(size=(prompts, teachers))).astype(np.float32)
    cost = price * (
        np.ones((prompts, 1)) if same_price else np.exp(0.3 * random.normal(size=(prompts, 1)))
    )
    cost = cost.astype(np.float32)
    budget = float(np.sort(cost, 1)[:, :5].mean(dtype=float)) * prompts
    caps = None if share is None else [share * prompts] * teachers
    choice, multiplier, gap = assign(reward, cost, budget, caps)
    spent = np.take_along_axis(cost, choice[:, None], 1).sum(dtype=float)
    assert 0.9999 * budget < spent <= budget * (1 + 1e-9) and multiplier > 0
    assert gap < 0.05  # of some hundreds: less than one prompt is worth
    if caps:
        counts = np.bincount(choice, minlength=teachers)
        assert counts.max() == caps[0]


def test_without_limits_each_prompt_gets_its_best():
    reward = np.random.default_rng(0).random((500, 4))
    choice, multiplier, gap = assign(reward, np.ones_like(reward))
    assert (choice == reward.argmax(1)).all() and multiplier == 0 and gap < 1e-3


def test_limits_that_cannot_be_kept():
    reward, cost = np.ones((4, 2)), np.array([[1.0, 2.0]] * 4)
    with pytest.raises(InputError, match=r"3\.5.* 4"):
        assign(reward, cost, 3.5)
    with pytest.raises(InputError, match="3 prompts.* 4"):
        assign(reward, cost, caps=[1, 2])
    for times in (1, 1000):
        with pytest.raises(InputError, match="budget"):
            assign(
                np.repeat(reward, times, 0),
                np.repeat(cost, times, 0),
                5.0 * times,
                [2 * times, 4 * times],
            )  # 6
