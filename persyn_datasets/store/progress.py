"""What a person sees while a build works: a bar for each stage in a terminal or a notebook, and
elsewhere (a log, a pipe) one line for each stage that is finished.

    with stages(["Generate", "Score"]):
        with Bar("Generate", total=900, unit="answers") as bar:
            bar.update()
"""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

_stages: list[str] = []  # of the build that is running, in their order
_unseen: list[bool] = []  # while it holds something, no stage is shown
_hidden: set[str] = set()  # whose bars `hide_internals` has hidden

EARLY = 0.02  # of all rows; until then no time left is shown
FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} · {speed} · {left} left{postfix}"


@contextmanager
def stages(names: Sequence[str]) -> Iterator[None]:
    """While this lasts, the bars of these stages say which one of how many they are."""
    before = list(_stages)
    _stages[:] = names
    try:
        yield
    finally:
        _stages[:] = before


@contextmanager
def unseen() -> Iterator[None]:
    """While this lasts, a stage that works is not shown: it is tried, and its turn comes later."""
    _unseen.append(True)
    try:
        yield
    finally:
        _unseen.pop()


def title(stage: str) -> str:
    """`2/6 Score` within `stages`, else `Score`."""
    if stage not in _stages:
        return stage
    return f"{_stages.index(stage) + 1}/{len(_stages)} {stage}"


def is_watched() -> bool:
    """Is somebody looking at the bars?"""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def usd(amount: float) -> str:
    """USD as a person reads them: cents, or of less than a cent two digits: $0.0004."""
    rounded = float(f"{amount:.2g}")
    if amount == 0 or rounded >= 0.01:
        return f"${amount:,.2f}"
    return f"${rounded:.12f}".rstrip("0")


def hide_internals() -> None:
    """For the command line: no bars of the libraries' own steps, no remarks on their internals.

    Downloads keep their bars: they may take minutes.
    """
    import datasets
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    downloads = not are_progress_bars_disabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()  # of huggingface_hub, too
    logging.set_verbosity_error()
    if downloads:
        enable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    _hidden.add("datasets")


@contextmanager
def bars_of_datasets(shown: bool) -> Iterator[None]:
    """While this lasts, the bars of `datasets` are hidden, or, if `shown`, as the user wants them:
    in spite of `hide_internals`.
    """
    import datasets

    before = not datasets.are_progress_bars_disabled()
    if not shown:
        datasets.disable_progress_bars()
    elif _hidden and is_watched():
        datasets.enable_progress_bars()
    try:
        yield
    finally:
        (datasets.enable_progress_bars if before else datasets.disable_progress_bars)()


class Bar(tqdm):
    """A bar of one stage: done of how many, how quickly, how long still, and `note`.

    Args:
        stage: its name, one of `stages`.
        total: how many there are; `initial`: how many were there already.
        unit: what they are, in the plural, for the line in a log.
    """

    def __init__(self, stage: str, total: int, initial: int = 0, unit: str = "rows"):
        self.stage, self.of, self.begun = stage, unit, time.monotonic()
        self.done, self.said = initial, False
        super().__init__(
            total=total,
            initial=initial,
            desc=title(stage),
            bar_format=FORMAT,
            dynamic_ncols=True,
            disable=not is_watched() or bool(_unseen) or not total,
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm fills into `FORMAT`, with our `speed` and `left`."""
        values: dict[str, Any] = super().format_dict
        rate = values["rate"]
        if rate is None and values["elapsed"]:
            rate = (values["n"] - values["initial"]) / values["elapsed"]
        done, rest = values["n"] - values["initial"], values["total"] - values["n"]
        # The first rows also wait for the model: what they take says nothing of the others.
        left = rest / rate if rate and done >= EARLY * values["total"] else None
        return values | {
            "speed": f"{rate:.1f}/s" if rate else "–/s",
            "left": "–" if left is None else self.format_interval(left),
        }

    def update(self, n: float | None = 1) -> bool | None:
        self.done += int(n or 0)
        shown: bool | None = super().update(n)
        return shown

    def note(self, *parts: str) -> None:
        """What else is to be seen, e.g. the cost so far."""
        if not self.disable:
            self.set_postfix_str(" · ".join(part for part in parts if part), refresh=False)

    def close(self) -> None:
        if self.disable and self.done and not self.said and self.done >= (self.total or 0):
            self.said = True
            finished(self.stage, self.done, self.of, time.monotonic() - self.begun)
        super().close()


def say(words: str) -> None:
    """A line above the bars, for what takes hours."""
    tqdm.write(words, file=sys.stderr)


def finished(stage: str, count: int, unit: str, seconds: float) -> None:
    """The line of a finished stage where nobody watches bars."""
    if not is_watched() and not _unseen:
        took = tqdm.format_interval(seconds)
        print(f"{title(stage)}: {count:,} {unit} in {took}", file=sys.stderr, flush=True)
