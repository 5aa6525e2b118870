"""The figures of a build, drawn from its stats.json."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from persyn_datasets.config.recipe import Recipe
from persyn_datasets.data.build import Analysis, Build, Metrics, OfTeacher, Routing, Tradeoff
from persyn_datasets.router.metrics import SINGLE

BLUE, GREY = "#1f5fa8", "#9aa5b1"
# What each one shows, in the order of the page: the alternative text, too.
CAPTIONS = {
    "allocation": "Prompts per teacher, and how often each was best in calibration",
    "lengths": "Length of the answers in characters: 10th percentile, median and 90th percentile",
    "router": (
        "How sure the router is, and how often its favourite of two teachers is better (with "
        "the number of cases)"
    ),
    "tradeoff": (
        "Reward against what the answers cost: the router at every budget, and each teacher alone"
    ),
    "difficulty": (
        "Who gets the hard prompts, and those with long answers: % of each third of the "
        "calibration prompts"
    ),
    "confusion": (
        "Held-out prompts by the router's choice (rows) and the teacher that was best (columns)"
    ),
    "curves": "Hit@k on held-out prompts, with the head fitted to fewer calibration prompts or to "
    "another α (by that α's own reward, so these do not compare; if several teachers are best, "
    "each counts)",
}


def draw(recipe: Recipe, stats: Build, folder: Path) -> list[Path]:
    """Write one PNG for each of `CAPTIONS` that the build has numbers for; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in _figures(recipe, stats):
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        written.append(folder / f"{name}.png")
        # Without the version of matplotlib, which would make another file of the same figure.
        figure.savefig(written[-1], dpi=150, metadata={"Software": None})
    return written


def _figures(recipe: Recipe, stats: Build) -> Iterator[tuple[str, Figure]]:
    sizes = {t.name: t.size for t in recipe.teachers}
    teachers = dict(
        sorted(stats["per_teacher"].items(), key=lambda item: (sizes.get(item[0]) or 0, item[0]))
    )
    labels = [
        _short(name) + (f" ({sizes[name]:g}B)" if sizes.get(name) else "") for name in teachers
    ]
    yield "allocation", _allocation(labels, list(teachers.values()))
    yield "lengths", _lengths(labels, list(teachers.values()))
    if stats["routing"]:
        yield "router", _router(stats["routing"])
    if stats["tradeoff"]:
        yield "tradeoff", _tradeoff(stats["tradeoff"])
    if analysis := stats["analysis"]:
        order = [name for name in teachers if name in analysis["names"]]
        yield "difficulty", _difficulty(analysis, order)
        yield "confusion", _confusion(analysis, order)
        if analysis["by_size"] and stats["router"]:
            yield "curves", _curves(analysis, stats["router"])


def _short(name: str) -> str:
    name = name.rpartition("/")[2] or name
    return name if len(name) <= 32 else f"{name[:31]}…"


def _rows(labels: list[str], columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Horizontal panels that share the teachers as rows, the smallest model on top."""
    figure = Figure(figsize=(8, 1.1 + 0.34 * len(labels)), layout="constrained")
    panels = list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    return figure, panels


def _allocation(labels: list[str], teachers: list[OfTeacher]) -> Figure:
    figure, (axes,) = _rows(labels)
    routed, best = ([t["routed"] for t in teachers], [t["best"] for t in teachers])
    for counts, shift, color, label in (
        (routed, -0.2, BLUE, "of all prompts: routed to it"),
        (best, 0.2, GREY, "of the calibration prompts: it was the best"),
    ):
        shares = [100 * count / (sum(counts) or 1) for count in counts]
        axes.barh([i + shift for i in range(len(labels))], shares, 0.36, color=color, label=label)
    axes.set_xlabel("share in %")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _lengths(labels: list[str], teachers: list[OfTeacher]) -> Figure:
    figure, (axes,) = _rows(labels)
    routed = [t["routed_characters"] for t in teachers]
    calibration = [t["characters"] for t in teachers]
    for lengths, shift, color, label in (
        (routed, -0.15, BLUE, "in the dataset"),
        (calibration, 0.15, GREY, "in calibration"),
    ):
        known = [(i + shift, p) for i, p in enumerate(lengths) if p is not None]
        axes.hlines(
            [y for y, _ in known],
            [p[0] for _, p in known],
            [p[2] for _, p in known],
            color=color,
            linewidth=3,
        )
        axes.scatter(
            [p[1] for _, p in known], [y for y, _ in known], color=color, zorder=3, label=label
        )
    axes.set_xlabel("characters")
    axes.margins(x=0.05)
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _router(routing: Routing) -> Figure:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = routing["confidence"]
    left.bar(
        [(i + 0.5) / len(counts) for i in range(len(counts))], counts, 0.9 / len(counts), color=BLUE
    )
    left.yaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="highest router score of a prompt", ylabel="prompts", xlim=(0, 1))
    bins = routing["reliability"]
    right.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1)
    right.plot([b["predicted"] for b in bins], [b["observed"] for b in bins], "o-", color=BLUE)
    for b in bins:
        right.annotate(
            f"{b['comparisons']:,}",
            (b["predicted"], b["observed"]),
            (5, -11),
            textcoords="offset points",
            fontsize=8,
            color="#52606d",
        )
    right.set(
        xlabel="router: the favourite is better with probability",
        ylabel="it was better in",
        xlim=(0.48, 1.04),
        ylim=(-0.05, 1.1),
    )
    return figure


def _tradeoff(tradeoff: Tradeoff) -> Figure:
    curve, alone = tradeoff["curve"], tradeoff["teachers"]
    figure = Figure(figsize=(8, max(4, 1.2 + 0.2 * len(alone))), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [p["spend"] for p in curve],
        [p["reward"] for p in curve],
        color=BLUE,
        label="router, expected",
    )
    axes.scatter(
        [p["spend"] for p in curve],
        [p["measured"] for p in curve],
        18,
        color=BLUE,
        zorder=3,
        label="router, measured on held-out prompts",
    )
    axes.scatter(
        [t["spend"] for t in alone.values()],
        [t["measured"] for t in alone.values()],
        28,
        color=GREY,
        marker="x",
        label="one teacher alone, measured",
    )
    if "budget" in tradeoff:
        axes.axvline(
            tradeoff["budget"]["spend"],
            color=GREY,
            linestyle="--",
            linewidth=1,
            label="the budget of this build",
        )
    axes.set(
        xlabel="USD for all prompts" if tradeoff["unit"] == "usd" else "tokens for all prompts",
        ylabel="mean reward",
    )
    axes.margins(x=0.08)
    _label(axes, {_short(name): (t["spend"], t["measured"]) for name, t in alone.items()})
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _label(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names of points in a column beside the axes, in the points' order and never one over the
    other, each with a line to its point.
    """
    low, high = axes.get_ylim()
    names = sorted(points, key=lambda name: points[name][1])
    apart = min(1 / max(1, len(names) - 1), 0.06)  # of the height
    places = [(points[name][1] - low) / (high - low) for name in names]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + apart)
    over = max(0.0, places[-1] - 1)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], 1 - apart * (len(places) - 1 - i)) if over else places[i]
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            name,
            points[name],
            (1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color="#52606d",
            arrowprops={"arrowstyle": "-", "color": "#cbd2d9", "linewidth": 0.6},
        )


def _difficulty(analysis: Analysis, teachers: list[str]) -> Figure:
    """Shares of each third of the prompts, by their difficulty and by the length of their
    answers.
    """
    figure, panels = _rows([_short(name) for name in teachers], 2)
    for axes, parts, (first, last), label in (
        (panels[0], analysis["difficulty"], ("hard", "easy"), "mean quality of all answers"),
        (panels[1], analysis["length"], ("short", "long"), "median characters of the answers"),
    ):
        shares = [
            [100 * part["routed"].get(name, 0) / part["prompts"] for part in parts]
            for name in teachers
        ]
        _shade(axes, shares, "{:.0f}")
        bounds = [f"{part['from']:,.3g} to {part['to']:,.3g}" for part in parts]
        named = [f"{end}\n{bound}" for end, bound in zip((first, "", last), bounds, strict=False)]
        axes.set_xticks(range(len(parts)), named, fontsize=8)
        axes.set_xlabel(label)
    return figure


def _curves(analysis: Analysis, metrics: Metrics) -> Figure:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, rows, x, label in (
        (left, analysis["by_size"], "prompts", "calibration prompts"),
        (right, analysis["by_alpha"], "alpha", "α"),
    ):
        for k, style in (("hit@3", "o-"), ("hit@1", "s-")):
            color = BLUE if k == "hit@1" else GREY
            axes.plot(
                [row[x] for row in rows],
                [row[k] for row in rows],
                style,
                color=color,
                label=k.capitalize(),
            )
        axes.set(xlabel=label, ylim=(0, 1.05))
    left.set_xscale("log")
    left.set_xticks(
        [row["prompts"] for row in analysis["by_size"]],
        [f"{r['prompts']}" for r in analysis["by_size"]],
    )
    left.minorticks_off()
    for label, hit, color in (("Hit@1", metrics["hit@1"], BLUE), ("Hit@3", metrics["hit@3"], GREY)):
        left.axhline(hit[SINGLE], color=color, linestyle=":", label=f"{label}, best single")
    left.legend(frameon=False, fontsize=8)
    return figure


def _confusion(analysis: Analysis, teachers: list[str]) -> Figure:
    """Rows and columns are the same teachers: the columns have their numbers only."""
    figure, (axes,) = _rows([f"{_short(name)}  {i}" for i, name in enumerate(teachers, 1)])
    places = [analysis["names"].index(name) for name in teachers]
    _shade(axes, [[analysis["confusion"][i][j] for j in places] for i in places], "{:.0f}")
    axes.set_xticks(range(len(teachers)), [f"{i}" for i in range(1, len(teachers) + 1)])
    axes.set(xlabel="the best (numbers as in the rows)", ylabel="the router's choice")
    return figure


def _shade(axes: Axes, values: list[list[float]], form: str) -> None:
    """A cell for each value, with its number; zeros are empty."""
    most = max(max(row) for row in values) or 1
    axes.imshow(values, cmap="Blues", vmin=0, vmax=most, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value:
                color = "white" if value > 0.6 * most else "#1f2933"
                axes.text(
                    x, y, form.format(value), ha="center", va="center", fontsize=8, color=color
                )
