from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from persyn_datasets.router.bradley_terry import bradley_terry_loss, preferences

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
