"""What is said of a build, once: its words and tables, for card, page and terminal alike."""

import json
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from persyn_datasets import signals
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.strategy import STRATEGIES
from persyn_datasets.data import contamination
from persyn_datasets.data.build import Analysis, Build, Judged, Metrics, Tradeoff
from persyn_datasets.engines.account import wall
from persyn_datasets.report import thinking
from persyn_datasets.report.luck import in_words as luck_words
from persyn_datasets.report.tables import (
    TERMINAL,
    Table,
    account_table,
    compute_table,
    explained,
    table,
)
from persyn_datasets.report.verdict import judged_on, verdict, verdict_table
from persyn_datasets.router.ceiling import in_words
from persyn_datasets.router.metrics import GROUP, NEAREST, ORACLE, RANDOM, SHARES, SINGLE
from persyn_datasets.store.progress import usd
from persyn_datasets.strategies import second_opinion

R_L = {
    "log-probability": "mean token log-probability",
    "rsr": "minus the Rank-Surprisal Ratio (arXiv 2601.14249)",
    "target": "the target signal, the mean per token of log p_θ⁺ − log p_θ (θ⁺: the student after "
    "a few steps on the target),",
}
CURVES = (
    "Its head alone, fitted to fewer calibration prompts or to another α (Hit@k by that α's own "
    "reward; if several teachers are best, each counts):"
)
COLUMNS = ("router", SINGLE, GROUP, NEAREST, SHARES, RANDOM, ORACLE)
SIZES = (3, 10, 40, 100)  # billions of parameters


def facts(recipe: Recipe, stats: Build) -> dict[str, Any]:
    """All that is said of a build, as values for the templates: cards, page and terminal."""
    router, analysis, tradeoff = stats["router"], stats["analysis"], stats["tradeoff"]
    thoughts = stats.get("thinking")
    return {
        "recipe": recipe,
        "who": STRATEGIES[recipe.strategy],
        "verdict": outcome(recipe, stats),
        "judged_on": judged_on(router) if router else "",
        "against": verdict_table(router) if router else "",
        "reward": reward_words(recipe),
        "notes": notes(stats),
        "teachers_table": teachers_table(recipe, stats),
        "size_table": size_table(recipe, stats),
        "thinking": thinking.cost_table(recipe, thoughts) if thoughts else "",
        "difficulty_of_thinking": thinking.difficulty_table(thoughts) if thoughts else "",
        "router_table": router_table(router) if router else "",
        "ceiling": ceiling_words(router) if router else "",
        "luck": luck_words(stats["luck"]) if stats.get("luck") else "",
        "curves": CURVES,
        "curve_table": curve_table(analysis) if analysis and analysis["by_size"] else "",
        "saved": saved(stats),
        "budget": budget_words(tradeoff) if tradeoff else "",
        "tradeoff": tradeoff_table(tradeoff) if tradeoff else "",
        "account": account_table(stats["account"]),
        "compute": compute_table(stats["compute"]) if stats.get("compute") else "",
        "estimate": estimate_table(recipe, stats),
    }


def templates() -> Environment:
    """The templates of cards, page and terminal. In HTML everything is escaped, and a `Table` is
    one of HTML.
    """
    package = Path(__file__).parents[1]
    folder = next(f for f in (package / "templates", package.parent / "cards") if f.is_dir())
    environment = Environment(
        loader=FileSystemLoader(folder),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=lambda name: bool(name and name.endswith(".html")),
    )
    environment.filters |= {"fill": fill, "plain": Table.plain, "explained": explained}
    return environment


def describe(recipe: Recipe, stats: Build) -> str:
    """The report for a terminal of 80 columns."""
    return templates().get_template("report.txt").render(stats=stats, **facts(recipe, stats))


def fill(text: str) -> str:
    """Lines of a terminal's width; words and paths stay whole."""
    return textwrap.fill(text, TERMINAL, break_long_words=False, break_on_hyphens=False)


def estimate_table(recipe: Recipe, stats: Build) -> str:
    """The plan (every answer of `max_tokens`, synthesis spread evenly) beside the account, which
    counts an answer of the calibration there only.
    """
    rows = []
    planned: dict[str, Mapping[str, object]] = {
        "Generate": stats["estimate"]["Generate"],
        "Synthesize": stats["estimate"]["Synthesize"],
    }
    for stage, expected in planned.items():
        lines = [line for line in stats["account"] if line["stage"] == stage]
        seconds = {line["teacher"]: line["seconds"] for line in lines}
        actual = {
            "prompt_tokens": sum(line["prompt_tokens"] for line in lines),
            "completion_tokens": sum(line["completion_tokens"] for line in lines),
            "usd": sum(line["usd"] + line["reused_usd"] for line in lines),
            "seconds": wall(recipe.teachers, seconds),
        }
        for key, value in actual.items():
            form = "{:,.4f}" if key == "usd" else "{:,.0f}"
            of = expected[key]
            name = f"{stage} · {key}".replace("_", " ")
            rows.append([name, "–" if of is None else form.format(of), form.format(value)])
    return table(["", "planned", "actual"], rows)


def outcome(recipe: Recipe, stats: Build) -> str:
    """The verdict on the router; of a strategy without one, what it does."""
    if stats["router"]:
        return verdict(stats["router"])
    return (
        f"Strategy {recipe.strategy}: every prompt is answered by "
        f"{STRATEGIES[recipe.strategy]}; there is no router."
    )


def ceiling_words(metrics: Metrics) -> str:
    """How much of the oracle's lead is luck; empty if each teacher was asked once only."""
    return (
        in_words(metrics["ceiling"], metrics["best_single_teacher"]) if "ceiling" in metrics else ""
    )


def teachers_table(recipe: Recipe, stats: Build) -> str:
    """What each teacher is worth and what it was given, most first."""
    sizes = {t.name: t.size for t in recipe.teachers}
    three: Callable[[float | None], str] = lambda x: "–" if x is None else f"{x:.3f}"  # noqa: E731
    rows = [
        [
            name,
            three(t["quality"]),
            three(t["learnability"]),
            *([three(t["target"])] if recipe.target else []),
            three(t["reward"]),
            "–" if t["characters"] is None else f"{t['characters'][1]:,.0f}",
            "–" if sizes.get(name) is None else f"{sizes[name]:g}",
            f"{t['best']:,}",
            f"{t['routed']:,}",
            f"{t['routed'] / stats['rows']:.0%}",
        ]
        for name, t in sorted(stats["per_teacher"].items(), key=lambda item: -item[1]["routed"])
    ]
    head = [
        "teacher",
        "quality",
        "learnability",
        *(["target"] if recipe.target else []),
        "reward",
        "characters (median)",
        "size (B)",
        "best in calibration",
        "routed to it",
        "share",
    ]
    return table(head, rows)


def router_table(metrics: Metrics) -> str:
    """The router, beside all that it must be judged by."""
    measures = {
        "hit@1": metrics["hit@1"],
        "hit@3": metrics["hit@3"],
        "reward": metrics["reward"],
        "regret": metrics["regret"],
    }
    columns = [name for name in COLUMNS if name in metrics["reward"]]
    rows = [
        [measure, *(f"{of[name]:.3f}" if name in of else "–" for name in columns)]
        for measure, of in measures.items()
    ]
    return table(["", *columns], rows)


def tradeoff_table(tradeoff: Tradeoff) -> str:
    """What more money buys: every fourth point of `budget.tradeoff`, and each teacher alone, by
    their spend.
    """
    curve = tradeoff["curve"][::4]
    lines = [
        ("router", p["spend"], f"{p['reward']:.3f}", p["measured"], f"{p['multiplier']:.3g}")
        for p in curve
    ]
    lines += [
        (f"{name} alone", t["spend"], "–", t["measured"], "–")
        for name, t in tradeoff["teachers"].items()
    ]
    form, unit = ("{:,.2f}", "USD") if tradeoff["unit"] == "usd" else ("{:,.0f}", "token")
    rows = [
        [name, form.format(spend), expected, f"{measured:.3f}", buys]
        for name, spend, expected, measured, buys in sorted(lines, key=lambda line: line[1])
    ]
    head = [
        "all prompts to",
        f"{unit}s for all prompts".replace("USDs", "USD"),
        "reward, expected",
        "reward, measured (held out)",
        f"reward that one more {unit} buys",
    ]
    return table(head, rows)


def budget_words(tradeoff: Tradeoff) -> str:
    """What the build's budget was spent on; empty if it has none."""
    if "budget" not in tradeoff:
        return ""
    b = tradeoff["budget"]
    spend = usd(b["spend"]) if b["unit"] == "usd" else f"{b['spend']:,.0f} tokens"
    return (
        f"Within the budget, the answers are expected to cost {spend} and to have a mean reward "
        f"of {b['reward']:.3f}; no assignment within it exceeds that by more than {b['gap']:.1g}."
    )


def size_table(recipe: Recipe, stats: Build) -> str:
    """How many prompts go to teachers of which size; empty if a size is not known."""
    sizes = {t.name: t.size for t in recipe.teachers if t.name in stats["per_teacher"]}
    if any(size is None for size in sizes.values()):
        return ""
    rows = []
    for low, high in zip((0, *SIZES), (*SIZES, float("inf")), strict=True):
        names = [name for name, size in sizes.items() if size and low < size <= high]
        routed = sum(stats["per_teacher"][name]["routed"] for name in names)
        label = f"over {low:g}B" if high == float("inf") else f"{low:g}B to {high:g}B"
        rows += (
            [[label, f"{len(names)}", f"{routed:,}", f"{routed / stats['rows']:.0%}"]]
            if names
            else []
        )
    return table(["size", "teachers", "routed to them", "share"], rows)


def curve_table(analysis: Analysis) -> str:
    """The router on held-out prompts with fewer calibration prompts, and with another α."""
    keys = ("hit@1", "hit@3", "quality", "learnability")
    lines = [(f"{row['prompts']:,} calibration prompts", row) for row in analysis["by_size"]]
    lines += [(f"α = {row['alpha']:g}", row) for row in analysis["by_alpha"]]
    return table(
        ["head fitted to", *keys],
        [[name, *(f"{row[key]:.3f}" for key in keys)] for name, row in lines],
    )


def saved(stats: Build) -> str:
    """Generations and USD, against generate-then-select."""
    ratio = stats["generate_then_select"] / stats["generations"]
    words = (
        f"{stats['generations']:,} generations; generate-then-select needs "
        f"{stats['generate_then_select']:,} ({ratio:.1f} times as many)."
    )
    if c := stats["cost"]:
        words += (
            f" {usd(c['usd'])} in all; generate-then-select would cost about "
            f"{usd(c['generate_then_select_usd'])}."
        )
    return words


def reward_words(recipe: Recipe) -> str:
    """The combined reward, as an equation and its parts."""
    reward = recipe.effective_reward
    return (
        f"Reward r = (1 − α)·r_q + α·r_l with α = {reward.alpha}, each signal normalised by "
        f"`{reward.normalize}`. r_q: {signals.shown(recipe.quality)}. "
        f"r_l: {R_L[reward.learnability]} of the response under the student."
        + (f" Target: {_named(recipe.target.path)}." if recipe.target else "")
    )


def _named(path: str) -> str:
    """A Hub id as it is, of a file or folder here only the name."""
    return Path(path).name if Path(path).exists() else path


def notes(stats: Build) -> list[str]:
    """What else a reader has to know of the rows."""
    extras = ((second_opinion, stats["second_opinions"]), (contamination, stats["contamination"]))
    found = [module.in_words(numbers) for module, numbers in extras if numbers]
    return found + ([judge_words(stats["judge"])] if "judge" in stats else [])


def judge_words(of: Judged) -> str:
    """How far the judge can be relied on, as it says itself."""
    words = f"Judge {of['name'].removeprefix('judge ')}: asked {of['asked']:,} times"
    if of["failed"] or of["unread"]:
        words += f", {of['failed']:,} failed, {of['unread']:,} without a verdict"
    if pairs := of.get("pairs", 0):
        same = of["agreed"] / pairs
        words += f"; of {pairs:,} pairs, {same:.0%} got the same verdict in both orders"
    if repeated := of.get("repeated", 0):
        spread = of.get("spread", 0.0) / repeated
        words += f"; repeated scores of an answer differ by {spread:.2f} (mean standard deviation)"
    return f"{words}."


def to_yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(
        json.loads(json.dumps(values, default=str)), sort_keys=False, allow_unicode=True
    )
