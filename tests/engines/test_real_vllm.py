import json
import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import save_model
from local_teacher import PROMPTS, by_id, requests_of
from transformers import AutoTokenizer

from persyn_datasets import Sampling, Teacher
from persyn_datasets.engines import transformers
from persyn_datasets.engines import vllm as engine
from persyn_datasets.engines.account import Account
from persyn_datasets.store.models import load_tokenizer, prompt_ids

needs_vllm = pytest.mark.skipif(
    not find_spec("vllm"), reason="vllm is not installed: `make test-vllm` brings its own"
)


SMALL = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 64}


WHOLE_CONTEXT = 2048


@pytest.fixture(scope="module")
def real_model(models_folder):
    """With heads of 64, which vLLM can do on a CPU; ships sampling defaults, and several end tokens
    as Llama 3 does.
    """
    heads = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    model = Path(save_model(models_folder / "heads-of-64", **heads))
    shipped = {
        "temperature": 0.3,
        "top_k": 1,
        "repetition_penalty": 1.7,
        "eos_token_id": [2, *range(60, 64)],
    }
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | shipped))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    return str(model)


def real(model, name, **sampling):
    sampling = Sampling(**({"max_tokens": 24} | sampling))
    return Teacher(model, name=name, engine="vllm", engine_args=SMALL, sampling=sampling)


@pytest.fixture(scope="module")
def answered(real_model):
    """Several teachers on one model, hence one child: (requests, what came of them)."""
    teachers = [
        real(real_model, "greedy", temperature=0),
        real(real_model, "whole", temperature=1.0, max_tokens=WHOLE_CONTEXT),
        *(real(real_model, name, temperature=1.0) for name in ("one", "two")),
        real(real_model, "other-seed", temperature=1.0, seed=1),
    ]
    long = {
        "long": [{"role": "user", "content": "b " * 600}],
        "bad": [{"role": "user", "content": "refuse me"}],
    }
    requests = [
        r for t in teachers for r in requests_of(t, PROMPTS | (long if t.name == "greedy" else {}))
    ]
    return by_id(requests, engine.generate(requests, Account()))


@needs_vllm
def test_greedy_is_the_transformers_engines(real_model, answered):
    engine.check(real(real_model, "greedy"))
    teacher = Teacher(real_model, name="greedy", sampling=Sampling(0, max_tokens=24))
    requests = requests_of(teacher, PROMPTS)
    expected = by_id(requests, transformers.generate(requests, Account()))
    assert {key: answered[key] for key in expected} == expected
    assert {r["finish_reason"] for r in expected.values()} == {"stop", "length"}


@needs_vllm
def test_a_prompt_has_one_bos_and_rows_fail_alone(real_model, answered):
    tokenizer = load_tokenizer(real_model)
    for key, messages in PROMPTS.items():
        ids = prompt_ids(tokenizer, messages)
        assert answered["greedy", key]["prompt_tokens"] == len(ids) and ids.count(1) == 1
    assert (
        "the prompt has 1225 tokens, the model's context 512" in answered["greedy", "long"]["error"]
    )
    assert "refuses the prompt" in answered["greedy", "bad"]["error"]


@needs_vllm
def test_max_tokens_ends_at_the_context(answered):
    rows = [r for (teacher, _), r in answered.items() if teacher == "whole"]
    assert all(
        r["completion_tokens"] + r["prompt_tokens"] == 512
        for r in rows
        if r["finish_reason"] == "length"
    )
    assert not any(r["error"] for r in rows)
    ended = [
        r
        for (teacher, _), r in answered.items()
        if teacher in ("one", "two") and r["finish_reason"] == "length"
    ]
    assert all(r["completion_tokens"] == 24 for r in ended)


@needs_vllm
def test_the_sample_depends_on_seed_and_prompt_alone(real_model, answered):
    texts = {
        name: [answered[name, key]["text"] for key in PROMPTS]
        for name in ("one", "two", "other-seed", "greedy")
    }
    assert texts["one"] == texts["two"] != texts["other-seed"]
    assert texts["one"] != texts["greedy"]  # the shipped top_k is not in force
    # Another process, other company; and a stop string, which the free text holds.
    free = texts["one"][2]
    requests = requests_of(real(real_model, "one", temperature=1.0), {"id2": PROMPTS["id2"]})
    requests += requests_of(
        real(real_model, "stops", temperature=1.0, stop=(free[6:8], "never this")), PROMPTS
    )
    found = by_id(requests, engine.generate(requests, Account()))
    assert found["one", "id2"] == answered["one", "id2"]
    assert found["stops", "id2"]["text"] == free.partition(free[6:8])[0].strip()
    assert found["stops", "id2"]["finish_reason"] == "stop"
    assert found["stops", "id2"]["completion_tokens"] < answered["one", "id2"]["completion_tokens"]


def processes(group):
    """The ids and names of the living processes of a group."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, its_group = fields.split()[:3]
        if int(its_group) == group and state != "Z":
            found[int(stat.parent.name)] = name.partition("(")[2]
    return found


@needs_vllm
@pytest.mark.parametrize("victim", ["the child", "its engine", None])
def test_answers_stream_and_a_child_that_is_killed_or_not_wanted_leaves_nothing(
    real_model, victim, monkeypatch
):
    """The short answers come while the long one is made; then either process is killed, or the
    generator closed.
    """
    started = []
    send = engine._Child.send
    monkeypatch.setattr(
        engine._Child,
        "send",
        lambda child, row: (started.append(child.process.pid), send(child, row)),
    )
    never_ends = Path(real_model).parent / f"never-ends-{victim}"
    save_model(
        never_ends,
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=262_144,  # a quarter of an hour of tokens: it cannot be done before
        eos_token_id=None,
    )
    tokenizer = AutoTokenizer.from_pretrained(never_ends)
    tokenizer.eos_token = None  # vLLM ends at the tokenizer's end token too
    tokenizer.save_pretrained(never_ends)
    long = real(str(never_ends), "long", max_tokens=260_000)
    requests = requests_of(long, {"id9": PROMPTS["id0"]})
    requests += requests_of(real(str(never_ends), "short", max_tokens=2), PROMPTS)
    answers = engine.generate(requests, Account())
    first = [next(answers) for _ in PROMPTS]
    assert {requests[i].teacher.name for i, _ in first} == {"short"}
    child, group = started[0], processes(started[0])
    (core,) = (process for process, name in group.items() if "EngineCor" in name)
    start = time.monotonic()
    if victim is None:
        answers.close()
    else:
        os.kill(child if victim == "the child" else core, signal.SIGKILL)
        ((_, response),) = list(answers)
        assert (response["finish_reason"], response["completion_tokens"]) == ("error", None)
        assert ("by SIGKILL" if victim == "the child" else "killed (exit code -9)") in response[
            "error"
        ]
    assert time.monotonic() - start < 30
    assert not processes(child)
