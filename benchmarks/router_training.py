"""Training a router with one pass per prompt, against one per pair of teachers and against TRL's
RewardTrainer.

    python benchmarks/router_training.py [--prompts 64 2 1] [--calibration 2500]

One pass per pair: a transformers Trainer whose rows are the pairs, each with its prompt, and whose
loss is −log σ(Zᵀπ(x)). RewardTrainer: a model with one output reads the prompt and a teacher's
name; rows are pairs, too.
1. Time per prompt (64 tokens, 19 teachers, 171 pairs) with MiniLM's shape and random weights; ours
   is all of `train_router`, with loading and saving, the others' only `train()`. The gradients are
   compared.
2. The same training by all three, small enough for the slow ones: Hit@k on held-out prompts.
3. A fit with a frozen backbone, part by part.
4. The memory that full fine-tuning of Qwen2.5-1.5B takes, worked out on tensors that have a shape
only.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
import torch.nn.functional as F
from datasets import Dataset, Features
from pair_training import PAIRS, N, by_pairs, by_reward_trainer
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.optimization import Adafactor
from transformers.utils import logging

from persyn_datasets import train_router
from persyn_datasets.data import schema
from persyn_datasets.report.tables import table
from persyn_datasets.router.bradley_terry import bradley_terry_loss
from persyn_datasets.router.heads import head_of
from persyn_datasets.router.metrics import compare
from persyn_datasets.router.model import forward
from persyn_datasets.router.regression import fit_rewards, rewards_of_pairs

TOPICS = ("river", "engine", "violin", "garden")
Rows = list[list[str]]  # measure, ours, beside it, ratio, limit


def problems(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Prompts on one of four topics, and the teachers' rewards: an order of its own for each topic,
    and noise.
    """
    rng = np.random.default_rng(seed)
    topics, by_topic = (
        rng.integers(len(TOPICS), size=n),
        np.random.default_rng(0).normal(size=(len(TOPICS), N)),
    )
    texts = [
        f"{rng.integers(10_000)} about a {TOPICS[t]} and {rng.integers(100)} more" for t in topics
    ]
    return texts, by_topic[topics] + 0.1 * rng.normal(size=(n, N))


def pairs_of(texts: list[str], rewards: np.ndarray) -> Dataset:
    """As of `Pairify`."""
    a, b = np.array(PAIRS).T
    margin = rewards[:, b] - rewards[:, a]
    messages = [[{"role": "user", "content": text}] for text in texts]
    columns = {
        "prompt_id": [str(i) for i in range(len(texts)) for _ in PAIRS],
        "messages": [m for m in messages for _ in PAIRS],
        "teacher_a": [shapes.TEACHERS[i] for i in a] * len(texts),
        "teacher_b": [shapes.TEACHERS[i] for i in b] * len(texts),
        "label": (margin > 0).astype(int).flatten().tolist(),
        "margin": abs(margin).flatten().tolist(),
    }
    return Dataset.from_dict(columns, features=Features(schema.PAIRS))


def gradient_error(folder: str, text: str, rewards: np.ndarray) -> float:
    """The largest difference between the gradients of one pass and of one pass per pair, against
    the largest entry.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=N)
    ids = tokenizer([text], return_tensors="pt")["input_ids"]
    better = torch.tensor(rewards[:, None] > rewards[None, :]).float()
    bradley_terry_loss(model(ids).logits, better[None]).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for a, b in PAIRS:
        o = model(ids).logits[0]
        (-F.logsigmoid((o[b] - o[a]) * (1 if better[b, a] else -1))).backward()
    pairs = list(zip(ours, model.parameters(), strict=True))
    return float(max((g - p.grad).abs().max() for g, p in pairs) / max(g.abs().max() for g in ours))


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def timing(work: Path, counts: list[int], layers: int) -> Rows:
    folder = shapes.save(
        AutoModel.from_config(shapes.minilm(num_hidden_layers=layers)), work / "minilm"
    )
    texts = shapes.prompts(max(counts), median=64, sigma=0.0)
    rewards = np.random.default_rng(0).normal(size=(len(texts), N))
    error = gradient_error(folder, texts[0], rewards[0])
    if error > 1e-4:
        raise SystemExit(f"One pass per prompt has other gradients than one per pair: {error:.1e}.")
    pairs = pairs_of(texts[: counts[0]], rewards)
    one_pass = lambda: train_router(pairs, folder, epochs=1, output_dir=str(work / "ours"))  # noqa: E731
    found = {"one pass per prompt (persyn)": seconds_of(one_pass)[0] / counts[0]}
    others = {"one pass per pair": by_pairs, "TRL RewardTrainer": by_reward_trainer}
    for (name, way), n in zip(others.items(), counts[1:], strict=True):
        train = way(
            folder,
            texts[:n],
            rewards[:n],
            work / "w",
            num_train_epochs=1,
            per_device_train_batch_size=16,
        )
        found[name] = seconds_of(train)[0] / n
    ours = found["one pass per prompt (persyn)"]
    print(f"Largest relative difference of the gradients: {error:.1e}")
    print(
        table(
            ["way", "s per prompt", "times ours"],
            [[w, f"{s:.3f}", f"{s / ours:.0f}"] for w, s in found.items()],
        )
    )
    return [
        [
            "router training, ms per prompt (MiniLM's shape, 171 pairs)",
            f"{ours * 1e3:.0f}",
            f"{found[name] * 1e3:,.0f}: {name}",
            f"{found[name] / ours:.0f}",
            f"{times * len(PAIRS)} passes against one",
        ]
        for name, times in (("one pass per pair", 1), ("TRL RewardTrainer", 2))
    ]


def quality(work: Path, prompts: int, epochs: int) -> Rows:
    """All prompts in each step, so that the order does not matter and the three do the same."""
    small = shapes.minilm(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    torch.manual_seed(0)
    folder = shapes.save(AutoModel.from_config(small), work / "small")
    (texts, rewards), (held_out, truth) = problems(prompts, seed=1), problems(500, seed=2)
    same: dict[str, Any] = {"num_train_epochs": epochs, "learning_rate": 3e-3, "seed": 0}
    same |= {"per_device_train_batch_size": len(PAIRS), "gradient_accumulation_steps": prompts}
    router = train_router(
        pairs_of(texts, rewards),
        folder,
        epochs=epochs,
        learning_rate=3e-3,
        batch_size=prompts,
        output_dir=str(work / "router"),
    )
    scores = {
        "one pass per prompt (persyn)": router.scores(
            [[{"role": "user", "content": text}] for text in held_out]
        ),
        "one pass per pair": by_pairs(folder, texts, rewards, work / "w", **same)()(held_out),
        "TRL RewardTrainer": by_reward_trainer(folder, texts, rewards, work / "w", **same)()(
            held_out
        ),
    }
    single = np.broadcast_to(rewards.mean(0), truth.shape)
    found = {
        name: compare({"router": o, "best single": single}, truth, shapes.TEACHERS)
        for name, o in scores.items()
    }
    lines = [[n, *(f"{m[k]['router']:.3f}" for k in ("hit@1", "hit@3"))] for n, m in found.items()]
    chance = next(iter(found.values()))
    lines += [
        [n, *(f"{chance[k][n]:.3f}" for k in ("hit@1", "hit@3"))] for n in ("best single", "random")
    ]
    print(table([f"{prompts} prompts, {epochs} epochs", "Hit@1", "Hit@3"], lines))
    ours, usual, trl = found.values()
    if any(abs(ours[k]["router"] - usual[k]["router"]) > 0.01 for k in ("hit@1", "hit@3")):
        raise SystemExit("One pass per prompt trains another router than one pass per pair.")
    show = lambda m: f"{m['hit@1']['router']:.3f}, {m['hit@3']['router']:.3f}"  # noqa: E731
    return [
        [
            "Hit@1 and Hit@3 of the same training",
            show(ours),
            f"{show(usual)}: one pass per pair; {show(trl)}: TRL RewardTrainer",
            f"{ours['hit@3']['router'] / usual['hit@3']['router']:.2f}",
            "1.00: the same objective",
        ]
    ]


def frozen(work: Path, prompts: int) -> Rows:
    folder = work / "minilm"
    texts, rewards = problems(prompts, seed=3)
    rewards += np.random.default_rng(4).normal(size=rewards.shape)  # real rewards are noisy
    pairs = pairs_of(texts, rewards)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=N).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 1024
    parent, leaf, _ = head_of(model)
    setattr(parent, leaf, torch.nn.Identity())
    reading, (_, learned) = seconds_of(lambda: rewards_of_pairs(pairs, shapes.TEACHERS))
    encoding, features = seconds_of(lambda: forward(model, tokenizer, texts))
    fitting, _ = seconds_of(lambda: fit_rewards(features.numpy(), learned))
    tokens = sum(map(len, tokenizer(texts)["input_ids"]))
    lines = [
        [f"{len(pairs):,} pairs read", f"{reading:.1f}"],
        [f"{tokens:,} tokens encoded", f"{encoding:.1f}"],
    ]
    print(
        table(
            [f"frozen backbone, {prompts:,} prompts", "seconds"],
            [*lines, ["head fitted", f"{fitting:.1f}"]],
        )
    )
    total = reading + encoding + fitting
    return [
        [
            f"a fit with a frozen backbone, {prompts:,} prompts, s (MiniLM's shape)",
            f"{total:.1f}",
            f"reads pairs {reading:.1f}, encodes {encoding:.1f}, fits {fitting:.1f}",
            "",
            "",
        ]
    ]


def memory(rows: int = 16, tokens: int = 1024) -> Rows:
    """GB of a training step of Qwen2.5-1.5B in float32 with bfloat16 autocast, `rows` × `tokens` at
    once.

    Weights, gradients (kept while passes accumulate), the optimizer's state, what the forward pass
    keeps for the backward one, and the larger of: one layer's activations, made again; the bfloat16
    copies of the weights.
    """
    config = shapes.qwen(num_labels=N, use_cache=False)
    lines, totals = [], {}
    for optimizer, checkpoints in (
        ("adamw", False),
        ("adamw", True),
        ("adafactor", False),
        ("adafactor", True),
    ):
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = AutoModelForSequenceClassification.from_config(config).train()
            if checkpoints:
                model.activation_checkpointing_enable()
            weights = {p.untyped_storage()._cdata: 4 * p.numel() for p in model.parameters()}
            kept: dict[int, int] = {}

            def keep(x: Any, kept: dict[int, int] = kept) -> Any:
                kept.setdefault(x.untyped_storage()._cdata, x.untyped_storage().nbytes())
                return x

            with (
                torch.autocast("cpu", torch.bfloat16),
                torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
            ):
                model(input_ids=torch.ones(rows, tokens, dtype=torch.long))
            for p in model.parameters():
                p.grad = torch.empty_like(p)
            fixed: Any = {"scale_parameter": False, "relative_step": False}
            kind, more = (Adafactor, fixed) if optimizer == "adafactor" else (torch.optim.AdamW, {})
            step = kind(model.parameters(), lr=1e-5, **more)
            step.step()
            state = sum(
                v.nbytes
                for s in step.state.values()
                for v in s.values()
                if isinstance(v, torch.Tensor)
            )
        saved = sum(size for storage, size in kept.items() if storage not in weights)
        if not checkpoints:
            layer = saved / config.num_hidden_layers
        again = max(layer, sum(weights.values()) / 2) if checkpoints else 0
        parts = [sum(weights.values()), sum(weights.values()), state, saved, again]
        totals[optimizer, checkpoints] = sum(parts)
        name = f"{optimizer}, {'checkpoints' if checkpoints else 'none'}"
        lines.append([name, *(f"{part / 1e9:.1f}" for part in (*parts, sum(parts)))])
    print(
        table(
            [
                f"GB, {rows} × {tokens} tokens",
                "weights",
                "gradients",
                "state",
                "kept",
                "again",
                "sum",
            ],
            lines,
        )
    )
    return [
        [
            f"memory to fine-tune Qwen2.5-1.5B, {rows} × {tokens} tokens, GB (worked out)",
            f"{totals['adafactor', True] / 1e9:.1f}",
            f"{totals['adamw', checkpoints] / 1e9:.1f}: AdamW, {'with' if checkpoints else 'no'} "
            "checkpoints",
            f"{totals['adafactor', True] / totals['adamw', checkpoints]:.2f}",
            "24 (one GPU)",
        ]
        for checkpoints in (False, True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompts",
        type=int,
        nargs=3,
        default=[64, 2, 1],
        help="of the three ways whose time is taken",
    )
    parser.add_argument("--layers", type=int, default=6, help="of MiniLM's shape")
    parser.add_argument(
        "--same",
        type=int,
        nargs=2,
        default=[24, 20],
        help="prompts and epochs of the same training",
    )
    parser.add_argument("--calibration", type=int, default=2500)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = timing(work, options.prompts, options.layers)
        rows += quality(work, *options.same) + frozen(work, options.calibration)
    print(json.dumps({"rows": rows + memory()}))


if __name__ == "__main__":
    main()
