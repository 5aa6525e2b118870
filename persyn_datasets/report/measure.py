"""What came out: the numbers of a build."""

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from datasets import Dataset

from persyn_datasets.data.build import Cost, Line, Measured, Routing, Temperature
from persyn_datasets.data.reasoning import written_length
from persyn_datasets.data.responses import rewards_by_prompt
from persyn_datasets.data.tools import to_calls
from persyn_datasets.report import thinking
from persyn_datasets.router.metrics import (
    calibration_error,
    reliability,
)

PACKAGES = ("persyn-datasets", "datasets", "huggingface_hub", "torch", "transformers")
BINS = 10  # of the router's confidence


def errors(ranked: Dataset, most: int = 3) -> str:
    """The most frequent reasons of failed responses, in words."""
    reasons = Counter(r["error"] for row in ranked["responses"] for r in row if r["error"])
    if not reasons:
        return "no response failed, but all rewards of each prompt are equal"
    return "; ".join(f"{count} × {reason[:200]}" for reason, count in reasons.most_common(most))


def measure(ranked: Dataset | None, answered: Dataset, names: Iterable[str]) -> Measured:
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
        answers[name] += [m["content"] + to_calls(m.get("tool_calls")) for m in completion]

    def mean(rows: list[dict[str, Any]], key: str) -> float | None:
        values = [r[key] for r in rows if r.get(key) is not None]
        return float(np.mean(values)) if values else None

    return {
        "thinking": thinking.measure(ranked) if ranked else None,
        "rows": len(answered),
        "failed": sum(error != "" for error in answered["error"]),
        "errors": dict(Counter(e for e in answered["error"] if e).most_common(3)),
        "per_teacher": {
            name: {
                "quality": mean(rows, "quality"),
                "learnability": mean(rows, "learnability"),
                "target": mean(rows, "target"),
                "reward": mean(rows, "reward"),
                "completion_tokens": mean(rows, "completion_tokens"),
                "characters": _percentiles(written_length(r) for r in rows if not r["error"]),
                "routed_characters": _percentiles(map(len, answers[name])),
                "calibration_failed": sum(r["error"] != "" for r in rows),
                "best": best[name],
                "routed": routed[name],
            }
            for name, rows in responses.items()
        },
    }


def _percentiles(of: Iterable[int]) -> list[float] | None:
    lengths = list(of)
    return [float(p) for p in np.percentile(lengths, [10, 50, 90])] if lengths else None


def measure_routing(
    held_out: Dataset, routed: Dataset, names: Sequence[str], temperature: Temperature
) -> Routing:
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
        each = dict.fromkeys(held_out["prompt_id"])
        o = np.log([scores[key] for key in each]).reshape(-1, len(names))
    bins = reliability(o, rewards_by_prompt(held_out, names))
    return {
        "confidence": np.histogram(top, bins=BINS, range=(0, 1))[0].tolist(),
        "mean_confidence": float(top.mean()),
        "reliability": bins,
        "calibration_error": calibration_error(bins),
        "temperature": temperature,
    }


def cost(account: list[Line], prompts: int) -> Cost | None:
    """USD of all answers in use, and what generate-then-select would cost at the calibration's mean
    prices.
    """
    usd = sum(line["usd"] + line["reused_usd"] for line in account)
    calibration = [line for line in account if line["stage"] == "Generate" and line["answers"]]
    each = [(line["usd"] + line["reused_usd"]) / line["answers"] for line in calibration]
    return {"usd": usd, "generate_then_select_usd": prompts * sum(each)} if usd else None


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}
