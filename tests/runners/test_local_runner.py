"""The same results in one process and in one for each device."""

import multiprocess
import pytest
import torch
from datasets import Features
from pool import make_recipe, problems, save, write_lines

from persyn_datasets import Generate, Sampling, Score, Synthesize, Teacher, load_prompts
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
    methods = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        multiprocess, "set_start_method", lambda method, force: methods.append(method)
    )
    return methods


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


def test_a_stage_runs_on_all_gpus_that_are_there(
    prompts, teachers, chat_model, two_gpus, monkeypatch, journal_root
):
    def build():
        ranked = runner.run(prompts, Generate(teachers), schema.GENERATED, batch_size=None)
        ranked = runner.run(ranked, Score(Student(chat_model)), schema.SCORED, batch_size=None)
        routed = ranked.map(lambda row, i: {"teacher": "ab"[i % 3 % 2]}, with_indices=True)
        answered = runner.run(routed, Synthesize(teachers), schema.SYNTHESIZED, batch_size=None)
        return answered.to_list()

    spread = build()
    assert (
        two_gpus == ["spawn"] * 3
        and len(list((journal_root / "responses").glob("*/*.parquet"))) >= 4
    )
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
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    assert main(["build", recipe, "--runner", "ray"]) == 1
    assert 'pip install "persyn-datasets[ray]"' in capsys.readouterr().err
