"""Rules that ask for fewer calibration answers, on recorded pools.

    python -m studies.fewer_answers.measure MMLU_PRO THREE_DOMAINS ZEROEVAL [FIRST_SEED [RULE …]]

MMLU_PRO and THREE_DOMAINS are the folders that those studies' `convert` wrote; ZEROEVAL is a clone
of WildEval/ZeroEval; RULE one to be measured (default: the first seven). Writes
results-FIRST_SEED.jsonl beside this file, a line for each order, and goes on where it was stopped.
PROTOCOL.md says what is compared and how.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persyn_datasets.router.crossfit import best_per_group
from persyn_datasets.router.regression import fit_rewards
from studies import recorded
from studies.gsm8k_student.prepare import MODELS
from studies.mmlu_pro.convert import POOLS
from studies.recorded import Pool
from studies.three_domains.convert import parse, right

SIZES = {"Three domains": 1400, "GSM8K": 650}
SIZE = 2500
ORDERS = 20
DIRECTIONS = 128
CLUSTERS = 8
FIRST_RULES = (
    *("fewer prompts", "stop by chance", "halving"),
    *("thirds", "thirds by group", "thirds by chance"),
)
SHRINK = 10.0  # prompts that a cluster's mean is pulled towards the teacher's mean by

# Keeps so many teachers, of those that are left, by the rewards and features so far.
Keep = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def gsm8k(clone: str) -> Pool:
    """The test split's questions, answered by the 19 open models."""
    rewards: dict[str, list[float]] = {}
    names = list(MODELS)
    for name in names:
        for line in json.loads(recorded.read_blob(clone, f"result_dirs/gsm/{name}.json")):
            answer = parse(line["output"][0])[1]
            reference = line["answer"].replace("#", "").strip()
            found = float(right("gsm", answer, reference))
            rewards.setdefault(line["question"].strip(), []).append(found)
    whole = {text: row for text, row in rewards.items() if len(row) == len(names)}
    return Pool("GSM8K", list(whole), np.zeros(len(whole)), names, np.array(list(whole.values())))


def words(prompts: list[str]) -> np.ndarray:
    """(prompts, DIRECTIONS), float64."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    counts = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True, max_features=50_000)
    found = TruncatedSVD(DIRECTIONS, random_state=0).fit_transform(counts.fit_transform(prompts))
    return np.asarray(found, float)


def with_groups(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The features beside one column for each group."""
    return np.hstack([x, (groups[:, None] == np.unique(groups)).astype(float)])


def best(rewards: np.ndarray, x: np.ndarray, left: np.ndarray, count: int) -> np.ndarray:
    means = rewards[:, left].mean(0)
    return np.sort(left[np.argsort(-means, kind="stable")[:count]])


def best_by_group(rewards: np.ndarray, x: np.ndarray, left: np.ndarray, count: int) -> np.ndarray:
    """Those whose best mean in each cluster of prompts is the largest, chosen one by one."""
    from sklearn.cluster import KMeans

    cluster = KMeans(CLUSTERS, n_init=4, random_state=0).fit_predict(x)
    y, rows = rewards[:, left], np.eye(CLUSTERS)[cluster]
    sizes = rows.sum(0)[:, None]
    means = (rows.T @ y + SHRINK * y.mean(0)) / (sizes + SHRINK)
    covered, kept = np.zeros(CLUSTERS), list[int]()
    for _ in range(count):
        gains = (sizes.T @ np.maximum(means, covered[:, None]))[0]
        gains[kept] = -np.inf
        kept.append(int(gains.argmax()))
        covered = np.maximum(covered, means[:, kept[-1]])
    return np.sort(left[kept])


def best_by_cluster(rewards: np.ndarray, x: np.ndarray, left: np.ndarray, count: int) -> np.ndarray:
    """Those whose best predicted reward is the largest over the prompts, chosen one by one. Means
    of clusters, shrunk as far as the prompts say, predict; what adds nothing comes by its mean.
    """
    y = rewards[:, left]
    predicted = best_per_group(x, y)(x, None)
    covered, kept = np.full(len(y), -np.inf), list[int]()
    for _ in range(count):
        gains = np.maximum(predicted, covered[:, None]).mean(0)
        gains[kept] = -np.inf
        ties = np.flatnonzero(gains >= gains.max() - 1e-9)
        kept.append(int(ties[y[:, ties].mean(0).argmax()]))
        covered = np.maximum(covered, predicted[:, kept[-1]])
    return np.sort(left[kept])


def by_chance(rng: np.random.Generator) -> Keep:
    def keep(rewards: np.ndarray, x: np.ndarray, left: np.ndarray, count: int) -> np.ndarray:
        return np.sort(rng.choice(left, count, replace=False))

    return keep


def rounds(
    x: np.ndarray, rewards: np.ndarray, keep: Keep, plan: list[tuple[float, int]]
) -> tuple[np.ndarray, int]:
    """The teachers that are left, and how many answers were asked for.

    Args:
        plan: of each round the share of the prompts up to which it asks, and how many teachers it
            asks at most.
    """
    left, asked, before = np.arange(rewards.shape[1]), 0, 0
    for share, most in plan:
        if most < len(left):
            left = keep(rewards[:before], x[:before], left, most)
        now = round(share * len(rewards))
        asked += (now - before) * len(left)
        before = now
    return left, asked


def rules(
    x: np.ndarray, rewards: np.ndarray, seed: int
) -> Iterator[tuple[str, np.ndarray, int, int]]:
    """Of each rule its name, the teachers that are left, their prompts, and the answers asked."""
    c, m = rewards.shape
    everyone = np.arange(m)
    rng = np.random.default_rng([20, seed])
    yield "fixed", everyone, c, c * m
    yield "fewer prompts", everyone, round(c * 3 / 8), round(c * 3 / 8) * m
    some = max(20, round(c * rng.uniform(0, 0.75)))
    yield "stop by chance", everyone, some, some * m
    half, third = -(-m // 2), max(3, m // 3)
    halves = [(0.1, m), (0.25, max(5, half)), (1.0, max(5, -(-half // 2)))]
    thirds = [(0.04, m), (0.12, max(3, half)), (1.0, third)]
    plans: list[tuple[str, Keep, list[tuple[float, int]]]] = [
        ("halving", best, halves),
        ("thirds", best, thirds),
        ("thirds by group", best_by_group, thirds),
        ("thirds by chance", by_chance(rng), thirds),
    ]
    later = [(0.04, m), (0.2, max(3, half)), (1.0, third)]
    plans += [("later thirds", best, later), ("later thirds by cluster", best_by_cluster, later)]
    for name, keep, plan in plans:
        left, asked = rounds(x, rewards, keep, plan)
        yield name, left, c, asked


def one_order(
    pool: Pool, x: np.ndarray, seed: int, only: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What each rule asks for, and what its router gets on the held-out prompts."""
    order = np.random.default_rng([seed, 0]).permutation(len(pool.prompts))
    c = SIZES.get(pool.name, SIZE)
    seen, held_out = order[:c], order[c:]
    found: dict[str, dict[str, Any]] = {}
    fixed = np.zeros(0)
    for name, left, prompts, asked in rules(x[seen], pool.rewards[seen], seed):
        if name not in ("fixed", *only):
            continue
        rows = seen[:prompts]
        scores = fit_rewards(x[rows], pool.rewards[np.ix_(rows, left)])(x[held_out])
        got = pool.rewards[held_out, left[scores.argmax(-1)]]
        fixed = got if name == "fixed" else fixed
        loss = fixed - got
        error = 1.96 * loss.std() / np.sqrt(len(loss))
        found[name] = {
            "teachers": len(left),
            "asked": asked / (c * pool.rewards.shape[1]),
            "reward": float(got.mean()),
            "loss": float(loss.mean()),
            "low": float(loss.mean() - error),
        }
    return found


def pools(mmlu_pro: Path, three_domains: Path, zeroeval: str) -> Iterator[Pool]:
    yield gsm8k(zeroeval)
    yield Pool.read("Three domains", three_domains)
    for name in ("MMLU-Pro-9", "MMLU-Pro-15", "MMLU-Pro-12"):
        yield Pool.read(name, mmlu_pro, POOLS[name])


def main(mmlu_pro: str, three_domains: str, zeroeval: str, first: str = "0", *only: str) -> None:
    path = Path(__file__).parent / f"results-{first}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {tuple(json.loads(line)[key] for key in ("pool", "features", "seed")) for line in lines}
    for pool in pools(Path(mmlu_pro), Path(three_domains), zeroeval):
        plain = words(pool.prompts)
        features = {"words": plain}
        if len(np.unique(pool.groups)) > 1:
            features["words + group"] = with_groups(plain, pool.groups)
        for seed in range(int(first), int(first) + ORDERS):
            for name, x in features.items():
                if (pool.name, name, seed) in done:
                    continue
                row = {"pool": pool.name, "features": name, "seed": seed}
                row["rules"] = one_order(pool, x, seed, only or FIRST_RULES)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        print(pool.name, len(pool.prompts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
