import time

import pytest

from persyn_datasets.store import meter


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_work_within_a_work_counts_once() -> None:
    with meter.build() as works:
        for _ in range(2):
            with meter.metered("outer", gpus=2):
                spin(0.1)
                with meter.metered("inner", gpus=1):
                    spin(0.3)
                time.sleep(0.2)
    outer, inner = works["outer"], works["inner"]
    assert outer["cpu_seconds"] == pytest.approx(0.2, abs=0.12)
    assert inner["cpu_seconds"] == pytest.approx(0.6, abs=0.12)
    assert outer["seconds"] >= outer["cpu_seconds"] + 0.4 - 0.1  # it also slept
    assert outer["gpu_seconds"] == pytest.approx(2 * outer["seconds"])
    assert inner["gpu_seconds"] == pytest.approx(inner["seconds"])


def test_on_a_cluster_only_the_clock_is_known() -> None:
    with meter.build() as works, meter.metered("Score", gpus=3, on_cluster=True):
        time.sleep(0.01)
    assert works["Score"]["seconds"] >= 0.01
    assert works["Score"]["cpu_seconds"] is works["Score"]["gpu_seconds"] is None


def test_without_a_build_nothing_is_kept() -> None:
    with meter.metered("Score"):
        pass
    with meter.build() as works:
        pass
    assert works == {}


def test_what_fails_was_worked_on_too() -> None:
    with meter.build() as works:
        with pytest.raises(ValueError, match="no"), meter.metered("Score"):
            raise ValueError("no")
        with meter.metered("Route"):
            pass
    assert list(works) == ["Score", "Route"]
