"""Tune a recipe: the signal and the α that predict what this student gains, or none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from persyn_datasets.builder import PersynBuilder
from persyn_datasets.compare import compare, tournament
from persyn_datasets.compare import report as comparison
from persyn_datasets.compare.trial import untrained
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.hub.cards import to_yaml
from persyn_datasets.store.journal import replace_file


def tune(recipe: Recipe, output: Path, seeds: int = 1) -> dict[str, Any]:
    """Hold a tournament on the calibration alone, which a build then finds in the journal.

    Writes to `output`: the probes' students, `tournament.json`, `tournament.md`, `tournament.png`,
    and, if a signal is proven, `recipe.yaml`: the recipe with `reward` as it won.

    Raises:
        InputError: before anything is spent.
        BuildError: see `PersynBuilder.calibrate` and `tournament.halves`.
    """
    builder = PersynBuilder(recipe, output / "calibration", strategy="persyn")
    compare.check(recipe, [builder], seeds, per_teacher=True)
    ranked = builder.calibrate()
    results = tournament.hold(recipe, ranked, output, seeds, untrained(recipe, output))
    comparison.write_tournament(results, output)
    tuned = output / "recipe.yaml"
    tuned.unlink(missing_ok=True)
    if winner := results["winner"]:
        reward = replace(recipe.reward, learnability=winner["learnability"], alpha=winner["alpha"])
        replace_file(tuned, to_yaml(replace(recipe, reward=reward).to_dict()).encode())
    return results
