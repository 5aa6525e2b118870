"""A trial: one student, trained on one data set with one seed, and measured."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

from persyn_datasets.compare.evaluate import Measures, evaluate
from persyn_datasets.compare.train import train
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.student import Student

UNTRAINED = "untrained"


def untrained(recipe: Recipe, output: Path) -> Measures:
    """The student as it is."""
    return evaluate(recipe.student, recipe.evaluation, output / "students" / UNTRAINED)


def trial(
    recipe: Recipe, rows: Dataset, seed: int, output: Path
) -> tuple[Measures, dict[str, Any]]:
    """What the student of these rows can do, and its `student.json` with its `folder`; what is
    there already is taken as it is.
    """
    place = train(recipe.student, rows, recipe.training, seed, output / "students")
    student = Student(str(place / "model"), trust_remote_code=recipe.student.trust_remote_code)
    measures = evaluate(student, recipe.evaluation, place / "evaluation")
    facts = json.loads((place / "student.json").read_text())
    return measures, facts | {"folder": f"students/{place.name}"}
