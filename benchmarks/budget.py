"""Held-out reward against cost: the router under a budget, beside what a user would do without one.

    python benchmarks/budget.py RANKED.parquet PRICES.json --backbone FOLDER [--figure budget.png]

RANKED holds rows of `Rank`, e.g. the calibration of a build, PRICES the USD per million tokens of
each teacher, for prompts and answers alike. The prompts are cross-fitted: each is assigned by a
router, with a frozen backbone, that has never seen it. Beside it at the same budget:

    random        a random teacher for each prompt, whatever it costs
    best single   the best teacher over all folds (so a little favoured) of those that the budget
                  pays for all prompts
    means         each teacher's mean reward in the router's place: a mix of teachers that does
                  not read the prompt
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets, load_dataset
from matplotlib.figure import Figure

from persyn_datasets import Pairify, Price, Route, Teacher, train_router
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.report.tables import table
from persyn_datasets.strategies.assignment import assign
from persyn_datasets.strategies.budget import estimates, expectations

SAMPLES = 10_000


def cross_fitted(
    ranked: Dataset, teachers: list[Teacher], backbone: str, folds: int
) -> tuple[np.ndarray, ...]:
    """Measured rewards, those that a router expects, the other folds' means, and costs: (prompts,
    teachers) each.
    """
    fold, parts = np.random.default_rng(0).permutation(len(ranked)) % folds, []
    for k in range(folds):
        train, test = (ranked.select(np.flatnonzero(side)) for side in (fold != k, fold == k))
        pairs = train.map(Pairify(), batched=True, remove_columns=train.column_names)
        with tempfile.TemporaryDirectory() as folder:
            router = train_router(
                pairs, backbone, teachers=teachers, freeze_backbone=True, output_dir=folder
            )
            router = router.record(expected=expectations(router, train, train))
            expected, cost = estimates(
                test.map(Route(router), batched=True), router, "usd", teachers
            )
        measured, before = (
            rewards_of(test, router.names),
            np.nanmean(rewards_of(train, router.names), 0),
        )
        parts.append((measured, expected, np.broadcast_to(before, measured.shape), cost))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ranked", nargs="+")
    parser.add_argument("prices")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--points", type=int, default=9)
    parser.add_argument("--figure")
    options = parser.parse_args()
    prices = json.loads(Path(options.prices).read_text())
    teachers = [Teacher(name, price=Price(usd, usd)) for name, usd in prices.items()]
    ranked = concatenate_datasets(
        [load_dataset("parquet", data_files=f, split="train") for f in options.ranked]
    )
    measured, expected, means, cost = cross_fitted(
        ranked, teachers, options.backbone, options.folds
    )
    measured = np.where(np.isnan(measured), np.nanmin(measured, -1, keepdims=True), measured)
    prompts, rows = len(measured), np.arange(len(measured))
    draws = np.random.default_rng(0).integers(0, prompts, (SAMPLES, prompts))
    least, alone = cost.min(-1).sum(dtype=float), cost.sum(0, dtype=float)
    most = max(alone.max(), cost[rows, expected.argmax(-1)].sum())
    names, lines, curve = list(prices), [], []
    for budget in np.geomspace(least * 1.0001, most, options.points):
        routed, mixed = (assign(worth, cost, budget)[0] for worth in (expected, means))
        single = np.where(alone <= budget, means.mean(0), -np.inf).argmax()
        ours, single_rewards, mix = (
            measured[rows, routed],
            measured[:, single],
            measured[rows, mixed],
        )
        low, high = np.percentile((ours - single_rewards)[draws].mean(-1), [2.5, 97.5])
        point = {
            "budget": float(budget),
            "router": ours.mean(),
            "best single": single_rewards.mean(),
            "means": mix.mean(),
        }
        curve.append(point | {"spend": float(cost[rows, routed].sum()), "low": low, "high": high})
        lines.append(
            [
                f"{1000 * budget / prompts:.3f}",
                f"{ours.mean():.3f}",
                f"{single_rewards.mean():.3f}",
                names[single],
                f"{mix.mean():.3f}",
                f"{low:+.3f} to {high:+.3f}",
            ]
        )
    head = [
        "USD per 1,000 prompts",
        "router",
        "best single",
        "which",
        "means",
        "router − best single, 95%",
    ]
    print(table(head, lines))
    random, oracle = measured.mean(), measured.max(-1).mean()
    print(
        f"random: {random:.3f} at {1000 * cost.mean(dtype=float):.3f} USD per 1,000 prompts; "
        f"oracle {oracle:.3f}; "
        f"{prompts} prompts, {len(names)} teachers, {options.folds} folds"
    )
    if options.figure:
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        scale = 1000 / prompts
        for key, style in (("router", "o-"), ("means", "s--"), ("best single", "^:")):
            axes.plot(
                [scale * p["budget"] for p in curve], [p[key] for p in curve], style, label=key
            )
        axes.scatter(
            scale * alone, measured.mean(0), marker="x", color="#9aa5b1", label="one teacher alone"
        )
        axes.scatter(
            [1000 * cost.mean()],
            [random],
            marker="*",
            s=90,
            color="black",
            label="random",
            zorder=3,
        )
        axes.set(xscale="log", xlabel="USD per 1,000 prompts", ylabel="held-out reward")
        figure.legend(loc="outside upper center", ncols=5, frameon=False)
        figure.savefig(options.figure, dpi=150)
    best = max(curve, key=lambda p: p["router"])
    print(
        json.dumps(
            {
                "prompts": prompts,
                "random": random,
                "oracle": oracle,
                "router": best["router"],
                "best_single": max(p["best single"] for p in curve),
                "curve": curve,
            }
        )
    )


if __name__ == "__main__":
    main()
