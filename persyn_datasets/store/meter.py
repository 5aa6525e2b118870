"""What this machine works on during a build, and how long: the part of the bill that is not in USD.

with meter.build() as works:
    with meter.metered("Score", gpus=1):
        ...
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

_works: list[dict[str, "Work"]] = []  # of the builds that are running, the innermost last
_inner: list[list[float]] = []  # for each work that is being measured, what works within it took


class Work(TypedDict):
    """Seconds of one kind of work, without those of other works within it.

    `cpu_seconds` are those of all threads of this process and of the processes that it started;
    `gpu_seconds` those of the GPUs that it had, busy or not. None of work on a cluster.
    """

    seconds: float
    cpu_seconds: float | None
    gpu_seconds: float | None


@contextmanager
def build() -> Iterator[dict[str, Work]]:
    """What is measured while this lasts, by the work's name."""
    _works.append({})
    try:
        yield _works[-1]
    finally:
        _works.pop()


@contextmanager
def metered(what: str, gpus: int = 0, on_cluster: bool = False) -> Iterator[None]:
    """Measure this work for the build that is running; without one, do nothing."""
    if not _works:
        yield
        return
    _inner.append([0.0, 0.0])
    begun = time.monotonic(), _cpu_seconds()
    try:
        yield
    finally:
        whole = time.monotonic() - begun[0], _cpu_seconds() - begun[1]
        seconds, cpu_seconds = (all_of - x for all_of, x in zip(whole, _inner.pop(), strict=True))
        if _inner:
            _inner[-1] = [x + y for x, y in zip(_inner[-1], whole, strict=True)]
        before = _works[-1].get(what, Work(seconds=0.0, cpu_seconds=0.0, gpu_seconds=0.0))
        _works[-1][what] = Work(
            seconds=before["seconds"] + seconds,
            cpu_seconds=None if on_cluster else (before["cpu_seconds"] or 0.0) + cpu_seconds,
            gpu_seconds=None if on_cluster else (before["gpu_seconds"] or 0.0) + gpus * seconds,
        )


def _cpu_seconds() -> float:
    return sum(os.times()[:4])
