"""Synthesize: each prompt is answered once, by its own teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.reasoning import KeepReasoning, as_trained
from persyn_datasets.config.teacher import Teacher, check_names
from persyn_datasets.data import schema
from persyn_datasets.data.prompts import messages_of, prompt_id
from persyn_datasets.data.reasoning import read
from persyn_datasets.engines import Request, check_keys
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.dispatch import Ask, respond

COPIED = ("finish_reason", *schema.COUNTS)
CUT_OFF = "max_tokens ended the thought before an answer; raise sampling.max_tokens"


@dataclass(frozen=True)
class Synthesize:
    """A `datasets` map that adds `prompt` and `completion` (conversational, as TRL trains on them).

        routed.map(Synthesize(teachers), batched=True, batch_size=None)

    Each row is answered by the teacher that its column `teacher` names; answers that the journal
    has, those of the calibration among them, are not generated again. A row that fails stays, with
    an empty `completion` and its `error`: filter on `error == ""` before training.

    Args:
        keep_reasoning: where a teacher's thought goes: `inline`, into the completion's text, before
            the answer, as `<think>…</think>`; `column`, into the column `reasoning` alone; or
            `drop`, nowhere. A thought that was cut off has no answer and is an error.
        teachers, max_failed, account, ask: those of `Generate`.
    """

    teachers: Sequence[Teacher]
    max_failed: float = 1.0
    account: Account = field(default_factory=Account, repr=False, compare=False)
    ask: Ask | None = field(default=None, repr=False, compare=False)
    keep_reasoning: KeepReasoning = "inline"

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
        texts = [read(r, as_trained(self.keep_reasoning)) for r in responses]
        schema.check_size(texts, "Synthesize")
        columns: dict[str, list[Any]] = {key: [r[key] for r in responses] for key in COPIED}  # type: ignore[literal-required]
        errors = [r["error"] or ("" if r["text"] else CUT_OFF) for r in responses]
        in_column = self.keep_reasoning == "column"
        return columns | {
            "prompt_id": ids,
            "prompt": messages,
            "completion": [
                [] if error else [{"role": "assistant", "content": text}]
                for text, error in zip(texts, errors, strict=True)
            ],
            "reasoning": [r["reasoning"] if in_column else "" for r in responses],
            "error": errors,
        }
