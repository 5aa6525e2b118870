"""Learnability scoring against the usual way: padded batches through `model(...).logits` and
`log_softmax`.

    python benchmarks/scoring.py [--shape smollm2-135m] [--rows 57] [--layers 30] [--batch-sizes 4 8
    16] .venv-vllm/bin/python benchmarks/scoring.py --vllm [--rows 57]

Both ways score the same rows (prompts of 40 to 120 tokens, 19 responses of 20 to 400 tokens to
each) with the same random weights, each in a process of its own; the usual way with several batch
sizes. Peak memory is above that of the loaded model. The limit is the time that the matrix products
alone take (each prompt once, its responses, the head for these), at the rate that this machine
reaches with one of them. Ranks, which only we count, are in our time.

Then the error of bfloat16 weights against float32, on SmolLM2-135M-Instruct and the README's
paragraphs.

`--vllm` compares with vLLM's `prompt_logprobs` instead, on SmolLM2-135M-Instruct in float32.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from persyn_datasets import quickstart
from persyn_datasets.report.tables import table
from persyn_datasets.signals.log_probs import response_log_probs
from persyn_datasets.store.models import text_ids

TEACHERS = 19
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
QWEN = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
SHAPES: dict[str, PreTrainedConfig] = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152, num_hidden_layers=30, tie_word_embeddings=True, **SMOLLM2
    ),
    "qwen2.5-0.5b": Qwen2Config(
        vocab_size=151936, num_hidden_layers=24, tie_word_embeddings=True, **QWEN
    ),
}
Rows = list[tuple[list[int], list[int]]]


def make_rows(n: int) -> Rows:
    r = random.Random(0)
    ids = lambda least, most: [r.randrange(49152) for _ in range(r.randint(least, most))]  # noqa: E731
    prompts = [ids(40, 120) for _ in range(n // TEACHERS)]
    return [(x, ids(20, 400)) for x in prompts for _ in range(TEACHERS)]


def ours(model: Any, rows: Rows) -> list[float]:
    means = [0.0] * len(rows)
    for i, log_probs, _ in response_log_probs(model, rows):
        means[i] = log_probs.mean().item()
    return means


@torch.inference_mode()
def usual(model: Any, rows: Rows, batch_size: int) -> list[float]:
    means = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        width = max(len(x) + len(y) for x, y in batch)
        ids = torch.tensor([x + y + [0] * (width - len(x) - len(y)) for x, y in batch])
        mask = torch.tensor([[1] * len(x + y) + [0] * (width - len(x) - len(y)) for x, y in batch])
        log_probs = model(ids, attention_mask=mask).logits.log_softmax(-1)
        for row, (x, y) in enumerate(batch):
            picked = log_probs[row, len(x) - 1 : len(x) + len(y) - 1].gather(
                -1, torch.tensor(y)[:, None]
            )
            means.append(picked.mean().item())
    return means


def load(model: PreTrainedConfig | str) -> Any:
    if isinstance(model, str):
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(model).eval()


def measure(
    way: Callable[..., list[float]], model: PreTrainedConfig | str, rows: Rows, *options: int
) -> tuple[float, float, list[float]]:
    """Seconds, peak MiB above the loaded model, and the scores."""
    loaded = load(model)
    way(loaded, rows[:2], *options)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    start = time.perf_counter()
    scores = way(loaded, rows, *options)
    seconds = time.perf_counter() - start
    return (
        seconds,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20,
        scores,
    )


def least_seconds(config: PreTrainedConfig, rows: Rows) -> float:
    """What the matrix products alone take, at the rate of one of them."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.base_model.layers.parameters() if p.ndim == 2)
    answered = sum(len(y) for _, y in rows)
    products = (
        answered + sum(len(x) for x in {tuple(x) for x, _ in rows})
    ) * layers + answered * head
    a, w = (
        torch.randn(1024, config.hidden_size),
        torch.randn(config.intermediate_size, config.hidden_size),
    )
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        torch.nn.functional.linear(a, w)
        best = min(best, time.perf_counter() - start)
    return products * best / (len(a) * w.numel())


def paragraphs(model: str) -> Rows:
    """The README's, as responses to one prompt."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = (Path(__file__).parent.parent / "README.md").read_text()
    return [
        (text_ids(tokenizer, "Go on:\n\n"), text_ids(tokenizer, p)[:256])
        for p in text.split("\n\n")[:12]
    ]


def bfloat16_error(model: str) -> float:
    """The largest difference of a mean log-probability."""
    loaded, rows = load(model), paragraphs(model)
    exact, rounded = ours(loaded, rows), ours(loaded.to(torch.bfloat16), rows)
    return max(abs(a - b) for a, b in zip(exact, rounded, strict=True))


def by_vllm(model: str, rows: Rows) -> tuple[float, list[float]]:
    """Seconds and scores, in a process of its own."""
    order = json.dumps([model, rows])
    program = [sys.executable, __file__, "--bare-vllm"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2"} | os.environ  # GB
    done = subprocess.run(
        program, input=order, stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    seconds, scores = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("["))
    )
    return seconds, scores


def bare_vllm() -> None:
    from vllm import LLM, SamplingParams

    model, rows = json.load(sys.stdin)
    llm: Any = LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=1024)
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)

    def score(rows: Rows) -> list[float]:
        outputs = llm.generate(
            [{"prompt_token_ids": x + y} for x, y in rows], sampling, use_tqdm=False
        )
        made = zip(rows, (output.prompt_logprobs for output in outputs), strict=True)
        return [
            sum(p[t].logprob for p, t in zip(found[len(x) :], y, strict=True)) / len(y)
            for (x, y), found in made
        ]

    score(rows[:2])
    start = time.perf_counter()
    scores = score(rows)
    print(json.dumps([time.perf_counter() - start, scores]), flush=True)
    llm.llm_engine.engine_core.shutdown()  # its process holds our output open
    os._exit(0)  # at the end of a process vLLM's threads may abort it


def report(
    results: dict[str, tuple[float, float | None, list[float]]], shape: str, tokens: int, limit: str
) -> None:
    """Ours, which is the last, beside the others."""
    (fast, little, scores), others = results["ours"], [w for w in results if w != "ours"]
    best = min(others, key=lambda w: results[w][0])
    slow, much, _ = results[best]
    error = max(abs(a - b) for w in others for a, b in zip(results[w][2], scores, strict=True))
    lines = [
        [w, f"{s:.1f}", f"{tokens / s:,.0f}", "" if m is None else f"{m:,.0f}"]
        for w, (s, m, _) in results.items()
    ]
    print(table(["way", "seconds", "tokens/s", "peak MiB above the model"], lines))
    print(f"Largest difference of a mean log-probability between them: {error:.1e}")
    if error > 1e-4:
        raise SystemExit("The ways give different numbers.")
    beside = f"{tokens / slow:,.0f}: {best}"
    rows = [
        [
            f"learnability of {shape}, tokens/s",
            f"{tokens / fast:,.0f}",
            beside,
            f"{slow / fast:.2f}",
            limit,
        ]
    ]
    if little is not None and much is not None:
        memory = f"{much:,.0f}: {best}"
        rows.append(
            [
                "its peak memory above the model, MiB",
                f"{little:,.0f}",
                memory,
                f"{little / much:.2f}",
                "",
            ]
        )
    print(json.dumps({"rows": rows, "error": error}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=57)
    parser.add_argument("--layers", type=int, help="other than the model's own number")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[4, 8, 16], help="of the usual way"
    )
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--bare-vllm", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare_vllm:
        return bare_vllm()
    rows, real = make_rows(options.rows), str(quickstart.smollm2())
    tokens = sum(len(x) + len(y) for x, y in rows)
    config = SHAPES[options.shape]
    config.num_hidden_layers = options.layers or config.num_hidden_layers
    model = real if options.vllm else config
    ways: dict[str, tuple[Any, ...]] = {"ours": (ours, model, rows)}
    if not options.vllm:
        ways = {
            f"all logits, batch size {b}": (usual, model, rows, b) for b in options.batch_sizes
        } | ways
    results: dict[str, tuple[float, float | None, list[float]]] = {}
    if options.vllm:
        seconds, scores = by_vllm(real, rows)
        results["vLLM's prompt_logprobs"] = seconds, None, scores
    for name, arguments in ways.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[name] = pool.apply(measure, arguments)
    limit = ""
    if not options.vllm:
        least = least_seconds(config, rows)
        limit = f"matrix products alone {tokens / least:,.0f}; at {least / results['ours'][0]:.0%}"
        print(f"{options.shape}, {tokens:,} tokens; {limit}")
        print(
            "bfloat16 against float32: a mean log-probability differs by at most "
            f"{bfloat16_error(real):.1e}"
        )
    report(results, options.shape, tokens, limit)


if __name__ == "__main__":
    main()
