from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from persyn_datasets import Rank
from persyn_datasets.config.reward import Reward
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.report.ablations import analyse, thirds
from persyn_datasets.router.regression import fit_rewards

NAMES = ["ann", "bob", "cleo"]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
QUALITY = X[:, :3] + 0.3 * RNG.normal(size=(300, 3))  # the first three features say who is right
LEARNABILITY = -2 + 0.1 * X[:, [3, 3, 3]] * [
    1,
    0,
    -1,
]  # the fourth says whom the student reads well


def rows():
    def response(i, t):
        return {
            "teacher": NAMES[t],
            "text": "x" * (10 * t + i),
            "error": "",
            "quality": QUALITY[i, t],
            "learnability": LEARNABILITY[i, t],
            "rsr": 1.0,
        }

    made = [
        {
            "prompt_id": f"p{i}",
            "messages": [{"role": "user", "content": str(i)}],
            "responses": [response(i, t) for t in range(3)],
        }
        for i in range(300)
    ]
    return Dataset.from_list(made).map(Rank(), batched=True, batch_size=None)


@pytest.fixture(scope="module")
def done():
    return analysed(train=250)


def analysed(train):
    ranked = rows().select(range(train + 50))
    router = SimpleNamespace(
        names=NAMES, read=lambda prompts: (None, X[[int(m[0]["content"]) for m in prompts]])
    )
    chosen = [NAMES[i % 3] for i in range(train + 50)]
    routed = Dataset.from_list(
        [{"prompt_id": f"p{i}", "teacher": t} for i, t in reversed(list(enumerate(chosen)))]
    )
    calibration = DatasetDict(
        train=ranked.select(range(train)), test=ranked.select(range(train, train + 50))
    )
    return analyse(router, calibration, routed, Reward()), ranked, chosen


def test_the_confusion_by_counting(done):
    analysis, ranked, chosen = done
    counts = Counter(zip(chosen[250:], ranked["best_teacher"][250:], strict=True))
    assert analysis["confusion"] == [[counts[a, b] for b in NAMES] for a in NAMES]
    assert sum(map(sum, analysis["confusion"])) == 50


def test_difficulty_and_length_by_hand(done):
    analysis, _, chosen = done
    mean = QUALITY.mean(-1)
    hardest = np.argsort(mean)[:100]
    first = analysis["difficulty"][0]
    assert (first["prompts"], first["routed"]) == (
        100,
        dict(Counter(chosen[i] for i in hardest).most_common()),
    )
    assert (first["from"], first["to"]) == pytest.approx((mean.min(), np.sort(mean)[99]))
    longest = analysis["length"][2]
    assert (longest["from"], longest["to"]) == (200 + 10, 299 + 10) and sum(
        longest["routed"].values()
    ) == 100


def test_the_curve_is_that_of_heads_fitted_to_the_first_prompts(done):
    analysis, ranked, _ = done
    assert [row["prompts"] for row in analysis["by_size"]] == [31, 62, 125, 250]
    for row in analysis["by_size"][:2]:
        first = ranked.select(range(row["prompts"]))
        head = fit_rewards(X[: row["prompts"]], rewards_of(first, NAMES))
        choices = head(X[250:]).argmax(-1)
        right = [
            NAMES[i] == best for i, best in zip(choices, ranked["best_teacher"][250:], strict=True)
        ]
        assert row["hit@1"] == pytest.approx(np.mean(right)) and row["hit@3"] == 1
        assert row["quality"] == pytest.approx(QUALITY[250:][np.arange(50), choices].mean())


def test_alpha_moves_the_choice_from_quality_to_learnability(done):
    quality, learnability = zip(
        *((row["quality"], row["learnability"]) for row in done[0]["by_alpha"]), strict=True
    )
    assert (
        quality[0] == max(quality) > quality[-1] + 0.5
        and learnability[-1] == max(learnability) > learnability[0]
    )
    best = (
        LEARNABILITY[250:].max(-1).mean()
    )  # at α = 1 nothing else counts, and the feature says it all
    assert learnability[-1] == pytest.approx(best, abs=0.005)
    recipe = next(row for row in done[0]["by_alpha"] if row["alpha"] == 0.4)
    assert recipe == {"alpha": 0.4} | {
        k: v for k, v in done[0]["by_size"][-1].items() if k != "prompts"
    }


def test_too_few_to_halve():
    assert [row["prompts"] for row in analysed(train=40)[0]["by_size"]] == [20, 40]
    analysis = analysed(train=39)[0]
    assert (analysis["by_size"], analysis["by_alpha"]) == ([], []) and analysis["confusion"]


def test_thirds_of_few_and_of_unknown():
    parts = thirds(np.array([3.0, np.nan, 1.0]), ["a", "b", "c"])
    assert [(p["from"], p["prompts"], p["routed"]) for p in parts] == [
        (1.0, 1, {"c": 1}),
        (3.0, 1, {"a": 1}),
    ]
