"""The study's instruments: a router finds what can be read and nothing else; signals by hand."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from studies.gsm8k_student import analyse, common, routing


@pytest.mark.parametrize("router", routing.ROUTERS)
def test_a_router_finds_what_the_question_says_and_nothing_in_noise(router):
    draw = np.random.default_rng(0)
    x, noise = draw.normal(size=(240, 30)) * 0.3, draw.normal(size=(240, 8)) * 0.065
    said = x @ draw.normal(size=(30, 8))
    found = routing.judged(router, x, noise + 0.03 * said / said.std())
    assert found["against shares"]["low"] > 0 and found["against single"]["low"] > 0
    assert found["oracle"] > found["routed"] > found["shares"]
    nothing = routing.judged(router, x, noise)
    assert nothing["against shares"]["low"] < 0 < nothing["against shares"]["high"] + 1e-9


def test_shares_are_dealt_among_the_other_questions_of_the_fold():
    rewards = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    values = routing._values(rewards, np.array([0, 1, 0]), best=1)
    assert values["routed"].tolist() == [1, 1, 1] and values["single"].tolist() == [0, 1, 0]
    assert values["shares"].tolist() == [0.5, 0, 0.5]


def test_what_is_kept_of_a_token_is_what_plain_logits_say(chat_model):
    model = AutoModelForCausalLM.from_pretrained(chat_model).eval()
    rows = [([1, 7, 9], [11, 12, 13]), ([1, 7, 9], []), ([1, 5], [20])]
    kept = common.token_log_probs(model, rows)
    assert len(kept[1]["log_prob"]) == 0
    for (prompt, response), row in zip(rows[::2], kept[::2], strict=True):
        with torch.no_grad():
            p = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].softmax(-1)
        own = p[range(len(response)), response]
        assert row["log_prob"] == pytest.approx(own.log().numpy(), abs=1e-4)
        assert row["collision"] == pytest.approx((p * p).sum(-1).numpy(), abs=1e-4)
        assert row["rank"].tolist() == ((p > own[:, None]).sum(-1) + 1).tolist()


def test_signals_by_hand():
    """Two teachers, one question; LARK's ĝ as its paper writes it, over the whole vocabulary."""
    log_prob = [np.log([0.5, 0.25]), np.log([0.1])]
    collision = [np.array([0.4, 0.3]), np.array([0.2])]
    found = {
        "log_prob": [log_prob],
        "after": [[log_prob[0] + 0.1, log_prob[1] - 0.2]],
        "rank": [[np.array([1, 300]), np.array([7])]],
        "collision": [collision],
    }
    of = analyse.signals(found)
    assert of["target"][0] == pytest.approx([0.1, -0.2])
    assert of["target, sum"][0] == pytest.approx([0.2, -0.2])
    assert of["rsr"][0] == pytest.approx([101 / np.log(0.125), 7 / np.log(0.1)])
    loss = np.array([-np.log(0.125) / 2, -np.log(0.1)])
    ratio = np.array([(2 - 1.5 + 0.7) / 2, 1 - 0.2 + 0.2]) / loss
    lark = loss / loss.sum() * (2 * ratio - (ratio * loss).sum() / loss.sum())
    assert of["lark"][0] == pytest.approx(lark)


def test_training_lowers_the_loss_of_what_it_is_trained_on(chat_model):
    rows = [([1, 7, 9], [11, 12, 13, 14]), ([1, 8], [11, 12, 13])] * 4
    before = common.judged(AutoModelForCausalLM.from_pretrained(chat_model).eval(), rows)
    after = common.judged(common.fine_tuned(chat_model, rows, steps=5, seed=0, rate=5e-3), rows)
    assert (after > before + 0.5).all()
