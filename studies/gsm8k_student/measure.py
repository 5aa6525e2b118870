"""GSM8K with a student, the long part: everything that a model has to run for, one file a piece.

    python -m studies.gsm8k_student.measure DATA STUDENT OUTPUT

An interrupted run goes on where it was. `analyse.py` makes the tables of what lies in OUTPUT.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from studies.gsm8k_student import common
from studies.gsm8k_student.common import Data

STEPS_OF_TARGET, STEPS_OF_PROBE, STEPS_OF_STUDENT, BATCH = 20, 4, 8, 8
CHUNK = 16  # questions
Piece = tuple[Path, Callable[[], dict[str, np.ndarray]]]


def theta_plus(data: Data, output: Path) -> Path:
    """The student after a few steps on the target set."""
    folder = output / "theta_plus"
    if not (folder / "config.json").exists():
        rows = [data.reference(i) for i in common.TARGET]
        model = common.fine_tuned(data.student, rows, STEPS_OF_TARGET, seed=0)
        model.save_pretrained(folder)
    return folder


def scored(data: Data, output: Path, questions: Iterable[int], teachers: list[str]) -> list[Piece]:
    """log p of every token under θ and θ⁺, ranks and Σp² under θ."""

    def piece(chunk: list[int]) -> dict[str, np.ndarray]:
        rows = [data.answer(t, q) for q in chunk for t in teachers]
        base = common.load(data.student, torch.bfloat16)
        plus = common.load(theta_plus(data, output), torch.bfloat16)
        before = common.token_log_probs(base, rows)
        after = {
            i: x.numpy()
            for i, x, _ in common.response_log_probs(plus, [row for row in rows if row[1]])
        }
        joined = {key: np.concatenate([row[key] for row in before]) for key in common.KEYS}
        return {
            "questions": np.array(chunk),
            "tokens": np.array([len(y) for _, y in rows]).reshape(len(chunk), -1),
            "after": np.concatenate([after[i] for i in range(len(after))]),
            **joined,
        }

    chunks = [list(questions)[i : i + CHUNK] for i in range(0, len(list(questions)), CHUNK)]
    return [
        (output / f"scores-{len(teachers)}-{c[0]:03d}.npz", lambda c=c: piece(c)) for c in chunks
    ]


def probed(data: Data, output: Path, seed: int) -> list[Piece]:
    """The gain of one student per teacher, by judge 1."""

    def piece(teacher: str) -> dict[str, np.ndarray]:
        rows = [data.answer(teacher, q, common.MAX_TRAINED_TOKENS) for q in common.PROBED]
        rows = [row for row in rows if row[1]]
        model = common.fine_tuned(data.student, rows, STEPS_OF_PROBE, seed)
        return {"GSM8K references": common.judged(model, data.judges()["GSM8K references"])}

    # In an order of chance: where time ends it, the probed ones are no choice of ours.
    drawn = np.random.default_rng(seed).permutation(data.teachers).tolist()
    return [(output / f"probe-{t}-{seed}.npz", lambda t=t: piece(t)) for t in drawn]


def untrained(data: Data, output: Path) -> Piece:
    def piece() -> dict[str, np.ndarray]:
        model = common.load(data.student)
        return {name: common.judged(model, rows) for name, rows in data.judges().items()}

    return output / "untrained.npz", piece


def run(pieces: Iterable[Piece]) -> None:
    for path, measured in pieces:
        if path.exists():
            continue
        unfinished = path.with_suffix(".tmp.npz")
        np.savez(unfinished, **measured())
        unfinished.rename(path)
        print(path.name, flush=True)


def pool(data: Data) -> list[str]:
    """The smallest teacher of each family: the routers' pool."""
    smallest: dict[str, str] = {}
    for t in sorted(data.teachers, key=lambda t: data.facts[t]["params_b"]):
        smallest.setdefault(data.facts[t]["family"], t)
    return list(smallest.values())


def pieces(data: Data, output: Path) -> list[Piece]:
    """What answers the open question first, then the tournament, then the students."""
    return [
        untrained(data, output),
        *scored(data, output, common.ALL_SCORED, data.teachers),
        *scored(data, output, common.POOL_SCORED, pool(data)),
        *probed(data, output, seed=0),
    ]


if __name__ == "__main__":
    folder, student, output = map(Path, sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    data = Data(folder, student)
    run(pieces(data, output))
