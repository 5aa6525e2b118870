"""A teacher that joins a trained router, which is not trained again."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from torch import nn

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.lengths import lengths
from persyn_datasets.data.responses import one_row_each, rewards_by_prompt
from persyn_datasets.router.heads import head_of
from persyn_datasets.router.model import Router
from persyn_datasets.router.standardised import Standardised
from persyn_datasets.router.stored import keep, opened
from persyn_datasets.store import own

RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
FOLDS = 5
# A teacher that always wins, or never, has no finite offset of most likelihood. With this it has
# one; an ordinary offset moves by some thousandths.
OFFSET_RIDGE = 1e-4


def add_teacher(router: Router, ranked: Dataset, teacher: Teacher, output_dir: str) -> Router:
    """A router that knows one teacher more, from its answers to a small anchor set, 100 to 300
    prompts.

    Its output is fitted to the comparisons with the other teachers (ridge Bradley–Terry on what the
    last layer sees); the others' outputs stay as they are. The metrics of the old router are not
    those of the new one, and go.

    Args:
        ranked: rows of `Rank`: the anchor prompts, answered by the new teacher and by those that it
            is compared with.
        output_dir: where the new router is kept.

    Raises:
        InputError: the router knows a teacher of this name, or no anchor prompt compares it with
            another one.
    """
    if teacher.name in router.names:
        raise InputError(
            f"{router.path} has a teacher {teacher.name!r} already; give the new one another name."
        )
    names = [*router.names, teacher.name]
    ranked, rewards = one_row_each(ranked), rewards_by_prompt(ranked, names)
    *others, new = rewards.T
    ahead = np.nan_to_num(np.sign(new - np.array(others))).T
    if not ahead.any():
        raise InputError(
            f"No anchor prompt compares {teacher.name!r} with a teacher of {router.path}; answer "
            "and rank it."
        )
    o, features = router.read(ranked["messages"])
    model: Any = opened(router)
    parent, leaf, head = head_of(model)
    weight, bias, ridge = fit_output(features, o, ahead, with_bias=head.bias is not None)
    setattr(parent, leaf, _grown(head, torch.tensor(weight), torch.tensor(bias)))
    model.num_labels = model.config.num_labels = len(names)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    prompts = int(ahead.any(-1).sum())
    added = {"teacher": teacher.name, "prompts": prompts, "ridge": ridge}
    model.config.persyn = _facts(model.config.persyn, teacher, ranked, added)
    own.remember([teacher.to_dict()])
    larger = keep(model, router, output_dir)
    if "typical" not in larger.config.persyn:
        return larger
    return larger.record(typical=larger.profile(ranked["messages"]))


def _facts(
    known: dict[str, Any], teacher: Teacher, ranked: Dataset, added: dict[str, Any]
) -> dict[str, Any]:
    """What the larger router says of itself: the old one's metrics are not its own."""
    facts = {key: value for key, value in known.items() if key not in ("metrics", "temperature")}
    facts["teachers"] = [*facts["teachers"], teacher.to_dict()]
    facts["added"] = [*facts.get("added", []), added]
    if expected := facts.get("expected"):
        tokens = expected["tokens"] | lengths(ranked, [teacher.name])
        facts["expected"] = expected | {"tokens": tokens}
    return facts


def fit_output(
    x: np.ndarray, o: np.ndarray, ahead: np.ndarray, with_bias: bool = True
) -> tuple[np.ndarray, np.ndarray, float]:
    """The output w · x + b of one more teacher, of least Bradley–Terry loss against the others'
    outputs, which stay: a logistic regression with an offset. Cross-validation chooses its ridge.

    Args:
        x: what the last layer sees, (prompts, features).
        o: π(x) of the other teachers, (prompts, teachers).
        ahead: (prompts, teachers): 1 where the new one was preferred, −1 where the other was, 0
            where nothing is known.
        with_bias: False for a head without b; see `Standardised`.

    Returns:
        W (1, features), b (1,) and the ridge.
    """
    features = Standardised.of(x.astype(float), with_bias)
    z = np.hstack([features.constant, features.z])
    fold = np.random.default_rng(0).permutation(len(z)) % min(FOLDS, len(z))
    losses = np.zeros(len(RIDGES))
    for k in set(fold.tolist()):
        others, left_out = fold != k, fold == k
        for i, w in enumerate(_ridge_path(z[others], o[others], ahead[others], RIDGES)):
            losses[i] += _loss(z[left_out] @ w, o[left_out], ahead[left_out])
    best = int(losses.argmin())
    *_, w = _ridge_path(z, o, ahead, RIDGES[: best + 1])
    return *features.head(w[1:, None], w[:1]), RIDGES[best]


def _loss(output: np.ndarray, o: np.ndarray, ahead: np.ndarray) -> float:
    """−Σ log σ of how far the preferred one of two is ahead."""
    return float(-log_expit(ahead * (output[:, None] - o))[ahead != 0].sum())


def _ridge_path(
    z: np.ndarray, o: np.ndarray, ahead: np.ndarray, ridges: Sequence[float]
) -> Iterator[np.ndarray]:
    """Weights (1 + features,) for each ridge, each fit starting from the one before."""
    comparisons = float(np.count_nonzero(ahead)) or 1.0
    w = np.zeros(z.shape[1])
    for ridge in ridges:
        penalty = np.array([OFFSET_RIDGE, *[ridge] * (len(w) - 1)])

        def loss(w: np.ndarray, penalty: np.ndarray = penalty) -> tuple[float, np.ndarray]:
            output = z @ w
            pull = ahead * expit(-ahead * (output[:, None] - o))
            value = _loss(output, o, ahead) / comparisons + penalty @ w**2
            return value, -z.T @ pull.sum(-1) / comparisons + 2 * penalty * w

        w = minimize(loss, w, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
        yield w


def _grown(head: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """The head with these rows below its own."""
    grown = nn.Linear(
        head.in_features,
        head.out_features + len(weight),
        bias=head.bias is not None,
        dtype=head.weight.dtype,
    )
    with torch.no_grad():
        grown.weight.copy_(torch.cat([head.weight, weight.to(head.weight)]))
        if head.bias is not None:
            grown.bias.copy_(torch.cat([head.bias, bias.to(head.bias)]))
    return grown
