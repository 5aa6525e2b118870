import re
from collections import Counter

import pytest
from conftest import save_model

from persyn_datasets import quickstart
from persyn_datasets.quickstart import PROBLEMS, problems

SIZES = {
    "hours minutes": 60,
    "minutes seconds": 60,
    "weeks days": 7,
    "days hours": 24,
    "feet inches": 12,
    "years months": 12,
    "meters centimeters": 100,
    "euros cents": 100,
    "kilometers meters": 1000,
    "decades years": 10,
}
UNDER_20 = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TENS = {
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}


def number(words):
    """'three hundred forty-five' → 345."""
    total = 0
    for word in re.split(r"[ -]", words):
        total = (
            total * 100 if word == "hundred" else total + (TENS.get(word) or UNDER_20.index(word))
        )
    return total


def solve(prompt):
    """Read from the text alone."""
    n = [int(x) for x in re.findall(r"\d+", prompt)]
    if " times " in prompt:
        return n[0] * n[1]
    if " buys " in prompt or "gives away" in prompt:
        return n[0] + n[1] if " buys " in prompt else n[0] - n[1]
    if match := re.match(r"How many (\w+) are in \d+ (\w+)\?", prompt):
        return n[0] * SIZES[f"{match[2]} {match[1]}"]
    if match := re.match(r"Write the number (.*) in digits", prompt):
        return number(match[1])
    if "last number" in prompt:
        return n[-1]
    return len(prompt.split(":")[1].split(","))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_answer_is_right(seed):
    rows = problems(PROBLEMS, seed)
    assert [row["answer"] for row in rows] == [str(solve(row["prompt"])) for row in rows]


def test_they_are_distinct_seeded_and_balanced():
    rows = problems(PROBLEMS)
    assert len({row["prompt"] for row in rows}) == PROBLEMS == len(rows)
    assert rows == problems(PROBLEMS) != problems(PROBLEMS, seed=1)
    assert set(Counter(row["family"] for row in rows).values()) == {PROBLEMS // 6}
    assert [row["family"] for row in rows[:6]] != [row["family"] for row in rows[6:12]]  # shuffled


def test_what_is_unpacked_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "find_spec", lambda name: None)
    for name in quickstart.MODELS:
        save_model(tmp_path / quickstart.FOLDER / name)
    assert quickstart.main() == 0
    (tmp_path / quickstart.FOLDER / quickstart.MODELS[0] / "config.json").unlink()
    assert quickstart.main() == 1
