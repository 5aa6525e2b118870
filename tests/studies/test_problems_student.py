"""The study's instruments: its problems, how its student answers and learns, and its test."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from persyn_datasets.signals.math_verify import verdicts
from persyn_datasets.store.models import load_tokenizer, prompt_ids
from studies.problems_student import measure, problems, student
from studies.seeds import difference


def test_no_problem_is_in_two_parts_and_every_reference_is_right():
    parts = problems.draw({"a": 60, "b": 60}, seed=0)
    asked = [row["messages"][-1]["content"] for part in parts.values() for row in part]
    assert len(set(asked)) == len(asked) == 120
    for part in parts.values():
        assert set(part["family"]) == {f.__name__ for f in problems.FAMILIES}
        assert all(verdicts(list(zip(part["answer"], part["response"], strict=True))))


def test_greedy_answers_are_those_of_one_prompt_at_a_time(chat_model):
    model = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(chat_model))
    part = problems.draw({"a": 12}, seed=1)["a"]
    prompts = [prompt_ids(tokenizer, messages) for messages in part["messages"]]
    for i, found in enumerate(student._greedy(model, prompts, end := 7, most=6)):
        ids = list(prompts[i])
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == end:
                    break
        assert found == ids[len(prompts[i]) :]


def test_a_student_learns_what_it_is_taught(chat_model):
    part = problems.draw({"a": 6}, seed=2)["a"]
    examples = list(zip(part["messages"], part["response"], strict=True))
    before = student.load(chat_model)
    after = student.fine_tuned(chat_model, examples, steps=20, rate=1e-2, seed=0)
    rows = list(student.ChatFormat(student.Student(str(chat_model))).render(examples))
    assert student._loss(after, rows) < student._loss(before, rows) - 0.5


def test_a_difference_counts_seeds_and_problems():
    ours, theirs = np.array([[1.0, 1, 0, 1], [1, 1, 1, 1]]), np.zeros((1, 4))
    found = difference(ours, theirs)
    assert found["seeds"] == 1 and found["mean"] == pytest.approx(0.75)
    assert found["low"] == 0.25 and found["high"] == 1.0 and found["p"] == 0.25


def test_strategies_by_hand():
    """Two teachers, each right on one kind, which the features tell."""
    names = [problems.STRONG, problems.WEAK]
    part = problems.draw({"a": 60}, seed=3)["a"]
    first = np.array([kind in ("times", "units", "story") for kind in part["family"]])
    responses = [
        [
            {"teacher": name, "text": "x", "quality": q, "learnability": -1.0, "reward": q}
            for name, q in zip(names, (float(one), 1.0 - one), strict=True)
        ]
        for one in first
    ]
    best = [names[0] if one else names[1] for one in first]
    rows = part.add_column("responses", responses).add_column("best_teacher", best)
    rows = rows.add_column("prompt_id", [str(i) for i in range(60)])
    study = SimpleNamespace(
        names=names,
        parts={"calibration": part, "taught": part},
        scored=lambda part: rows,
        ranked=lambda part, learnability="target": rows,
    )
    x = np.c_[first, np.random.default_rng(0).normal(size=(60, 3))].astype(float)
    picked = measure.assignments(study, 0, x, x)
    assert picked["persyn"] == picked["best per group"] == picked["oracle"] == best
    assert sorted(picked["shares at random"]) == sorted(best) != picked["shares at random"]
    assert set(picked["strong"]) == {problems.STRONG} and len(set(picked["car"])) == 1
    assert (
        0 < picked["mix"].count(problems.STRONG) < 30 and 15 < picked["random"].count(names[0]) < 45
    )
