"""Best against worst, and TRL's own trainer over it."""

import pytest
from datasets import Dataset

from persyn_datasets.data.preferences import FEATURES, preferences

USER = [{"role": "user", "content": "3 plus 4?"}]


def response(teacher, text, reward, finish_reason="stop", reasoning=""):
    return {
        "teacher": teacher,
        "text": text,
        "reasoning": reasoning,
        "reward": reward,
        "finish_reason": finish_reason,
    }


def rows(*responses):
    return Dataset.from_list([{"prompt_id": "p", "messages": USER, "responses": list(responses)}])


BEST = response("a", "It is 7.", 0.9, reasoning="3 and 4")
MIDDLE, WORST = response("b", "7", 0.5), response("c", "It is 8.", 0.1)


@pytest.mark.parametrize(
    ("keep", "text"), [("inline", "<think>\n3 and 4\n</think>\n\nIt is 7."), ("drop", "It is 7.")]
)
def test_best_against_worst(keep, text):
    found = preferences(rows(MIDDLE, WORST, BEST), keep)
    assert found.features == FEATURES
    [row] = found
    assert (row["prompt"], row["chosen"]) == (USER, [{"role": "assistant", "content": text}])
    assert row["rejected"] == [{"role": "assistant", "content": "It is 8."}]
    assert (row["chosen_teacher"], row["rejected_teacher"]) == ("a", "c")
    assert row["margin"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("responses", "pair"),
    [
        ([BEST], None),
        ([BEST, response("d", "7.", 0.9)], None),  # as good
        ([MIDDLE, response("d", "7", 0.1)], None),  # the same text
        ([MIDDLE, response("d", "", None)], None),  # failed
        ([MIDDLE, response("d", "", 0.1, "length", "3 and")], None),  # its thought was cut off
        ([response("d", "It is", 0.9, "length"), MIDDLE, WORST], ("b", "c")),
        ([MIDDLE, response("d", "It is", 0.1, "length")], ("b", "d")),
        ([response("d", "It is", 0.9, "length")], None),
    ],
)
def test_what_is_compared(responses, pair):
    found = preferences(rows(*responses))
    teachers = [(row["chosen_teacher"], row["rejected_teacher"]) for row in found]
    assert teachers == ([pair] if pair else [])


def test_trl_reads_it(chat_model, tmp_path):
    """A step of `DPOTrainer`: it sees prompt, chosen and rejected as they are."""
    trl = pytest.importorskip("trl")
    settings = trl.DPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=1,
        max_steps=1,
        report_to=[],
        bf16=False,
        use_cpu=True,
        max_length=128,
    )
    data = preferences(rows(MIDDLE, WORST, BEST))
    trainer = trl.DPOTrainer(chat_model, args=settings, train_dataset=data)
    [row] = trainer.train_dataset
    decoded = {
        key: trainer.processing_class.decode(row[f"{key}_ids"])
        for key in ("prompt", "chosen", "rejected")
    }
    assert "3 plus 4?" in decoded["prompt"]
    assert "3 and 4" in decoded["chosen"] and "It is 8." in decoded["rejected"]
    assert trainer.train().training_loss > 0
