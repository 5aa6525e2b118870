"""What came out: the numbers of a build, and the words and tables for them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.strategy import STRATEGIES
from persyn_datasets.data import contamination
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.engines.account import account_table
from persyn_datasets.plan import wall
from persyn_datasets.report.tables import table
from persyn_datasets.report.verdict import verdict, verdict_table
from persyn_datasets.router.ceiling import in_words
from persyn_datasets.router.metrics import (
    GROUP,
    NEAREST,
    ORACLE,
    RANDOM,
    SHARES,
    SINGLE,
    calibration_error,
    reliability,
)
from persyn_datasets.strategies import second_opinion

PACKAGES = ("persyn-datasets", "datasets", "huggingface_hub", "torch", "transformers")
R_L = {
    "log-probability": "mean token log-probability",
    "rsr": "minus the Rank-Surprisal Ratio (arXiv 2601.14249)",
    "target": "the target signal, the mean per token of log p_θ⁺ − log p_θ (θ⁺: the student after "
    "a few steps on the target),",
}
CURVES = (
    "Its head alone, fitted to fewer calibration prompts or to another α (Hit@k by that α's own "
    "reward; where several "
    "teachers are best, each is):"
)
COLUMNS = ("router", SINGLE, GROUP, NEAREST, SHARES, RANDOM, ORACLE)
SIZES = (3, 10, 40, 100)  # billions of parameters
BINS = 10  # of the router's confidence


def errors(ranked: Dataset, most: int = 3) -> str:
    """The most frequent reasons of failed responses, in words."""
    reasons = Counter(r["error"] for row in ranked["responses"] for r in row if r["error"])
    if not reasons:
        return "no response failed, but all rewards of each prompt are equal"
    return "; ".join(f"{count} × {reason[:200]}" for reason, count in reasons.most_common(most))


def measure(ranked: Dataset | None, answered: Dataset, names: Iterable[str]) -> dict[str, Any]:
    """The numbers per teacher of these names: what it is worth in calibration, and what it was
    given to answer.

    `characters` and `routed_characters` are the 10th, 50th and 90th percentile of the length of its
    answers, in calibration and in the dataset: tokenizers differ from teacher to teacher,
    characters do not.
    """
    responses: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for row in ranked["responses"] if ranked else ():
        for r in row:
            responses[r["teacher"]].append(r)
    best, routed = Counter(ranked["best_teacher"] if ranked else ()), Counter(answered["teacher"])
    answers: dict[str, list[str]] = {name: [] for name in responses}
    for name, completion in zip(answered["teacher"], answered["completion"], strict=True):
        answers[name] += [message["content"] for message in completion]

    def mean(rows: list[dict[str, Any]], key: str) -> float | None:
        values = [r[key] for r in rows if r.get(key) is not None]
        return float(np.mean(values)) if values else None

    return {
        "rows": len(answered),
        "failed": sum(error != "" for error in answered["error"]),
        "errors": dict(Counter(e for e in answered["error"] if e).most_common(3)),
        "per_teacher": {
            name: {
                **{
                    key: mean(rows, key)
                    for key in ("quality", "learnability", "target", "reward", "completion_tokens")
                },
                "characters": _percentiles(r["text"] for r in rows if not r["error"]),
                "routed_characters": _percentiles(answers[name]),
                "calibration_failed": sum(r["error"] != "" for r in rows),
                "best": best[name],
                "routed": routed[name],
            }
            for name, rows in responses.items()
        },
    }


def _percentiles(texts: Iterable[str]) -> list[float] | None:
    lengths = [len(text) for text in texts]
    return [float(p) for p in np.percentile(lengths, [10, 50, 90])] if lengths else None


def measure_routing(held_out: Dataset, routed: Dataset, names: Sequence[str]) -> dict[str, Any]:
    """How sure the router is, and whether it may be.

    Returns:
        `confidence`: how many of all prompts have their highest `router_scores` in each tenth of
        [0, 1]; `mean_confidence`; `reliability` and `calibration_error` on the held-out prompts,
        see metrics.py.
    """
    scores = dict(
        zip(routed["prompt_id"], np.array(routed["router_scores"], dtype=float), strict=True)
    )
    top = np.array([row.max() for row in scores.values()])
    with np.errstate(divide="ignore"):
        o = np.log([scores[key] for key in held_out["prompt_id"]]).reshape(-1, len(names))
    bins = reliability(o, rewards_of(held_out, names))
    return {
        "confidence": np.histogram(top, bins=BINS, range=(0, 1))[0].tolist(),
        "mean_confidence": float(top.mean()),
        "reliability": bins,
        "calibration_error": calibration_error(bins),
    }


def cost(account: list[dict[str, Any]], prompts: int) -> dict[str, float] | None:
    """USD of all answers in use, and what generate-then-select would cost at the calibration's mean
    prices.
    """
    usd = sum(line["usd"] + line["reused_usd"] for line in account)
    calibration = [line for line in account if line["stage"] == "Generate" and line["answers"]]
    each = [(line["usd"] + line["reused_usd"]) / line["answers"] for line in calibration]
    return {"usd": usd, "generate_then_select_usd": prompts * sum(each)} if usd else None


def estimate_table(recipe: Recipe, stats: dict[str, Any]) -> str:
    """The plan (every answer of `max_tokens`, synthesis spread evenly) beside the account, which
    counts an answer of the calibration there only.
    """
    keys = ("prompt_tokens", "completion_tokens", "usd")
    forms = dict(zip((*keys, "seconds"), ("{:,.0f}", "{:,.0f}", "{:,.4f}", "{:,.0f}"), strict=True))
    rows = []
    for stage in ("Generate", "Synthesize"):
        lines = [line for line in stats["account"] if line["stage"] == stage]
        actual: dict[str, Any] = {key: sum(line[key] for line in lines) for key in keys}
        actual["usd"] += sum(line["reused_usd"] for line in lines)
        actual["seconds"] = wall(
            recipe.teachers, {line["teacher"]: line["seconds"] for line in lines}
        )
        for key, form in forms.items():
            planned = stats["estimate"][stage][key]
            rows.append(
                [
                    f"{stage} · {key}".replace("_", " "),
                    "–" if planned is None else form.format(planned),
                    form.format(actual[key]),
                ]
            )
    return table(["", "planned", "actual"], rows)


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def outcome(recipe: Recipe, stats: dict[str, Any]) -> str:
    """The verdict on the router; of a strategy without one, what it does."""
    if stats["router"]:
        return verdict(stats["router"])
    return (
        f"Strategy {recipe.strategy}: every prompt is answered by "
        f"{STRATEGIES[recipe.strategy]}; there is no router."
    )


def ceiling_words(metrics: dict[str, Any]) -> str:
    """How much of the oracle's lead is luck; empty if each teacher was asked once only."""
    return (
        in_words(metrics["ceiling"], metrics["best_single_teacher"]) if "ceiling" in metrics else ""
    )


def teachers_table(recipe: Recipe, stats: dict[str, Any]) -> str:
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


def router_table(metrics: dict[str, Any]) -> str:
    """The router on held-out prompts, beside all that it must be judged by."""
    measures = ("hit@1", "hit@3", "reward", "regret")
    columns = [name for name in COLUMNS if name in metrics["reward"]]

    def cell(measure: str, name: str) -> str:
        value = metrics[measure].get(name)
        return "–" if value is None else f"{value:.3f}"

    return table(["", *columns], [[m, *(cell(m, name) for name in columns)] for m in measures])


def tradeoff_table(tradeoff: dict[str, Any]) -> str:
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


def budget_words(tradeoff: dict[str, Any]) -> str:
    """What the build's budget was spent on; empty if it has none."""
    if "budget" not in tradeoff:
        return ""
    b = tradeoff["budget"]
    spend = f"${b['spend']:,.2f}" if b["unit"] == "usd" else f"{b['spend']:,.0f} tokens"
    return (
        f"Within the budget the answers are expected to cost {spend} and to have a mean reward "
        f"of {b['reward']:.3f}; "
        f"no assignment within it has one larger by more than {b['gap']:.1g}."
    )


def size_table(recipe: Recipe, stats: dict[str, Any]) -> str:
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


def curve_table(analysis: dict[str, Any]) -> str:
    """The router on held-out prompts with fewer calibration prompts, and with another α."""
    keys = ("hit@1", "hit@3", "quality", "learnability")
    lines = [(f"{row['prompts']:,} calibration prompts", row) for row in analysis["by_size"]]
    lines += [(f"α = {row['alpha']:g}", row) for row in analysis["by_alpha"]]
    return table(
        ["head fitted to", *keys],
        [[name, *(f"{row[key]:.3f}" for key in keys)] for name, row in lines],
    )


def backbone_table(analysis: dict[str, Any] | None) -> str:
    """Routers of several sizes on held-out prompts; empty if only one was trained."""
    keys = ("hit@1", "hit@3")
    rows = [
        [row["backbone"], f"{row['parameters'] / 1e6:,.1f}", *(f"{row[key]:.3f}" for key in keys)]
        for row in (analysis["by_backbone"] if analysis else ())
    ]
    return table(["router's backbone", "million parameters", *keys], rows) if rows else ""


def saved(stats: dict[str, Any]) -> str:
    """Generations and USD, against generate-then-select."""
    ratio = stats["generate_then_select"] / stats["generations"]
    words = (
        f"{stats['generations']:,} generations; generate-then-select needs "
        f"{stats['generate_then_select']:,} "
        f"({ratio:.1f} times as many)."
    )
    if c := stats["cost"]:
        words += (
            f" ${c['usd']:,.2f} in all; generate-then-select would cost about "
            f"${c['generate_then_select_usd']:,.2f}."
        )
    return words


def reward_words(recipe: Recipe) -> str:
    """The combined reward, as an equation and its parts."""
    quality = recipe.quality if isinstance(recipe.quality, str) else recipe.quality["reward_model"]
    reward = recipe.effective_reward
    return (
        f"Reward r = (1 − α)·r_q + α·r_l with α = {reward.alpha}, each signal normalised by "
        f"`{reward.normalize}`. r_q: {quality}. r_l: {R_L[reward.learnability]} of the response "
        "under the student." + (f" Target: {_named(recipe.target.path)}." if recipe.target else "")
    )


def _named(path: str) -> str:
    """A Hub id as it is, of a file or folder here only the name."""
    return Path(path).name if Path(path).exists() else path


def notes(stats: dict[str, Any]) -> list[str]:
    """What else a reader has to know of the rows."""
    told = ((second_opinion, stats["second_opinions"]), (contamination, stats["contamination"]))
    return [module.in_words(numbers) for module, numbers in told if numbers]


def describe(recipe: Recipe, stats: dict[str, Any]) -> str:
    """The closing report, in Markdown."""
    lines = [
        f"# {recipe.title}",
        f"{stats['rows'] - stats['failed']:,} prompts for the student {recipe.student.model}, "
        "each answered by "
        f"{STRATEGIES[recipe.strategy]}.",
    ]
    if stats["failed"]:
        lines.append(f"{stats['failed']:,} prompts failed: see the split `failed`, column `error`.")
    lines += notes(stats)
    if stats["calibration"]:
        lines.append(reward_words(recipe))
    lines.append(teachers_table(recipe, stats))
    lines += [sizes] if (sizes := size_table(recipe, stats)) else []
    if r := stats["router"]:
        best = f"(best single teacher: {r['best_single_teacher']})"
        lines += [
            f"The router on {r['prompts']} held-out calibration prompts {best}:",
            router_table(r),
            *([leads] if (leads := verdict_table(r)) else []),
        ]
        lines += [words] if (words := ceiling_words(r)) else []
        lines += [CURVES, curve_table(stats["analysis"])] if stats["analysis"]["by_size"] else []
        lines += [sizes] if (sizes := backbone_table(stats["analysis"])) else []
    lines.append(saved(stats))
    if tradeoff := stats["tradeoff"]:
        lines += [
            tradeoff_table(tradeoff),
            *([budget_words(tradeoff)] if "budget" in tradeoff else []),
        ]
    lines += [
        account_table(stats["account"]),
        estimate_table(recipe, stats),
        outcome(recipe, stats),
    ]
    return "\n\n".join(lines)
