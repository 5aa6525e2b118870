"""A student that really gets better, the long part: everything that a model has to run for.

    python -m studies.problems_student.measure OUTPUT [SEEDS]

Every piece is a file in OUTPUT, so that an interrupted run goes on where it was; `analyse.py` makes
the tables of what lies there.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from persyn_datasets import quickstart
from persyn_datasets.config.student import Student
from persyn_datasets.config.target import Target
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.router.crossfit import best_per_group
from persyn_datasets.router.regression import fit_rewards
from persyn_datasets.stages.generate import Generate
from persyn_datasets.stages.rank import Rank
from persyn_datasets.stages.score import Score
from persyn_datasets.store import models
from persyn_datasets.store.statistics import seeded_uniform
from persyn_datasets.strategies import baselines
from studies.gsm8k_student.routing import features
from studies.problems_student import student
from studies.problems_student.problems import STRONG, WEAK, draw, teachers
from studies.problems_student.student import Example

SIZES = {
    "calibration": 72,
    "taught": 120,
    "target": 120,
    "development": 102,
    "held-out": 402,
}
SETTINGS = ((15, 1e-4), (15, 3e-4), (24, 1e-4))  # steps of 8, rate
STRONG_SHARE = 0.2
FEW = 12  # references, two of each kind
SETTINGS_OF_FEW = ((6, 1e-4), (12, 1e-4), (24, 1e-4))
LONG = 96  # tokens for the untrained student, beside the table
ALPHA = 0.4
BESIDE = "persyn", "random"  # whose answers are learnt beside the references
TARGET, PAPER = "target", "log-probability"


Setting = tuple[int, float]


class Study:
    """What is drawn and answered, and the students that were measured.

    Attributes:
        parts: the problems, see `SIZES`.
        names: of the teachers.
        references: how many the target has.
    """

    def __init__(self, output: Path, references: int = SIZES["target"]) -> None:
        self.output, self.parts = output, draw(SIZES, seed=0)
        self.parts["target"] = self.parts["target"].select(range(references))
        self.suffix = "" if references == SIZES["target"] else f"-{references}"
        self.teachers = teachers()
        self.names = [t.name for t in self.teachers]
        self.student = Student(str(quickstart.FOLDER / quickstart.MODELS[0]), family="smollm2")
        self._ranked: dict[tuple[str, str], Dataset] = {}

    def target(self) -> Target:
        file = self.output / f"target{self.suffix}.jsonl"
        if not file.exists():
            rows = self.parts["target"].select_columns(["messages", "response"]).to_list()
            file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return Target(str(file), response_column="response", column="messages")

    def scored(self, part: str) -> Dataset:
        """Every teacher's answers with their signals."""
        file = self.output / f"{part}{self.suffix}.parquet"
        if not file.exists():
            batch = self.parts[part].remove_columns("response").to_dict()
            batch |= Generate(self.teachers)(batch)
            batch |= Score(self.student, "math-verify", self.target())(batch)
            Dataset.from_dict(batch).to_parquet(unfinished := file.with_suffix(".tmp"))
            unfinished.rename(file)
        return Dataset.from_parquet(str(file), cache_dir=str(self.output / "cache"))

    def ranked(self, part: str, learnability: Any = TARGET) -> Dataset:
        key = part, learnability
        if key not in self._ranked:
            batch = self.scored(part).to_dict()
            ranked = Rank(alpha=ALPHA, learnability=learnability)(batch)
            self._ranked[key] = Dataset.from_dict(batch | ranked)
        return self._ranked[key]

    def references(self, part: str = "target") -> list[Example]:
        rows = self.parts[part]
        return list(zip(rows["messages"], rows["response"], strict=True))

    def examples(self, picked: list[str]) -> list[Example]:
        """The answer of each taught problem's teacher; one without a word is left out."""
        rows = self.scored("taught")
        chosen = [
            (messages, next(r["text"] for r in row if r["teacher"] == name))
            for messages, row, name in zip(rows["messages"], rows["responses"], picked, strict=True)
        ]
        return [(messages, text) for messages, text in chosen if text.strip()]

    @staticmethod
    def name_of(part: str, examples: list[Example], setting: Setting, seed: int) -> str:
        """A student's file, named by what it was taught: equal assignments are one."""
        steps, rate = setting
        content = hashlib.sha256(json.dumps(examples).encode()).hexdigest()[:12]
        return f"{part}-{content}-{steps}-{rate:g}-{seed}.npz"


def rewards(study: Study, learnability: str) -> np.ndarray:
    """Of the calibration, (problems, teachers)."""
    return rewards_of(study.ranked("calibration", learnability), study.names)


def read(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """What a router sees of the calibration and of the taught problems."""
    parts = [study.parts["calibration"], study.parts["taught"]]
    texts = [messages[-1]["content"] for part in parts for messages in part["messages"]]
    x = features(texts)
    return x[: len(parts[0])], x[len(parts[0]) :]


def assignments(study: Study, seed: int, seen: np.ndarray, asked: np.ndarray) -> dict[str, Any]:
    """Strategy → the teacher of each taught problem."""
    names, calibration = study.names, study.ranked("calibration")
    keys = study.scored("taught")["prompt_id"][:]
    of_target = rewards(study, TARGET)
    groups = [np.array(study.parts[part]["family"]) for part in ("calibration", "taught")]
    routed = fit_rewards(seen, of_target)(asked).argmax(-1)
    by_group = best_per_group(seen, of_target, groups[0])(asked, groups[1]).argmax(-1)
    single = baselines.mean_rewards(calibration, names)
    compatible = baselines.compatibility_adjusted_rewards(calibration)
    draws = [seeded_uniform(seed, key) for key in keys]

    def named(places: Any) -> list[str]:
        return [names[int(i)] for i in places]

    return {
        "persyn": named(routed),
        "random": named(int(u * len(names)) for u in draws),
        "shares at random": named(np.random.default_rng(seed).permutation(routed)),
        "best single": [max(single, key=single.__getitem__)] * len(keys),
        "best per group": named(by_group),
        "persyn, log-probability": named(
            fit_rewards(seen, rewards(study, PAPER))(asked).argmax(-1)
        ),
        "car": [max(compatible, key=compatible.__getitem__)] * len(keys),
        "strong": [STRONG] * len(keys),
        "mix": [STRONG if u < STRONG_SHARE else WEAK for u in draws],
        "oracle": list(study.ranked("taught")["best_teacher"]),
    }


def piece(path: Path, measured: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not path.exists():
        unfinished = path.with_suffix(".tmp.npz")
        np.savez(unfinished, **measured())
        unfinished.rename(path)
        print(path.name, flush=True)
    return dict(np.load(path))


def taught(study: Study, examples: list[Example], setting: Setting, seed: int, part: str) -> Path:
    steps, rate = setting
    path = study.output / study.name_of(part, examples, setting, seed)
    folder = Path(study.student.model)

    def measured() -> dict[str, np.ndarray]:
        model = student.fine_tuned(folder, examples, steps, rate, seed)
        return student.right(model, folder, study.parts[part])

    piece(path, measured)
    return path


def best_setting(study: Study, examples: list[Example], settings: Sequence[Setting]) -> Setting:
    """The best on the development problems, with seed 0; of equals the first."""
    found = {s: np.load(taught(study, examples, s, 0, "development"))["right"] for s in settings}
    return max(settings, key=lambda s: found[s].mean())


class Made:
    """Which file has which student; written whenever one is made."""

    def __init__(self, study: Study, setting: Setting) -> None:
        self.study, self.setting = study, setting
        kinds = ("students", "teachers", "with references", "few references", "assignments")
        self.record: dict[str, Any] = {"setting": setting} | {kind: {} for kind in kinds}

    def learn(
        self,
        kind: str,
        name: str,
        examples: list[Example],
        seed: int,
        setting: Setting | None = None,
    ) -> None:
        path = taught(self.study, examples, setting or self.setting, seed, "held-out")
        self.record[kind].setdefault(name, {})[str(seed)] = path.name
        (self.study.output / "made.json").write_text(json.dumps(self.record, indent=1))


def learn_strategies(made: Made, seeds: int, seen: np.ndarray, asked: np.ndarray) -> None:
    study = made.study
    for seed in range(seeds):
        picked = assignments(study, seed, seen, asked)
        made.record["assignments"][str(seed)] = picked
        for name, of in picked.items():
            made.learn("students", name, study.examples(of), seed)
        made.learn("students", "target alone", study.references(), seed)
        if seed == 0:
            for name in study.names:
                made.learn("teachers", name, study.examples([name] * SIZES["taught"]), seed)


def learn_beside_references(made: Made, seeds: int) -> None:
    study, (steps, rate) = made.study, made.setting
    twice = 2 * steps, rate  # there are twice as many examples
    for seed in range(seeds):
        picked = made.record["assignments"][str(seed)]
        beside = {f"references and {of}": study.examples(picked[of]) for of in BESIDE}
        for name, examples in {"references alone": [], **beside}.items():
            made.learn("with references", name, study.references() + examples, seed, twice)


def learn_by_few_references(made: Made, seeds: int, seen: np.ndarray, asked: np.ndarray) -> None:
    study, few = made.study, Study(made.study.output, FEW)
    routed = fit_rewards(seen, rewards(few, TARGET))(asked).argmax(-1)
    answers = study.examples([study.names[i] for i in routed])
    models.free()
    alone = best_setting(few, few.references(), SETTINGS_OF_FEW)
    made.record["setting of few references"] = alone
    for seed in range(seeds):
        made.learn("few references", f"{FEW} references", few.references(), seed, alone)
        made.learn("few references", f"persyn by {FEW}", answers, seed)
        both = few.references() + answers
        made.learn("few references", f"{FEW} and persyn by them", both, seed)


def prepare(output: Path) -> Study:
    output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PERSYN_JOURNAL", str(output / "journal"))
    torch.set_float32_matmul_precision("medium")  # products in bfloat16
    # The package computes in float32 on a CPU, which takes four times as long; see student.py.
    models.dtype = lambda: torch.bfloat16
    return Study(output)


def main(output: Path, seeds: int) -> None:
    study = prepare(output)
    folder = Path(study.student.model)
    for part in ("development", "held-out"):
        piece(
            output / f"untrained-{part}.npz",
            lambda part=part: student.right(student.load(folder), folder, study.parts[part]),
        )
    seen, asked = read(study)
    piece(
        output / f"untrained-{LONG}-tokens.npz",
        lambda: student.right(student.load(folder), folder, study.parts["held-out"], LONG),
    )
    for part in ("calibration", "taught"):
        study.scored(part)
    models.free()  # the teachers' memory: students are trained from here on
    of_random = study.examples(assignments(study, 0, seen, asked)["random"])
    made = Made(study, best_setting(study, of_random, SETTINGS))
    learn_strategies(made, seeds, seen, asked)
    learn_beside_references(made, seeds)
    learn_by_few_references(made, seeds, seen, asked)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
