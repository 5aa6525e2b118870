import numpy as np
import pytest
from datasets import Dataset
from scipy.optimize import minimize

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


def test_bold_answers_are_seen_within_prompts_only():
    """The likelier of two answers is bold on every prompt, whatever the prompt."""
    quality = np.tile([1.0, 0.0, 0.0], (50, 1))
    learnability = np.arange(50)[:, None] + np.array([-1.0, 1.0, -1.0])
    table = ranked(quality, learnability, quality)
    bold = {"a": "plain ** as ** can be", "b": "so **it** is", "c": "none"}
    table = table.map(
        lambda row: {"responses": [r | {"text": bold[r["teacher"]]} for r in row["responses"]]}
    )
    found = luck(table, NAMES, Reward(alpha=0.0, normalize="none"))
    assert found["with_bold"] == pytest.approx(1.0)
    assert found["bold"] == {"all": pytest.approx(1 / 3), "best": 0.0}
    assert "+1.00: 33%" in in_words(found)
    plain = luck(ranked(quality, learnability, quality), NAMES, Reward(0.0, "none"))
    assert plain["with_bold"] is None and isinstance(in_words(plain), str)


def test_who_wins_most_is_bradley_terrys_first_and_need_not_have_the_largest_mean():
    """Against the strengths of most likelihood: a often wins a little, b now and then much."""
    rng = np.random.default_rng(0)
    quality = rng.random((200, 3)) * [0.1, 0.1, 0.2] + [0.5, 0.0, 0.3]
    quality[::4, 1] = 1.0 + rng.random(50) * 5

    def loss(strength):
        apart = strength[None, :] - strength[:, None]  # [j, i]: i over j
        wins = (quality[:, None, :] > quality[:, :, None]).sum(0)
        return (wins * np.log1p(np.exp(-apart))).sum() + 1e-6 * (strength**2).sum()

    first = NAMES[int(minimize(loss, np.zeros(3)).x.argmax())]
    found = luck(ranked(quality, quality, quality), NAMES, Reward(alpha=0.0, normalize="none"))
    assert (found["most_wins"], found["largest_mean"]) == (first, "b") and first == "a"
    assert "Bradley–Terry" in in_words(found)
    same = luck(ranked(quality[:, :1] * [[1, 2, 3]], quality, quality), NAMES, Reward(0.0, "none"))
    assert same["most_wins"] == same["largest_mean"] == "c"
    assert "Bradley–Terry" not in in_words(same)
