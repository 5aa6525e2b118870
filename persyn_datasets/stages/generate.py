"""Generate: every teacher answers every prompt (the calibration part of PerSyn)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Sampling, Teacher
from persyn_datasets.data import schema
from persyn_datasets.data.prompts import messages_of, prompt_id
from persyn_datasets.data.tools import tools_of
from persyn_datasets.engines import Request, facts_of
from persyn_datasets.engines.dispatch import Asking


@dataclass(frozen=True)
class Generate(Asking):
    """A `datasets` map that adds `responses`: those of each teacher to each prompt, in the
    teachers' order.

        prompts.map(Generate(teachers), batched=True, batch_size=None)

    `batch_size=None` lets the engines see all prompts at once and fill their batches best.
    Responses are kept in the journal as they arrive; a second run generates only what is missing. A
    response that failed stays in its place with its `error`, and is asked for again the next time.
    Since `map` has a cache of its own, pass `load_from_cache_file=False` to ask again.

    Args:
        teachers, max_failed, account, ask: see `Asking`.
        samples: responses of each teacher to a prompt; `sample` counts them from 0, and j is asked
            for with seed + j.
    """

    samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_samples(self.teachers, self.samples)

    def __call__(
        self, batch: Mapping[str, Sequence[Any]], rank: int | None = None
    ) -> dict[str, list[Any]]:
        messages, tools = messages_of(batch), tools_of(batch)
        ids = list(map(prompt_id, messages, tools))
        requests = [
            Request(teacher, key, teacher.conversation(m), sample, offered)
            for key, m, offered in zip(ids, messages, tools, strict=True)
            for teacher in self.teachers
            for sample in range(self.samples)
        ]
        answers = self._responses(requests, rank)
        responses = [
            {**response, "sample": r.sample} for r, response in zip(requests, answers, strict=True)
        ]
        for texts in ("text", "reasoning", "tool_calls"):
            schema.check_size([answer[texts] for answer in answers], "Generate")
        n = len(self.teachers) * self.samples
        return {
            "prompt_id": ids,
            "messages": messages,
            "responses": [responses[i * n : (i + 1) * n] for i in range(len(ids))],
        }


def check_samples(teachers: Sequence[Teacher], samples: int) -> None:
    """Raises `InputError` if a teacher would say the same again and again."""
    if samples < 1:
        raise InputError(f"samples is {samples}; expected at least 1.")
    for teacher in teachers if samples > 1 else ():
        if facts_of(teacher).journalled and (teacher.sampling or Sampling()).temperature == 0:
            raise InputError(
                f"samples is {samples}, but the teacher {teacher.name!r} is greedy (temperature "
                "0): all its answers to "
                "a prompt would be the same. Give it a temperature, or ask for 1 sample."
            )
