"""The last linear layer of a sequence classifier, found by what it is."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from persyn_datasets.config.errors import InputError

# A number of labels that is no other width of a model: not of its states, heads or experts.
ODD_LABELS = 7919


def head_of(model: Any) -> tuple[nn.Module, str, nn.Linear]:
    """The linear layer that gives the labels, with the module that holds it and its name there.

    Neither its name nor its place tells which it is: classifiers call it `score`, `classifier`,
    `out_proj` or else, and some are not built last. It is the layer whose outputs follow the number
    of labels, so the same architecture is built once more with an odd number of them, without
    memory for its weights.

    Raises:
        InputError: no single linear layer gives the labels.
    """
    config = deepcopy(model.config)
    config.num_labels = ODD_LABELS
    with torch.device("meta"):
        twin = type(model)(config)
    names = [
        name
        for name, module in twin.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == ODD_LABELS
    ]
    if len(names) != 1:
        raise InputError(
            f"router.backbone: {type(model).__name__} has {len(names)} linear layers that give the "
            "labels; expected one. Take another backbone."
        )
    parent, _, leaf = names[0].rpartition(".")
    return model.get_submodule(parent), leaf, model.get_submodule(names[0])


class WithFeatures(nn.Module):
    """A head that gives what it sees, too."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.head(features), features], -1)
