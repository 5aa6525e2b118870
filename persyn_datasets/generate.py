"""Generate: every teacher answers every prompt (the calibration part of PerSyn)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from huggingface_hub.utils import tqdm

from persyn_datasets.engines import Request, Response, engine_of
from persyn_datasets.errors import InputError
from persyn_datasets.journal import Journal
from persyn_datasets.prompts import messages_of, prompt_id
from persyn_datasets.teacher import Teacher


@dataclass(frozen=True)
class Generate:
    """A `datasets` map that adds `responses`: one response of each teacher to each prompt, in their order.

        prompts.map(Generate(teachers), batched=True, batch_size=None)

    `batch_size=None` lets the engines see all prompts at once and fill their batches best. Responses are kept
    in the journal as they arrive; a second run generates only what is missing. A response that failed stays
    in its place with `error` set and is asked for again the next time (`map` keeps its own cache of file-backed
    datasets: pass `load_from_cache_file=False` to retry failures).
    """

    teachers: Sequence[Teacher]

    def __post_init__(self) -> None:
        object.__setattr__(self, "teachers", tuple(self.teachers))
        check_names(self.teachers)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        messages = messages_of(batch)
        ids = [prompt_id(m) for m in messages]
        requests = [
            Request(teacher, key, teacher.conversation(m))
            for key, m in zip(ids, messages, strict=True)
            for teacher in self.teachers
        ]
        responses, n = respond(requests, "Generate"), len(self.teachers)
        return {
            "prompt_id": ids,
            "messages": messages,
            "responses": [responses[i * n : (i + 1) * n] for i in range(len(ids))],
        }


def check_names(teachers: Sequence[Teacher]) -> None:
    names = [t.name for t in teachers]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"teachers: the name {twice[0]!r} is used twice; give each teacher a `name` of its own.")


def respond(requests: Sequence[Request], stage: str) -> list[Response]:
    """The response to each request, in order: from the journal if it is there, else from the teacher's engine."""
    responses: dict[tuple[str, str], Response] = {}
    with ExitStack() as stack:
        journals = {
            teacher.name: stack.enter_context(Journal("responses", teacher.model, teacher.identity()))
            for teacher in {request.teacher.name: request.teacher for request in requests}.values()
            if teacher.engine != "recorded"  # is a record already
        }
        for name, journal in journals.items():
            known = journal.get(r.prompt_id for r in requests if r.teacher.name == name)
            responses.update({(name, key): response for key, response in known.items()})
        asked = {(r.teacher.name, r.prompt_id): r for r in requests}
        todo = [request for key, request in asked.items() if key not in responses]
        with tqdm(total=len(asked), initial=len(asked) - len(todo), desc=stage, unit="response") as progress:
            tokens, start = 0, time.monotonic()
            for request, response in _generate(todo):
                responses[request.teacher.name, request.prompt_id] = response
                # An empty answer was answered too: it stays, with its error, and is not bought again.
                if response["finish_reason"] != "error" and request.teacher.name in journals:
                    journals[request.teacher.name].put(request.prompt_id, response)
                tokens += response["completion_tokens"] or 0
                progress.set_description(f"{stage} · {request.teacher.name}", refresh=False)
                progress.set_postfix_str(f"{tokens / (time.monotonic() - start):.0f} tokens/s", refresh=False)
                progress.update()
    return [responses[r.teacher.name, r.prompt_id] | {"teacher": r.teacher.name} for r in requests]


def _generate(requests: list[Request]) -> Iterator[tuple[Request, Response]]:
    requests = sorted(requests, key=lambda r: r.teacher.engine)
    for _, group in groupby(requests, key=lambda r: r.teacher.engine):
        work = list(group)
        for i, response in engine_of(work[0].teacher).generate(work):
            yield work[i], response
