"""What came out: the numbers of a build, and the words for them."""

from collections import Counter
from typing import Any

import numpy as np
from datasets import Dataset

from persyn_datasets.recipe import Recipe
from persyn_datasets.tables import table


def errors(ranked: Dataset, most: int = 3) -> str:
    """The most frequent reasons of failed responses, in words."""
    reasons = Counter(r["error"] for row in ranked["responses"] for r in row if r["error"])
    if not reasons:
        return "no response failed, but all rewards of each prompt are equal"
    return "; ".join(f"{count} × {reason[:200]}" for reason, count in reasons.most_common(most))


def measure(ranked: Dataset, answered: Dataset) -> dict[str, Any]:
    """The numbers per teacher: what it is worth in calibration, and what it was given to answer."""
    responses: dict[str, list[dict[str, Any]]] = {}
    for row in ranked["responses"]:
        for r in row:
            responses.setdefault(r["teacher"], []).append(r)
    best, routed = Counter(ranked["best_teacher"]), Counter(answered["teacher"])

    def mean(rows: list[dict[str, Any]], key: str) -> float | None:
        values = [r[key] for r in rows if r[key] is not None]
        return float(np.mean(values)) if values else None

    return {
        "rows": len(answered),
        "failed": sum(error != "" for error in answered["error"]),
        "per_teacher": {
            name: {
                **{key: mean(rows, key) for key in ("quality", "learnability", "reward", "completion_tokens")},
                "calibration_failed": sum(r["error"] != "" for r in rows),
                "best": best[name],
                "routed": routed[name],
            }
            for name, rows in responses.items()
        },
    }


def verdict(metrics: dict[str, Any]) -> str:
    """Does routing beat sending everything to the best single teacher? Plainly, from the held-out prompts."""
    a, single = metrics["advantage"], metrics["best_single_teacher"]
    interval = f"{a['mean']:+.3f} reward per prompt [95% interval {a['low']:+.3f} to {a['high']:+.3f}]"
    on = f"on {metrics['prompts']} held-out prompts"
    if a["low"] > 0:
        return f"Routing beats sending everything to the best single teacher, {single}: {interval}, {on}."
    if a["high"] < 0:
        return f"Routing is worse than sending everything to {single}: {interval}, {on}. Use {single} alone."
    return (
        f"No proof that routing beats sending everything to {single}: {interval}, {on}. The interval includes 0: "
        f"calibrate with more prompts, or use {single} alone."
    )


def describe(recipe: Recipe, stats: dict[str, Any]) -> str:
    """The closing report, in Markdown."""
    r, reward = stats["router"], recipe.reward
    show = lambda value: "–" if value is None else f"{value:.3f}"  # noqa: E731
    teachers = [
        [name, show(t["quality"]), show(t["learnability"]), show(t["reward"]), str(t["best"]), str(t["routed"]),
         f"{t['routed'] / stats['rows']:.0%}"]
        for name, t in sorted(stats["per_teacher"].items(), key=lambda item: -item[1]["routed"])
    ]  # fmt: skip
    head = ["teacher", "quality", "learnability", "reward", "best in calibration", "routed to it", "share"]
    names = ("router", "best single", "random", "oracle")
    measures = [[m, *(f"{r[m][name]:.3f}" for name in names)] for m in ("hit@1", "hit@3", "reward", "regret")]
    saved = stats["generate_then_select"] / stats["generations"]
    lines = [
        f"# {recipe.name}",
        f"{stats['rows'] - stats['failed']:,} prompts, each answered by the teacher that the student "
        f"{recipe.student.model} learns most from.",
        f"Reward r = (1 − α)·r_q + α·r_l with α = {reward.alpha}, each signal normalised by `{reward.normalize}`. "
        f"r_q: {recipe.quality}. r_l: mean token log-probability of the response under the student.",
        table(head, teachers),
        f"The router on {r['prompts']} held-out calibration prompts (best single teacher: {r['best_single_teacher']}):",
        table(["", *names], measures),
        f"{stats['generations']:,} generations; generate-then-select needs {stats['generate_then_select']:,} "
        f"({saved:.1f} times as many).",
        verdict(r),
    ]
    if stats["failed"]:
        lines.insert(2, f"{stats['failed']:,} prompts failed: see the split `failed`, column `error`.")
    return "\n\n".join(lines)
