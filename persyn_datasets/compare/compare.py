"""Compare strategies: each one's dataset, the student trained on it, what the student then can do.

<output>/datasets/<strategy>/    a build
<output>/students/<content>/     model/, student.json, evaluation/
<output>/results.json, results.md, prompts.jsonl (every measure, prompt by prompt), figures/
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset

from persyn_datasets import plan
from persyn_datasets.builder import PersynBuilder
from persyn_datasets.compare import report as comparison
from persyn_datasets.compare.evaluate import Measures, evaluate
from persyn_datasets.compare.train import check as check_training
from persyn_datasets.compare.train import train
from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.student import Student
from persyn_datasets.store.journal import replace_file
from persyn_datasets.store.statistics import holm, interval, paired, spearman
from persyn_datasets.strategies import baselines as strategies

UNTRAINED = "untrained"
PREDICTORS = (
    "quality",
    "learnability",
    "reward",
    "rsr",
)  # of a teacher, by its calibration responses
Measured = dict[str, list[Measures]]  # strategy → one per seed


def compare(
    recipe: Recipe, names: Sequence[str], output: Path, seeds: int = 3, per_teacher: bool = False
) -> dict[str, Any]:
    """Build, train, evaluate and compare; what is there already is taken as it is.

    Args:
        names: strategies. The first is compared with every other.
        seeds: students per strategy.
        per_teacher: train students on each teacher's answers alone, too, and correlate what they
            gain with what its calibration responses are worth. Needs a strategy that calibrates,
            e.g. persyn.

    Returns:
        What `results.json` holds: see `analyse`; with `per_teacher` also `prediction`.

    Raises:
        InputError: before anything is spent.
        BuildError: a build failed, or no prompt was answered in all of them.
    """
    builds = _builders(recipe, names, output)
    alone = _per_teacher(recipe, output) if per_teacher else {}
    check(recipe, [*builds.values(), *alone.values()], seeds, per_teacher)
    for builder in (builds | alone).values():
        builder.download_and_prepare()
    data = _common({name: b.as_dataset(split="train") for name, b in (builds | alone).items()})
    measured: Measured = {
        UNTRAINED: [evaluate(recipe.student, recipe.evaluation, output / "students" / UNTRAINED)]
    }
    trained: dict[str, list[dict[str, Any]]] = {}
    for seed in range(
        seeds
    ):  # all strategies with one seed, before any with two: what is there compares
        for name, rows in data.items():
            place = train(recipe.student, rows, recipe.training, seed, output / "students")
            student = Student(
                str(place / "model"), trust_remote_code=recipe.student.trust_remote_code
            )
            measured.setdefault(name, []).append(
                evaluate(student, recipe.evaluation, place / "evaluation")
            )
            trained.setdefault(name, []).append(
                json.loads((place / "student.json").read_text())
                | {"folder": f"students/{place.name}"}
            )
    compared: Measured = {name: measured[name] for name in (UNTRAINED, *names)}
    shown = (
        Path(recipe.student.model).name
        if Path(recipe.student.model).is_dir()
        else recipe.student.model
    )
    results: dict[str, Any] = {"recipe": recipe.name, "student": shown, "seeds": seeds}
    results |= analyse(compared, reference=names[0])
    for name, builder in builds.items():
        assert builder.stats
        lines = builder.stats["account"]
        results["strategies"][name] |= {
            "generations": builder.stats["generations"],
            "usd": sum(line["usd"] + line["reused_usd"] for line in lines),
            "students": trained[name],
        }
    if per_teacher:
        calibrated = next(b for b in builds.values() if (b.folder / "calibration").exists())
        results["prediction"] = predict(
            {n: measured[n] for n in alone}, measured[UNTRAINED][0], _worth(calibrated)
        )
    replace_file(
        output / "results.json", json.dumps(results, indent=2, ensure_ascii=False).encode()
    )
    lines = [
        {"strategy": name, "seed": seed, "measure": measure, "prompt": prompt, "value": value}
        for name, runs in measured.items()
        for seed, run in enumerate(runs)
        for measure, values in run.items()
        for prompt, value in values.items()
    ]
    replace_file(
        output / "prompts.jsonl",
        "".join(f"{json.dumps(x, ensure_ascii=False)}\n" for x in lines).encode(),
    )
    replace_file(output / "results.md", comparison.describe(results).encode())
    comparison.draw(results, output / "figures")
    return results


def check(recipe: Recipe, builders: Sequence[PersynBuilder], seeds: int, per_teacher: bool) -> None:
    """Raises `InputError` at the first thing that would not work, before anything is spent."""
    for module in ("trl", "peft", "lm_eval"):
        if not find_spec(module):
            raise InputError(
                f'persyn compare needs {module}: pip install "persyn-datasets[compare]"'
            )
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; expected 1 or more.")
    calibrating = {*strategies.ROUTED, "car", "oracle"}
    if per_teacher and not calibrating & {b.recipe.strategy for b in builders}:
        raise InputError(
            "--per-teacher goes by calibration responses; add a strategy that has them, e.g. "
            "persyn."
        )
    for builder in builders:
        prompts = plan.check(builder.recipe)
    recipe.evaluation.check(prompts)
    check_training(recipe.student, recipe.training, prompts)


def _builders(recipe: Recipe, names: Sequence[str], output: Path) -> dict[str, PersynBuilder]:
    if twice := {name for name in names if list(names).count(name) > 1}:
        raise InputError(f"--strategies: {twice.pop()!r} is there twice.")
    return {
        name: PersynBuilder(recipe, output / "datasets" / name, strategy=name) for name in names
    }


def _per_teacher(recipe: Recipe, output: Path) -> dict[str, PersynBuilder]:
    """All prompts to one teacher: `strong`, with this one named as the strongest."""
    return {
        f"teacher {t.name}": PersynBuilder(
            replace(recipe, baselines=replace(recipe.baselines, strong=t.name)),
            output / "datasets" / f"teacher-{i}",
            strategy="strong",
        )
        for i, t in enumerate(recipe.teachers)
    }


def _common(data: dict[str, Dataset]) -> dict[str, Dataset]:
    """The rows of the prompts that were answered in all of them, in one order: as many examples for
    every student.
    """
    keys = [dict.fromkeys(rows["prompt_id"]) for rows in data.values()]
    common = [key for key in keys[0] if all(key in others for others in keys)]
    if not common:
        raise BuildError(
            "No prompt was answered in all strategies' datasets, so there is nothing to train on."
        )
    place = {
        name: {key: i for i, key in enumerate(rows["prompt_id"])} for name, rows in data.items()
    }
    return {name: rows.select([place[name][key] for key in common]) for name, rows in data.items()}


def analyse(measured: Measured, reference: str) -> dict[str, Any]:
    """Means with intervals over prompts, and the reference against each other one.

    Seeds are averaged for each prompt first. The p-values are corrected together, over all
    comparisons and measures.

    Returns:
        `strategies`: name → `measures`: measure → `mean`, `low`, `high`, `prompts`, and `seeds`,
        the mean of each; `reference`; `comparisons`: `measure`, `other`, `mean` (reference −
        other), `low`, `high`, `p`, `p_holm`.
    """
    measures = {m: list(values) for m, values in next(iter(measured.values()))[0].items()}
    table = {
        name: {
            m: np.array([[run[m][key] for key in keys] for run in runs])
            for m, keys in measures.items()
        }
        for name, runs in measured.items()
    }  # (seeds, prompts)
    told = {
        name: {
            "measures": {
                m: interval(values.mean(0))
                | {"prompts": values.shape[1], "seeds": values.mean(1).tolist()}
                for m, values in of_one.items()
            }
        }
        for name, of_one in table.items()
    }
    comparisons: list[dict[str, Any]] = [
        {"measure": m, "other": other}
        | paired(table[reference][m].mean(0), table[other][m].mean(0))
        for m in measures
        for other in table
        if other != reference
    ]
    for line, p in zip(comparisons, holm([c["p"] for c in comparisons]), strict=True):
        line["p_holm"] = p
    return {"strategies": told, "reference": reference, "comparisons": comparisons}


def _worth(builder: PersynBuilder) -> dict[str, dict[str, float]]:
    """teacher → mean of each of `PREDICTORS` over its calibration responses."""
    values: dict[str, dict[str, list[float]]] = {}
    for rows in load_dataset(str(builder.folder), "calibration").values():
        for responses in rows["responses"]:
            for r in responses:
                for key in PREDICTORS:
                    if r[key] is not None:
                        values.setdefault(r["teacher"], {}).setdefault(key, []).append(r[key])
    return {
        teacher: {key: float(np.mean(v)) for key, v in of.items()} for teacher, of in values.items()
    }


def predict(
    alone: Measured, before: Measures, worth: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Does what a teacher's responses are worth predict what a student gains from that teacher
    alone?

    Returns:
        `teachers`: name → its mean `quality`, `learnability`, `reward` and `rsr`, and `gain`:
        measure → the trained student's mean minus the untrained one's; `spearman`: measure →
        predictor → `rho`, `low`, `high` over teachers (of RSR less is better, so a good one is
        negative).
    """
    mean = {m: float(np.mean(list(values.values()))) for m, values in before.items()}
    teachers: dict[str, dict[str, Any]] = {}
    for name, runs in alone.items():
        gain = {m: float(np.mean([list(run[m].values()) for run in runs])) - mean[m] for m in mean}
        teachers[name.removeprefix("teacher ")] = worth[name.removeprefix("teacher ")] | {
            "gain": gain
        }
    rows = list(teachers.values())
    correlations = {
        m: {
            key: spearman(np.array([t[key] for t in rows]), np.array([t["gain"][m] for t in rows]))
            for key in PREDICTORS
        }
        for m in mean
    }
    return {"teachers": teachers, "spearman": correlations}
