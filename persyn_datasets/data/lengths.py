"""How long answers are, in tokens."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from persyn_datasets.data.reasoning import written_length

CHARACTERS_PER_TOKEN = 4  # where nothing counted the tokens


def lengths(ranked: Dataset, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """By teacher the mean tokens of an answer, and the line of least squares from a prompt's
    characters to its tokens.

    Where an engine did not count, 4 characters are a token.
    """
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for messages, row in zip(ranked["messages"], ranked["responses"], strict=True):
        characters = sum(len(m["content"]) for m in messages)
        for r in row:
            if not r["error"] and r["teacher"] in measured:
                prompt = _tokens(r["prompt_tokens"], characters)
                completion = _tokens(r["completion_tokens"], written_length(r))
                measured[r["teacher"]].append((characters, prompt, completion))
    tokens = {}
    for name, rows in measured.items():
        characters, prompt, completion = np.array(rows, float).T
        design = np.stack([np.ones(len(rows)), characters], 1)
        fixed, each = np.linalg.lstsq(design, prompt)[0]
        tokens[name] = {
            "prompt": float(fixed),
            "per_character": float(each),
            "completion": float(completion.mean()),
        }
    return tokens


def _tokens(counted: int | None, characters: int) -> float:
    return characters / CHARACTERS_PER_TOKEN if counted is None else counted
