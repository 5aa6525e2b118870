"""All claims about a GPU in one command, each beside its peer in the same run and beside the rate
of this GPU's own matrix products.

    python benchmarks/gpu.py            # Qwen2.5-1.5B as student and router, a reward model of 8B
    python benchmarks/gpu.py --tiny     # the same program on tiny shapes, wherever it runs

Weights are random, in bfloat16 on a GPU. A share is that of the time in which the matrix products
alone would be done at the measured rate: each prompt once, the head for responses only, attention
left out. Peers are timed with several batch sizes, and the best one counts; a size that does not
fit into memory is left out. vLLM's lines need vllm in this environment.

    learnability   against all logits of padded batches, and vLLM's prompt_logprobs
    routing        against pipeline("text-classification")
    reward model   against padded batches of rows as they come
    training       a router with all weights: peak memory, and against one pass per pair
    engine         against vLLM's own LLM.generate (benchmarks/vllm_engine.py)
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import router_training
import scoring
import shapes
import torch
from routing import make_router
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedConfig,
    pipeline,
)
from transformers.utils import logging

from persyn_datasets import train_router
from persyn_datasets.report.tables import table
from persyn_datasets.router.model import Router
from persyn_datasets.signals import reward_model
from persyn_datasets.store import models

ROUNDS = 3
BF16_ERROR = 0.1  # of a mean log-probability, between two ways in bfloat16
Lines = list[list[str]]  # measure, ours, beside it, ratio, limit


@dataclass(frozen=True)
class Sizes:
    """What is measured: shapes, and how much of each."""

    student: PreTrainedConfig
    router: PreTrainedConfig
    judge: PreTrainedConfig
    product: int  # side of the matrices
    rows: int
    prompts: int
    calibration: int
    tokens: int  # of a calibration prompt
    batch_sizes: tuple[int, ...]


def real() -> Sizes:
    llama = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    llama |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    return Sizes(
        student=shapes.qwen(tie_word_embeddings=True, pad_token_id=2),
        router=shapes.qwen(pad_token_id=2, num_labels=len(shapes.TEACHERS)),
        judge=LlamaConfig(num_labels=1, pad_token_id=2, **llama),
        product=8192,
        rows=19 * 64,
        prompts=2000,
        calibration=512,
        tokens=1000,
        batch_sizes=(4, 16, 64, 256),
    )


def tiny() -> Sizes:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 49152}
    return Sizes(
        student=shapes.qwen(tie_word_embeddings=True, **small | {"pad_token_id": 2}),
        router=shapes.qwen(num_labels=len(shapes.TEACHERS), **small | {"pad_token_id": 2}),
        judge=LlamaConfig(num_labels=1, pad_token_id=2, **small),
        product=256,
        rows=19,
        prompts=20,
        calibration=8,
        tokens=40,
        batch_sizes=(4, 8),
    )


def seconds_of(run: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, Any]:
    """The least of some rounds after one to warm up, and the last result."""
    least, result = float("inf"), run()
    for _ in range(rounds):
        _wait()
        start = time.perf_counter()
        result = run()
        _wait()
        least = min(least, time.perf_counter() - start)
    return least, result


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def best_of(ways: Iterable[tuple[str, Callable[[], Any]]]) -> tuple[str, float, Any]:
    """The quickest way that fits into memory: its name, seconds and result."""
    found = []
    for name, run in ways:
        try:
            found.append((name, *seconds_of(run)))
        except torch.OutOfMemoryError:
            print(f"{name}: does not fit", file=sys.stderr)
            torch.cuda.empty_cache()
    if not found:
        raise SystemExit("No batch size of the peer fits into memory.")
    return min(found, key=lambda way: way[1])


def rate(side: int) -> float:
    """Multiplications and additions per second of a square product, in the models' dtype."""
    options: Any = {"device": models.device(), "dtype": models.dtype()}
    a, b = torch.randn(side, side, **options), torch.randn(side, side, **options)
    return 2 * side**3 / seconds_of(lambda: a @ b, rounds=20)[0]


def line(measure: str, count: float, ours: float, peer: str, theirs: float, least: float) -> Any:
    """Ours beside a peer, both in `count` per second; `least`: seconds of the products alone."""
    beside, ratio = f"{count / theirs:,.0f}: {peer}", f"{theirs / ours:.2f}"
    limit = f"{least / ours:.0%} of the matrix products' rate"
    return [measure, f"{count / ours:,.0f}", beside, ratio, limit]


def linear(model: Any) -> int:
    """Weights of the matrices in the layers."""
    return sum(p.numel() for p in model.base_model.layers.parameters() if p.ndim == 2)


def learnability(sizes: Sizes, per_second: float, work: Path) -> Lines:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(sizes.student, dtype=models.dtype())
    model = model.to(models.device()).eval()
    rows = scoring.make_rows(sizes.rows)
    ours, scores = seconds_of(lambda: scoring.ours(model, rows))
    ways = ((f"all logits, {b}", lambda b=b: padded(model, rows, b)) for b in sizes.batch_sizes)
    peer, theirs, others = best_of(ways)
    _compare(scores, others)
    answered = sum(len(y) for _, y in rows)
    read = answered + sum(len(x) for x in {tuple(x) for x, _ in rows})
    head = model.get_output_embeddings().weight.numel()
    least = 2 * (read * linear(model) + answered * head) / per_second
    tokens = sum(len(x) + len(y) for x, y in rows)
    lines = [line("learnability, tokens/s", tokens, ours, peer, theirs, least)]
    if find_spec("vllm"):
        folder = shapes.save(model, work / "student")
        del model
        models.free()
        theirs, others = scoring.by_vllm(folder, rows)
        _compare(scores, others)
        lines.append(line(lines[0][0], tokens, ours, "vLLM's prompt_logprobs", theirs, least))
    return lines


@torch.inference_mode()
def padded(model: Any, rows: scoring.Rows, size: int) -> list[float]:
    """The usual way: all logits of padded batches."""
    means = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        width = max(len(x) + len(y) for x, y in batch)
        ids = torch.tensor([x + y + [0] * (width - len(x) - len(y)) for x, y in batch])
        lengths = torch.tensor([len(x) + len(y) for x, y in batch])
        mask = (torch.arange(width) < lengths[:, None]).long()
        ids, mask = ids.to(model.device), mask.to(model.device)
        log_probs = model(ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        picked = log_probs.gather(-1, ids[:, 1:, None])[..., 0]
        for row, (x, y) in zip(picked, batch, strict=True):
            means.append(row[len(x) - 1 : len(x) + len(y) - 1].mean().item())
    return means


def _compare(ours: list[float], theirs: list[float]) -> None:
    if (error := np.abs(np.subtract(ours, theirs)).max()) > BF16_ERROR:
        raise SystemExit(f"The ways give different numbers: {error:.1e}.")


def routing(sizes: Sizes, per_second: float, work: Path) -> Lines:
    folder = make_router(sizes.router, work / "router")
    router, texts = Router.from_pretrained(folder), shapes.prompts(sizes.prompts, median=90)
    model, tokenizer = router._load()
    messages = [[{"role": "user", "content": text}] for text in texts]
    ours, _ = seconds_of(lambda: router.scores(messages))
    pipe: Any = pipeline(
        "text-classification",
        model=model,
        tokenizer=tokenizer,
        device=models.device(),
        top_k=None,
    )
    ways = (
        (f"pipeline, {b}", lambda b=b: pipe(texts, batch_size=b, truncation=True))
        for b in sizes.batch_sizes
    )
    peer, theirs, _ = best_of(ways)
    tokens = sum(len(ids) for ids in tokenizer(texts, truncation=True)["input_ids"])
    least = 2 * linear(model) * tokens / per_second
    return [line("routing, prompts/s", len(texts), ours, peer, theirs, least)]


def judging(sizes: Sizes, per_second: float, work: Path) -> Lines:
    model: Any = AutoModelForSequenceClassification.from_config(sizes.judge, dtype=models.dtype())
    folder = shapes.save(model, work / "judge")
    del model
    texts = shapes.prompts(sizes.prompts, 200)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    rows = [([{"role": "user", "content": x}], y) for x, y in pairs]
    ours, _ = seconds_of(lambda: reward_model.score(rows, {}, folder))
    loaded, tokenizer = reward_model._load(folder, None, False)
    whole = [[*x, {"role": "assistant", "content": y}] for x, y in rows]
    chats: list[str] = [tokenizer.apply_chat_template(row, tokenize=False) for row in whole]
    ways = (
        (f"padded, {b}", lambda b=b: as_they_come(loaded, tokenizer, chats, b))
        for b in sizes.batch_sizes
    )
    peer, theirs, _ = best_of(ways)
    tokens = sum(len(ids) for ids in tokenizer(chats, add_special_tokens=False)["input_ids"])
    least = 2 * linear(loaded) * tokens / per_second
    return [line("reward model, rows/s", len(rows), ours, peer, theirs, least)]


@torch.inference_mode()
def as_they_come(model: Any, tokenizer: Any, texts: list[str], size: int) -> list[float]:
    scores: list[float] = []
    for i in range(0, len(texts), size):
        batch = tokenizer(
            texts[i : i + size], padding=True, add_special_tokens=False, return_tensors="pt"
        )
        scores += model(**batch.to(model.device)).logits[:, 0].tolist()
    return scores


def training(sizes: Sizes, per_second: float, work: Path) -> Lines:
    """Ours is all of `train_router`, with loading and saving; the peer's only its steps."""
    folder = make_router(sizes.router, work / "backbone")
    texts = shapes.prompts(sizes.calibration, median=sizes.tokens, sigma=0.0)
    rewards = np.random.default_rng(0).normal(size=(len(texts), len(shapes.TEACHERS)))
    pairs = router_training.pairs_of(texts, rewards)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    train_router(pairs, folder, epochs=1, output_dir=str(work / "trained"))
    ours = (time.perf_counter() - start) / len(texts)
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    models.free()
    options: Any = {"num_train_epochs": 1, "per_device_train_batch_size": 16}
    by_pairs = router_training.by_pairs(folder, texts[:1], rewards[:1], work / "pairs", **options)
    theirs, _ = router_training.seconds_of(by_pairs)
    number = len(router_training.PAIRS)
    return [
        [
            f"full fine-tuning of a router, s for a prompt of {number} pairs",
            f"{ours:.3f}",
            f"{theirs:.3f}: one pass per pair",
            f"{theirs / ours:.1f}",
            f"{number} passes against one",
        ],
        [
            "its peak memory, GB",
            "not on a CPU" if peak is None else f"{peak:.1f}",
            "",
            "",
            "18.5, worked out for 1.5B",
        ],
    ]


def engine(sizes: Sizes, per_second: float, work: Path) -> Lines:
    if not find_spec("vllm"):
        return [["vllm engine", "not measured: vllm is not installed", "", "", ""]]
    program = [sys.executable, str(Path(__file__).with_name("vllm_engine.py"))]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    found: Lines = json.loads(done.stdout.splitlines()[-1])["rows"]
    return found


PARTS = {f.__name__: f for f in (learnability, routing, judging, training, engine)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="shapes for a trial, also on a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    if not (options.tiny or torch.cuda.is_available()):
        raise SystemExit("There is no GPU here; --tiny tries the program without one.")
    logging.set_verbosity_error()
    sizes = tiny() if options.tiny else real()
    per_second = rate(sizes.product)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, {models.dtype()}: {per_second / 1e12:,.2f} TFLOP/s of matrix products")
    rows: Lines = []
    for part in options.parts:
        with tempfile.TemporaryDirectory() as work:
            rows += PARTS[part](sizes, per_second, Path(work))
        models.free()
        print(rows[-1], file=sys.stderr)
    print(table(["measure", "ours", "beside it", "ratio", "limit, how far from it"], rows))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
