"""Compare formulas by Math-Verify, in a process of its own that can be stopped.

Some expressions never end (`8^{8^{8^8}}`) and some fill the memory; Math-Verify's own timeout is a
signal, which only a main thread may set and which C code does not heed. So a child reads pairs of
formulas, one JSON line each, and answers; one that takes too long is killed with its pair.
"""

import atexit
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from threading import Lock
from typing import Any

SECONDS_PER_PAIR = 8.0  # a usual pair takes 0.02; Math-Verify itself gives up after 5 or more
SECONDS_TO_START = 120.0
BYTES_OF_MEMORY = 4 * 2**30


class Comparer:
    """A child that compares formulas; it is started when it is first needed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def same(self, reference: str, answer: str) -> bool:
        """Whether two LaTeX formulas have the same value; False where that takes too long."""
        with self._lock:
            child = self._child or self._start()
            assert child.stdin
            try:
                child.stdin.write(json.dumps([reference, answer]).encode() + b"\n")
                child.stdin.flush()
                line = _read_line(child, SECONDS_PER_PAIR)
            except BrokenPipeError:
                line = b""
            if not line:
                self._stop()
            return line == b"true\n"

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = child = subprocess.Popen(
            [sys.executable, "-m", "persyn_datasets.signals.expressions"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if _read_line(child, SECONDS_TO_START) != b"ready\n":
            self._stop()
            raise RuntimeError("The process that compares formulas by math-verify did not start.")
        return child

    def _stop(self) -> None:
        if self._child:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _read_line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The child's next line; empty if it ends, or if none comes in time."""
    assert child.stdout
    ready, _, _ = select.select([child.stdout], [], [], seconds)
    return child.stdout.readline() if ready else b""


@lru_cache(maxsize=1)
def _comparer(process: int) -> Comparer:
    """One per process: a fork must not share its parent's pipes."""
    comparer = Comparer()
    atexit.register(comparer._stop)
    return comparer


def same(reference: str, answer: str) -> bool:
    """Whether two LaTeX formulas have the same value; see `Comparer.same`."""
    return _comparer(os.getpid()).same(reference, answer)


def main(pairs: Iterable[bytes], out: Any) -> None:
    """The child: pairs in, `true` or `false` out."""
    import resource

    # An expression that fills the memory then raises here, and does not take the machine with it.
    resource.setrlimit(resource.RLIMIT_AS, (BYTES_OF_MEMORY, BYTES_OF_MEMORY))
    import math_verify  # noqa: F401

    # Its import takes seconds, which are not to count against the first pair.
    out.write(b"ready\n")
    out.flush()
    for pair in pairs:
        reference, answer = json.loads(pair)
        try:
            right = _same(reference, answer)
        except (MemoryError, RecursionError, OverflowError):
            right = False
        out.write(b"true\n" if right else b"false\n")
        out.flush()


def parse(latex: str) -> list[Any]:
    """Math-Verify's expressions of a formula as a whole; empty: not understood."""
    from math_verify import LatexExtractionConfig
    from math_verify import parse as read

    found = read(f"\\boxed{{{latex}}}", [LatexExtractionConfig(boxed_match_priority=0)])
    return [expression for expression in found if not isinstance(expression, str)]


def _same(reference: str, answer: str) -> bool:
    from math_verify import verify

    gold, said = parse(reference), parse(answer)
    if not gold or not said:
        return False
    if (near := _near(gold[0], said[0])) is not None:
        return near
    return bool(verify(gold, said))


def _near(gold: Any, said: Any) -> bool | None:
    """Whether two numbers are equal, relative to their size; None: they are no numbers.

    Math-Verify compares at six decimal places, by which 2^{-97} is 2^{-98}.
    """
    import sympy

    if not all(isinstance(x, sympy.Expr) and x.is_number for x in (gold, said)):
        return None
    # A decimal may have been rounded when it was written; without one, both are exact.
    rounded = any(x.has(sympy.Float) for x in (gold, said))
    a, b = (sympy.N(x.doit(), 30) for x in (gold, said))
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return bool(a == b)
    largest = max(abs(a), abs(b))
    return bool(abs(a - b) <= largest * sympy.Float("1e-6" if rounded else "1e-20"))


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
