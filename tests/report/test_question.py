import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_dataset
from scipy.stats import spearmanr

from persyn_datasets import Score
from persyn_datasets.data.schema import RESPONSE
from persyn_datasets.report.question import NOTHING, PROMPTS, order_left, without_question

EMPTY = dict.fromkeys(RESPONSE) | {"teacher": "a", "text": "", "error": ""}


def rows(learnability):
    return Dataset.from_list(
        [
            {
                "prompt_id": str(i),
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": f"What is {i}?"},
                ],
                "responses": [EMPTY | {"learnability": x, "reward": 0.5} for x in row],
            }
            for i, row in enumerate(learnability)
        ]
    )


def test_only_the_last_turn_of_some_prompts_is_replaced():
    blank = without_question(rows([[-1.0, -2.0]] * (PROMPTS + 4)))
    assert len(blank) == PROMPTS
    assert [m["content"] for m in blank[3]["messages"]] == ["Be brief.", NOTHING]
    assert set(blank[0]["responses"][0]) == set(RESPONSE)


def test_the_order_that_is_left_is_the_mean_rank_correlation_within_prompts():
    draw = np.random.default_rng(0)
    asked, unasked = draw.normal(size=(2, 6, 5))
    places = (np.argsort(np.argsort(values)) for values in (asked, unasked))
    # 1 − 6 Σ d² / (n (n² − 1)), where no two are equal
    expected = np.mean([1 - ((a - b) ** 2).sum() / 20 for a, b in zip(*places, strict=True)])
    assert order_left(rows(asked), rows(unasked)) == pytest.approx(expected)


def test_a_prompt_in_several_rows_is_one_prompt():
    once = rows(np.random.default_rng(1).normal(size=(5, 4)))
    again = concatenate_datasets([once.select([0]), once])
    assert without_question(again)["prompt_id"][:] == ["0", "1", "2", "3", "4"]
    blank = rows(np.random.default_rng(2).normal(size=(5, 4)))
    assert order_left(again, blank) == order_left(once, blank)


def test_answers_without_a_score_and_prompts_without_an_order_do_not_count():
    asked = rows([[-1.0, None, -3.0, -2.0], [-1.0, -1.0, -1.0, -1.0]])
    unasked = rows([[-5.0, -1.0, -4.0, None], [-1.0, -2.0, -3.0, -4.0]])
    assert order_left(asked, unasked) == pytest.approx(-1.0)
    assert order_left(rows([[-1.0, None]]), rows([[-1.0, -2.0]])) is None


def test_a_build_scores_the_same_answers_without_their_question(done, chat_model):
    calibration = load_dataset(str(done.folder), "calibration", split="train+test")
    assert len(calibration) == PROMPTS
    expected = []
    for row in calibration:
        asked = row["messages"]
        silent = [*asked[:-1], {"role": "user", "content": NOTHING}]
        texts = [r["text"] for r in row["responses"]]
        found = Score(chat_model, None).of_student([(silent, text) for text in texts])
        before = [r["learnability"] for r in row["responses"]]
        expected.append(spearmanr(before, [f["learnability"] for f in found]).statistic)
    found = done.stats["luck"]["without_question"]
    assert found == pytest.approx(np.nanmean(expected), abs=1e-6)
