"""Synthesize: each prompt is answered once, by its own teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.reasoning import KeepReasoning, as_trained
from persyn_datasets.data import schema
from persyn_datasets.data.prompts import messages_of, prompt_id
from persyn_datasets.data.reasoning import read
from persyn_datasets.data.tools import COLUMN as TOOLS
from persyn_datasets.data.tools import message, tools_of
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

    Where rows have a column `tools`, a completion's message has `tool_calls` if its teacher called
    functions, and is JSON; `map` is to know the types:

        adds = schema.synthesized(routed.column_names)
        features = Features({**routed.features, **adds})
        routed.map(Synthesize(teachers), batched=True, batch_size=None, features=features)

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
        tools = tools_of(batch)
        ids = list(map(prompt_id, messages, tools))
        asked = zip(batch["teacher"], ids, messages, tools, strict=True)
        requests = [
            Request(teachers[name], key, teachers[name].conversation(m), tools=offered)
            for name, key, m, offered in asked
        ]
        responses = self._responses(requests, rank)
        texts = [read(r, as_trained(self.keep_reasoning)) for r in responses]
        for written in (texts, [r["tool_calls"] for r in responses]):
            schema.check_size(written, "Synthesize")
        columns: dict[str, list[Any]] = {key: [r[key] for r in responses] for key in COPIED}  # type: ignore[literal-required]
        errors = [
            r["error"] or ("" if r["text"] or r["tool_calls"] else CUT_OFF) for r in responses
        ]
        in_column = self.keep_reasoning == "column"
        calls = [r["tool_calls"] if TOOLS in batch else None for r in responses]
        if TOOLS in batch:
            columns[TOOLS] = [offered or None for offered in tools]
        return columns | {
            "prompt_id": ids,
            "prompt": messages,
            "completion": [
                [] if error else [_message(text, called)]
                for text, called, error in zip(texts, calls, errors, strict=True)
            ],
            "reasoning": [r["reasoning"] if in_column else "" for r in responses],
            "error": errors,
        }


def _message(text: str, calls: str | None) -> Any:
    """The completion; as JSON where it may have calls."""
    return {"role": "assistant", "content": text} if calls is None else message(text, calls)
