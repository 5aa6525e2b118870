"""Synthesize: each prompt is answered once, by its own teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher, check_names
from persyn_datasets.data import schema
from persyn_datasets.data.prompts import messages_of, prompt_id
from persyn_datasets.engines import Request, check_keys
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.dispatch import Ask, respond


@dataclass(frozen=True)
class Synthesize:
    """A `datasets` map that adds `prompt` and `completion` (conversational, as TRL trains on them).

        routed.map(Synthesize(teachers), batched=True, batch_size=None)

    Each row is answered by the teacher that its column `teacher` names; answers that the journal
    has, those of the calibration among them, are not generated again. A row that fails stays, with
    an empty `completion` and its `error`: filter on `error == ""` before training. The arguments
    are those of `Generate`.
    """

    teachers: Sequence[Teacher]
    max_failed: float = 1.0
    account: Account = field(default_factory=Account, repr=False, compare=False)
    ask: Ask | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "teachers", tuple(self.teachers))
        check_names(self.teachers)
        for teacher in self.teachers:
            check_keys(teacher)

    def __call__(
        self, batch: Mapping[str, Sequence[Any]], rank: int | None = None
    ) -> dict[str, list[Any]]:
        if rank is not None:
            from persyn_datasets.store.models import (
                use_device,  # torch takes seconds to import; endpoints need none
            )

            use_device(rank)
        messages, teachers = messages_of(batch), {t.name: t for t in self.teachers}
        schema.require(batch, "teacher", "Synthesize")
        unknown = [name for name in batch["teacher"] if name not in teachers]
        if unknown:
            raise InputError(
                f"Rows are assigned to {unknown[0]!r}; the teachers here are {', '.join(teachers)}."
            )
        ids = [prompt_id(m) for m in messages]
        requests = [
            Request(teachers[name], key, teachers[name].conversation(m))
            for name, key, m in zip(batch["teacher"], ids, messages, strict=True)
        ]
        responses = respond(requests, "Synthesize", self.account, self.max_failed, self.ask)
        schema.check_size([r["text"] for r in responses], "Synthesize")
        copied = ("finish_reason", "prompt_tokens", "completion_tokens", "error")
        columns: dict[str, list[Any]] = {key: [r[key] for r in responses] for key in copied}  # type: ignore[literal-required]
        return columns | {
            "prompt_id": ids,
            "prompt": messages,
            "completion": [
                [] if r["error"] else [{"role": "assistant", "content": r["text"]}]
                for r in responses
            ],
        }
