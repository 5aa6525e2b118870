from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset

from persyn_datasets import Teacher
from persyn_datasets.report import measure as report
from persyn_datasets.report import text
from persyn_datasets.report.summary import demo, summary
from persyn_datasets.report.tables import TERMINAL, table
from persyn_datasets.report.verdict import verdict


def response(teacher, quality, reward=None, error=""):
    return {
        "teacher": teacher,
        "quality": quality,
        "learnability": quality and -quality,
        "reward": reward,
        "completion_tokens": 4,
        "reasoning": "",
        "text": "" if error else "12345" * int(2 * quality),
        "error": error,
    }


RANKED = [
    {"best_teacher": "a", "responses": [response("a", 1.0, 0.9), response("b", 0.5, 0.1)]},
    {
        "best_teacher": "a",
        "responses": [response("a", 0.5, 0.7), response("b", None, error="HTTP 500")],
    },
    {
        "best_teacher": None,
        "responses": [response("a", None, error="late"), response("b", None, error="HTTP 500")],
    },
]


def test_the_numbers_per_teacher():
    rows = [("a", "", "123"), ("a", "late", ""), ("b", "", "12345")]
    said = [[{"content": text}] if text else [] for _, _, text in rows]
    answered = [
        {"teacher": t, "error": e, "completion": c} for (t, e, _), c in zip(rows, said, strict=True)
    ]
    stats = report.measure(Dataset.from_list(RANKED), Dataset.from_list(answered), "ab")
    assert (stats["rows"], stats["failed"], stats["errors"]) == (3, 1, {"late": 1})
    a, b = stats["per_teacher"]["a"], stats["per_teacher"]["b"]
    assert (a["quality"], a["learnability"], a["reward"]) == pytest.approx((0.75, -0.75, 0.8))
    assert (a["best"], a["routed"], a["calibration_failed"]) == (2, 2, 1)
    assert (a["characters"], a["routed_characters"]) == (
        [5.5, 7.5, 9.5],
        [3, 3, 3],
    )  # of 5 and 10; of 3
    assert (b["quality"], b["reward"], b["best"], b["routed"], b["calibration_failed"]) == (
        0.5,
        0.1,
        0,
        1,
        2,
    )


def test_reasons_of_failures_come_by_their_number():
    assert report.errors(Dataset.from_list(RANKED)) == "2 × HTTP 500; 1 × late"
    assert "no response failed" in report.errors(Dataset.from_list(RANKED[:1]))


def test_the_closing_report_holds_the_equation_the_numbers_and_the_verdict(done):
    stats, shown = done.stats, text.describe(done.recipe, done.stats)
    words = " ".join(shown.split())
    assert "r = (1 − α)·r_q + α·r_l with α = 0.4" in words and "`prompt`" in words
    assert verdict(stats["router"]) in words
    assert "56 generations; generate-then-select needs 72" in words
    rows = [line.split() for line in shown.splitlines() if line]
    assert next(row for row in rows if row[0] == "guesser")[1] == "0.000"  # its quality
    for name, of in stats["per_teacher"].items():
        share = [str(of["routed"]), f"{of['routed'] / 24:.0%}"]
        assert any(row[0] == name and row[-2:] == share for row in rows)


def test_a_terminal_of_80_columns_is_enough(done, models_folder):
    cost = {"usd": 0.00042, "generate_then_select_usd": 0.0017}
    recipe, stats = done.recipe, done.stats | {"cost": cost}
    screen = summary(recipe, stats, done.output.relative_to(models_folder))
    for shown in (screen, text.describe(recipe, stats)):
        lines = [line for line in shown.splitlines() if recipe.student.model not in line]
        assert max(map(len, lines)) <= TERMINAL
        assert "$0.0004" in " ".join(lines) and "$0.00 " not in shown
    assert len(screen.splitlines()) < 25 and verdict(stats["router"]) in " ".join(screen.split())
    for name, of in stats["per_teacher"].items():
        assert f"{name:10} {of['routed']:>9}" in screen


def test_the_demo_ends_in_twelve_lines_of_80_columns(done):
    """Three rows, the verdict against both, the page, the next command."""
    examples = [
        {
            "prompt": f"What is {i}? " * 9,
            "chosen": "adder",
            "answers": [{"teacher": "adder", "text": "It is\n" * 40}],
        }
        for i in range(3)
    ]
    output = Path("outputs/quickstart")
    shown = demo(done.stats, examples, output, output / "report/index.html")
    lines = shown.strip().splitlines()
    assert len(lines) <= 12 and max(map(len, lines)) <= TERMINAL
    assert sum("adder: It is" in line for line in lines) == 3
    assert verdict(done.stats["router"]) in " ".join(shown.split())
    assert str(output / "report/index.html") in shown and f"persyn report {output}" in shown


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_table_fits_any_terminal_and_loses_no_number(width):
    head = ["teacher", *(f"what it is worth {i}" for i in range(12))]
    rows = [["a-teacher-" * 9, *(f"{i}.123" for i in range(12))], ["b", *["–"] * 12]]
    shown = table(head, rows).plain(width)
    assert max(map(len, shown.splitlines())) <= width
    assert all(f" {i}.123" in shown for i in range(12)) and "…" in shown


def test_confidence_and_its_calibration_by_hand():
    routed = Dataset.from_list(
        [
            {"prompt_id": "x", "router_scores": [0.66, 0.33, 0.11]},
            {"prompt_id": "y", "router_scores": [0.0, 0.2, 0.8]},
            {"prompt_id": "z", "router_scores": [0.97, 0.02, 0.01]},
        ]
    )
    rewards = {
        "x": [1.0, 0.0, 0.5],
        "y": [0.2, 0.9, None],
    }  # held out; on y the third failed and the favourite loses
    held_out = Dataset.from_list(
        [
            {
                "prompt_id": k,
                "responses": [{"teacher": t, "reward": r} for t, r in zip("abc", v, strict=True)],
            }
            for k, v in rewards.items()
        ]
    )
    as_is = {"temperature": 1.0, "before": None, "after": None}
    found = report.measure_routing(held_out, routed, list("abc"), as_is)
    assert found["confidence"] == [0, 0, 0, 0, 0, 0, 1, 0, 1, 1] and found[
        "mean_confidence"
    ] == pytest.approx(0.81)
    # x: a over b with 2/3 (right), a over c with 6/7 (right), b over c with 3/4 (wrong); y: b over
    # a with 1 (right)
    assert [(r["comparisons"], r["observed"]) for r in found["reliability"]] == [
        (1, 1.0),
        (1, 0.0),
        (1, 1.0),
        (1, 1.0),
    ]
    assert [r["predicted"] for r in found["reliability"]] == pytest.approx(
        [2 / 3, 3 / 4, 6 / 7, 1.0]
    )
    assert found["calibration_error"] == pytest.approx((1 / 3 + 3 / 4 + 1 / 7 + 0) / 4)
    nothing = report.measure_routing(held_out.select([]), routed, list("abc"), as_is)
    assert (nothing["reliability"], nothing["calibration_error"]) == ([], None)


def test_cost_by_hand():
    line = {"usd": 0.0, "reused_usd": 0.0, "answers": 10}
    account = [
        line | {"stage": "Generate", "usd": 2.0, "reused_usd": 1.0},  # 0.3 an answer
        line | {"stage": "Generate", "usd": 0.5},  # 0.05 an answer
        line | {"stage": "Synthesize", "usd": 7.0},
    ]
    assert report.cost(account, 100) == pytest.approx(
        {"usd": 10.5, "generate_then_select_usd": 35.0}
    )
    assert report.cost([line | {"stage": "Generate"}], 100) is None


def test_tables_hold_any_name():
    made = table(["a", "b"], [["x|y <z>", "1"]])
    assert r"| x\|y <z> |" in made
    assert made.__html__().splitlines()[2] == "<tr><td>x|y &lt;z&gt;</td><td>1</td></tr>"


def test_a_word_of_the_glossary_is_explained_in_html():
    assert "<abbr title=" in table(["", "regret"], []).__html__()


def test_the_plan_beside_the_account():
    line = {
        "reused_usd": 0.5,
        "usd": 1.0,
        "prompt_tokens": 30,
        "completion_tokens": 2000,
        "seconds": 40.0,
    }
    account = [
        line | {"stage": s, "teacher": t}
        for s, t in (("Generate", "a"), ("Generate", "b"), ("Synthesize", "b"))
    ]
    planned = {"prompt_tokens": 70.0, "completion_tokens": 9000.0, "usd": 5.0, "seconds": 1234.5}
    stats = {
        "account": account,
        "estimate": {"Generate": planned, "Synthesize": planned | {"seconds": None}},
    }
    planned_and_actual = text.estimate_table(
        SimpleNamespace(teachers=[Teacher("x", name=name) for name in "ab"]), stats
    )
    cells = {
        row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:4]]
        for row in planned_and_actual.splitlines()[2:]
    }
    assert (
        cells["Generate · completion tokens"] == ["9,000", "4,000"]
        and cells["Generate · usd"][1] == "3.0000"
    )
    assert cells["Synthesize · prompt tokens"] == ["70", "30"] and cells["Synthesize · usd"] == [
        "5.0000",
        "1.5000",
    ]
    # Local teachers work one after another.
    assert cells["Generate · seconds"] == ["1,234", "80"] and cells["Synthesize · seconds"] == [
        "–",
        "40",
    ]
