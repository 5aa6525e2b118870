"""What thinking costs, and on which prompts it pays."""

from typing import Any

import numpy as np
from datasets import Dataset

from persyn_datasets.config.recipe import Recipe
from persyn_datasets.data.build import OfThird, Thinking, Thoughts
from persyn_datasets.data.reasoning import written_length
from persyn_datasets.data.responses import rewards_by_prompt
from persyn_datasets.engines import price_of
from persyn_datasets.report.tables import table

THIRDS = ("hardest third", "middle third", "easiest third")


def measure(ranked: Dataset) -> Thinking | None:
    """The thoughts of the calibration's responses; None if no teacher reasons.

    Returns:
        `teachers`: of each, its `answers`; how many of them have a thought (`thoughts`), and how
            many of these were `cut_off`; the mean `tokens` of a response and of its thought
            (`reasoning_tokens`; where nobody counted them, by its share of the characters). None:
            the tokens of a response are not known.
        `by_difficulty`: for each third of the prompts, by their teachers' mean quality, the mean
            reward of the teachers that think in most answers (`thinking`) and of the others
            (`others`); empty if all do, or there are fewer than three prompts.
    """
    responses: dict[str, list[dict[str, Any]]] = {}
    for row in ranked["responses"]:
        for r in row:
            responses.setdefault(r["teacher"], []).extend([] if r["error"] else [r])
    if not any(r["reasoning"] for rows in responses.values() for r in rows):
        return None
    teachers = {name: _teacher(rows) for name, rows in responses.items()}
    return {"teachers": teachers, "by_difficulty": _by_difficulty(ranked, teachers)}


def _teacher(rows: list[dict[str, Any]]) -> Thoughts:
    counted = [r for r in rows if r["completion_tokens"] is not None]
    thoughts = [r for r in rows if r["reasoning"]]
    return {
        "answers": len(rows),
        "thoughts": len(thoughts),
        "cut_off": sum(not (r["text"] or r.get("tool_calls")) for r in thoughts),
        "tokens": _mean([r["completion_tokens"] for r in counted]),
        "reasoning_tokens": _mean([_tokens(r) for r in counted]),
    }


def _tokens(r: dict[str, Any]) -> float:
    if r["reasoning_tokens"] is not None:
        return float(r["reasoning_tokens"])
    written = max(1, written_length(r))
    return float(r["completion_tokens"] * len(r["reasoning"]) / written)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _by_difficulty(ranked: Dataset, teachers: dict[str, Thoughts]) -> list[OfThird]:
    names = list(teachers)
    thinks = np.array([2 * of["thoughts"] > of["answers"] for of in teachers.values()])
    quality, rewards = (rewards_by_prompt(ranked, names, key) for key in ("quality", "reward"))
    if thinks.all() or not thinks.any() or len(rewards) < len(THIRDS):
        return []
    known = np.flatnonzero(~np.isnan(quality).all(-1))
    order = known[np.nanmean(quality[known], -1).argsort(kind="stable")]
    return [
        {
            "prompts": len(part),
            "thinking": _mean_of(rewards[part][:, thinks]),
            "others": _mean_of(rewards[part][:, ~thinks]),
        }
        for part in np.array_split(order, len(THIRDS))
    ]


def _mean_of(rewards: np.ndarray) -> float | None:
    return None if np.isnan(rewards).all() else float(np.nanmean(rewards))


def cost_table(recipe: Recipe, thinking: Thinking) -> str:
    """Of each teacher that thinks: how much, and what that costs."""
    prices = {t.name: price_of(t) for t in recipe.teachers}
    rows = []
    for name, of in thinking["teachers"].items():
        if not of["thoughts"]:
            continue
        tokens, price = of["reasoning_tokens"], prices.get(name)
        share = tokens / of["tokens"] if tokens is not None and of["tokens"] else None
        usd = None if tokens is None or not price else 1000 * price.of(0, tokens)
        rows.append(
            [
                name,
                f"{of['thoughts'] / of['answers']:.0%}",
                f"{of['cut_off'] / of['answers']:.0%}",
                _shown(tokens, "{:,.0f}"),
                _shown(share, "{:.0%}"),
                _shown(usd, "{:,.2f}"),
            ]
        )
    head = ["teacher", "answers that think", "thoughts cut off", "thought tokens (mean)"]
    return table([*head, "share of its tokens", "USD for 1,000 thoughts"], rows)


def difficulty_table(thinking: Thinking) -> str:
    """Reward with and without thinking, by the prompts' difficulty; empty if it is not known."""
    rows = [
        [name, f"{of['prompts']:,}", *(_shown(of[k], "{:.3f}") for k in ("thinking", "others"))]
        for name, of in zip(THIRDS, thinking["by_difficulty"], strict=False)
    ]
    head = ["prompts", "number", "reward, teachers that think", "reward, the others"]
    return table(head, rows) if rows else ""


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
