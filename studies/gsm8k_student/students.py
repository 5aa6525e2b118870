"""Students of strategies: who answers the taught questions, by what is known of the others.

python -m studies.gsm8k_student.students DATA STUDENT OUTPUT [SEEDS]

Runs after `measure`; one file a student, and an interrupted run goes on where it was.
"""

import sys
from pathlib import Path

import numpy as np

from persyn_datasets.stages.rank import normalized
from studies.gsm8k_student import analyse, common, measure, routing
from studies.gsm8k_student.common import Data, Row

BETA = 3.0  # of car, arXiv 2411.07133
ALPHA = 0.4


def strategies(data: Data, output: Path, seed: int) -> dict[str, list[str]]:
    """Strategy → the teacher of each taught question."""
    pool = analyse.Pool.read(data, output)
    names, taught = pool.teachers, list(common.TAUGHT)
    texts = [data.answers[names[0]][q]["prompt"] for q in [*pool.questions, *taught]]
    x = routing.features(texts)
    seen, asked = x[: len(pool.questions)], x[len(pool.questions) :]
    draw = np.random.default_rng(seed)

    def reward(signal: np.ndarray) -> np.ndarray:
        return (1 - ALPHA) * pool.quality + ALPHA * normalized(signal, "prompt")

    def routed(rewards: np.ndarray) -> np.ndarray:
        return routing.predict("ridge", seen, rewards, asked).argmax(-1)

    persyn = routed(reward(pool.r_t))
    compatible = pool.quality.mean(0) / (1 - BETA * pool.r_l.mean(0))
    largest = int(np.argmax([data.facts[t]["params_b"] for t in names]))
    picks = {
        "persyn": persyn,
        "shares at random": draw.permutation(persyn),
        "best single": np.full(len(taught), reward(pool.r_t).mean(0).argmax()),
        "random": draw.integers(0, len(names), len(taught)),
        "persyn, log-probability": routed(reward(pool.r_l)),
        "car": np.full(len(taught), compatible.argmax()),
        "strong": np.full(len(taught), largest),
        "target signal alone": routed(pool.r_t),
    }
    return {name: [names[i] for i in chosen] for name, chosen in picks.items()}


def rows(data: Data, teachers: list[str]) -> list[Row]:
    cells = zip(teachers, common.TAUGHT, strict=True)
    answers = [data.answer(t, q, common.MAX_TRAINED_TOKENS) for t, q in cells]
    return [row for row in answers if row[1]]


def pieces(data: Data, output: Path, seed: int) -> list[measure.Piece]:
    def piece(trained_on: list[Row]) -> dict[str, np.ndarray]:
        model = common.fine_tuned(data.student, trained_on, measure.STEPS_OF_STUDENT, seed)
        return {name: common.judged(model, texts) for name, texts in data.judges().items()}

    of = {name: rows(data, picked) for name, picked in strategies(data, output, seed).items()}
    of["target itself"] = [data.reference(i) for i in common.TARGET]
    return [
        (output / f"student-{name}-{seed}.npz", lambda name=name: piece(of[name])) for name in of
    ]


if __name__ == "__main__":
    folder, student, output = map(Path, sys.argv[1:4])
    data = Data(folder, student)
    for seed in range(int(sys.argv[4]) if len(sys.argv) > 4 else 3):
        measure.run(pieces(data, output, seed))
