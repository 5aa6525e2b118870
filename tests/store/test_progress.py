import io
import sys

import pytest

from persyn_datasets.store import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(stderr, monkeypatch, total=40, until=40, initial=0):
    monkeypatch.setattr(sys, "stderr", stderr)
    with (
        progress.stages(["Generate", "Score"]),
        progress.Bar("Score", total, initial=initial, unit="answers") as bar,
    ):
        bar.mininterval = 0
        for _ in range(until - initial):
            bar.note(progress.usd(0.0004), "smollm2-tutor")
            bar.update()
    return stderr.getvalue()


def test_a_terminal_shows_stage_count_rate_time_left_and_cost(monkeypatch):
    shown = work(Terminal(), monkeypatch).split("\r")
    assert "2/2 Score" in shown[-1] and "40/40" in shown[-1]
    assert all(part in shown[-1] for part in ("100%", "/s", "left", "$0.0004", "smollm2-tutor"))


def test_elsewhere_a_finished_stage_is_one_line(monkeypatch):
    assert work(io.StringIO(), monkeypatch).startswith("2/2 Score: 40 answers in ")
    assert work(io.StringIO(), monkeypatch, initial=40).count("\n") == 1


def test_elsewhere_an_unfinished_stage_says_nothing(monkeypatch):
    assert work(io.StringIO(), monkeypatch, until=7) == ""


def test_what_has_nothing_to_do_says_nothing(monkeypatch):
    assert work(io.StringIO(), monkeypatch, total=0, until=0) == ""


def test_outside_of_a_build_a_stage_has_no_number(monkeypatch):
    assert progress.title("Score") == "Score"
    with progress.stages(["Score"]):
        assert progress.title("Score") == "1/1 Score" and progress.title("Other") == "Other"
    assert progress.title("Score") == "Score"


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "$0.00"),
        (0.0004, "$0.0004"),
        (0.00123, "$0.0012"),
        (0.00999, "$0.01"),
        (1e-9, "$0.000000001"),
        (0.0101, "$0.01"),
        (1234.5, "$1,234.50"),
    ],
)
def test_small_amounts_are_not_nothing(amount, shown):
    assert progress.usd(amount) == shown


def test_the_first_rows_promise_no_time(monkeypatch):
    """They wait for the model to load: 384 answers would take hours by the first."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.Bar("Generate", 384) as bar:
        bar.start_t -= 60
        bar.update()
        assert bar.format_dict["left"] == "–"
        bar.update(63)
        assert bar.format_dict["left"] != "–"
