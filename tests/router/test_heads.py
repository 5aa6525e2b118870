"""The head of a classifier, over every architecture that transformers knows."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from persyn_datasets.router.heads import head_of

# Their default configs do not make a model; LayoutLMv2 wants a library that is not on PyPI.
NO_DEFAULTS = {
    "CohereCompassTextConfig",
    "EsmConfig",
    "HunYuanDenseV1Config",
    "HunYuanMoEV1Config",
    "LayoutLMv2Config",
    "MinistralConfig",
    "NemotronConfig",
}
CONFIGS = [
    kind for kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if kind.__name__ not in NO_DEFAULTS
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_the_head_gives_the_labels(kind):
    """5 labels: a number that mixtures of experts and attention heads may share."""
    config = kind()
    config.num_labels = 5
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    parent, leaf, head = head_of(model)
    assert isinstance(head, nn.Linear) and head.out_features == 5
    assert getattr(parent, leaf) is head


def test_most_architectures_are_looked_at():
    assert len(CONFIGS) > 100
