"""What a build reads, by content: its id follows what lies at a path, not the path.

    id = digest(what the recipe states, without places; what lies at its places; our version)

A place is a path or Hub id with its revision: of the student, the router's backbones, the reward
model, a quality function, the target, the prompts, the benchmarks, the teachers' weights and
recorded answers. Each is resolved once, when the build begins: a folder or file by its bytes, a
model on the Hub by its commit, a table by its rows. What the strategy does not read does not count.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from persyn_datasets import __version__, signals
from persyn_datasets.config.errors import InputError
from persyn_datasets.config.prompts import Benchmark
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.build import Build, read
from persyn_datasets.data.rows import rows_hash
from persyn_datasets.data.sources import load, prompts_of
from persyn_datasets.data.tables import load_table
from persyn_datasets.engines import facts_of
from persyn_datasets.engines.dispatch import content_of
from persyn_datasets.report.text import to_yaml
from persyn_datasets.store.files import are_whole
from persyn_datasets.store.identity import weights_of
from persyn_datasets.store.journal import digest
from persyn_datasets.strategies import baselines as strategies

# Nothing of these is in a build (`sampling` is in each teacher's own), or only where a strategy has
# a router, or needs a calibration.
NOT_BUILT = ("training", "evaluation", "max_cost", "sampling")
OF_ROUTERS = ("router", "budget", "second_opinion")
OF_CALIBRATION = ("calibration", "reward", "quality", "target")
# A key of the recipe → what of it says where something lies; `contents` says what that is.
PLACES = {
    "student": ("model", "revision"),
    "prompts": ("path", "name", "split", "revision", "column", "answer_column", "decontaminate"),
    "router": ("backbone", "revision"),
    "target": ("path", "name", "split", "revision", "column", "response_column"),
}


def build_id(recipe: Recipe, prompts: Dataset) -> str:
    """The id of what a recipe makes now; `prompts` are the recipe's, as they were loaded.

    Raises:
        InputError: something that the recipe names is not there.
    """
    return digest([stated(recipe), contents(recipe, prompts), __version__])


def check_folder(output: Path, recipe: Recipe) -> None:
    """Raises `InputError` if the folder holds something else than a build of this recipe."""
    folder = output / "dataset"
    if output.is_file():
        raise InputError(f"{output} is a file; give another --output.")
    owner, this = folder / "recipe.yaml", (recipe.name, recipe.strategy)
    known = yaml.safe_load(owner.read_text()) if owner.exists() else None
    found = (known["name"], known.get("strategy", "persyn")) if known else None
    if found not in (None, this) or (not found and folder.exists() and any(folder.iterdir())):
        holds = (
            "a build of the recipe {!r}, strategy {}".format(*found)
            if found
            else "a dataset that no recipe made"
        )
        raise InputError(
            f"{output} holds {holds}, and this recipe is {this[0]!r}, strategy {this[1]}; "
            "give another --output, or remove that folder."
        )


def finished(recipe: Recipe, output: Path) -> Build | None:
    """The record of the build in `output`, if it is this very recipe's; None if there is something
    to do. It imports no library that builds: a second run takes a second or two.
    """
    build, known = read(output / "dataset"), output / "dataset" / "recipe.yaml"
    if not (build and known.exists() and known.read_text() == to_yaml(recipe.to_dict())):
        return None
    if not are_whole(build, output):
        return None
    return build if build["build"] == build_id(recipe, prompts_of(recipe)) else None


def stated(recipe: Recipe) -> dict[str, Any]:
    """What the recipe states and its strategy goes by, without the places."""
    values = recipe.to_dict() | {"reward": asdict(recipe.effective_reward)}
    for section, places in PLACES.items():
        if values[section]:
            values[section] = {k: v for k, v in values[section].items() if k not in places}
    if isinstance(recipe.quality, dict):
        places = ("reward_model", "revision", "judge")
        values["quality"] = {k: v for k, v in recipe.quality.items() if k not in places}
    values["teachers"] = [
        {k: v for k, v in t.to_dict().items() if k not in ("model", "revision")}
        for t in recipe.teachers
    ]
    unread = [*NOT_BUILT]
    if recipe.strategy not in strategies.ROUTED:
        unread += OF_ROUTERS
    if not strategies.calibration_size(recipe, 1):
        unread += OF_CALIBRATION
    return {key: value for key, value in values.items() if key not in unread}


def contents(recipe: Recipe, prompts: Dataset) -> dict[str, Any]:
    """A place of the recipe → what lies there now."""
    found: dict[str, Any] = {"prompts": rows_hash(prompts)}
    if how := recipe.prompts.decontaminate:
        found["benchmarks"] = [_benchmark(b) for b in how.against]
        found["drop"] = how.drop
    tables: dict[Any, str] = {}
    for teacher in strategies.teachers_of(recipe):
        found[f"teacher {teacher.name}"] = _teacher(teacher, tables)
    if strategies.calibration_size(recipe, 1):
        student = recipe.student
        found["student"] = _weights("student.model", student.model, student.revision)
        found["quality"] = signals.identity(recipe.quality)
        if recipe.target:
            rows = load(recipe.target)
            columns = ["messages", recipe.target.response_column]
            found["target"] = rows_hash(rows.select_columns(columns))
    if recipe.strategy in strategies.ROUTED:
        router = recipe.router
        found["backbone"] = _weights("router.backbone", router.backbone, router.revision)
    return found


def _weights(key: str, model: str, revision: str | None) -> str:
    try:
        return weights_of(model, revision)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def _benchmark(benchmark: str | Benchmark) -> str:
    b = Benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    return rows_hash(load_table(b.path, name=b.name, split=b.split, revision=b.revision))


def _teacher(teacher: Teacher, tables: dict[Any, str]) -> Any:
    """Its weights; its recorded answers; or, of a server, the model's name there."""
    if not facts_of(teacher).journalled:
        return content_of(teacher, tables)
    if teacher.base_urls:
        return [teacher.model, teacher.base_urls[0]]
    return _weights(f"teacher {teacher.name!r}", teacher.model, teacher.revision)
