"""The stages without a model: Rank and Pairify over recorded-like rows of 19 teachers.

python benchmarks/overhead.py [--prompts 20000]
"""

import argparse
import json
import random
import time

from persyn_datasets.pairify import Pairify
from persyn_datasets.rank import Rank
from persyn_datasets.tables import table

TEACHERS = 19


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20_000)
    n, r = parser.parse_args().prompts, random.Random(0)
    response = lambda t: {"teacher": f"t{t}", "error": "", "quality": r.randint(0, 1), "learnability": -r.random()}  # noqa: E731
    batch = {
        "prompt_id": [str(i) for i in range(n)],
        "messages": [[{"role": "user", "content": "?"}]] * n,
        "responses": [[response(t) for t in range(TEACHERS)] for _ in range(n)],
    }
    start = time.perf_counter()
    ranked = batch | Rank()(batch)
    middle = time.perf_counter()
    pairs = len(Pairify()(ranked)["label"])
    end = time.perf_counter()
    rates = {"rank_prompts_per_s": n / (middle - start), "pairify_pairs_per_s": pairs / (end - middle)}
    print(table(["measure", "per second"], [[name, f"{rate:,.0f}"] for name, rate in rates.items()]))
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
