from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.optimize import brentq

from persyn_datasets.router.bradley_terry import (
    OFFSET_RIDGE,
    RIDGES,
    bradley_terry_loss,
    fit_head,
    preferences,
)

NAMES = ["a", "b", "c", "d"]


def some_pairs(prompts=7, seed=0):
    """Rows as of `Pairify`: random labels, some pairs missing, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (), generator=generator))  # noqa: E731
    rows = [
        {
            "prompt_id": f"p{x}",
            "messages": [{"role": "user", "content": f"prompt {x}"}],
            "label": draw(2),
        }
        | dict(zip(("teacher_a", "teacher_b"), pair if draw(2) else pair[::-1], strict=True))
        for x in range(prompts)
        for pair in combinations(NAMES, 2)
        if draw(5)
    ]
    return [rows[i] for i in torch.randperm(len(rows), generator=generator)]


def orderings(x, weight, bias=0.0, noise=0.0, seed=1):
    """`prefer` of prompts whose teachers are ordered by a planted linear reward."""
    reward = x @ weight.T + bias
    reward += noise * torch.randn(reward.shape, generator=torch.Generator().manual_seed(seed))
    return (reward[:, :, None] > reward[:, None, :]).float()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_loss_and_gradient_are_those_of_the_sum_over_pairs():
    rows = some_pairs()
    prompts, prefer = preferences(Dataset.from_list(rows), NAMES)
    place = {m[0]["content"]: i for i, m in enumerate(prompts)}
    o = normal(len(prompts), 4).double().mul(3).requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for row in rows:
        z = torch.tensor(
            [(n == row["teacher_b"]) - (n == row["teacher_a"]) for n in NAMES], dtype=torch.float64
        )
        p = torch.sigmoid(z @ o[place[row["messages"][0]["content"]]])
        expected = expected + F.binary_cross_entropy(
            p, torch.tensor(float(row["label"]), dtype=torch.float64)
        )
    (gradient,) = torch.autograd.grad(expected, o)
    loss = bradley_terry_loss(o, prefer)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(torch.autograd.grad(loss, o)[0], gradient, rtol=0, atol=1e-6)
    assert gradient.abs().max() > 0.1


def test_the_loss_is_finite_for_a_router_that_is_very_sure_and_wrong():
    prefer = torch.zeros(1, 2, 2)
    prefer[0, 1, 0] = 1
    assert bradley_terry_loss(torch.tensor([[1e4, 0.0]]), prefer).item() == pytest.approx(1e4)


def test_preferences_are_those_of_the_rows():
    rows = some_pairs(seed=5)
    prompts, prefer = preferences(Dataset.from_list(rows), NAMES)
    assert len(prompts) == len({r["prompt_id"] for r in rows})
    expected = torch.zeros(len(prompts), 4, 4)
    for x, messages in enumerate(prompts):
        for r in (r for r in rows if r["messages"] == messages):
            a, b = NAMES.index(r["teacher_a"]), NAMES.index(r["teacher_b"])
            expected[x, b, a] = float(r["label"] == 1)
            expected[x, a, b] = float(r["label"] == 0)
    assert torch.equal(prefer, expected)
    assert prefer.sum() == len(rows)


def newton(z, prefer, ridge, steps=30):
    """The optimum of mean pair loss + ridge · ‖w‖² (constant not penalised), as one logistic
    regression over pairs.
    """
    x, i, j = prefer.nonzero().T
    n = prefer.shape[-1]
    sign = torch.eye(n, dtype=torch.float64)[i] - torch.eye(n, dtype=torch.float64)[j]
    design = (z[x][:, :, None] * sign[:, None, :]).flatten(1)  # the preferred one minus the other
    penalty = torch.ones(z.shape[1], n, dtype=torch.float64)
    penalty[0] = OFFSET_RIDGE / ridge
    penalty, w = 2 * ridge * penalty.flatten(), torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(steps):
        p = torch.sigmoid(-design @ w)
        gradient = -design.T @ p / len(design) + penalty * w
        hessian = (design.T * (p * (1 - p))) @ design / len(design) + penalty.diag()
        w = w - torch.linalg.pinv(hessian, hermitian=True) @ gradient
    assert gradient.norm() < 1e-8
    return w.view(z.shape[1], n)


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_head_is_at_the_optimum(with_bias):
    x = normal(60, 5) * torch.tensor([1, 10, 0.1, 3, 1]) + torch.tensor([0, 5, 0, 0, 2.0])
    prefer = orderings(x / x.std(0), normal(4, 5, seed=2), bias=normal(4, seed=3), noise=2.0)
    weight, bias, ridge = fit_head(x, prefer, with_bias)
    x = x.double()
    constant = torch.ones(60, 1, dtype=torch.float64)
    if not with_bias:
        assert torch.equal(bias, torch.zeros(4))
        constant = x @ torch.linalg.lstsq(x, constant).solution
    centred = x - constant * x.mean(0)
    z = torch.cat([constant, centred / centred.std(0, correction=0)], 1)
    found, expected = x @ weight.double().T + bias, z @ newton(z, prefer, ridge)
    # Only differences between teachers are determined.
    gaps = [o - o.mean(1, keepdim=True) for o in (found, expected)]
    assert gaps[1].std() > 0.1
    assert (gaps[0] - gaps[1]).abs().max() < 1e-3 * gaps[1].std()


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_planted_linear_preference_is_found_on_new_prompts(with_bias):
    weight, bias = normal(5, 6), normal(5, seed=4)
    x = normal(600, 6, seed=9)
    x[:, 0] = 2 + 0.01 * x[:, 0]  # a feature that is nearly constant, as language models have
    w, b, _ = fit_head(x[:300], orderings(x[:300], weight, bias), with_bias)
    truth, found = (x[300:] @ weight.T + bias).argmax(1), (x[300:] @ w.T + b).argmax(1)
    assert (truth == truth.mode().values).float().mean() < 0.6  # a constant answer would not do
    assert (truth == found).float().mean() > 0.95


@pytest.mark.parametrize("with_bias", [True, False])
def test_one_order_for_all_prompts_gives_that_order_for_new_ones(with_bias):
    x = normal(100, 8) + 3
    prefer = orderings(x[:50], torch.zeros(4, 8), bias=torch.tensor([2.0, 3.0, 0.0, 1.0]))
    w, b, _ = fit_head(x[:50], prefer, with_bias)
    order = (x[50:] @ w.T + b).argsort(1, descending=True)
    assert torch.equal(order, torch.tensor([1, 0, 3, 2]).expand(50, 4))


def test_cross_validation_takes_much_ridge_for_noise_and_little_for_a_clear_signal():
    x = normal(80, 10)
    assert fit_head(x, orderings(x, torch.zeros(3, 10), noise=1.0))[2] == max(RIDGES)
    assert fit_head(x, orderings(x, normal(3, 10, seed=3)))[2] == min(RIDGES)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_single_prompt_gives_its_own_order(with_bias):
    x = normal(1, 4)
    w, b, _ = fit_head(
        x, orderings(x, torch.zeros(3, 4), bias=torch.tensor([0.0, 2.0, 1.0])), with_bias
    )
    assert (x @ w.T + b).argsort(1, descending=True).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("teachers", [2, 3])
def test_a_teacher_that_always_wins_has_finite_outputs(teachers, with_bias):
    """There is no optimum without a penalty; with ours, w solves σ(−2w) = 2·OFFSET_RIDGE·w for two
    teachers whose features say nothing.
    """
    # States have a direction in common, which stands in for the bias where a head has none.
    x = 3 + torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    prefer = torch.zeros(60, teachers, teachers)
    prefer[:, 0, 1:] = 1
    weight, bias, _ = fit_head(x, prefer, with_bias=with_bias)
    o = x @ weight.T + bias
    assert torch.isfinite(o).all() and (o.argmax(1) == 0).all()
    if teachers == 2 and with_bias:
        w = brentq(lambda w: 1 / (1 + np.exp(2 * w)) - 2 * OFFSET_RIDGE * w, 0, 20)
        assert abs(float(o[:, 0].mean()) - w) < 0.1


def test_offsets_of_an_even_contest_hardly_feel_the_penalty():
    x, wins = torch.zeros(100, 1), torch.arange(100) < 70
    prefer = torch.zeros(100, 2, 2)
    prefer[wins, 0, 1] = 1
    prefer[~wins, 1, 0] = 1
    _, bias, _ = fit_head(x, prefer)
    assert abs(float(bias[0] - bias[1]) - np.log(0.7 / 0.3)) < 5e-3
