"""The hash of a stage, by which `datasets` finds what `map` made before, follows what it reads."""

import pickle
import shutil
from pathlib import Path

import pytest
from datasets.fingerprint import Hasher
from pool import answer, problems, write_lines
from safetensors.torch import load_file, save_file

from persyn_datasets import Generate, Score, Synthesize, Teacher
from persyn_datasets.config.target import Target


@pytest.fixture
def model(chat_model, tmp_path):
    return shutil.copytree(chat_model, tmp_path / "model")


@pytest.fixture
def judge(reward_model, tmp_path):
    return shutil.copytree(reward_model, tmp_path / "judge")


@pytest.fixture
def answers(tmp_path):
    rows = [
        {"prompt": p, "teacher": "adder", "response": answer("adder", p)} for p, _ in problems()
    ]
    return write_lines(tmp_path / "answers.jsonl", rows)


@pytest.fixture
def function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "own_quality.py"
    file.write_text("def short(prompts, completions, **columns):\n    return [1.0] * 2\n")
    return file


def train_on(folder):
    """Other weights in the same place."""
    file = Path(folder, "model.safetensors")
    weights = {name: weight + 1 for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def correct(file):
    """One more row, or line."""
    text = Path(file).read_text()
    Path(file).write_text(text + text.splitlines(keepends=True)[-1])


@pytest.mark.parametrize("stage", [Generate, Synthesize])
def test_of_a_local_teacher_its_weights(stage, model):
    same_until(train_on, model, lambda: stage([Teacher(str(model), name="a")]))


@pytest.mark.parametrize("stage", [Generate, Synthesize])
def test_of_a_recorded_teacher_its_answers(stage, answers):
    teacher = Teacher(answers, name="adder", engine="recorded")
    same_until(correct, answers, lambda: stage([teacher]))


def test_of_a_student_its_weights(model):
    same_until(train_on, model, lambda: Score(str(model), None))


def test_of_a_reward_model_its_weights(judge):
    same_until(train_on, judge, lambda: Score(None, {"reward_model": str(judge)}))


def test_of_a_function_its_file(function):
    same_until(correct, function, lambda: Score(None, "own_quality.short"))


def test_of_a_target_its_rows(chat_model, answers):
    target = Target(answers, column="prompt", response_column="response")
    same_until(correct, answers, lambda: Score(chat_model, None, target))


def same_until(change, place, make):
    """Its hash, however often the stage is made and sent to another process."""
    before = Hasher.hash(make())
    sent = pickle.loads(pickle.dumps(make()))
    assert Hasher.hash(make()) == Hasher.hash(sent) == before
    assert sent == make() and sent.__dict__.keys() == make().__dict__.keys()
    change(place)
    assert Hasher.hash(make()) != before
