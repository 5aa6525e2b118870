"""Compare strategies: each one's dataset, the student trained on it, what the student then can do.

<output>/datasets/<strategy>/    a build
<output>/students/<content>/     model/, student.json, evaluation/
<output>/results.json, results.md, prompts.jsonl (every measure, prompt by prompt), figures/
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets, load_dataset

from persyn_datasets.builder import PersynBuilder
from persyn_datasets.compare import harness, tournament
from persyn_datasets.compare import report as comparison
from persyn_datasets.compare.evaluate import Measures
from persyn_datasets.compare.train import check as check_training
from persyn_datasets.compare.trial import UNTRAINED, trial, untrained
from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.data import sources
from persyn_datasets.data.tools import offered
from persyn_datasets.plan import checks, first_row
from persyn_datasets.store.journal import replace_file
from persyn_datasets.store.statistics import holm, interval, paired
from persyn_datasets.strategies import baselines as strategies

Measured = dict[str, list[Measures]]  # strategy → one per seed


def compare(
    recipe: Recipe, names: Sequence[str], output: Path, seeds: int = 3, per_teacher: bool = False
) -> dict[str, Any]:
    """Build, train, evaluate and compare; what is there already is taken as it is.

    Args:
        names: strategies. The first is compared with every other.
        seeds: students per strategy.
        per_teacher: hold a tournament, too: which signal of a teacher's calibration responses
            predicts what a student gains from them? Needs a strategy that calibrates, e.g. persyn.

    A recipe with a `target` has two more lines: students of the target alone, and of the first
    strategy's data set together with the target.

    Returns:
        What `results.json` holds: see `analyse`; with `per_teacher` also `tournament`.

    Raises:
        InputError: before anything is spent.
        BuildError: a build failed, or no prompt was answered in all of them.
    """
    builds = _builders(recipe, names, output)
    check(recipe, list(builds.values()), seeds, per_teacher)
    for builder in builds.values():
        builder.download_and_prepare()
    data = _common({name: b.as_dataset(split="train") for name, b in builds.items()})
    data |= _of_target(recipe, names[0], data[names[0]])
    measured: Measured = {UNTRAINED: [untrained(recipe, output)]}
    trained: dict[str, list[dict[str, Any]]] = {}
    # All strategies with one seed, before any with two: what is there compares.
    for seed in range(seeds):
        for name, rows in data.items():
            measures, facts = trial(recipe, rows, seed, output)
            measured.setdefault(name, []).append(measures)
            trained.setdefault(name, []).append(facts)
    shown = (
        Path(recipe.student.model).name
        if Path(recipe.student.model).is_dir()
        else recipe.student.model
    )
    results: dict[str, Any] = {"recipe": recipe.name, "student": shown, "seeds": seeds}
    results |= analyse(measured, reference=names[0])
    for name, builder in builds.items():
        results["strategies"][name] |= _bought(builder) | {"students": trained[name]}
    if per_teacher:
        calibrated = next(b for b in builds.values() if (b.folder / "calibration").exists())
        parts = load_dataset(str(calibrated.folder), "calibration").values()
        results["tournament"] = tournament.hold(
            recipe, concatenate_datasets(list(parts)), output, seeds, measured[UNTRAINED][0]
        )
        comparison.write_tournament(results["tournament"], output)
    _write(results, measured, output)
    return results


def _bought(builder: PersynBuilder) -> dict[str, Any]:
    """What a strategy's data set needs by itself."""
    assert builder.stats
    lines = builder.stats["account"]
    return {
        "generations": builder.stats["generations"],
        "usd": sum(line["usd"] + line["reused_usd"] for line in lines),
    }


def _write(results: dict[str, Any], measured: Measured, output: Path) -> None:
    written = json.dumps(results, indent=2, ensure_ascii=False)
    replace_file(output / "results.json", written.encode())
    lines = [
        {"strategy": name, "seed": seed, "measure": measure, "prompt": prompt, "value": value}
        for name, runs in measured.items()
        for seed, run in enumerate(runs)
        for measure, values in run.items()
        for prompt, value in values.items()
    ]
    text = "".join(f"{json.dumps(x, ensure_ascii=False)}\n" for x in lines)
    replace_file(output / "prompts.jsonl", text.encode())
    replace_file(output / "results.md", comparison.describe(results).encode())
    comparison.draw(results, output / "figures")


def check(recipe: Recipe, builders: Sequence[PersynBuilder], seeds: int, per_teacher: bool) -> None:
    """Raises `InputError` at the first thing that would not work, before anything is spent."""
    for module in ("trl", "peft", "lm_eval"):
        if not find_spec(module):
            raise InputError(
                f'persyn compare needs {module}: pip install "persyn-datasets[compare]"'
            )
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; expected 1 or more.")
    calibrating = {*strategies.ROUTED, *strategies.BY_CALIBRATION, "oracle"}
    if per_teacher:
        tournament.check(recipe)
    if per_teacher and not calibrating & {b.recipe.strategy for b in builders}:
        raise InputError(
            "--per-teacher goes by calibration responses; add a strategy that has them, e.g. "
            "persyn."
        )
    for builder in builders:
        prompts = checks.check(builder.recipe)
    if any(offered(prompts)):
        raise InputError(
            "The prompts have a column 'tools', and students are compared without functions to "
            "call. Remove or rename that column."
        )
    harness.check(recipe.evaluation, prompts)
    if recipe.target and recipe.evaluation.held_out:
        held_out = sources.load(recipe.evaluation.held_out)
        sources.check_apart(recipe.target, held_out, "held-out prompts")
    check_training(recipe.student, recipe.training, prompts)
    # A build without a calibration never loads the student.
    first_row.try_student(recipe.student, prompts[0]["messages"])


def _builders(recipe: Recipe, names: Sequence[str], output: Path) -> dict[str, PersynBuilder]:
    if twice := {name for name in names if list(names).count(name) > 1}:
        raise InputError(f"--strategies: {twice.pop()!r} is named twice.")
    return {
        name: PersynBuilder(recipe, output / "datasets" / name, strategy=name) for name in names
    }


def _of_target(recipe: Recipe, reference: str, rows: Dataset) -> dict[str, Dataset]:
    """What a user would try first: the target itself, as many examples as the others have (round
    and round), and the target together with the reference's data set.
    """
    if not recipe.target:
        return {}
    data = sources.load(recipe.target)
    examples = [
        {"prompt": messages, "completion": [{"role": "assistant", "content": text}]}
        for messages, text in zip(
            data["messages"], data[recipe.target.response_column], strict=True
        )
    ]
    both = rows.select_columns(["prompt", "completion"]).to_list() + examples
    alone = [examples[i % len(examples)] for i in range(len(rows))]
    return {
        "target": Dataset.from_list(alone),
        f"{reference} + target": Dataset.from_list(both),
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
    by_strategy = {
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
    return {"strategies": by_strategy, "reference": reference, "comparisons": comparisons}
