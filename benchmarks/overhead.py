"""The stages without a model: Rank and Pairify on Arrow tables, against plain loops over Python
lists.

    python benchmarks/overhead.py [--prompts 20000]

Rows as `map` hands them over: prompts of 300 characters, each with 19 responses of 1,000. The loops
get their lists for
nothing: what making them from Arrow and back costs is not counted. Both ways must give the same, or
    this exits with 1.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pyarrow as pa
from datasets import Features

from persyn_datasets.data import schema
from persyn_datasets.report.tables import table
from persyn_datasets.stages.pairify import Pairify
from persyn_datasets.stages.rank import Rank

TEACHERS, ALPHA = 19, 0.4


def make_rows(n: int) -> list[dict[str, Any]]:
    r = random.Random(0)
    filled = {
        "sample": 0,
        "text": "x" * 1000,
        "finish_reason": "stop",
        "prompt_tokens": 75,
        "completion_tokens": 250,
        "error": "",
    }
    signals = lambda: {"quality": float(r.randint(0, 1)), "learnability": -r.random(), "rsr": 2.0}  # noqa: E731
    message = {"role": "user", "content": "?" * 300}
    return [
        {
            "prompt_id": f"{i:032}",
            "messages": [message],
            "responses": [{"teacher": f"t{t}"} | filled | signals() for t in range(TEACHERS)],
        }
        for i in range(n)
    ]


def rank_by_lists(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """r = (1 − α)·r_q + α·r_l of min–max signals, the rank, and the best teacher."""

    def scaled(row: list[dict[str, Any]], signal: str) -> list[float]:
        values = [r[signal] for r in row]
        low, spread = min(values), max(values) - min(values)
        return [(v - low) / spread if spread else 0.0 for v in values]

    ranked = []
    for row in rows:
        both = zip(
            *(scaled(row["responses"], signal) for signal in ("quality", "learnability")),
            strict=True,
        )
        rewards = [(1 - ALPHA) * q + ALPHA * lp for q, lp in both]
        order = sorted(rewards, reverse=True)
        ranks = [order.index(reward) + 1 for reward in rewards]
        added = zip(row["responses"], rewards, ranks, strict=True)
        best = max(
            zip(rewards, row["responses"], strict=True),
            key=lambda pair: (pair[0], pair[1]["learnability"]),
        )[1]
        responses = [r | {"reward": reward, "rank": rank} for r, reward, rank in added]
        ranked.append(row | {"responses": responses, "best_teacher": best["teacher"]})
    return ranked


def pairs_by_lists(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": row["prompt_id"],
            "messages": row["messages"],
            "teacher_a": a["teacher"],
            "teacher_b": b["teacher"],
            "label": int(b["reward"] > a["reward"]),
            "margin": abs(b["reward"] - a["reward"]),
        }
        for row in rows
        for a, b in combinations(row["responses"], 2)
        if a["reward"] != b["reward"]
    ]


def timed(function: Callable[[Any], Any], argument: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function(argument)
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=20_000)
    n = parser.parse_args().prompts
    rows = make_rows(n)
    scored = pa.Table.from_pylist(rows, Features(schema.PROMPT | schema.SCORED).arrow_schema)
    Pairify()(Rank(ALPHA)(scored.slice(0, 100)))  # to warm up
    ranked, rank = timed(Rank(ALPHA), scored)
    expected, rank_lists = timed(rank_by_lists, rows)
    first = Pairify()(ranked.slice(0, 1000))
    made, pairify = timed(
        lambda t: sum(len(Pairify()(t.slice(i, 1000))) for i in range(0, n, 1000)), ranked
    )
    sample = expected[:1000]
    expected_pairs, pairify_lists = timed(pairs_by_lists, sample)
    if ranked.slice(0, 1000).to_pylist() != sample or first.to_pylist() != expected_pairs:
        raise SystemExit("Arrow and the loops give different results.")
    prompts, copies = ranked.slice(0, 1000).select(["prompt_id", "messages"]), len(first) // 1000
    places = pa.array([i for i in range(1000) for _ in range(copies)])
    copying = min(timed(prompts.take, places)[1] for _ in range(10))
    limit = f"copying each prompt into its pairs alone {copies * 1000 / copying:,.0f}"
    rates = {
        "Rank, prompts/s": (n / rank, n / rank_lists, ""),
        "Pairify, prompts/s": (n / pairify, len(sample) / pairify_lists, ""),
        "Pairify, pairs/s": (made / pairify, len(expected_pairs) / pairify_lists, limit),
    }
    lines = [
        [
            f"{name} (19 teachers)",
            f"{ours:,.0f}",
            f"{lists:,.0f}: Python lists",
            f"{ours / lists:.1f}",
            limit,
        ]
        for name, (ours, lists, limit) in rates.items()
    ]
    print(table(["measure", "on Arrow", "beside it", "ratio", "limit"], lines))
    print(json.dumps({"rows": lines}))


if __name__ == "__main__":
    main()
