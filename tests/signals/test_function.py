import json
from functools import partial

import pytest
import torch
from datasets import Dataset

from persyn_datasets import InputError
from persyn_datasets.signals import CALLS, identity
from persyn_datasets.signals import function as signal

ROWS = [([{"role": "user", "content": "the " * i}], "er" * i) for i in range(3)]
COLUMNS = {"answer": ["a", "b", "c"], "level": [1, 2, 3]}


def test_reward_functions_get_what_they_name():
    seen = {}

    def everything(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [1, None, 0.5]

    assert signal.score(ROWS, COLUMNS, everything) == [1.0, None, 0.5]
    assert seen == {
        "prompts": [messages for messages, _ in ROWS],
        "completions": [[{"role": "assistant", "content": text}] for _, text in ROWS],
        **COLUMNS,
    }

    def some(completions, level):
        return torch.tensor(
            [len(c[0]["content"]) + n for c, n in zip(completions, level, strict=True)]
        )

    assert signal.score(ROWS, COLUMNS, some) == [1.0, 4.0, 7.0]
    with pytest.raises(InputError, match="some_few.* 1 .* 3 "):
        signal.score(ROWS, COLUMNS, some_few)


def test_calls_are_in_the_completions():
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 0.9549}}}]
    columns = COLUMNS | {CALLS: [json.dumps(calls), "", json.dumps(calls * 2)]}

    def called(completions, **more):
        assert set(more) == {"prompts", *COLUMNS}
        said = [completion[0].get("tool_calls") for completion in completions]
        assert said == [calls, None, calls * 2]
        return [len(found or []) for found in said]

    assert signal.score(ROWS, columns, called) == [1.0, 0.0, 2.0]


def some_few(prompts, **_):
    return [1.0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.module", "'no.such.module' is not 'math-verify', not {reward_model: …} and not"),
        ("json.no_such", "'json.no_such' is not 'math-verify'"),
        ("maths-verify", "'maths-verify' is not 'math-verify'"),
        ("", "'' is not 'math-verify'"),
        ("string.digits", "'string.digits' is a str; expected a callable"),
    ],
)
def test_dotted_paths(path, message):
    assert signal.resolve("json.dumps") is json.dumps
    with pytest.raises(InputError, match=message):
        signal.resolve(path)


def test_a_column_that_the_prompts_do_not_have_is_missed_at_once():
    def wants(completions, rubric, weight=1.0, **more):
        return [1.0] * len(completions)

    rows = Dataset.from_dict({"prompt_id": ["1"], "rubric": ["r"]})
    signal.check({"function": wants}, rows)
    with pytest.raises(InputError, match="'rubric'.*prompt_id"):
        signal.check({"function": wants}, rows.remove_columns("rubric"))


def test_the_identity_of_a_function_is_what_is_written_in_its_file(tmp_path, monkeypatch):
    file = tmp_path / "rewards_of_mine.py"
    file.write_text("def one(completions):\n    return [1] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = identity("rewards_of_mine.one")
    assert before == identity("rewards_of_mine.one")
    file.write_text("def one(completions):\n    return [2] * len(completions)\n")
    assert identity("rewards_of_mine.one") != before
    assert identity(partial(some_few, [1])) != identity(partial(some_few, [2]))
    written = {}
    exec("def f(completions): return [1]\ndef g(completions): return [2]", written)
    assert identity(written["f"])["source"] != identity(written["g"])["source"]
    assert json.loads(json.dumps(before)) == before
