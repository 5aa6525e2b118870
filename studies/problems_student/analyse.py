"""A student that really gets better: the tables and the figure from what `measure` wrote.

    python -m studies.problems_student.analyse OUTPUT

Writes `results.json`, `results.md` and `figure.png` beside this file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from persyn_datasets.compare.tournament import correlations
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.stages.rank import combined_reward
from persyn_datasets.store.statistics import holm
from studies.problems_student import tables
from studies.problems_student.measure import ALPHA, FEW, LONG, SIZES, Study
from studies.problems_student.problems import FAMILIES
from studies.seeds import difference

HERE = Path(__file__).parent
REFERENCE = "persyn"


def right(output: Path, files: dict[str, str]) -> np.ndarray:
    """(seeds, problems)"""
    return np.stack([np.load(output / files[seed])["right"] for seed in sorted(files)])


def by_family(study: Study, part: str, values: np.ndarray) -> dict[str, float]:
    """The mean over all problems of a part, and of each family; values are (…, problems)."""
    family = np.array(study.parts[part]["family"])
    of = {f.__name__: float(values[..., family == f.__name__].mean()) for f in FAMILIES}
    return {"all": float(values.mean()), **of}


def strategies(study: Study, made: dict[str, Any], untrained: np.ndarray) -> dict[str, Any]:
    runs = {name: right(study.output, files) for name, files in made["students"].items()}
    runs["untrained"] = untrained
    of_taught = {
        signal: rewards_of(study.ranked("taught"), study.names, signal)
        for signal in ("quality", "target", "reward")
    }
    result: dict[str, Any] = {}
    for name, values in runs.items():
        result[name] = by_family(study, "held-out", values)
        result[name]["seeds"] = values.mean(-1).tolist()
        if picked := made["assignments"]["0"].get(name):
            places = [study.names.index(t) for t in picked]
            rows = np.arange(len(places))
            result[name]["taught"] = {
                k: float(v[rows, places].mean()) for k, v in of_taught.items()
            }
            result[name]["shares"] = {t: picked.count(t) / len(picked) for t in study.names}
    runs["untrained"] = np.broadcast_to(untrained, runs[REFERENCE].shape)
    return {"strategies": result, "comparisons": compare(runs, REFERENCE)}


def compare(runs: dict[str, np.ndarray], ours: str) -> dict[str, Any]:
    """`ours` minus each other one; the values are (seeds, problems)."""
    compared = {name: difference(runs[ours], of) for name, of in runs.items() if name != ours}
    for line, p in zip(compared.values(), holm([c["p"] for c in compared.values()]), strict=True):
        line["p_holm"] = p
    return compared


def beside(study: Study, students: dict[str, dict[str, str]], ours: str) -> dict[str, Any]:
    """Students that are taught references, too; `ours` against the others."""
    runs = {name: right(study.output, files) for name, files in students.items()}
    if ours not in runs:
        return {"strategies": {}, "comparisons": {}}
    shown = {
        name: by_family(study, "held-out", values) | {"seeds": values.mean(-1).tolist()}
        for name, values in runs.items()
    }
    return {"strategies": shown, "comparisons": compare(runs, ours)}


def tournament(study: Study, made: dict[str, Any], untrained: np.ndarray) -> dict[str, Any]:
    """Signals on the calibration problems, which no student was taught, and the gain in exact match
    of each teacher's student.
    """
    rows, names = study.ranked("calibration"), study.names
    columns = {"target": "target", "log-probability": "learnability", "quality": "quality"}
    table = {name: rewards_of(rows, names, column) for name, column in columns.items()}
    table["rsr"] = -rewards_of(rows, names, "rsr")
    for name in ("target", "log-probability"):
        mixed = combined_reward(table["quality"], table[name], ALPHA)
        table[f".6·right + .4·{name}"] = mixed
    places = {r["teacher"]: i for i, r in enumerate(rows[0]["responses"])}
    table["length"] = np.array(
        [[float(len(row[places[t]]["text"])) for t in names] for row in rows["responses"]]
    )
    lines = {
        name: {"right": by_family(study, "calibration", table["quality"][:, i])}
        | {key: float(np.nanmean(values[:, i])) for key, values in table.items()}
        for i, name in enumerate(names)
    }
    probed = [t for t in names if t in made["teachers"]]
    after = [right(study.output, made["teachers"][t])[0] for t in probed]
    for t, values in zip(probed, after, strict=True):
        lines[t]["student"] = by_family(study, "held-out", values)
    found: dict[str, Any] = {"teachers": lines, "signals": {}}
    if len(probed) == len(names):
        gains = np.stack(after, -1) - untrained[0][:, None]
        found["signals"] = correlations(table, gains)
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """Exact match of each strategy's students, a point per seed."""
    of = sorted(results["strategies"].items(), key=lambda item: item[1]["all"])
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for y, (name, line) in enumerate(of):
        colour = "#c2571a" if name == REFERENCE else "#1f5fa8"
        axes.barh(y, line["all"], color=colour, alpha=0.75)
        axes.scatter(line["seeds"], [y] * len(line["seeds"]), color="black", s=10, zorder=3)
    axes.set_yticks(range(len(of)), [name for name, _ in of])
    axes.set_xlabel(f"exact match on {SIZES['held-out']} held-out problems (points: seeds)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main(output: Path) -> None:
    study, made = Study(output), json.loads((output / "made.json").read_text())
    untrained = np.load(output / "untrained-held-out.npz")["right"][None]
    development = {
        file.stem: float(np.load(file)["right"].mean())
        for file in sorted(output.glob("development-*.npz"))
    }
    development["untrained"] = float(np.load(output / "untrained-development.npz")["right"].mean())
    longer = output / f"untrained-{LONG}-tokens.npz"
    results = {
        "untrained, more tokens": by_family(study, "held-out", np.load(longer)["right"])
        if longer.exists()
        else None,
        "setting": made["setting"],
        "development": development,
        **strategies(study, made, untrained),
        "with references": beside(study, made["with references"], "references and persyn"),
        "few references": beside(study, made["few references"], f"{FEW} and persyn by them"),
        "setting of few references": made.get("setting of few references"),
        "tournament": tournament(study, made, untrained),
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    (HERE / "results.md").write_text(tables.describe(results))
    draw(results, HERE / "figure.png")
    print(tables.describe(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
