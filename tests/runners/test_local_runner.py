"""The same results in one process and in one for each device."""

import subprocess
import sys

import multiprocess
import pytest
import torch
from datasets import Dataset, Features
from pool import make_recipe, problems, save, write_lines

from persyn_datasets import (
    BuildError,
    Generate,
    Rank,
    Sampling,
    Score,
    Synthesize,
    Teacher,
    load_prompts,
)
from persyn_datasets.cli import main
from persyn_datasets.config.student import Student
from persyn_datasets.data import schema
from persyn_datasets.runners import local as runner
from persyn_datasets.store import models


def rounded(rows):
    """The student's signals hang a little on how the responses were batched."""
    signals = ("quality", "learnability", "rsr")
    return [
        row | {"responses": [r | {k: round(r[k], 3) for k in signals} for r in row["responses"]]}
        for row in rows
    ]


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": p, "answer": str(a)} for p, a in problems(10)]
    return load_prompts(write_lines(tmp_path / "prompts.jsonl", rows), answer_column="answer")


@pytest.fixture
def teachers(chat_model):
    return [
        Teacher(chat_model, name, system_prompt=name, sampling=Sampling(max_tokens=4))
        for name in ("a", "b")
    ]


@pytest.fixture
def two_gpus(monkeypatch):
    """So many are counted; there are none, and the CPU does the work."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_rank_has_a_device_of_its_own(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    for rank in (None, 0, 1, 2):
        models.use_device(rank)
    assert used == [0, 1, 0]


def test_num_proc_with_rank_gives_the_same_in_order(
    prompts, teachers, chat_model, journal_root, monkeypatch
):
    several = {"batched": True, "batch_size": 2, "num_proc": 2, "with_rank": True}
    answered = prompts.map(
        Generate(teachers), features=Features({**prompts.features, **schema.GENERATED}), **several
    )
    assert (
        len(list((journal_root / "responses").glob("*/*.parquet"))) >= 4
    )  # of both processes, for both teachers
    scored = answered.map(
        Score(chat_model), features=Features({**answered.features, **schema.SCORED}), **several
    ).to_list()
    monkeypatch.setattr(
        "persyn_datasets.engines.transformers.generate", None
    )  # all is in the journal
    assert prompts.map(Generate(teachers), batched=True).to_list() == answered.to_list()
    monkeypatch.setenv("PERSYN_JOURNAL", str(journal_root / "another"))
    alone = answered.map(Score(chat_model), batched=True, batch_size=2).to_list()
    assert rounded(scored) == rounded(alone)


@pytest.mark.slow
def test_a_stage_runs_on_all_gpus_that_are_there(
    prompts, teachers, chat_model, two_gpus, monkeypatch, journal_root
):
    def build():
        ranked = runner.run(prompts, Generate(teachers), schema.GENERATED, batch_size=None)
        ranked = runner.run(ranked, Score(Student(chat_model)), schema.SCORED, batch_size=None)
        routed = ranked.map(lambda row, i: {"teacher": "ab"[i % 3 % 2]}, with_indices=True)
        answered = runner.run(routed, Synthesize(teachers), schema.SYNTHESIZED, batch_size=None)
        return answered.to_list()

    method = multiprocess.get_start_method()
    spread = build()
    assert multiprocess.get_start_method() == method
    assert len(list((journal_root / "responses").glob("*/*.parquet"))) >= 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("PERSYN_JOURNAL", str(journal_root / "another"))
    assert rounded(spread) == rounded(build())


def test_an_unknown_runner_or_one_that_is_not_installed_is_refused(
    chat_model, tmp_path, monkeypatch, capsys
):
    recipe = save(tmp_path, make_recipe(tmp_path, chat_model))
    for arguments in (["build", recipe], ["route", "router", "prompts", "--output", "x"]):
        assert main([*arguments, "--runner", "spark"]) == 1
        assert "runner is 'spark'; expected one of local, ray." in capsys.readouterr().err
    monkeypatch.setattr("persyn_datasets.runners.find_spec", lambda name: None)
    assert main(["build", recipe, "--runner", "ray"]) == 1
    assert 'pip install "persyn-datasets[ray]"' in capsys.readouterr().err


SCRIPT = """
from datasets import Dataset
import torch
torch.cuda.device_count = lambda: 2
with open({log!r}, "a") as log:
    log.write("once ")

def length(prompts, completions):
    return [float(len(c[0]["content"])) for c in completions]

from persyn_datasets import Score
from persyn_datasets.data import schema
from persyn_datasets.runners.local import run

found = {{"teacher": "a", "sample": 0, "finish_reason": "stop", "error": "", "prompt_tokens": None}}
found |= {{"completion_tokens": None}}
rows = Dataset.from_list(
    [{{"prompt": f"{{i}}?", "responses": [found | {{"text": "x" * i}}]}} for i in range(1, 6)]
)
scored = run(rows, Score({model!r}, quality=length), schema.SCORED, batch_size=None)
assert [row["responses"][0]["quality"] for row in scored] == [1, 2, 3, 4, 5]
"""


@pytest.mark.slow
def test_a_users_script_runs_once_guarded_or_not(chat_model, tmp_path):
    """Several GPUs want processes that are started afresh; a reward function of the script works
    there.
    """
    log, script = tmp_path / "log", tmp_path / "script.py"
    script.write_text(SCRIPT.format(log=str(log), model=chat_model))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert log.read_text() == "once "


def generated(n=40):
    found = {"finish_reason": "stop", "error": "", "prompt_tokens": None, "completion_tokens": 1}
    rows = [
        {
            "prompt_id": f"{i:032d}",
            "messages": [{"role": "user", "content": f"{i}?"}],
            "responses": [
                found
                | {"teacher": t, "sample": 0, "text": f"{t} {i} " * 9, "quality": (i * k) % 5 / 4}
                | {"learnability": -((i + k) % 7) / 3, "rsr": None}
                | ({"error": "x", "quality": None} if (i + k) % 9 == 0 else {})
                for k, t in enumerate("abc", start=1)
            ][: i % 4],
        }
        for i in range(n)
    ]
    features = Features({**schema.PROMPT, **schema.SCORED})
    return Dataset.from_list(rows, features=features)


@pytest.mark.parametrize("normalize", ["prompt", "corpus"])
def test_ranks_in_parts_are_those_of_the_whole(monkeypatch, normalize):
    rows, rank = generated().with_format("arrow"), Rank(normalize=normalize)
    whole = runner.run(rows, rank, schema.RANKED, batch_size=None)
    monkeypatch.setattr(runner, "BYTES_AT_ONCE", 3.5 * rows.data.nbytes / len(rows))
    assert runner.rows_at_once(rows, rank) == 3
    parts = runner.run(rows, rank, schema.RANKED, batch_size=None)
    assert parts.with_format(None).to_list() == whole.with_format(None).to_list()
    assert parts.features == whole.features
    assert len(set(parts.with_format(None)["best_teacher"])) > 2


def test_answers_in_parts_are_those_of_the_whole(monkeypatch, tmp_path):
    """A part has as many rows as their answers, by `max_tokens` or as recorded, leave room for."""
    answers = [{"prompt": f"{i}?", "teacher": "a", "response": "x" * 1000} for i in range(30)]
    teacher = Teacher(write_lines(tmp_path / "a.jsonl", answers), name="a", engine="recorded")
    rows = Dataset.from_dict({"prompt": [f"{i}?" for i in range(30)], "teacher": ["a"] * 30})
    for stage, adds in (
        (Generate([teacher]), schema.GENERATED),
        (Synthesize([teacher]), schema.SYNTHESIZED),
    ):
        monkeypatch.setattr(runner, "BYTES_AT_ONCE", 2**30)
        whole = runner.run(rows, stage, adds, batch_size=None).to_list()
        monkeypatch.setattr(runner, "BYTES_AT_ONCE", 5000)
        assert runner.rows_at_once(rows, stage) == 4
        assert runner.run(rows, stage, adds, batch_size=None).to_list() == whole
    local = Teacher("m", name="b", sampling=Sampling(max_tokens=100))
    assert runner.rows_at_once(rows, Generate([local], samples=3)) == 4


def test_more_answers_than_a_batch_holds_are_a_sentence(monkeypatch, tmp_path):
    answers = [{"prompt": f"{i}?", "teacher": "a", "response": "ä" * 1000} for i in range(3)]
    teacher = Teacher(write_lines(tmp_path / "a.jsonl", answers), name="a", engine="recorded")
    rows = Dataset.from_dict({"prompt": [f"{i}?" for i in range(3)], "teacher": ["a"] * 3})
    monkeypatch.setattr(schema, "MOST_BYTES", 5999)
    for stage in (Generate([teacher]), Synthesize([teacher])):
        with pytest.raises(BuildError, match="batch_size"):
            rows.map(stage, batched=True, batch_size=None)
        assert len(rows.map(stage, batched=True, batch_size=2)) == 3
