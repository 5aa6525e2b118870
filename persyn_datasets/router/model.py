"""The router π: a plain `transformers` classifier whose labels are the teachers (paper §3).

See `training` for how it is made.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.overrides import apply_overrides
from persyn_datasets.config.recipe import teachers_from
from persyn_datasets.config.teacher import Message, Teacher
from persyn_datasets.data.build import Metrics
from persyn_datasets.data.responses import (
    mean_by_prompt,
    one_row_each,
    rewards_by_prompt,
)
from persyn_datasets.router.ceiling import ceiling, sampled_rewards
from persyn_datasets.router.crossfit import Calibration, cross_fitted, simple_lines
from persyn_datasets.router.drift import profile, unlike
from persyn_datasets.router.heads import WithFeatures, head_of
from persyn_datasets.router.metrics import compare
from persyn_datasets.router.older_versions import save_config, save_router
from persyn_datasets.store import own
from persyn_datasets.store.identity import content_hash
from persyn_datasets.store.memory import in_batches, token_budget
from persyn_datasets.store.models import load_classifier, load_tokenizer

MOST_TOKENS = 16_384  # of a batch


def router_text(messages: Sequence[Message]) -> str:
    """What the router reads: a single user message as it is, so that plain pipelines work on plain
    prompts.
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


@dataclass(frozen=True)
class Router:
    """A trained router, by where it is stored: cheap to copy and to pickle; the model is loaded
    when first used.

    Any `AutoModelForSequenceClassification` or `pipeline("text-classification")` opens it too.

    Attributes:
        path: Hub id or local folder.
        revision: commit on the Hub.
        content: hash of its files or commit, so that caches notice another router at the same
            place.
    """

    path: str
    revision: str | None = None
    content: str | None = None

    @classmethod
    def from_pretrained(cls, path: str, revision: str | None = None) -> "Router":
        """Open a router: a folder, or one on the Hub at a branch, tag or commit.

        Raises:
            InputError: nothing is there, or it is not a router of ours.
        """
        content = content_hash(str(path))
        _read_config(str(path), revision)
        if content is None:
            # On the Hub: from now on this very commit, whatever becomes of the branch.
            file = try_to_load_from_cache(str(path), "config.json", revision=revision)
            assert isinstance(file, str)
            revision = content = Path(file).parent.name
        return cls(str(path), revision, content)

    @property
    def config(self) -> Any:
        return _config(self.path, self.revision, self.content)

    @property
    def names(self) -> list[str]:
        """The teachers' names, in the order of the scores."""
        return [self.config.id2label[i] for i in range(self.config.num_labels)]

    @property
    def teachers(self) -> list[Teacher]:
        """See `teachers_with`."""
        return self.teachers_with()

    def teachers_with(
        self, overrides: Iterable[str] = (), names: Sequence[str] | None = None
    ) -> list[Teacher]:
        """The teachers as they were asked; empty if the router was trained without their
        specifications.

        A router from elsewhere, the Hub or a folder, is treated as data: its teachers run no code
        here, read no file, and get neither your prompts at a server nor your key from a variable,
        unless you say so too. Exempt are teachers of a router in a folder that you have named
        before, by building or training a router here.

        Args:
            overrides: `teachers.PLACE.KEY=VALUE`, PLACE counting from 0 in the router's order.
            names: only these.

        Raises:
            InputError: an override that is missing, or wrong.
        """
        specifications = deepcopy(self.config.persyn["teachers"])
        chosen = {
            str(i): t for i, t in enumerate(specifications) if names is None or t["name"] in names
        }
        values, here = {"teachers": chosen}, Path(self.path).is_dir()
        where = ", which was not made here," if here else " on the Hub"
        named = [f"teachers.{i}" for i, t in chosen.items() if here and own.is_own(t)]
        apply_overrides(values, overrides, f"The router {self.path}{where}", named)
        return teachers_from(values, self.path)

    @property
    def metrics(self) -> Metrics | None:
        """See `metrics.compare`; None if it was not evaluated."""
        return self.config.persyn.get("metrics")

    @property
    def expected(self) -> dict[str, Any]:
        """What its teachers' answers will be worth and cost: see `budget.expectations`.

        Raises:
            InputError: it does not say.
        """
        if "expected" not in self.config.persyn:
            raise InputError(
                f"{self.path} does not say what its teachers' answers are worth and cost; "
                "router.record(expected=expectations(router, held_out, ranked))."
            )
        return self.config.persyn["expected"]

    def scores(self, prompts: Sequence[list[Message]]) -> np.ndarray:
        """o = π(x) for each prompt: float32 (prompts, teachers)."""
        model, tokenizer = self._load()
        return forward(model, tokenizer, [router_text(m) for m in prompts]).numpy()

    def read(self, prompts: Sequence[list[Message]]) -> tuple[np.ndarray, np.ndarray]:
        """o = π(x), and what the last layer sees of each prompt: float32 (prompts, teachers) and
        (prompts, width).
        """
        model, tokenizer = self._load()
        parent, leaf, head = head_of(model)
        setattr(parent, leaf, WithFeatures(head))
        try:
            both = forward(model, tokenizer, [router_text(m) for m in prompts]).numpy()
        finally:
            setattr(parent, leaf, head)
        return both[:, : len(self.names)], both[:, len(self.names) :]

    def profile(self, prompts: Sequence[list[Message]]) -> dict[str, Any]:
        """What is typical of these prompts: see `drift`."""
        return profile(*self.read(prompts), prompts)

    def unlike(self, prompts: Sequence[list[Message]]) -> list[str]:
        """Warnings, with numbers, if these prompts look unlike the calibration prompts: see
        `likeness`.

        None from a router that does not know what is typical: a build does
        `record(typical=profile(held_out))`.
        """
        typical = self.config.persyn.get("typical")
        return unlike(typical, *self.read(prompts), prompts) if typical else []

    def evaluate(
        self,
        held_out: Dataset,
        trained_on: Dataset,
        group: str | None = None,
    ) -> Metrics:
        """`metrics.compare` on rows of `Rank`; `trained_on` tells what the best single teacher, the
        best per group and the nearest neighbours are.

        With several responses of each teacher to a prompt there is a `ceiling`, too: see
        `ceiling.ceiling`. A prompt that stands in several rows counts once.

        Args:
            group: a column that says which prompts go together. Default: clusters of what the
                router reads.
        """
        asked, seen = (self.calibration(rows, group) for rows in (held_out, trained_on))
        scores = self.scores(one_row_each(held_out)["messages"])
        metrics = compare(simple_lines(seen, asked) | {"router": scores}, asked.rewards, self.names)
        sampled = mean_by_prompt(sampled_rewards(held_out, self.names), held_out["prompt_id"])
        if sampled.shape[-1] > 1:
            metrics["ceiling"] = ceiling(
                scores, sampled, self.names.index(metrics["best_single_teacher"])
            )
        return metrics

    def cross_fitted(self, ranked: Dataset, group: str | None = None) -> Metrics:
        """`crossfit.cross_fitted` over rows of `Rank`: of a router whose backbone was frozen, as
        another one has seen its training prompts.
        """
        return cross_fitted(self.calibration(ranked, group), self.names)

    def calibration(self, ranked: Dataset, group: str | None = None) -> Calibration:
        """What the prompts of rows of `Rank` tell, each once; see `evaluate` for `group`."""
        first = one_row_each(ranked)
        return Calibration(
            self.read(first["messages"])[1],
            rewards_by_prompt(ranked, self.names),
            np.array([str(value) for value in first[group]]) if group else None,
        )

    def record(self, **facts: Any) -> "Router":
        """Write facts (JSON values) into the stored config of a local router."""
        config = deepcopy(self.config)  # which is kept for this router, as it is
        config.persyn |= facts
        save_config(config, self.path)
        return Router.from_pretrained(self.path)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        where = self.path, self.revision
        return load_classifier(*where), load_tokenizer(*where)

    def save_pretrained(self, folder: str) -> None:
        save_router(*self._load(), folder)


@lru_cache(maxsize=8)
def _config(path: str, revision: str | None, content: str | None) -> Any:
    return _read_config(path, revision)


def _read_config(path: str, revision: str | None) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"No router at {path!r}: {error}") from error
    if not hasattr(config, "persyn"):
        raise InputError(
            f"{path!r} is a model, but no PerSyn router: its config has no entry 'persyn'."
        )
    return config


@torch.inference_mode()
def forward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> torch.Tensor:
    """The classifier's outputs, float32 (texts, outputs). Batches hold texts of similar length.

    Raises:
        BuildError: a text alone is too much for the device's memory.
    """
    ids: Any = tokenizer(list(texts), truncation=True)["input_ids"]

    def outputs(batch: list[int]) -> list[tuple[int, torch.Tensor]]:
        encoded: Any = {"input_ids": [ids[i] for i in batch]}
        padded = tokenizer.pad(encoded, padding_side="right", return_tensors="pt")
        logits = model(**padded.to(model.device)).logits.float().cpu()
        return list(zip(batch, logits, strict=True))

    tokens = min(MOST_TOKENS, token_budget(model))
    parts = in_batches([len(row) for row in ids], tokens, outputs)
    rows = dict(row for part in parts for row in part)
    return torch.stack([rows[i] for i in range(len(ids))])
