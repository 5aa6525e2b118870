"""Strategies: every one is an assignment prompt → teacher (paper §4); they differ in nothing else.

All share prompts, journal and synthesis, so that a comparison of the datasets compares the
assignments.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.strategy import ROUTED
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.responses import rewards_by_prompt
from persyn_datasets.store.statistics import seeded_uniform

if TYPE_CHECKING:
    from persyn_datasets.config.recipe import Recipe

BY_CALIBRATION = {"car", "best-single"}  # one teacher for all prompts, by its calibration


def calibration_size(recipe: "Recipe", prompts: int) -> int:
    """How many of the prompts all teachers answer."""
    if recipe.strategy == "oracle":
        return prompts
    return recipe.calibration.size if recipe.strategy in {*ROUTED, *BY_CALIBRATION} else 0


def stages_of(recipe: "Recipe") -> list[str]:
    """What a build of this strategy does, in its order: the names of its bars."""
    if recipe.strategy in ROUTED:
        return ["Generate", "Score", "Router", "Route", "Analysis", "Synthesize"]
    return ["Generate", "Score", "Synthesize"] if calibration_size(recipe, 1) else ["Synthesize"]


def teachers_of(recipe: "Recipe") -> tuple[Teacher, ...]:
    """The teachers that the recipe's strategy may ask.

    Raises:
        InputError: a size, or the student's family, is not known.
    """
    if recipe.strategy in ("strong", "mix"):
        strong = _named(recipe, "strong") or _by_size(recipe, recipe.teachers)[-1]
        if recipe.strategy == "strong":
            return (strong,)
        return (strong, _named(recipe, "weak") or _by_size(recipe, recipe.teachers)[0])
    if recipe.strategy == "family-strong":
        family = [t for t in recipe.teachers if t.family and t.family == recipe.student.family]
        if not family:
            known = (
                ", ".join(sorted({t.family for t in recipe.teachers if t.family})) or "of no family"
            )
            raise InputError(
                f"strategy family-strong: student.family is {recipe.student.family!r}, and the "
                f"teachers are {known}; "
                "set the student's family, and that of the teachers which share it."
            )
        return (_by_size(recipe, family)[-1],)
    return recipe.teachers


def assign(recipe: "Recipe", prompt_ids: Sequence[str], ranked: Dataset | None) -> list[str]:
    """The teacher of each prompt by a strategy without a router.

    Args:
        ranked: rows of `Rank`: of the calibration prompts for `car`, of all prompts for `oracle`.
    """
    names, b = [t.name for t in teachers_of(recipe)], recipe.baselines
    if recipe.strategy == "mix":
        return [
            names[0] if seeded_uniform(b.seed, key) < b.strong_share else names[1]
            for key in prompt_ids
        ]
    if recipe.strategy == "random":
        return [names[int(seeded_uniform(b.seed, key) * len(names))] for key in prompt_ids]
    if recipe.strategy == "oracle":
        assert ranked
        best = dict(zip(ranked["prompt_id"], ranked["best_teacher"], strict=True))
        # Where all failed, one of them fails again and says why.
        return [best[key] or names[0] for key in prompt_ids]
    if recipe.strategy in BY_CALIBRATION:
        assert ranked
        if recipe.strategy == "car":
            rewards = compatibility_adjusted_rewards(ranked, b.beta)
        else:
            rewards = mean_rewards(ranked, names)
        return [max(rewards, key=rewards.__getitem__)] * len(prompt_ids)
    return names * len(prompt_ids)


def mean_rewards(ranked: Dataset, names: Sequence[str]) -> dict[str, float]:
    """teacher → its mean reward; a failed response counts as its prompt's lowest."""
    rewards = rewards_by_prompt(ranked, names)
    rewards = rewards[~np.isnan(rewards).all(-1)]
    if not len(rewards):
        raise BuildError("No calibration response has a reward, so no teacher is the best single.")
    filled = np.where(np.isnan(rewards), np.nanmin(rewards, -1, keepdims=True), rewards)
    return dict(zip(names, filled.mean(0).tolist(), strict=True))


def compatibility_adjusted_rewards(ranked: Dataset, beta: float = 3.0) -> dict[str, float]:
    """teacher → mean(r_q) / (1 + β·L), L the student's mean loss on its responses (arXiv
    2411.07133).

    Quality is counted from the lowest one if that is negative, as with some reward models: of a
    negative numerator a larger loss would make more.
    """
    scored = [
        r
        for row in ranked["responses"]
        for r in row
        if r["quality"] is not None and r["learnability"] is not None
    ]
    if not scored:
        raise BuildError(
            "No calibration response could be scored, so no teacher has a Compatibility-Adjusted "
            "Reward."
        )
    lowest = min([0.0, *(r["quality"] for r in scored)])
    rewards = {}
    for name in dict.fromkeys(r["teacher"] for r in scored):
        own = [r for r in scored if r["teacher"] == name]
        r_q, loss = (
            np.mean([r["quality"] - lowest for r in own]),
            -np.mean([r["learnability"] for r in own]),
        )
        rewards[name] = float(r_q / (1 + beta * loss))
    return rewards


def _named(recipe: "Recipe", which: str) -> Teacher | None:
    name = getattr(recipe.baselines, which)
    found = [t for t in recipe.teachers if t.name == name]
    if name and not found:
        raise InputError(
            f"baselines.{which} is {name!r}; expected one of "
            f"{', '.join(t.name for t in recipe.teachers)}."
        )
    return found[0] if found else None


def _by_size(recipe: "Recipe", teachers: Sequence[Teacher]) -> list[Teacher]:
    """Smallest first; of equals the last listed first."""
    unknown = [t.name for t in teachers if t.size is None]
    if unknown:
        raise InputError(
            f"strategy {recipe.strategy} goes by size, and the teacher {unknown[0]!r} has none; "
            "add its `size` in billions of parameters, or name the strongest (for mix, also the "
            "weakest): baselines: {strong: …, weak: …}."
        )
    return sorted(reversed(teachers), key=lambda t: t.size or 0)
