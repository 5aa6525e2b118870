"""A small build that generates nothing: problems, recorded answers of three teachers, a recipe; a
counting engine.
"""

import json
import sys
from pathlib import Path

import yaml
from datasets import load_dataset

from persyn_datasets import PersynBuilder, Recipe
from persyn_datasets.engines import answered, failed, transformers

COMMAND = [sys.executable, "-m", "persyn_datasets.cli"]
TEACHERS = ("adder", "multiplier", "guesser")


def problems(n=24):
    """(prompt, answer): sums and products in turn."""
    pairs = [(3 + i, 4 + (7 * i) % 11) for i in range(n)]
    return [
        (f"{a} plus {b}?", a + b) if i % 2 else (f"{a} times {b}?", a * b)
        for i, (a, b) in enumerate(pairs)
    ]


def answer(teacher, prompt):
    """The adder adds and the multiplier multiplies, whatever was asked; any other is always
    wrong.
    """
    a, _, b = prompt.rstrip("?").split()
    value = {"adder": int(a) + int(b), "multiplier": int(a) * int(b)}.get(teacher, 9999)
    return f"The answer is {value}."


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_recipe(folder: Path, model, engine="recorded", **more):
    """The files of a recipe in `folder`, and its values."""
    rows = [{"prompt": p, "answer": str(a), "source": "made"} for p, a in problems()]
    pool = [
        {"prompt": p, "teacher": t, "response": answer(t, p)}
        for p, _ in problems()
        for t in TEACHERS
    ]
    answers = write_lines(folder / "answers.jsonl", pool)
    prompts = {
        "path": write_lines(folder / "prompts.jsonl", rows),
        "column": "prompt",
        "answer_column": "answer",
    }
    return {
        "name": "tiny",
        "student": {"model": model},
        "prompts": prompts,
        "teachers": [
            {
                "name": t,
                "model": answers if engine == "recorded" else model,
                "engine": engine,
                "system_prompt": t,
            }
            for t in TEACHERS
        ],
        "calibration": {"size": 16, "seed": 3},
        "router": {"backbone": model, "freeze_backbone": True, "holdout": 0.25},
    } | more


def save(folder: Path, values, name="recipe.yaml"):
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return str(path)


class CountingEngine:
    """In place of an engine's `generate`: answers at once, notes what it was asked, can be
    interrupted or fail.
    """

    def __init__(self, stop_after=None, fails=lambda teacher, prompt: False):
        self.asked, self.stop_after, self.fails = [], stop_after, fails

    def __call__(self, requests, account):
        for i, (teacher, _, messages, *_) in enumerate(requests):
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            prompt = messages[-1]["content"]
            self.asked.append((teacher.name, prompt))
            if self.fails(teacher.name, prompt):
                yield i, failed(teacher, "the server is on fire")
            else:
                yield i, answered(teacher, answer(teacher.name, prompt), "stop", 7, 5)


def build(values, output):
    builder = PersynBuilder(Recipe.from_dict(values), output)
    builder.download_and_prepare()
    return builder


def counting(monkeypatch, **options):
    """In place of the engine `transformers`."""
    counter = CountingEngine(**options)
    monkeypatch.setattr(transformers, "generate", counter)
    return counter


def table(builder, config="default", split="train"):
    return load_dataset(str(builder.folder), config, split=split)
