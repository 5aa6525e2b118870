import numpy as np
import pytest
from datasets import Dataset

from persyn_datasets.config.reward import Reward
from persyn_datasets.report.luck import in_words, luck
from persyn_datasets.stages.rank import Rank

NAMES = ["a", "b", "c"]


def ranked(quality, learnability, length):
    rows = [
        {
            "prompt_id": str(i),
            "responses": [
                {
                    "teacher": name,
                    "quality": float(quality[i, j]),
                    "learnability": float(learnability[i, j]),
                    "rsr": None,
                    "text": "x" * int(length[i, j]),
                    "error": "",
                }
                for j, name in enumerate(NAMES)
            ],
        }
        for i in range(len(quality))
    ]
    return Dataset.from_list(rows).map(Rank(alpha=0.0, normalize="none"), batched=True)


def test_luck_alone_gives_the_lead_of_shuffled_rewards():
    rng = np.random.default_rng(0)
    quality = rng.random((300, 3))
    found = luck(ranked(quality, quality, quality * 9), NAMES, Reward(alpha=0.0, normalize="none"))
    expected = quality.max(1).mean() - quality.mean(0).max()
    assert found["oracle"] == pytest.approx(expected)
    assert found["shuffled"] == pytest.approx(expected, abs=0.02)


def test_a_lead_that_the_prompts_explain_is_more_than_luck():
    kind = np.arange(200) % 2
    quality = np.where(kind[:, None] == 0, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    found = luck(ranked(quality, quality, quality), NAMES, Reward(alpha=0.0, normalize="none"))
    assert found["oracle"] == pytest.approx(0.5)
    assert found["shuffled"] == pytest.approx(0.25, abs=0.03)  # both right, one or none


def test_length_is_seen_within_prompts_only():
    rng = np.random.default_rng(1)
    length = rng.integers(5, 50, (100, 3))
    prompt = rng.normal(size=(100, 1)) * 100  # hard prompts, whatever the length
    learnability = prompt + 0.1 * length
    found = luck(ranked(length, learnability, length), NAMES, Reward(alpha=0.0, normalize="none"))
    assert found["with_length"] == pytest.approx(1.0)
    assert set(found["best_single"].values()) <= set(NAMES)
    assert isinstance(in_words(found), str)
