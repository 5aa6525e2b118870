import pytest
from datasets import Dataset
from pool import built

from persyn_datasets import report


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.2, "Routing beats sending everything to the best single teacher, ann"),
        (-0.2, -0.01, "Routing is worse than sending everything to ann"),
        (-0.1, 0.1, "No proof that routing beats sending everything to ann"),
        (0.0, 0.1, "No proof"),
        (-0.1, 0.0, "No proof"),
    ],
)
def test_the_verdict(low, high, words):
    advantage = {"mean": (low + high) / 2, "low": low, "high": high}
    text = report.verdict({"advantage": advantage, "best_single_teacher": "ann", "prompts": 45})
    assert text.startswith(words)
    assert f"{advantage['mean']:+.3f}" in text and f"[95% interval {low:+.3f} to {high:+.3f}]" in text
    assert "45 held-out prompts" in text
    assert ("alone" in text) == (low <= 0)  # what to do instead


def response(teacher, quality, reward=None, error=""):
    return {"teacher": teacher, "quality": quality, "learnability": quality and -quality, "reward": reward,
            "completion_tokens": 4, "text": "" if error else "12345" * int(2 * quality), "error": error}  # fmt: skip


RANKED = [
    {"best_teacher": "a", "responses": [response("a", 1.0, 0.9), response("b", 0.5, 0.1)]},
    {"best_teacher": "a", "responses": [response("a", 0.5, 0.7), response("b", None, error="HTTP 500")]},
    {"best_teacher": None, "responses": [response("a", None, error="late"), response("b", None, error="HTTP 500")]},
]


def test_the_numbers_per_teacher():
    rows = [("a", "", "123"), ("a", "late", ""), ("b", "", "12345")]
    said = [[{"content": text}] if text else [] for _, _, text in rows]
    answered = [{"teacher": t, "error": e, "completion": c} for (t, e, _), c in zip(rows, said, strict=True)]
    stats = report.measure(Dataset.from_list(RANKED), Dataset.from_list(answered))
    assert (stats["rows"], stats["failed"], stats["errors"]) == (3, 1, {"late": 1})
    a, b = stats["per_teacher"]["a"], stats["per_teacher"]["b"]
    assert (a["quality"], a["learnability"], a["reward"]) == pytest.approx((0.75, -0.75, 0.8))
    assert (a["best"], a["routed"], a["calibration_failed"]) == (2, 2, 1)
    assert (a["characters"], a["routed_characters"]) == ([5.5, 7.5, 9.5], [3, 3, 3])  # of 5 and 10; of 3
    assert (b["quality"], b["reward"], b["best"], b["routed"], b["calibration_failed"]) == (0.5, 0.1, 0, 1, 2)


def test_reasons_of_failures_come_by_their_number():
    assert report.errors(Dataset.from_list(RANKED)) == "2 × HTTP 500; 1 × late"
    assert "no response failed" in report.errors(Dataset.from_list(RANKED[:1]))


def test_the_closing_report_holds_the_equation_the_numbers_and_the_verdict(chat_model, models_folder):
    builder = built(models_folder / "report", chat_model)
    text, stats = report.describe(builder.recipe, builder.stats), builder.stats
    assert "r = (1 − α)·r_q + α·r_l with α = 0.4" in text and "`prompt`" in text
    assert report.verdict(stats["router"]) in text
    assert "56 generations; generate-then-select needs 72" in text
    rows = {line.split("|")[1].strip(): line.replace("|", " ").split() for line in text.splitlines() if "|" in line}
    assert rows["guesser"][1] == "0.000"  # its quality
    for name, told in stats["per_teacher"].items():
        assert rows[name][-2:] == [str(told["routed"]), f"{told['routed'] / 24:.0%}"]
