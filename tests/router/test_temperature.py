import numpy as np
import pytest

from persyn_datasets.router.metrics import calibration_error, reliability
from persyn_datasets.router.temperature import temperature


@pytest.mark.parametrize("t", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_scale(t):
    """Comparisons drawn from σ(o): of t · o the temperature is t, and dividing by it gives the
    least error.
    """
    random = np.random.default_rng(0)
    o = random.normal(size=(3000, 4))
    rewards = o + random.gumbel(
        size=o.shape
    )  # differences of Gumbels are logistic: P(i beats j) = σ(o_i − o_j)
    assert temperature(t * o, rewards) == pytest.approx(t, rel=0.05)
    assert calibration_error(reliability(o, rewards)) < 0.02


def test_without_a_comparison_there_is_no_temperature():
    o = np.random.default_rng(0).normal(size=(20, 3))
    assert temperature(o, np.full((20, 3), np.nan)) == 1
    assert temperature(o, np.ones((20, 3))) == 1


def test_reliability_by_hand():
    o = np.log([[0.66, 0.33, 0.11], [0.0001, 0.2, 0.8]])
    bins = reliability(o, np.array([[1.0, 0.0, 0.5], [0.2, 0.9, np.nan]]))
    # first: a over b with 2/3 (right), a over c with 6/7 (right), b over c with 3/4 (wrong);
    # second: b over a (right)
    assert [(b["comparisons"], b["observed"]) for b in bins] == [
        (1, 1.0),
        (1, 0.0),
        (1, 1.0),
        (1, 1.0),
    ]
    assert calibration_error(bins) == pytest.approx((1 / 3 + 3 / 4 + 1 / 7 + 0.0001 / 0.2001) / 4)
    assert calibration_error(reliability(o, np.zeros((2, 3)))) is None
