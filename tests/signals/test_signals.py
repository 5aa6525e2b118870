"""A quality signal is one file."""

import sys

import pytest

from persyn_datasets import InputError, Score, signals

MINE = '''
"""Shorter is better."""
from persyn_datasets.signals import Facts

FACTS = Facts(keys=("short_answers", "per"), columns=("limit",))

def score(rows, columns, per=1):
    calls.append(len(rows))
    return [limit - len(text) / per for (_, text), limit in zip(rows, columns["limit"])]

def check(spec, prompts):
    checked.append(spec)

calls, checked = [], []
'''.replace("per=1", "short_answers=None, per=1")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "short_answers.py").write_text(MINE)
    monkeypatch.setattr(signals, "__path__", [*signals.__path__, str(tmp_path)])
    yield
    sys.modules.pop("persyn_datasets.signals.short_answers", None)


def test_a_signal_of_its_own_is_one_file(mine, chat_model):
    response = {"text": "four", "finish_reason": "length", "error": ""}
    batch = {
        "messages": [[{"role": "user", "content": "2 + 2?"}]],
        "limit": [10.0],
        "responses": [[response]],
    }
    for quality, value in (("short_answers", 6.0), ({"short_answers": 1, "per": 2}, 8.0)):
        [[scored]] = Score(chat_model, quality)(batch)["responses"]
        assert scored["quality"] == value
        Score(chat_model, quality)(batch)
        signals.check(quality, None)
    module, _ = signals.signal_of("short_answers")
    assert module.calls == [1, 1]  # the second time from the journal
    assert module.checked == [{}, {"short_answers": 1, "per": 2}]
    assert "short_answers" in signals.names()
    [[other]] = Score(chat_model, "short_answers")(batch | {"limit": [5.0]})["responses"]
    assert other["quality"] == 1.0


def test_names_and_keys_that_nothing_answers_to():
    assert set(signals.names()) >= {"math-verify", "reward_model"}
    assert not {"answers", "quantities", "expressions", "learnability"} & set(signals.names())
    for quality, reason in (
        ({"model": "r"}, "expected the key 'reward_model'"),
        ({"reward_model": "r", "revison": "main"}, "no key 'revison'.*Did you mean 'revision'"),
        ("maths", "'maths' is not 'math-verify'"),
        ("learnability", "'learnability' is not"),
        ("math_verify", "'math_verify' is not"),
    ):
        with pytest.raises(InputError, match=reason):
            signals.signal_of(quality)
