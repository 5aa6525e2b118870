"""A comparison in words, tables and pictures, from its results."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from persyn_datasets.report.figures import BLUE, GREY
from persyn_datasets.report.tables import table
from persyn_datasets.store.journal import replace_file

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
    if played := results.get("tournament"):
        lines += [describe_tournament(played)]
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
        "the standard deviation between seeds. Generations and USD are what the strategy's dataset "
        "needs by itself."
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
            ("cannot be distinguished from", open_),
        ]
        said = "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
        words.append(
            f"By {measure} ({of['prompts']:,} prompts) the student of **{reference}** {said}."
        )
    student = results["strategies"][reference]["students"][0]
    words.append(
        f"This holds for {results['student']}, trained for {student['steps']:,} steps on datasets "
        f"of {student['examples']:,} examples, and prompts of these kinds, at the level {LEVEL} "
        "over all comparisons (Holm). It says nothing of other students, sizes or tasks. Where no "
        "difference is significant, there may still be one."
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


def describe_tournament(played: dict[str, Any]) -> str:
    """One table and one sentence, in Markdown."""
    measure, cost = played["measure"], played["cost"]
    rows = [
        [
            name,
            _with_interval(of["rho"], of["low"], of["high"]),
            _with_interval(of["tau"], of["tau_low"], of["tau_high"]),
            _signed(played["with_length"].get(name)),
            _share(played["same_family"].get(name)),
        ]
        for name, of in sorted(played["signals"][measure].items(), key=lambda item: -item[1]["rho"])
    ]
    head = ["signal", "Spearman ρ", "Kendall τ-b", "ρ with length", "same-family picks"]
    return (
        f"{verdict(played)}\n\n{table(head, rows)}\n\n"
        f"Over {len(played['teachers'])} teachers: each signal's mean over {played['prompts']:,} "
        f"calibration prompts with the gain in {measure} of a student of that teacher alone. 95% "
        "bootstrap intervals over prompts, measured texts and teachers. RSR has a minus, so that "
        f"more is better throughout. The probes: {cost['probes']:,} students, {cost['examples']:,} "
        f"examples, {cost['tokens']:,} tokens, {cost['seconds'] / 60:,.1f} minutes of training."
    )


def verdict(played: dict[str, Any]) -> str:
    """The tournament in one sentence."""
    if not (winner := played["winner"]):
        return (
            f"No signal is proven to predict the gain in {played['measure']} over these "
            f"{len(played['teachers'])} teachers: no corrected interval lies above 0."
        )
    reward = f"learnability: {winner['learnability']}, alpha: {winner['alpha']:g}"
    return (
        f"`reward: {{{reward}}}` predicts the gain in {played['measure']} best: ρ = "
        f"{_with_interval(winner['rho'], winner['low'], winner['high'])}, the interval corrected "
        f"for {len(played['candidates'])} candidates."
    )


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def write_tournament(played: dict[str, Any], output: Path) -> None:
    """Write `tournament.json`, `.md` and `.png`."""
    output.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(played, indent=2, ensure_ascii=False)
    replace_file(output / "tournament.json", numbers.encode())
    replace_file(output / "tournament.md", f"{describe_tournament(played)}\n".encode())
    _save(_tournament(played), output / "tournament.png")


def _tournament(played: dict[str, Any]) -> Figure:
    """Gain against each signal, a point per teacher."""
    measure, teachers = played["measure"], list(played["teachers"].values())
    found = played["signals"][measure]
    names = sorted(found, key=lambda name: -found[name]["rho"])
    figure = Figure(figsize=(10, 0.4 + 2.6 * -(-len(names) // 4)), layout="constrained")
    panels = figure.subplots(-(-len(names) // 4), 4, squeeze=False, sharey=True)
    for axes, name in zip(panels.flat, names, strict=False):
        of = found[name]
        axes.scatter(
            [t[name] for t in teachers], [t["gain"][measure] for t in teachers], color=BLUE, s=16
        )
        axes.set_title(f"ρ = {_with_interval(of['rho'], of['low'], of['high'])}", fontsize=9)
        axes.set_xlabel(name)
        if name == "size":
            axes.set_xscale("log")
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    for row in panels:
        row[0].set_ylabel("gain")
    return figure


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write `scores.png`."""
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


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
