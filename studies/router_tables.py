"""The committed results of a router study: results.json, table.md and figure.png."""

import json
from pathlib import Path
from typing import Any

from persyn_datasets.report.tables import table
from persyn_datasets.router.metrics import GROUP, NEAREST, ORACLE, RANDOM, SHARES, SINGLE
from persyn_datasets.store.statistics import holm

CLUSTER = "best per cluster"
LINES = (RANDOM, SHARES, SINGLE, GROUP, CLUSTER, NEAREST, "router", ORACLE)
JUDGES = (SINGLE, GROUP, CLUSTER, NEAREST, SHARES, RANDOM)
PARTS = {
    "development": "five folds of the development prompts",
    "final": "the final split, read once",
    "all": "five folds of all prompts, after the choice",
}


def write(folder: Path, results: dict[str, Any]) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "table.md").write_text(tables(results))
    draw(folder / "figure.png", results)


def tables(results: dict[str, Any]) -> str:
    parts = [part for part in PARTS if all(part in found for found in results.values())]
    text = [
        rewards(results, part) + "\n\n" + leads(results, part, adjusted(results, part))
        for part in parts
    ]
    text.append(sizes(results))
    text += [transfers(found["transfer"]) for found in results.values() if "transfer" in found]
    return "\n\n".join(text) + "\n"


def rewards(results: dict[str, Any], part: str) -> str:
    rows = [
        [name, f"{found[part]['prompts']:,}"]
        + [f"{found[part]['reward'][line]:.4f}" for line in LINES]
        for name, found in results.items()
    ]
    return f"Mean reward, {PARTS[part]}:\n\n" + table(["pool", "prompts", *LINES], rows)


def leads(results: dict[str, Any], part: str, p: dict[tuple[str, str], float]) -> str:
    rows = []
    for name, found in results.items():
        for line in JUDGES:
            a = found[part]["against"][line]
            rows.append([name, line, *_lead(a), f"{p[name, line]:.4f}", f"{a['differs']:,}"])
    head = ["pool", "against", "lead", "95% interval", "p (Holm)", "choice differs on"]
    return f"The router's lead, {PARTS[part]}:\n\n" + table(head, rows)


def sizes(results: dict[str, Any]) -> str:
    rows = [
        [name, f"{point['prompts']:,}", *_lead(point)]
        for name, found in results.items()
        for point in found["by_size"]
    ]
    head = ["pool", "calibration prompts", "lead over the best single teacher", "95% interval"]
    return "The router after few calibration prompts (three draws):\n\n" + table(head, rows)


def transfers(found: dict[str, Any]) -> str:
    rows = []
    for domain, of_domain in found.items():
        reward = [f"{of_domain['reward'][line]:.4f}" for line in (SINGLE, NEAREST, "router")]
        lead = _lead(of_domain["against"][SINGLE])
        rows.append([domain, f"{of_domain['prompts']:,}", *reward, *lead])
    head = ["routed", "prompts", SINGLE, NEAREST, "router", "lead over single", "95% interval"]
    return "Transfer: the two other domains train.\n\n" + table(head, rows)


def _lead(a: dict[str, float]) -> list[str]:
    return [f"{a['mean']:+.4f}", f"{a['low']:+.4f} to {a['high']:+.4f}"]


def draw(path: Path, results: dict[str, Any]) -> None:
    """Leads over the best single teacher: each line's, and the router's by calibration size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    part = "all" if all("all" in found for found in results.values()) else "development"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    lines = (SHARES, NEAREST, CLUSTER, GROUP, "router")
    for i, (name, found) in enumerate(results.items()):
        reward = found[part]["reward"]
        for j, line in enumerate(lines):
            at = i + (j - 2) / 7
            left.bar(
                at,
                reward[line] - reward[SINGLE],
                0.13,
                color=f"C{j}",
                label=line if i == 0 else None,
            )
        a = found[part]["against"][SINGLE]
        error = [[a["mean"] - a["low"]], [a["high"] - a["mean"]]]
        left.errorbar(i + 2 / 7, a["mean"], yerr=error, color="black", capsize=2, lw=1)
        points = found["by_size"]
        if points:
            x = [point["prompts"] for point in points]
            right.plot(x, [point["mean"] for point in points], marker="o", label=name)
            bounds = [[point[key] for point in points] for key in ("low", "high")]
            right.fill_between(x, *bounds, alpha=0.15)
    for axes in (left, right):
        axes.axhline(0, color="black", lw=0.8)
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_xticks(range(len(results)), list(results))
    left.set_ylabel("reward above the best single teacher")
    right.set_xscale("log")
    right.set_xlabel("calibration prompts")
    right.axhline(-0.002, color="red", lw=0.8, ls=":")
    figure.savefig(path, dpi=110)


def adjusted(results: dict[str, Any], part: str) -> dict[tuple[str, str], float]:
    """Holm's p of the router against every line of every pool."""
    keys = [(p, line) for p, found in results.items() for line in found[part]["against"]]
    return dict(
        zip(keys, holm([results[p][part]["against"][line]["p"] for p, line in keys]), strict=True)
    )
