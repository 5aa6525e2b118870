"""Answers that others published, as `recorded` teachers and as the rewards of a router study."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml


def read_blob(clone: str | Path, path: str) -> bytes:
    """A file of a clone's newest commit, whether the clone has a work tree or is bare."""
    command = ["git", "-C", str(clone), "show", f"HEAD:{path}"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{clone} has no {path} at HEAD: {done.stderr.decode().strip()}")
    return done.stdout


def commit(clone: str | Path) -> str:
    command = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def write(
    folder: Path,
    prompts: list[dict[str, Any]],
    answers: list[dict[str, Any]],
    sizes: Mapping[str, float | None],
    quality: str,
) -> None:
    """The prompts, the answers by prompt and teacher, and a recipe that builds from them.

    Args:
        sizes: teacher → billions of parameters, None where nobody says.
        quality: dotted path of the function that grades an answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(prompts), folder / "prompts.parquet")
    pq.write_table(pa.Table.from_pylist(answers), folder / "answers.parquet")
    (folder / "teachers.json").write_text(json.dumps(list(sizes), indent=2))
    answered = str((folder / "answers.parquet").resolve())
    recipe = {
        "name": folder.name.replace("_", "-"),
        "student": {"model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "prompts": {
            "path": str((folder / "prompts.parquet").resolve()),
            "column": "prompt",
            "answer_column": "answer",
        },
        "teachers": [
            {"name": name, "model": answered, "engine": "recorded"}
            | ({"size": size} if size else {})
            for name, size in sizes.items()
        ],
        "calibration": {"size": min(2500, len(prompts))},
        "quality": quality,
        "router": {
            "backbone": "sentence-transformers/all-MiniLM-L6-v2",
            "freeze_backbone": True,
        },
        "baselines": {"group": "group"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


@dataclass(frozen=True)
class Pool:
    """Measured rewards of several teachers on the same prompts.

    Attributes:
        prompts: their texts.
        groups: the category of each.
        teachers: names, in the order of the columns.
        rewards: 1 right, 0 wrong, float64 (prompts, teachers).
    """

    name: str
    prompts: list[str]
    groups: np.ndarray
    teachers: list[str]
    rewards: np.ndarray

    @classmethod
    def read(cls, name: str, folder: Path, teachers: Sequence[str] | None = None) -> "Pool":
        """Of the prompts that all `teachers` (default: every one) answered; each prompt once."""
        prompts = pq.read_table(folder / "prompts.parquet").to_pylist()
        answers = pq.read_table(
            folder / "answers.parquet", columns=["prompt", "teacher", "correct"]
        )
        names = list(teachers or json.loads((folder / "teachers.json").read_text()))
        row = {text: i for i, text in enumerate(dict.fromkeys(p["prompt"] for p in prompts))}
        column = {teacher: j for j, teacher in enumerate(names)}
        rewards = np.full((len(row), len(names)), np.nan)
        for prompt, teacher, correct in zip(*(c.to_pylist() for c in answers.columns), strict=True):
            if teacher in column:
                rewards[row[prompt], column[teacher]] = correct
        group = {p["prompt"]: p["group"] for p in prompts}
        kept = np.flatnonzero(~np.isnan(rewards).any(-1))
        texts = list(row)
        return cls(
            name,
            [texts[i] for i in kept],
            np.array([group[texts[i]] for i in kept]),
            names,
            rewards[kept],
        )
