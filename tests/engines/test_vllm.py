"""The vllm engine: first our side of it, with a stand-in for vllm; then the whole, with the real
one.
"""

import os

import pytest
from local_teacher import by_id, requests_of

from persyn_datasets import InputError, Sampling, Teacher
from persyn_datasets.config.teacher import Price
from persyn_datasets.engines import vllm as engine
from persyn_datasets.engines.account import Account

STAND_IN = """
import os, sys, time
from types import SimpleNamespace as SamplingParams

class LLM:
    def __init__(self, **arguments):
        with open(os.environ["LOADS"], "a") as file:
            print(arguments["model"], os.getpid(), file=file)
        if arguments.get("gpu_memory_utilization") == 0.1:
            print("(EngineCore pid=1) WARNING 1 [a.py:1] ImportError: never mind")
            print("(EngineCore pid=1) ERROR 2 [b.py:1] ValueError: no memory", flush=True)
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        self.model_config, self.llm_engine, self.rows = SamplingParams(max_model_len=200), self, []

    def add_request(self, request_id, ids, parameters):
        if 107 in ids:
            raise ValueError("a token out of the vocabulary")
        self.rows.append((request_id, ids, parameters))

    def has_unfinished_requests(self):
        return bool(self.rows)

    def step(self):
        time.sleep(0.02)
        request_id, ids, parameters = self.rows.pop()
        if parameters.max_tokens == 13:
            os.kill(os.getpid(), 9)
        text = "" if parameters.max_tokens == 1 else f"{parameters.seed}"
        tokens = [1] * parameters.max_tokens
        out = SamplingParams(text=text, finish_reason="stop", token_ids=tokens)
        done = {"request_id": request_id, "prompt_token_ids": ids, "outputs": [out]}
        return [SamplingParams(finished=True, **done)]
"""


@pytest.fixture
def loads(tmp_path, monkeypatch):
    """Puts the stand-in in vllm's place; returns the (model, process id) of the children that were
    started.
    """
    package = tmp_path / "stand-in" / "vllm"
    (package / "engine").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "inputs.py").write_text("tokens_input = list\n")
    (package / "sampling_params.py").write_text("class RequestOutputKind:\n    FINAL_ONLY = 2\n")
    fields = "max_model_len: int = 1\n    gpu_memory_utilization: float = 0.9\n    model: str = ''"
    (package / "engine" / "arg_utils.py").write_text(
        f"from dataclasses import dataclass\n@dataclass\nclass EngineArgs:\n    {fields}\n"
    )
    monkeypatch.setenv(
        "PYTHONPATH", f"{package.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    monkeypatch.setenv("LOADS", str(tmp_path / "loads"))
    monkeypatch.syspath_prepend(package.parent)
    engine._engine_arguments.cache_clear()
    (tmp_path / "loads").touch()
    yield lambda: [tuple(line.split()) for line in (tmp_path / "loads").read_text().splitlines()]
    engine._engine_arguments.cache_clear()


def prompts(n):
    return {f"id{i}": [{"role": "user", "content": "a" * (i % 7 + 1)}] for i in range(n)}


def gone(process_id):
    try:
        os.killpg(int(process_id), 0)
    except ProcessLookupError:
        return True
    return False


def test_teachers_that_share_weights_and_arguments_share_a_load(chat_model, base_model, loads):
    teachers = [
        Teacher(chat_model, name="a", engine="vllm", engine_args={"max_model_len": 150}),
        Teacher(base_model, name="b", engine="vllm"),
        Teacher(
            chat_model,
            name="c",
            engine="vllm",
            engine_args={"max_model_len": 150},
            system_prompt="the",
        ),
    ]
    requests = [r for t in teachers for r in requests_of(t, prompts(4))]
    found = by_id(requests, engine.generate(requests, Account()))
    assert {r["error"] for r in found.values()} == {""} and len(found) == 12
    assert {found[key]["teacher"] for key in found if key[0] == "c"} == {"c"}
    assert [model for model, _ in loads()] == [chat_model, base_model]
    assert all(gone(process) for _, process in loads())


def test_a_row_fails_alone_and_without_a_valid_row_nothing_is_loaded(chat_model, loads):
    teacher = Teacher(chat_model, name="t", engine="vllm", engine_args={"max_model_len": 100})
    bad = {
        "refused": [{"role": "user", "content": "refuse me"}],
        "long": [{"role": "user", "content": "b " * 300}],
    }
    requests = requests_of(teacher, bad)
    found = by_id(requests, engine.generate(requests, Account()))
    assert (
        "the model's chat template refuses the prompt: no system" in found["t", "refused"]["error"]
    )
    assert "the prompt has 625 tokens, the model's context 100" in found["t", "long"]["error"]
    assert not loads()
    requests = requests_of(Teacher(chat_model, name="t", engine="vllm"), bad | prompts(2))
    found = by_id(requests, engine.generate(requests, Account()))
    assert [r["error"] for r in found.values()].count("") == 2
    assert (
        "the prompt has 625 tokens, the model's context 200" in found["t", "long"]["error"]
    )  # says the child


def test_what_vllm_refuses_and_what_is_empty(chat_model, loads, monkeypatch):
    ids = {"odd": [1, 107], "even": [1, 2]}
    monkeypatch.setattr(
        engine.models, "prompt_ids", lambda _, messages, switches: ids[messages[0]["content"]]
    )
    messages = {key: [{"role": "user", "content": key}] for key in ids}
    requests = requests_of(
        Teacher(chat_model, name="t", engine="vllm", sampling=Sampling(max_tokens=1)), messages
    )
    found = by_id(requests, engine.generate(requests, Account()))
    assert found["t", "odd"]["error"] == "a token out of the vocabulary"
    assert found["t", "odd"]["finish_reason"] == "error"
    assert (found["t", "even"]["error"], found["t", "even"]["finish_reason"]) == (
        "empty response",
        "stop",
    )
    assert (found["t", "even"]["prompt_tokens"], found["t", "even"]["completion_tokens"]) == (2, 1)


def test_more_rows_than_are_in_flight_and_a_seed_for_each_prompt(chat_model, loads, monkeypatch):
    monkeypatch.setattr(engine, "IN_FLIGHT", 3)
    requests = requests_of(Teacher(chat_model, name="t", engine="vllm"), prompts(20))
    found = by_id(requests, engine.generate(requests, Account()))
    assert len({r["text"] for r in found.values()}) == 20
    assert found == by_id(requests, engine.generate(requests, Account()))


def test_a_child_that_cannot_load_or_dies_fails_the_rows_that_it_owes(
    chat_model, loads, monkeypatch, caplog
):
    teacher = Teacher(
        chat_model, name="t", engine="vllm", engine_args={"gpu_memory_utilization": 0.1}
    )
    requests = requests_of(teacher, prompts(5))
    refused = requests_of(teacher, {"refused": [{"role": "user", "content": "refuse me"}]})
    found = by_id(requests + refused, engine.generate(requests + refused, Account()))
    assert "refuses the prompt" in found.pop(("t", "refused"))["error"]
    assert {r["error"][:44] for r in found.values()} == {
        "the vLLM process died: ValueError: no memory"
    }
    assert len(found) == 5 and "RuntimeError: Engine core initialization failed" in caplog.text

    monkeypatch.setattr(engine, "IN_FLIGHT", 1)
    deadly = Teacher(
        chat_model, name="u", engine="vllm", sampling=Sampling(max_tokens=13)
    )  # after the good one's rows
    requests = requests_of(Teacher(chat_model, name="t", engine="vllm"), prompts(3)) + requests_of(
        deadly, prompts(3)
    )
    found = by_id(requests, engine.generate(requests, Account()))
    assert {r["error"] for (teacher, _), r in found.items() if teacher == "t"} == {""}
    [error] = {r["error"] for (teacher, _), r in found.items() if teacher == "u"}
    assert "SIGKILL" in error and len(found) == 6
    assert all(gone(process) for _, process in loads())


def test_it_stops_when_the_account_is_closed_or_refuses(chat_model, loads, monkeypatch):
    requests = requests_of(Teacher(chat_model, name="t", engine="vllm"), prompts(100))
    account = Account()
    answers = engine.generate(requests, account)
    next(answers)
    account.closed.set()
    assert len(list(answers)) < 60
    assert gone(loads()[0][1])

    sampling, price = Sampling(max_tokens=10), Price(input=0, output=1e6)
    priced = Teacher(chat_model, name="p", engine="vllm", sampling=sampling, price=price)
    requests, account, count = requests_of(priced, prompts(10)), Account(max_cost=40), 0
    for i, response in engine.generate(requests, account):
        account.settle(requests[i], response)
        count += 1
    assert count == 4 and account.spent == 40
    refused = requests_of(priced, {"refused": [{"role": "user", "content": "refuse me"}]})
    assert [i for i, _ in engine.generate(refused + requests, account)] == [
        0
    ]  # a failure that costs nothing is reported


def test_check(chat_model, loads, monkeypatch, tmp_path):
    def teacher(model=chat_model, **changes):
        return Teacher(model, name="t", engine="vllm", **changes)

    engine.check(teacher(engine_args={"max_model_len": 100}))
    with pytest.raises(
        InputError,
        match="'t': .*'max_length'.*'max_model_len'",
    ):
        engine.check(teacher(engine_args={"max_length": 100}))
    with pytest.raises(InputError, match="'t': .*'trust_remote_code'"):
        engine.check(teacher(engine_args={"trust_remote_code": True}))
    with pytest.raises(InputError, match=f"'t'.*'{tmp_path}/none'"):
        engine.check(teacher(f"{tmp_path}/none"))
    with pytest.raises(InputError, match="chat template"):
        engine.check(teacher(system_prompt="refuse me"))
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'t'.*persyn-datasets\[vllm\]"):
        engine.check(teacher())
