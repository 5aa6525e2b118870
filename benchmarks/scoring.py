"""Learnability scoring against the usual way: padded batches through `model(...).logits` and `log_softmax`.

    python benchmarks/scoring.py [--rows 64] [--layers 30]

Both ways score the same rows (prompts of 40 to 120 tokens, 19 responses of 20 to 400 tokens to each) with the same
random weights of SmolLM2-135M's shape, each in a process of its own; peak memory is above that of the loaded model.
"""

import argparse
import json
import multiprocessing
import random
import resource
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from persyn_datasets.learnability import response_log_probs
from persyn_datasets.tables import table

VOCABULARY, TEACHERS = 49152, 19
Rows = list[tuple[list[int], list[int]]]


def make_rows(n: int) -> Rows:
    r = random.Random(0)
    prompts = [[r.randrange(VOCABULARY) for _ in range(r.randint(40, 120))] for _ in range(n // TEACHERS)]
    return [(x, [r.randrange(VOCABULARY) for _ in range(r.randint(20, 400))]) for x in prompts for _ in range(TEACHERS)]


def ours(model: LlamaForCausalLM, rows: Rows) -> list[float]:
    means = [0.0] * len(rows)
    for i, log_probs, _ in response_log_probs(model, rows):
        means[i] = log_probs.mean().item()
    return means


@torch.inference_mode()
def usual(model: LlamaForCausalLM, rows: Rows, batch_size: int = 8) -> list[float]:
    means = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        width = max(len(x) + len(y) for x, y in batch)
        ids = torch.tensor([x + y + [0] * (width - len(x) - len(y)) for x, y in batch])
        mask = torch.tensor([[1] * len(x + y) + [0] * (width - len(x) - len(y)) for x, y in batch])
        log_probs = model(ids, attention_mask=mask).logits.log_softmax(-1)
        for row, (x, y) in enumerate(batch):
            picked = log_probs[row, len(x) - 1 : len(x) + len(y) - 1].gather(-1, torch.tensor(y)[:, None])
            means.append(picked.mean().item())
    return means


def measure(way: Callable[..., list[float]], rows: Rows, layers: int) -> tuple[float, float, list[float]]:
    """Seconds, peak MiB above the loaded model, and the scores."""
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, tie_word_embeddings=True, **shape)
    model = LlamaForCausalLM(config).eval()
    way(model, rows[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    scores = way(model, rows)
    seconds = time.perf_counter() - start
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=76)
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    rows = make_rows(options.rows)
    tokens = sum(len(x) + len(y) for x, y in rows)
    results = {}
    for way in (usual, ours):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[way.__name__] = pool.apply(measure, (way, rows, options.layers))
    (slow, much, reference), (fast, little, scores) = results["usual"], results["ours"]
    error = max(abs(a - b) for a, b in zip(reference, scores, strict=True))
    lines = [[w, f"{s:.1f}", f"{tokens / s:,.0f}", f"{m:,.0f}"] for w, (s, m, _) in results.items()]
    print(table(["way", "seconds", "tokens/s", "peak MiB above the model"], lines))
    print(f"largest difference of a mean log-probability: {error:.1e}")
    print(json.dumps({"speed_ratio": slow / fast, "memory_ratio": little / much, "error": error, "tokens": tokens}))


if __name__ == "__main__":
    main()
