"""Routers on devices that are too small for a batch, or that are several."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from transformers import (
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
    TrainingArguments,
)

from persyn_datasets import BuildError, train_router
from persyn_datasets.data import schema

TEXTS = [f"Tell me of {i} ants" + " and bees" * i for i in range(12)]
PROMPTS = [[{"role": "user", "content": text}] for text in TEXTS]
PAIRS = Dataset.from_list(
    [
        {"prompt_id": str(i), "messages": messages, "margin": 1.0, "label": i % 2}
        | {"teacher_a": "ant", "teacher_b": "bee"}
        for i, messages in enumerate(PROMPTS)
    ],
    features=Features(schema.PAIRS),
)
OPTIONS = {"epochs": 2, "learning_rate": 1e-3, "seed": 0, "batch_size": 8}


def weights(router):
    return AutoModelForSequenceClassification.from_pretrained(router.path).state_dict()


def same(a, b):
    return all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


@pytest.fixture
def memory_for(monkeypatch):
    """From now on a forward pass of more rows than these is out of memory; the sizes of all."""
    forward, sizes = LlamaForSequenceClassification.forward, []

    def limit(rows):
        def small(self, input_ids=None, *args, **kwargs):
            sizes.append(len(input_ids))
            if len(input_ids) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(self, input_ids, *args, **kwargs)

        monkeypatch.setattr(LlamaForSequenceClassification, "forward", small)
        return sizes

    return limit


def test_a_training_that_is_out_of_memory_takes_the_same_steps_in_smaller_passes(
    base_model, tmp_path, memory_for
):
    whole = train_router(PAIRS, base_model, output_dir=str(tmp_path / "whole"), **OPTIONS)
    sizes = memory_for(2)
    parts = train_router(PAIRS, base_model, output_dir=str(tmp_path / "parts"), **OPTIONS)
    assert max(sizes) == 8 and sizes.count(2) >= 12  # two epochs of six passes
    assert same(weights(whole), weights(parts))
    assert parts.config.persyn["training"] == whole.config.persyn["training"]


def test_an_odd_batch_is_taken_row_by_row(base_model, tmp_path, memory_for):
    options = OPTIONS | {"batch_size": 3}
    whole = train_router(PAIRS, base_model, output_dir=str(tmp_path / "whole"), **options)
    memory_for(2)
    parts = train_router(PAIRS, base_model, output_dir=str(tmp_path / "parts"), **options)
    assert same(weights(whole), weights(parts))


def test_a_prompt_that_does_not_fit_by_itself_is_said(base_model, tmp_path, memory_for):
    memory_for(0)
    with pytest.raises(BuildError, match=r"max_length"):
        train_router(PAIRS, base_model, output_dir=str(tmp_path), **OPTIONS)


def test_scores_come_in_smaller_batches_where_memory_is_short(
    base_model, tmp_path, memory_for, monkeypatch
):
    monkeypatch.setattr("persyn_datasets.store.memory.CPU_TOKENS", 10_000)
    router = train_router(PAIRS, base_model, freeze_backbone=True, output_dir=str(tmp_path))
    expected = router.scores(PROMPTS)
    sizes = memory_for(3)
    assert np.allclose(router.scores(PROMPTS), expected, atol=1e-4)
    assert max(sizes) == 12 and max(s for s in sizes if s < 4) == 3
    memory_for(0)
    with pytest.raises(BuildError, match="memory"):
        router.scores(PROMPTS)


def test_two_gpus_train_the_router_that_one_trains(base_model, tmp_path, monkeypatch):
    """A plain Trainer takes a batch for each of them."""
    one = train_router(PAIRS, base_model, output_dir=str(tmp_path / "one"), **OPTIONS)
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    two = train_router(PAIRS, base_model, output_dir=str(tmp_path / "two"), **OPTIONS)
    assert same(weights(one), weights(two))
