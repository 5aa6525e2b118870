"""A comparison in words, tables and pictures, from its results."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from persyn_datasets.report.figures import BLUE, GREY
from persyn_datasets.report.tables import table

LEVEL = 0.05


def describe(results: dict[str, Any]) -> str:
    """Tables and a conclusion, in Markdown."""
    against = [
        [
            c["other"],
            c["measure"],
            f"{c['mean']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]",
            f"{c['p']:.4f}",
            f"{c['p_holm']:.4f}",
        ]
        for c in results["comparisons"]
    ]
    lines = [
        f"# {results['recipe']}: strategies compared",
        conclusion(results),
        scores(results),
        f"{results['reference']} minus each other one, on the same prompts (sign-flip permutation "
        "test):",
        table(["other", "measure", "difference", "p", "p (Holm)"], against),
    ]
    if prediction := results.get("prediction"):
        lines += [_predicted(prediction)]
    return "\n\n".join(lines) + "\n"


def scores(results: dict[str, Any]) -> str:
    """The table of means."""
    measures = list(_first(results)["measures"])
    rows = []
    for name, s in results["strategies"].items():
        cells = [_cell(s["measures"][m]) for m in measures]
        cost = [f"{s['generations']:,}", f"{s['usd']:,.2f}"] if "generations" in s else ["–", "–"]
        rows.append([name, *cells, *cost])
    return (
        f"{table(['student trained on', *measures, 'generations', 'USD'], rows)}\n\n"
        "Means over prompts with 95% bootstrap intervals over prompts, seeds averaged first; ± is "
        "the standard "
        "deviation between seeds. Generations and USD are what the strategy's dataset needs by "
        "itself."
    )


def conclusion(results: dict[str, Any]) -> str:
    """What may and what may not be concluded."""
    reference, seeds = results["reference"], results["seeds"]
    words = []
    for measure, of in _first(results)["measures"].items():
        lines = [c for c in results["comparisons"] if c["measure"] == measure]
        better = [c["other"] for c in lines if c["p_holm"] < LEVEL and c["mean"] > 0]
        worse = [c["other"] for c in lines if c["p_holm"] < LEVEL and c["mean"] < 0]
        open_ = [c["other"] for c in lines if c["p_holm"] >= LEVEL]
        parts = [
            ("is better than", better),
            ("is worse than", worse),
            ("cannot be told from", open_),
        ]
        said = "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
        words.append(
            f"By {measure} ({of['prompts']:,} prompts) the student of **{reference}** {said}."
        )
    student = results["strategies"][reference]["students"][0]
    words.append(
        f"This holds for {results['student']}, trained for {student['steps']:,} steps on datasets "
        "of "
        f"{student['examples']:,} examples, and prompts of these kinds, at the level {LEVEL} over "
        "all comparisons "
        "(Holm). It says nothing of other students, sizes or tasks, and where nothing can be told "
        "apart, not that "
        "there is no difference."
    )
    words.append(
        "One seed: how much students differ by chance of training alone is not in the intervals."
        if seeds == 1
        else (
            "The intervals are over prompts; chance of training is seen only as the spread "
            f"between {seeds} seeds."
        )
    )
    return " ".join(words)


def _first(results: dict[str, Any]) -> dict[str, Any]:
    return next(iter(results["strategies"].values()))


def _cell(of: dict[str, Any]) -> str:
    seeds, mean = of["seeds"], of["mean"]
    spread = (
        (sum((s - mean) ** 2 for s in seeds) / (len(seeds) - 1)) ** 0.5 if len(seeds) > 1 else None
    )
    return f"{mean:.4f} [{of['low']:.4f}, {of['high']:.4f}]" + (
        f" ± {spread:.4f}" if spread is not None else ""
    )


def _predicted(prediction: dict[str, Any]) -> str:
    head = ["gain of a student of one teacher, by", "quality", "learnability", "reward", "RSR"]
    rows = [
        [measure, *(f"{s['rho']:+.2f} [{s['low']:+.2f}, {s['high']:+.2f}]" for s in of.values())]
        for measure, of in prediction["spearman"].items()
    ]
    return (
        f"Spearman correlation over {len(prediction['teachers'])} teachers, with 95% bootstrap "
        "intervals over "
        "teachers, of what a teacher's calibration responses are worth with what a student gains "
        "that is trained on "
        f"its answers alone (of RSR less is better):\n\n{table(head, rows)}"
    )


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write `scores.png`, and `prediction.png` if there is one to show."""
    folder.mkdir(parents=True, exist_ok=True)
    names, measures = list(results["strategies"]), list(_first(results)["measures"])
    figure = Figure(figsize=(3 + 3 * len(measures), 1.2 + 0.32 * len(names)), layout="constrained")
    for axes, measure in zip(
        figure.subplots(1, len(measures), sharey=True, squeeze=False)[0], measures, strict=True
    ):
        for y, name in enumerate(names):
            of = results["strategies"][name]["measures"][measure]
            color = BLUE if name == results["reference"] else GREY
            axes.hlines(y, of["low"], of["high"], color=color, linewidth=3)
            axes.scatter(
                of["seeds"], [y] * len(of["seeds"]), color=color, s=14, alpha=0.6, zorder=3
            )
            axes.scatter(of["mean"], y, color=color, zorder=4)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(measure)
        axes.grid(axis="y", color="#e4e7eb")
    figure.axes[0].invert_yaxis()
    _save(figure, folder / "scores.png")
    if prediction := results.get("prediction"):
        _save(_prediction(prediction, measures), folder / "prediction.png")


def _prediction(prediction: dict[str, Any], measures: list[str]) -> Figure:
    predictors = list(next(iter(prediction["spearman"].values())))
    figure = Figure(
        figsize=(2.6 * len(predictors), 0.6 + 2.4 * len(measures)), layout="constrained"
    )
    panels = figure.subplots(
        len(measures), len(predictors), squeeze=False, sharex="col", sharey="row"
    )
    for row, measure in zip(panels, measures, strict=True):
        for axes, key in zip(row, predictors, strict=True):
            teachers = prediction["teachers"].values()
            axes.scatter(
                [t[key] for t in teachers], [t["gain"][measure] for t in teachers], color=BLUE, s=16
            )
            s = prediction["spearman"][measure][key]
            axes.set_title(f"ρ = {s['rho']:+.2f} [{s['low']:+.2f}, {s['high']:+.2f}]", fontsize=9)
            axes.set_xlabel(key if measure == measures[-1] else "")
        row[0].set_ylabel(f"gain, {measure}")
    return figure


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
