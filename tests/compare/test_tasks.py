"""Our own tasks of lm-evaluation-harness, by the harness itself on made rows."""

import json

import pytest
from datasets import Dataset
from pool import write_lines

from persyn_datasets import Student
from persyn_datasets.compare import evaluate
from persyn_datasets.compare.harness import check
from persyn_datasets.config.evaluation import Evaluation
from persyn_datasets.tasks.grade import process_results

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

SOLUTION = "She sells 9 eggs.\nShe makes 9*2 = $<<9*2=18>>18.\n#### 18"


def test_gsm8k_has_five_examples_and_is_graded_by_our_verifier(tmp_path, chat_model):
    rows = [{"question": f"What do {n} eggs cost?", "answer": SOLUTION} for n in (9, 10)]
    data = {"persyn_gsm8k": write_lines(tmp_path / "gsm8k.jsonl", rows)}
    evaluation = Evaluation(tasks=tuple(data), data=data, max_gen_toks=4)
    check(evaluation, Dataset.from_dict({"prompt_id": []}))
    measured = evaluate.evaluate(Student(chat_model), evaluation, tmp_path / "out")
    assert set(measured) == {"persyn_gsm8k/right", "persyn_gsm8k/−cut"}
    samples = (tmp_path / "out/persyn_gsm8k.jsonl").read_text().splitlines()
    asked = [json.loads(line)["arguments"][0][0] for line in samples]
    assert len(asked) == 2
    for text, row in zip(asked, rows, strict=True):
        assert text.count("Question:") == 6 and text.count("####") == 5
        assert row["question"] in text and SOLUTION not in text


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("9 * 2 = 18\n#### 18", 1.0),
        ("She makes $18.00 a day.", 1.0),  # the harness's own filter reads .00 as another number
        ("The answer is 18, for 16 eggs.", 1.0),
        ("The answer is 9.", 0.0),
        ("", 0.0),
    ],
)
def test_what_is_right_in_gsm8k(said, right):
    assert process_results({"question": "?", "answer": SOLUTION}, [said]) == {"right": right}
