import tracemalloc
from itertools import product

import numpy as np
import pytest

from persyn_datasets.store.statistics import holm, interval, paired

RNG = np.random.default_rng(0)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    held = 0
    for seed in range(100):
        found = interval(np.random.default_rng(seed).normal(0.3, 1, 60), seed)
        held += found["low"] <= 0.3 <= found["high"]
    assert 88 <= held <= 100
    values = RNG.normal(size=400)
    found, half = interval(values), 1.96 * values.std(ddof=1) / 20
    assert found["mean"] == values.mean()
    assert (found["low"], found["high"]) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.015
    )


def test_an_interval_and_a_test_over_many_prompts_take_little_memory():
    """All resamples at once would take 2 GiB."""
    ours, theirs = RNG.normal(size=(2, 4_000))
    tracemalloc.start()
    paired(ours, theirs)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**28


def test_the_paired_test_is_that_over_all_sign_flips():
    ours, theirs = RNG.normal(0.6, 1, 10), RNG.normal(0, 1, 10)
    difference = ours - theirs
    flips = [abs((difference * signs).mean()) for signs in product((1, -1), repeat=10)]
    exact = np.mean(np.array(flips) >= abs(difference.mean()) - 1e-12)
    found = paired(ours, theirs)
    assert found["p"] == pytest.approx(exact, abs=0.01) and found["mean"] == pytest.approx(
        difference.mean()
    )
    assert found["low"] < found["mean"] < found["high"]
    assert paired(ours, ours) == {"mean": 0, "low": 0, "high": 0, "p": 1}


def test_holm_by_its_definition():
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.5])
    assert holm([0.6, 0.7]) == [1, 1] and holm([]) == []
