"""Grading of our lm-evaluation-harness tasks: by the verifier that scores teachers' answers."""

from typing import Any

from persyn_datasets.signals.math_verify import right


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """`right`: 1.0 where the final answer is the reference, in the column `answer` or `Answer`."""
    answer = doc["answer"] if "answer" in doc else doc["Answer"]
    return {"right": float(right(str(answer), results[0]))}
