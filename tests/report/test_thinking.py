"""What thinking costs, by hand."""

import pytest
from datasets import Dataset

from persyn_datasets import Teacher
from persyn_datasets.config.teacher import Price
from persyn_datasets.report import thinking


def response(teacher, thought, text, quality, tokens=10, counted=None):
    return {
        "teacher": teacher,
        "reasoning": thought,
        "text": text,
        "completion_tokens": tokens,
        "reasoning_tokens": counted,
        "quality": quality,
        "reward": quality / 2,
        "error": "",
    }


def ranked(thoughts=("3+", "3+4", "3+4")):
    qualities = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]  # of three prompts, the hardest first
    return Dataset.from_list(
        [
            {
                "prompt_id": str(i),
                "responses": [
                    response("slow", thought, "" if i == 0 else "7", of_slow, 10, 8 if i else None),
                    response("quick", "", "It is 7.", of_quick),
                ],
            }
            for i, (thought, (of_slow, of_quick)) in enumerate(
                zip(thoughts, qualities, strict=True)
            )
        ]
    )


def test_the_thoughts_of_each_teacher():
    found = thinking.measure(ranked())
    slow, quick = found["teachers"]["slow"], found["teachers"]["quick"]
    assert (slow["answers"], slow["thoughts"], slow["cut_off"]) == (3, 3, 1)
    # Of the first all 10 tokens, by its characters; of the others the 8 that were counted.
    assert (slow["tokens"], slow["reasoning_tokens"]) == pytest.approx((10, 26 / 3))
    assert (quick["thoughts"], quick["reasoning_tokens"]) == (0, 0)
    assert [(of["thinking"], of["others"]) for of in found["by_difficulty"]] == [
        (0.0, 0.0),
        (0.5, 0.0),
        (0.5, 0.5),
    ]


def test_nobody_thinks():
    assert thinking.measure(ranked(("", "", ""))) is None


def test_the_tables():
    class Recipe:
        teachers = (Teacher("m", name="slow", price=Price(1.0, 3.0)),)

    found = thinking.measure(ranked())
    assert thinking.cost_table(Recipe, found).rows == [
        ["slow", "100%", "33%", "9", "87%", "0.03"]  # 1,000 × 8.67 tokens at 3 USD per million
    ]
    assert thinking.difficulty_table(found).rows[1] == ["middle third", "1", "0.500", "0.000"]
    assert thinking.difficulty_table(found | {"by_difficulty": []}) == ""
