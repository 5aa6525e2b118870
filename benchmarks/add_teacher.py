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
import torch
from datasets import concatenate_datasets, load_dataset

from persyn_datasets import Pairify, train_router
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.report.tables import table
from persyn_datasets.router.add_teacher import preferred
from persyn_datasets.router.bradley_terry import fit_head
from persyn_datasets.router.metrics import router_metrics


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
        names, x = router.names, torch.tensor(router.read(ranked["messages"])[1])
    rewards, n = rewards_of(ranked, names), len(names)
    judged: dict[str, list[dict[str, float]]] = {}

    def judge(
        way: str, o: torch.Tensor, order: list[int], train: np.ndarray, test: np.ndarray
    ) -> None:
        names_in_order = [names[i] for i in order]
        metrics = router_metrics(
            o.numpy(), rewards[test][:, order], rewards[train][:, order], names_in_order
        )
        found = {key: metrics[key]["router"] for key in ("hit@1", "hit@3", "regret")}
        judged.setdefault(way, []).append(
            found | {"chosen": float((o.argmax(1) == n - 1).double().mean())}
        )

    for split in range(options.splits):
        shuffled = np.random.default_rng(split).permutation(len(ranked))
        train, test = shuffled[: 2 * len(ranked) // 3], shuffled[2 * len(ranked) // 3 :]
        weight, bias, _ = fit_head(x[train], preferred(rewards[train]).float())
        whole = x @ weight.T + bias
        for joins in np.linspace(0, n - 1, options.joins).round().astype(int):
            order = [i for i in range(n) if i != joins] + [int(joins)]
            judge("trained anew", whole[test][:, order], order, train, test)
            prefer = preferred(rewards[:, order]).float()
            weight, bias, _ = fit_head(x[train], prefer[train][:, :-1, :-1])
            old = x @ weight.T + bias
            judge(
                "without it",
                torch.cat([old[test], torch.full((len(test), 1), -1e9)], 1),
                order,
                train,
                test,
            )
            prefer[:, :-1, :-1] = 0
            for count in (count for count in options.anchors if count <= len(train)):
                anchors = train[:count]
                row, b, _ = fit_head(x[anchors], prefer[anchors], fixed=old[anchors])
                grown = torch.cat([old, x @ row.T + b], 1)
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
