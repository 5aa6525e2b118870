"""What version 0.1.0 wrote opens today: its journal, its router, its build and its recipe.

`fixtures/v0.1.0/make.py` says how the files were made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from transformers import pipeline

from persyn_datasets import Generate, PersynBuilder, Recipe, Route, Router, Sampling, Teacher
from persyn_datasets.cli import main
from persyn_datasets.engines import endpoint
from persyn_datasets.engines import transformers as local
from persyn_datasets.store import own

FIXTURE = Path(__file__).parent / "fixtures" / "v0.1.0"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the old folder as the working folder, with its journal; no teacher can be asked."""
    shutil.copytree(FIXTURE, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setenv("PERSYN_JOURNAL", str(tmp_path / "old" / "journal"))

    def bought_again(requests, *_):
        pytest.fail(f"{len(requests)} responses are bought again")

    monkeypatch.setattr(local, "generate", bought_again)
    monkeypatch.setattr(endpoint, "generate", bought_again)
    return tmp_path / "old"


def test_responses_of_an_endpoint_are_not_bought_again(old):
    answered = json.loads((old / "far-away.json").read_text())
    sampling = Sampling(temperature=0.5, seed=3)
    url = "http://127.0.0.1:18123/v1"
    teacher = Teacher("small", name="far away", engine="endpoint", base_url=url, sampling=sampling)
    rows = [json.loads(line) for line in (old / "prompts.jsonl").open()][:4]
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    again = prompts.map(Generate([teacher], samples=2), batched=True, batch_size=None)
    for row, before in zip(again["responses"], answered, strict=True):
        for response, known in zip(row, before, strict=True):
            assert {key: response[key] for key in known} == known


def test_a_build_of_the_old_recipe_asks_no_local_teacher_again(old):
    recipe = Recipe.load("recipe.yaml")
    assert [t.name for t in recipe.teachers] == ["parrot", "poet", "book"]
    before = load_dataset("out/dataset", "calibration")["train"]
    builder = PersynBuilder(recipe, "out")
    builder.download_and_prepare()
    after = load_dataset("out/dataset", "calibration")["train"]
    assert after["prompt_id"] == before["prompt_id"]
    for row, known in zip(after["responses"], before["responses"], strict=True):
        assert [r["text"] for r in row] == [r["text"] for r in known]


def test_the_recipe_that_lies_in_the_build_loads(old):
    recipe = Recipe.load("out/dataset/recipe.yaml")
    assert recipe == Recipe.load("recipe.yaml")
    assert recipe.teachers[1].sampling == Sampling(temperature=0, max_tokens=6)


def test_the_router_routes_as_it_did(old):
    router = Router.from_pretrained("out/router")
    rows = load_dataset("out/dataset", "routing", split="train")
    prompts = [json.loads(line)["prompt"] for line in (old / "prompts.jsonl").open()]
    routed = Dataset.from_list([{"prompt": p} for p in prompts]).map(Route(router), batched=True)
    assert routed["teacher"] == rows["teacher"]
    np.testing.assert_allclose(routed["router_scores"], rows["router_scores"], rtol=1e-3)
    assert [t.name for t in router.teachers] == router.names
    (found,) = pipeline("text-classification", "out/router", top_k=None)([prompts[0]])
    assert max(found, key=lambda f: f["score"])["label"] == rows["teacher"][0]


def test_the_report_of_the_old_build_is_written(old, capsys):
    assert main(["report", "out"]) == 0
    assert "book" in capsys.readouterr().out
    assert [file.suffix for file in (old / "out" / "report").iterdir()].count(".html") == 1


def test_the_old_build_is_published(old, hub):
    assert main(["push", "out", "org/old"]) == 0
    rows = load_dataset("org/old", split="train")
    assert rows["teacher"] == load_dataset("out/dataset", split="train")["teacher"]
    assert (
        Router.from_pretrained("org/old-router").names == Router.from_pretrained("out/router").names
    )


def test_the_old_router_synthesizes_with_teachers_that_the_user_names(old, tmp_path, monkeypatch):
    """Nothing says that it was made here: 0.1.0 did not write it down."""
    monkeypatch.setattr(own, "_folders", lambda: [tmp_path / "own"])
    router, output = str(old / "out/router"), str(tmp_path / "more")
    command = ["synthesize", router, "prompts.jsonl", "--output", output]
    assert main(command) == 1
    specifications = Router.from_pretrained(router).config.persyn["teachers"]
    for i, teacher in enumerate(specifications):
        command += ["--set", f"teachers.{i}.model={teacher['model']}"]
    assert main(command) == 0
    assert len(load_dataset(output, split="train")) == 16
