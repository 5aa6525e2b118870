"""What a router is worth on recorded answers, beside all that it must be judged by.

    python -m studies.routers mmlu_pro|three_domains FOLDER BACKBONE

FOLDER holds what the study's `convert` wrote; BACKBONE is all-MiniLM-L6-v2, or another model that
`AutoModelForSequenceClassification` opens. Writes results.json, table.md and figure.png beside the
study's script; `--final` adds the final split and five folds of everything to them. PROTOCOL.md
says what is compared and how.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from persyn_datasets.router.crossfit import best_per_group, nearest
from persyn_datasets.router.metrics import GROUP, NEAREST, SINGLE, compare
from persyn_datasets.router.regression import fit_rewards
from studies import router_tables
from studies.mmlu_pro.convert import POOLS
from studies.recorded import Pool

CLUSTER = "best per cluster"
FOLDS, FINAL = 5, 0.2
SIZES, DRAWS = (100, 300, 1000, 2500), 3


def pools(study: str, folder: Path) -> list[Pool]:
    if study == "mmlu_pro":
        return [Pool.read(name, folder, teachers) for name, teachers in POOLS.items()]
    return [Pool.read("Three domains", folder)]


def features(prompts: list[str], backbone: str, folder: Path) -> np.ndarray:
    """What the head of a frozen `backbone` sees of each prompt; kept in the folder."""
    key = hashlib.sha256("\0".join([backbone, *prompts]).encode()).hexdigest()[:16]
    kept = folder / f"features-{key}.npy"
    if not kept.exists():
        from torch import nn

        from persyn_datasets.router.heads import head_of
        from persyn_datasets.router.model import forward
        from persyn_datasets.router.training import open_backbone

        model, tokenizer = open_backbone(backbone, ["a", "b"])
        parent, leaf, _ = head_of(model)
        setattr(parent, leaf, nn.Identity())
        np.save(kept, forward(model.eval(), tokenizer, prompts).numpy())
    return np.load(kept).astype(float)


def drawn(salt: str, prompt: str) -> float:
    """Uniform in [0, 1), by the prompt's text."""
    return int(hashlib.sha256(f"{salt}:{prompt}".encode()).hexdigest()[:8], 16) / 2**32


def folds(pool: Pool) -> tuple[list[np.ndarray], np.ndarray]:
    """Five folds of the development prompts, and the final split."""
    is_final = np.array([drawn("final", prompt) < FINAL for prompt in pool.prompts])
    order = sorted(np.flatnonzero(~is_final), key=lambda i: drawn("0", pool.prompts[i]))
    return [np.array(order[k::FOLDS]) for k in range(FOLDS)], np.flatnonzero(is_final)


def fitted(pool: Pool, x: np.ndarray, seen: np.ndarray, asked: np.ndarray) -> dict[str, Any]:
    """The scores of each line for the asked prompts, fitted to the seen ones."""
    rewards = pool.rewards[seen]
    by_group = best_per_group(x[seen], rewards, pool.groups[seen])
    by_cluster = best_per_group(x[seen], rewards)
    return {
        "router": fit_rewards(x[seen], rewards)(x[asked]),
        SINGLE: np.broadcast_to(rewards.mean(0), (len(asked), rewards.shape[1])),
        GROUP: by_group(x[asked], pool.groups[asked]),
        CLUSTER: by_cluster(x[asked], None),
        NEAREST: nearest(x[seen], rewards)(x[asked]),
    }


def cross_fit(pool: Pool, x: np.ndarray, parts: list[np.ndarray]) -> dict[str, Any]:
    asked = np.concatenate(parts)
    lines: dict[str, list[np.ndarray]] = {}
    for own in parts:
        seen = np.setdiff1d(asked, own)
        for name, scores in fitted(pool, x, seen, own).items():
            lines.setdefault(name, []).append(scores)
    joined = {name: np.concatenate(scores) for name, scores in lines.items()}
    return compare(joined, pool.rewards[asked], pool.teachers)


def by_size(pool: Pool, x: np.ndarray, parts: list[np.ndarray]) -> list[dict[str, Any]]:
    """The router's lead over the best single teacher after few calibration prompts.

    A prompt's lead is the mean over the draws, so that prompts stay the unit.
    """
    from persyn_datasets.router.metrics import mean_with_interval

    development = np.concatenate(parts)
    points = []
    for size in SIZES:
        leads = np.zeros((DRAWS, len(pool.prompts)))
        for k, own in enumerate(parts):
            others = np.sort(np.setdiff1d(development, own))
            if size >= len(others):
                break
            for draw in range(DRAWS):
                seen = np.random.default_rng([draw, k]).permutation(others)[:size]
                rewards = pool.rewards[seen]
                chosen = fit_rewards(x[seen], rewards)(x[own]).argmax(-1)
                routed = pool.rewards[own, chosen]
                leads[draw, own] = routed - pool.rewards[own, rewards.mean(0).argmax()]
        else:
            lead = mean_with_interval(leads[:, development].mean(0))
            points.append({"prompts": size, **lead})
    return points


def transfer(pool: Pool, x: np.ndarray) -> dict[str, Any]:
    """Two domains train, the third is routed."""
    found = {}
    for domain in np.unique(pool.groups):
        seen, own = np.flatnonzero(pool.groups != domain), np.flatnonzero(pool.groups == domain)
        rewards = pool.rewards[seen]
        lines = {
            "router": fit_rewards(x[seen], rewards)(x[own]),
            SINGLE: np.broadcast_to(rewards.mean(0), (len(own), rewards.shape[1])),
            NEAREST: nearest(x[seen], rewards)(x[own]),
        }
        found[str(domain)] = compare(lines, pool.rewards[own], pool.teachers)
    return found


def study(name: str, folder: Path, backbone: str, final: bool) -> dict[str, Any]:
    """Development first; with `final`, that of results.json is kept and the rest is added."""
    known = Path(__file__).parent / name / "results.json"
    results: dict[str, Any] = json.loads(known.read_text()) if final else {}
    for pool in pools(name, folder):
        x = features(pool.prompts, backbone, folder)
        parts, held_out = folds(pool)
        of_pool: dict[str, Any] = results.get(pool.name) or {
            "prompts": len(pool.prompts),
            "teachers": pool.teachers,
            "development": cross_fit(pool, x, parts),
            "by_size": by_size(pool, x, parts),
        }
        if final:
            lines = fitted(pool, x, np.concatenate(parts), held_out)
            of_pool["final"] = compare(lines, pool.rewards[held_out], pool.teachers)
            everything = [np.sort(part) for part in np.array_split(by_hash(pool), FOLDS)]
            of_pool["all"] = cross_fit(pool, x, everything)
        if name == "three_domains" and "transfer" not in of_pool:
            of_pool["transfer"] = transfer(pool, x)
        results[pool.name] = of_pool
        print(pool.name, json.dumps(of_pool["development"]["reward"]), flush=True)
    return results


def by_hash(pool: Pool) -> np.ndarray:
    """All prompts in an order that their texts give."""
    return np.array(sorted(range(len(pool.prompts)), key=lambda i: drawn("all", pool.prompts[i])))


if __name__ == "__main__":
    name, folder, backbone = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    found = study(name, folder, backbone, final="--final" in sys.argv)
    router_tables.write(Path(__file__).parent / name, found)
