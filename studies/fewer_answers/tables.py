"""The committed table of `measure`'s orders.

    python -m studies.fewer_answers.tables [FIRST_SEED]

Writes table-FIRST_SEED.md beside this file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from persyn_datasets.report.tables import table

TOLERANCE = 0.002
HEAD = ["pool", "features", "rule", "asked", "loss", "95% interval", "wrong", "reward"]


def line(orders: list[dict[str, Any]]) -> list[str]:
    """One rule in one pool, over its orders."""
    losses = np.array([order["loss"] for order in orders])
    low = np.array([order["low"] for order in orders])
    half = stats.t.ppf(0.975, len(losses) - 1) * losses.std(ddof=1) / np.sqrt(len(losses))
    wrong = np.mean((losses > TOLERANCE) & (low > 0))
    reward, asked = (np.mean([order[key] for order in orders]) for key in ("reward", "asked"))
    mean = losses.mean()
    interval = f"{mean - half:+.4f} to {mean + half:+.4f}"
    return [f"{asked:.1%}", f"{mean:+.4f}", interval, f"{wrong:.0%}", f"{reward:.4f}"]


def main(first: str = "0") -> None:
    folder = Path(__file__).parent
    lines = (folder / f"results-{first}.jsonl").read_text().splitlines()
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in map(json.loads, lines):
        for rule, of_rule in row["rules"].items():
            found.setdefault((row["pool"], row["features"], rule), []).append(of_rule)
    rows = [[*key, *line(orders)] for key, orders in found.items() if key[2] != "fixed"]
    count = min(len(orders) for orders in found.values())
    text = f"{count} orders of the prompts, seeds from {first} on.\n\n{table(HEAD, rows)}\n"
    (folder / f"table-{first}.md").write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
