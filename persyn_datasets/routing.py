"""The router of a build: learned from the ranked answers, judged on prompts that it has not seen,
and asked for the teacher of every prompt.

<output>/dataset/calibration/, pairs/       what it learned from
<output>/router/                            the router
"""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset, DatasetDict, Features

from persyn_datasets.config.errors import BuildError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.strategy import REASSIGNED
from persyn_datasets.data import schema
from persyn_datasets.data.build import Learned, Metrics, Tradeoff
from persyn_datasets.data.tables import write_tables
from persyn_datasets.report import measure
from persyn_datasets.report.ablations import analyse
from persyn_datasets.report.luck import luck
from persyn_datasets.router.model import Router
from persyn_datasets.router.simple_routes import reassigned
from persyn_datasets.router.temperature import calibrate
from persyn_datasets.router.training import train_router
from persyn_datasets.runners.local import run
from persyn_datasets.stages.pairify import Pairify
from persyn_datasets.stages.route import Route
from persyn_datasets.store import models
from persyn_datasets.store.meter import metered
from persyn_datasets.store.statistics import seeded_uniform
from persyn_datasets.strategies import budget


def route(
    recipe: Recipe, prompts: Dataset, ranked: Dataset, output: Path, runner: str
) -> tuple[Dataset, Learned]:
    """The prompts with the teacher that a router picks, which learns from the ranked ones; and what
    is known of it.

    Raises:
        BuildError: the ranked prompts give nothing to learn from, or nothing to judge by.
    """
    calibration = hold_out(ranked, recipe.router.holdout, recipe.router.seed)
    pairs = _pairs(calibration)
    write_tables(output / "dataset" / "calibration", **calibration)
    write_tables(output / "dataset" / "pairs", train=pairs)

    options = {k: v for k, v in asdict(recipe.router).items() if k != "holdout"}
    folder = str(output / "router")
    gpus = int(models.device().type == "cuda")
    with metered("Router training", gpus):
        router = train_router(pairs, teachers=recipe.teachers, output_dir=folder, **options)
        router, temperature = calibrate(router, calibration["test"], router.path)
    with metered("Router evaluation", gpus):
        metrics = _judge(router, recipe, calibration, ranked)
    router = router.record(
        student=asdict(recipe.student),
        reward=asdict(recipe.effective_reward),
        quality=recipe.quality,
        keep_reasoning=recipe.keep_reasoning,
        metrics=metrics,
        expected=budget.expectations(router, calibration["test"], ranked),
        # Of prompts that it was not trained on: of those it is too sure.
        typical=router.profile(calibration["test"]["messages"]),
    )
    routed = run(
        prompts,
        Route(router),
        schema.ROUTED,
        runner,
        batch_size=1000,
        load_from_cache_file=True,
    )
    learned = Learned(
        router=metrics,
        routing=measure.measure_routing(calibration["test"], routed, router.names, temperature),
        analysis=analyse(router, calibration, routed, recipe.effective_reward),
        luck=luck(ranked, router.names, recipe.effective_reward),
        tradeoff=None,
    )
    paid = set(ranked["prompt_id"])
    routed, learned["tradeoff"] = _spend(recipe, router, routed, calibration["test"], paid)
    if recipe.strategy in REASSIGNED:
        of = recipe.baselines
        routed = reassigned(recipe.strategy, routed, router, ranked, of.group, of.seed)
    return routed, learned


def _pairs(calibration: DatasetDict) -> Dataset:
    """What the router learns from: the teachers of each prompt, two by two."""
    ranked = calibration["train"]
    pairs = ranked.with_format("arrow").map(
        Pairify(),
        batched=True,
        batch_size=100,
        remove_columns=ranked.column_names,
        features=Features(schema.PAIRS),
        load_from_cache_file=False,
    )
    if len(pairs) == 0:
        raise BuildError(
            f"No prompt has two responses of different reward: {measure.errors(ranked)}."
        )
    of_test = calibration["test"]["responses"]
    if all(r["reward"] is None for row in of_test for r in row):
        raise BuildError(
            f"No held-out prompt has a response: {measure.errors(calibration['test'])}."
        )
    return pairs.with_format(None)


def _judge(router: Router, recipe: Recipe, calibration: DatasetDict, ranked: Dataset) -> Metrics:
    """How good the router is, on held-out prompts; of a frozen backbone, whose head is refitted in
    no time, on all prompts.
    """
    group = recipe.baselines.group
    held_out = router.evaluate(calibration["test"], calibration["train"], group)
    if not recipe.router.freeze_backbone:
        return held_out
    metrics: Metrics = {**router.cross_fitted(ranked, group), "held_out": held_out}
    if "ceiling" in held_out:
        metrics["ceiling"] = held_out["ceiling"]
    return metrics


def _spend(
    recipe: Recipe, router: Router, routed: Dataset, held_out: Dataset, paid: Collection[str]
) -> tuple[Dataset, Tradeoff]:
    """The routed prompts within the recipe's budget, if it has one; and what money buys."""
    unit = "usd" if any(t.price for t in recipe.teachers) else "tokens"
    if recipe.budget:
        unit = recipe.budget.unit
    tradeoff = budget.tradeoff(router, routed, held_out, recipe.teachers, unit, paid)
    if recipe.budget:
        routed, tradeoff["budget"] = budget.within_budget(
            routed, router, recipe.budget, recipe.teachers, paid
        )
    return routed, tradeoff


def hold_out(ranked: Dataset, share: float, seed: int) -> DatasetDict:
    """`train` and `test`, by a hash of the prompt: the same prompt is always on one side."""
    order = sorted(ranked.unique("prompt_id"), key=lambda key: seeded_uniform(seed, key))
    test = set(order[: round(share * len(order))])
    sides: dict[bool, list[int]] = {True: [], False: []}
    for row, key in enumerate(ranked["prompt_id"]):
        sides[key in test].append(row)
    return DatasetDict(train=ranked.select(sides[False]), test=ranked.select(sides[True]))
