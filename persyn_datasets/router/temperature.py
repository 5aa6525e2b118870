"""A router's probabilities calibrated, without training it again (arXiv 1706.04599)."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar

from persyn_datasets.data.build import Temperature
from persyn_datasets.data.responses import one_row_each, rewards_by_prompt
from persyn_datasets.router.bradley_terry import bradley_terry_loss
from persyn_datasets.router.heads import head_of
from persyn_datasets.router.metrics import calibration_error, reliability
from persyn_datasets.router.model import Router
from persyn_datasets.router.stored import keep, opened

FOLDS = 5
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
    # Over log T: halving and doubling are then as far from 1, where the bounds have their middle.
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
    o = router.scores(one_row_each(held_out)["messages"])
    rewards = rewards_by_prompt(held_out, router.names)
    # The temperature of all prompts is too good on them: what it is worth is seen fold by fold.
    fold = np.random.default_rng(0).permutation(len(o)) % min(FOLDS, len(o))
    by_others = np.ones(len(o))
    for k in np.unique(fold):
        by_others[fold == k] = temperature(o[fold != k], rewards[fold != k])
    divided = o / by_others[:, None]
    before, after = (calibration_error(reliability(scores, rewards)) for scores in (o, divided))
    t = temperature(o, rewards)
    as_it_is, changed = (
        bradley_terry_loss(torch.tensor(scores, dtype=torch.float64), preferred(rewards))
        for scores in (o, divided)
    )
    if changed >= as_it_is:
        t, after = 1.0, before
    model: Any = opened(router)
    # o = W h + b is linear in its weights: W / T and b / T give o / T.
    with torch.no_grad():
        for parameter in head_of(model)[2].parameters():
            parameter.div_(t)
    facts: Temperature = {"temperature": t, "before": before, "after": after}
    model.config.persyn |= {"temperature": facts}
    return keep(model, router, output_dir), facts
