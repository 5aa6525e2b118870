from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from persyn_datasets.router.crossfit import Calibration
from persyn_datasets.router.simple_routes import reassigned

NAMES = ["a", "b"]


@pytest.fixture
def made():
    """Prompts of two kinds, which the router's features tell apart; it was wrong about all."""
    rng = np.random.default_rng(0)
    kind = np.arange(200) % 2
    x = rng.normal(size=(200, 3)) + 6 * np.eye(3)[kind]  # in two directions
    rewards = np.where(kind[:, None] == 0, [0.9, 0.2], [0.3, 0.8]) + 0.1 * rng.random((200, 2))

    def calibration(ranked, group):
        groups = np.array([str(value) for value in ranked[group]]) if group else None
        return Calibration(x[:100], rewards[:100], groups)

    router = SimpleNamespace(
        names=NAMES,
        calibration=calibration,
        read=lambda messages: (None, x[[int(m[0]["content"]) for m in messages]]),
    )
    rows = Dataset.from_dict(
        {
            "messages": [[{"role": "user", "content": str(i)}] for i in range(200)],
            "teacher": [NAMES[1 - k] for k in kind],
            "subject": kind.tolist(),
            "router_scores": [[0.5, 0.5]] * 200,
        }
    )
    return router, rows, kind


@pytest.mark.parametrize("strategy", ["best-per-group", "nearest-neighbours"])
@pytest.mark.parametrize("group", [None, "subject"])
def test_each_prompt_gets_the_best_of_its_kind(strategy, group, made):
    router, rows, kind = made
    found = reassigned(strategy, rows, router, rows.select(range(100)), group)
    assert found["teacher"] == [NAMES[k] for k in kind]
    assert found.column_names == rows.column_names
    assert found["router_scores"] == rows["router_scores"]


def test_shares_at_random_keeps_the_shares_and_nothing_else(made):
    router, rows, _ = made
    found = reassigned("shares-at-random", rows, router, rows, seed=1)
    assert Counter(found["teacher"]) == Counter(rows["teacher"])
    same = np.mean(np.array(found["teacher"]) == np.array(rows["teacher"]))
    assert 0.35 < same < 0.65
    assert found["teacher"] == reassigned("shares-at-random", rows, router, rows, seed=1)["teacher"]
    assert found["teacher"] != reassigned("shares-at-random", rows, router, rows, seed=2)["teacher"]
