"""A trained router changed without training it again: its probabilities calibrated, a
teacher added.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.build import Temperature
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.router.bradley_terry import FOLDS, bradley_terry_loss, fit_head
from persyn_datasets.router.heads import head_of
from persyn_datasets.router.metrics import calibration_error, reliability
from persyn_datasets.router.model import Router
from persyn_datasets.store import own
from persyn_datasets.store.models import readable
from persyn_datasets.strategies.budget import lengths

TEMPERATURES = (0.1, 10.0)


def preferred(rewards: np.ndarray) -> torch.Tensor:
    """`prefer` of `bradley_terry_loss`, of rewards (prompts, teachers) with NaN where there is
    none.
    """
    return torch.tensor(rewards[:, :, None] > rewards[:, None, :]).double()


def temperature(o: np.ndarray, rewards: np.ndarray) -> float:
    """The T within `TEMPERATURES` of least Bradley–Terry loss of o / T (arXiv 1706.04599); both
    (prompts, teachers). It is 1 where no two rewards differ.
    """
    scores, prefer = torch.tensor(o, dtype=torch.float64), preferred(rewards)
    if not prefer.any():  # nothing says that another temperature is better
        return 1.0
    found = minimize_scalar(
        lambda log_t: float(bradley_terry_loss(scores / np.exp(log_t), prefer)),
        bounds=np.log(TEMPERATURES),
        method="bounded",
    )
    return float(np.exp(found.x))


def calibrate(router: Router, held_out: Dataset, output_dir: str) -> tuple[Router, Temperature]:
    """Divide the outputs of a router by the temperature that suits held-out rows of `Rank`; the
    result is kept there.

    The head's weights are divided, so that plain pipelines are calibrated, too; no choice changes.
    They stay as they are where that is no better on prompts that did not choose the temperature.

    Returns:
        The router; and its `temperature` and the `metrics.calibration_error` `before` and `after`:
        the latter is cross-fitted, each fold of the prompts at the temperature of the others.
    """
    o, rewards = router.scores(held_out["messages"]), rewards_of(held_out, router.names)
    fold = np.random.default_rng(0).permutation(len(o)) % min(FOLDS, len(o))
    others = {k: temperature(o[fold != k], rewards[fold != k]) for k in set(fold.tolist())}
    divided = o / np.array([others[k] for k in fold.tolist()])[:, None]
    before, after = (calibration_error(reliability(scores, rewards)) for scores in (o, divided))
    t = temperature(o, rewards)
    as_it_is, changed = (
        bradley_terry_loss(torch.tensor(scores, dtype=torch.float64), preferred(rewards))
        for scores in (o, divided)
    )
    if changed >= as_it_is:
        t, after = 1.0, before
    model: Any = _stored(router)
    with torch.no_grad():
        for parameter in head_of(model)[2].parameters():
            parameter.div_(t)
    facts: Temperature = {"temperature": t, "before": before, "after": after}
    model.config.persyn |= {"temperature": facts}
    return _keep(model, router, output_dir), facts


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
    prefer = preferred(rewards_of(ranked, names))
    prefer[:, :-1, :-1] = 0  # what the others' outputs were fitted to
    if not prefer.any():
        raise InputError(
            f"No anchor prompt compares {teacher.name!r} with a teacher of {router.path}; answer "
            "and rank it."
        )
    o, features = (torch.tensor(part) for part in router.read(ranked["messages"]))
    model: Any = _stored(router)
    parent, leaf, head = head_of(model)
    weight, bias, ridge = fit_head(
        features, prefer.float(), with_bias=head.bias is not None, fixed=o
    )
    setattr(parent, leaf, _grown(head, weight, bias))
    model.num_labels = model.config.num_labels = len(names)
    model.config.id2label, model.config.label2id = (
        dict(enumerate(names)),
        {name: i for i, name in enumerate(names)},
    )
    facts = {
        key: value
        for key, value in model.config.persyn.items()
        if key not in ("metrics", "temperature")
    }
    added = {"teacher": teacher.name, "prompts": int(prefer.any(-1).any(-1).sum()), "ridge": ridge}
    own.remember([teacher.to_dict()])
    facts |= {
        "teachers": [*facts["teachers"], teacher.to_dict()],
        "added": [*facts.get("added", []), added],
    }
    if expected := facts.get("expected"):
        facts["expected"] = expected | {
            "tokens": expected["tokens"] | lengths(ranked, [teacher.name])
        }
    model.config.persyn = facts
    larger = _keep(model, router, output_dir)
    return (
        larger.record(typical=larger.profile(ranked["messages"])) if "typical" in facts else larger
    )


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


def _stored(router: Router) -> Any:
    """The router's model in the very numbers that are stored."""
    return AutoModelForSequenceClassification.from_pretrained(
        router.path,
        revision=router.revision,
        dtype="auto",
        use_safetensors=True,
        trust_remote_code=False,
    )


def _keep(model: Any, router: Router, folder: str) -> Router:
    fresh = Path(
        f"{folder}.new"
    )  # the weights may be mapped from the very files that are to be replaced
    model.save_pretrained(fresh)
    readable(fresh)
    AutoTokenizer.from_pretrained(router.path, revision=router.revision).save_pretrained(fresh)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file in fresh.iterdir():
        file.replace(Path(folder) / file.name)
    fresh.rmdir()
    return Router.from_pretrained(folder)
