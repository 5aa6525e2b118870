"""A reward model behind a server: one that follows vLLM's protocol for `/classify`
(docs.vllm.ai, "Classification Usages"), and vLLM itself."""

import sys
from importlib.util import find_spec

import pytest
from chat_server import ChatServer
from conftest import save_model
from datasets import Dataset
from real_server import server as real_server

from persyn_datasets import BuildError, InputError, Score, signals
from persyn_datasets.signals import reward_server

ASKED = [{"role": "user", "content": "2 + 2?"}]
PROMPTS = Dataset.from_list([{"messages": ASKED}])


def outputs(*values):
    """The body of vLLM's answer for one conversation."""
    data = {"index": 0, "label": "LABEL_0", "probs": list(values), "num_classes": len(values)}
    usage = {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0}
    return {"id": "classify-1", "object": "list", "model": "rm", "data": [data], "usage": usage}


def length(body, nth):
    return 200, {}, outputs(float(len(body["messages"][-1]["content"])))


def classify(reply=length):
    return ChatServer(reply, models=["rm"], route="/classify")


def of(server, **more):
    return {"reward_model": "rm", "base_url": server.url} | more


def batch(*texts):
    responses = [{"text": text, "finish_reason": "stop", "error": ""} for text in texts]
    return {"messages": [ASKED], "responses": [responses]}


def test_scores_and_the_journal():
    with classify() as server:
        signals.check(of(server), PROMPTS)
        before = server.count
        score = Score(None, of(server))
        [row] = score(batch("four", "It is 4."))["responses"]
        assert [r["quality"] for r in row] == [4, 8]
        score(batch("four", "It is 4."))
        assert server.count == before + 2
        body = server.bodies[-1]
        assert body["use_activation"] is False and body["add_generation_prompt"] is False
        assert [m["role"] for m in body["messages"]] == ["user", "assistant"]


def test_it_is_tried_again(monkeypatch):
    monkeypatch.setattr(reward_server, "BACKOFF_SECONDS", 0.01)
    with classify(lambda body, nth: length(body, nth) if nth > 2 else (503, {}, "")) as server:
        assert reward_server.score([ASKED], "rm", server.url, None) == [6]
    with (
        classify(lambda body, nth: (500, {}, {"error": "on fire"})) as server,
        pytest.raises(BuildError, match=r"does not answer \(HTTP 500: on fire\)"),
    ):
        reward_server.score([ASKED], "rm", server.url, None)


def test_a_conversation_that_is_refused_has_no_reward():
    def reply(body, nth):
        if len(body["messages"][-1]["content"]) > 10:
            return 400, {}, {"error": {"message": "longer than the context"}}
        return length(body, nth)

    with classify(reply) as server:
        [row] = Score(None, of(server))(batch("four", "x" * 11))["responses"]
        assert [r["quality"] for r in row] == [4, None]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, {}, outputs(0.5, 0.5)), "has 2 labels; a reward model has one"),
        ((200, {}, {"scores": [1]}), "does not answer as vLLM's /classify does"),
        ((404, {}, {"detail": "Not Found"}), "answers HTTP 404: Not Found"),
        ((400, {}, {"error": "no chat template"}), "refuses every conversation.*no chat template"),
    ],
)
def test_other_servers_are_refused_at_the_start(reply, said):
    with classify(lambda body, nth: reply) as server, pytest.raises(InputError, match=said):
        signals.check(of(server), PROMPTS)


def test_names_and_keys(monkeypatch):
    with classify() as server:
        with pytest.raises(InputError, match="has no model 'other'; it has rm"):
            signals.check(of(server, reward_model="other"), PROMPTS)
        monkeypatch.setenv("RM_KEY", "sk-secret")
        signals.check(of(server, api_key_env="RM_KEY"), PROMPTS)
        assert server.headers[-1]["authorization"] == "Bearer sk-secret"
        monkeypatch.delenv("RM_KEY")
        with pytest.raises(InputError, match="RM_KEY is not set"):
            reward_server.score([ASKED], "rm", server.url, "RM_KEY")


HEADS = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("vllm"), reason="`make test-vllm` brings its own vllm")
def test_vllm_scores_as_we_do(tmp_path):
    model = save_model(tmp_path / "rm", head="SequenceClassification", num_labels=1, **HEADS)
    texts = ["four", "It is 4.", "I do not know."]
    [here] = Score(None, {"reward_model": model})(batch(*texts))["responses"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    command += ["--served-model-name", "rm"]
    with real_server(tmp_path / "log", *command) as base_url:
        spec = {"reward_model": "rm", "base_url": base_url}
        signals.check(spec, PROMPTS)
        [there] = Score(None, spec)(batch(*texts))["responses"]
    expected = [r["quality"] for r in here]
    assert [r["quality"] for r in there] == pytest.approx(expected, abs=1e-3)
    assert max(expected) - min(expected) > 0.01
