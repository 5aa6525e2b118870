"""Generate: every teacher answers every prompt (the calibration part of PerSyn)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from persyn_datasets.account import Account
from persyn_datasets.engines import Request
from persyn_datasets.prompts import messages_of, prompt_id
from persyn_datasets.respond import check_names, respond
from persyn_datasets.teacher import Teacher


@dataclass(frozen=True)
class Generate:
    """A `datasets` map that adds `responses`: one response of each teacher to each prompt, in their order.

        prompts.map(Generate(teachers), batched=True, batch_size=None)

    `batch_size=None` lets the engines see all prompts at once and fill their batches best. Responses are kept
    in the journal as they arrive; a second run generates only what is missing. A response that failed stays
    in its place with `error` set and is asked for again the next time (`map` keeps its own cache of file-backed
    datasets: pass `load_from_cache_file=False` to retry failures).

    Args:
        teachers: each with a `name` of its own.
        max_failed: the share of failed responses in one call above which it raises `BuildError`; 1 keeps them all.
        account: counts what is spent, and keeps to its `max_cost`; give one to several stages.
    """

    teachers: Sequence[Teacher]
    max_failed: float = 1.0
    account: Account = field(default_factory=Account, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "teachers", tuple(self.teachers))
        check_names(self.teachers)

    def __call__(self, batch: Mapping[str, Sequence[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        if rank is not None:
            from persyn_datasets.models import use_device  # torch takes seconds to import; endpoints need none

            use_device(rank)
        messages = messages_of(batch)
        ids = [prompt_id(m) for m in messages]
        requests = [
            Request(teacher, key, teacher.conversation(m))
            for key, m in zip(ids, messages, strict=True)
            for teacher in self.teachers
        ]
        responses = respond(requests, "Generate", self.account, self.max_failed)
        n = len(self.teachers)
        return {
            "prompt_id": ids,
            "messages": messages,
            "responses": [responses[i * n : (i + 1) * n] for i in range(len(ids))],
        }
