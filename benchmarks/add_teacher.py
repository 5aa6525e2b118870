"""A teacher that joins a router later (`add_teacher`), against a router that is trained anew with
it.

    python benchmarks/add_teacher.py RANKED.parquet --backbone FOLDER [--anchors 100 300] [--joins
    6] [--splits 3]

RANKED holds rows of `Rank`, e.g. the calibration of a build. In each split a router with a frozen
backbone learns from two thirds of the prompts. `--joins` teachers, in turn, are left out of it, and
then added by their answers to the first `--anchors` of these prompts. All are judged on the last
third, among all teachers.
"""

import argparse
import json
import tempfile

import numpy as np
from datasets import concatenate_datasets, load_dataset

from persyn_datasets import Pairify, train_router
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.report.tables import table
from persyn_datasets.router.add_teacher import fit_output
from persyn_datasets.router.metrics import compare, fill_failed
from persyn_datasets.router.regression import fit_rewards


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ranked", nargs="+")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--anchors", nargs="+", type=int, default=[100, 300])
    parser.add_argument("--joins", type=int, default=6)
    parser.add_argument("--splits", type=int, default=3)
    options = parser.parse_args()
    ranked = concatenate_datasets(
        [load_dataset("parquet", data_files=f, split="train") for f in options.ranked]
    )
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # only for what its last layer sees, which no training changes
        pairs = ranked.map(Pairify(), batched=True, remove_columns=ranked.column_names)
        router = train_router(pairs, options.backbone, freeze_backbone=True, output_dir=folder)
        names, x = router.names, router.read(ranked["messages"])[1]
    rewards, n = rewards_of(ranked, names), len(names)
    judged: dict[str, list[dict[str, float]]] = {}

    def judge(
        way: str, o: np.ndarray, order: list[int], train: np.ndarray, test: np.ndarray
    ) -> None:
        known = rewards[test][:, order]
        single = np.broadcast_to(fill_failed(rewards[train][:, order]).mean(0), known.shape)
        lines = {"router": o, "best single": single}
        metrics = compare(lines, known, [names[i] for i in order])
        found = {key: metrics[key]["router"] for key in ("hit@1", "hit@3", "regret")}
        chosen = float((o.argmax(1) == n - 1).mean())
        judged.setdefault(way, []).append(found | {"chosen": chosen})

    for split in range(options.splits):
        shuffled = np.random.default_rng(split).permutation(len(ranked))
        train, test = shuffled[: 2 * len(ranked) // 3], shuffled[2 * len(ranked) // 3 :]
        whole = fit_rewards(x[train], rewards[train])(x)
        for joins in np.linspace(0, n - 1, options.joins).round().astype(int):
            order = [i for i in range(n) if i != joins] + [int(joins)]
            judge("trained anew", whole[test][:, order], order, train, test)
            others = rewards[:, order[:-1]]
            old = fit_rewards(x[train], others[train])(x)
            never = np.full((len(test), 1), -1e9)
            judge("without it", np.hstack([old[test], never]), order, train, test)
            ahead = np.nan_to_num(np.sign(rewards[:, [joins]] - others))
            for count in (count for count in options.anchors if count <= len(train)):
                anchors = train[:count]
                row, b, _ = fit_output(x[anchors], old[anchors], ahead[anchors])
                grown = np.hstack([old, x @ row.T + b])
                judge(f"added by {count} anchors", grown[test], order, train, test)
    means = {
        way: {key: float(np.mean([t[key] for t in found])) for key in found[0]}
        for way, found in judged.items()
    }
    rows = [[way, *(f"{value:.3f}" for value in of_way.values())] for way, of_way in means.items()]
    print(table(["", "Hit@1", "Hit@3", "regret", "share of prompts to the new teacher"], rows))
    print(
        f"{len(ranked)} prompts ({len(train)} for training), {n} teachers, {options.joins} of "
        "them left out in turn, "
        f"{options.splits} splits"
    )
    print(json.dumps({"prompts": len(ranked), "trained_on": len(train)} | means))


if __name__ == "__main__":
    main()
