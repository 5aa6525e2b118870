"""Local teachers whose weights are on the Hub: their answers are those of a commit."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from persyn_datasets import Generate, Sampling, Teacher
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.engines import answered, local_model
from persyn_datasets.engines.dispatch import identity_of
from persyn_datasets.store.journal import Journal

PROMPTS = {"prompt": ["What is it?", "And the other?"]}
TEACHER = Teacher("org/teacher", sampling=Sampling(temperature=0, max_tokens=6))


def push(hub, folder):
    files = {f.name: f.read_bytes() for f in Path(folder).iterdir()}
    return hub.put("org/teacher", files, "model")


@pytest.fixture
def trained(chat_model, tmp_path):
    """The same model with other weights."""
    shutil.copytree(chat_model, tmp_path / "trained")
    model = AutoModelForCausalLM.from_pretrained(chat_model)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(generator=torch.manual_seed(1))
    model.save_pretrained(tmp_path / "trained")
    return str(tmp_path / "trained")


@pytest.fixture
def asked(monkeypatch):
    """The revision of each request that a local teacher gets."""
    revisions = []

    def answer(requests, account, ask=local_model.answer):
        revisions.extend(request.teacher.revision for request in requests)
        return ask(requests, account)

    monkeypatch.setattr(local_model, "answer", answer)
    return revisions


def texts(teacher):
    return [row[0]["text"] for row in Generate([teacher])(PROMPTS)["responses"]]


def test_answers_are_those_of_the_commit_that_the_branch_is_at(
    hub, chat_model, trained, asked, caplog
):
    first = push(hub, chat_model)
    old = texts(TEACHER)
    assert texts(TEACHER) == old and asked == [first.oid] * 2
    assert not caplog.records
    second = push(hub, trained)
    new = texts(TEACHER)
    assert new == texts(Teacher(trained, sampling=TEACHER.sampling)) != old
    assert asked == [first.oid] * 2 + [second.oid] * 2 + [None] * 2

    assert [second.oid[:8] in record.getMessage() for record in caplog.records] == [True]

    # A branch that is set back has its answers still, and so has the other commit.
    hub.repo("org/teacher", "model").branches["main"] = first
    assert texts(TEACHER) == old
    hub.repo("org/teacher", "model").branches["main"] = second
    assert texts(TEACHER) == new and len(asked) == 6


def test_answers_that_were_kept_before_commits_counted_are_not_asked_again(hub, chat_model, asked):
    push(hub, chat_model)
    before = {
        "model": "org/teacher",
        "engine": "transformers",
        "revision": None,
        "base_url": None,
        "system_prompt": None,
        "examples": [],
        "sampling": {"temperature": 0, "top_p": 1.0, "max_tokens": 6, "seed": 0, "stop": []},
        "weights": None,
    }
    response = answered(TEACHER, "It is here.", "stop", 1, 1)
    with Journal("responses", "org/teacher", before) as journal:
        for text in PROMPTS["prompt"]:
            journal.put(prompt_id([{"role": "user", "content": text}]), response)
    assert texts(TEACHER) == ["It is here."] * 2 and not asked


def test_only_what_is_loaded_here_has_a_commit(hub, chat_model):
    """A server's model has a name of the server's, and nobody is asked about it."""
    commit = push(hub, chat_model)
    hub.count_again()
    served = Teacher("org/teacher", engine="endpoint", base_url="http://127.0.0.1:9/v1")
    assert identity_of(served)["weights"] is None and hub.requests == []
    assert identity_of(TEACHER)["weights"] is None  # the first that is seen
    hub.put("org/teacher", {"note.txt": "x"}, "model")
    assert identity_of(TEACHER)["weights"] not in (None, commit.oid)
    pinned = Teacher("org/teacher", revision=commit.oid)
    assert identity_of(pinned)["weights"] is None
    assert identity_of(Teacher("org/nowhere"))["weights"] is None
