"""Engines answer prompts: one module each, with `generate(requests)` and `check(teacher)`.

generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]
    yields (index of the request, its response) as responses complete, in any order. A request that
    fails yields a response with `error` set; it never raises for one row. Before a request is
    worked on, `account.admit(request)` is asked: if it refuses and nothing is in flight, the engine
    ends and leaves the rest unanswered. What is tried again within the engine is told to
    `account.retried(request)`. When `account.closed` is set it stops soon; when the iterator is
    closed, at once.
check(teacher: Teacher) -> None
    raises `InputError` if the teacher cannot be asked at all; costs nothing.
"""

from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, TypedDict

from persyn_datasets.config.teacher import Message, Sampling, Teacher


class Request(NamedTuple):
    """One prompt for one teacher; `messages` are the teacher's `conversation`, `sample` counts its
    answers to it.
    """

    teacher: Teacher
    prompt_id: str
    messages: list[Message]
    sample: int = 0

    @property
    def sampling(self) -> Sampling:
        """Sample j is drawn with seed + j."""
        sampling = self.teacher.sampling or Sampling()
        return replace(sampling, seed=sampling.seed + self.sample)


class Response(TypedDict):
    """What came back. `error` is empty for an answer; then `finish_reason` is `stop` or `length`,
    else `error`.
    """

    teacher: str
    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    error: str


def failed(teacher: Teacher, error: str) -> Response:
    return Response(
        teacher=teacher.name,
        text="",
        finish_reason="error",
        prompt_tokens=None,
        completion_tokens=None,
        error=error or "unknown error",
    )


def engine_of(teacher: Teacher) -> ModuleType:
    return import_module(f"persyn_datasets.engines.{teacher.engine}")
