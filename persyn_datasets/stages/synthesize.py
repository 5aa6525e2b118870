"""Synthesize: each prompt is answered once, by its own teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.reasoning import KeepReasoning, as_trained
from persyn_datasets.data import schema
from persyn_datasets.data.prompts import messages_of, prompt_id
from persyn_datasets.data.reasoning import read
from persyn_datasets.engines import Request
from persyn_datasets.engines.dispatch import Asking

COPIED = ("finish_reason", *schema.COUNTS)
CUT_OFF = "max_tokens ended the thought before an answer; raise sampling.max_tokens"


@dataclass(frozen=True)
class Synthesize(Asking):
    """A `datasets` map that adds `prompt` and `completion` (conversational, as TRL trains on them).

        routed.map(Synthesize(teachers), batched=True, batch_size=None)

    Each row is answered by the teacher that its column `teacher` names; answers that the journal
    has, those of the calibration among them, are not generated again. A row that fails stays, with
    an empty `completion` and its `error`: filter on `error == ""` before training.

    Args:
        keep_reasoning: where a teacher's thought goes: `inline`, into the completion's text, before
            the answer, as `<think>…</think>`; `column`, into the column `reasoning` alone; or
            `drop`, nowhere. A thought that was cut off has no answer and is an error.
        teachers, max_failed, account, ask: see `Asking`.
    """

    keep_reasoning: KeepReasoning = "inline"

    def __call__(
        self, batch: Mapping[str, Sequence[Any]], rank: int | None = None
    ) -> dict[str, list[Any]]:
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
        responses = self._responses(requests, rank)
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
