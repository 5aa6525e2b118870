"""Engines answer prompts: one module each, which says what it is and does these two things.

FACTS: Facts
    what the rest of the package has to know about it; nothing else knows its name.
generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]
    yields (index of the request, its response) as responses complete, in any order. A request that
    fails yields a response with `error` set; it never raises for one row. Before a request is
    worked on, `account.admit(request)` is asked: if it refuses and nothing is in flight, the engine
    ends and leaves the rest unanswered. What is tried again within the engine is reported to
    `account.retried(request)`. When `account.closed` is set it stops soon; when the iterator is
    closed, at once. Responses are made by `answered` and `failed`, so that every engine's answers
    are treated alike.
check(teacher: Teacher) -> None
    raises `InputError` if the teacher cannot be asked at all; costs nothing.
thinks(teacher: Teacher) -> bool
    only where answers exist already: whether they hold the teacher's reasoning.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NamedTuple, TypedDict, cast

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Message, Price, Sampling, Teacher
from persyn_datasets.data.reasoning import split

EMPTY = "empty response"
# How an answer ends, in the words of servers: OpenAI's, TGI's, Together's, Mistral's, Anthropic's.
# After any other word it is not known to be whole.
ENDINGS = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence", "end_turn"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length"), "length"),
    "model_context_window_exceeded": "length",
}
CALLED = ("tool_calls", "tool_use", "function_call")  # of a whole answer, if it has calls
# Keys of a `Teacher` that not every engine reads.
KEYS_OF_SOME = (
    *("base_url", "engine_args", "chat_template_kwargs"),
    *("reasoning_effort", "response_format", "extra_body", "columns"),
)
# Keys of a teacher that go into a request's body as they are, and what its server alone knows.
OF_BODY = ("chat_template_kwargs", "reasoning_effort", "response_format", "extra_body")
HINTS = {
    "reasoning_effort": " If its chat template has such a switch, it is one of "
    "chat_template_kwargs."
}


@dataclass(frozen=True)
class Facts:
    """What an engine says about itself.

    Attributes:
        remote: its models run elsewhere: it needs no device here, and is asked while local ones
            work. Else its teachers take turns.
        in_process: the model is loaded by the process that asks, so that a process for each GPU is
            a copy on each.
        retried: what failed may succeed a moment later; it is asked once more at the end.
        journalled: its answers are kept in the journal. Else they exist already, as a dataset, and
            take no time.
        renders: it renders and encodes prompts itself, by the tokenizer of the model: what a prompt
            costs is known before it is asked.
        whole: it wants all requests of a stage at once, from one process.
        share_of_price: of a teacher's `price`, what its engine is billed.
        answers_as: the engine whose answers are the same as its own, and which names them in the
            journal. Default: itself.
        tools: it passes on the functions that a prompt offers, and its answers may call them.
        keys: those of a `Teacher` that only this engine reads, beyond those that all read.
        needs: those of `keys` that it cannot do without.
    """

    remote: bool = False
    in_process: bool = False
    retried: bool = False
    journalled: bool = True
    renders: bool = False
    whole: bool = False
    share_of_price: float = 1.0
    answers_as: str = ""
    tools: bool = False
    keys: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class Request(NamedTuple):
    """One prompt for one teacher; `messages` are the teacher's `conversation`, `sample` counts its
    answers to it. `tools` are the functions that the prompt offers, as JSON text (`data.tools`).
    """

    teacher: Teacher
    prompt_id: str
    messages: list[Message]
    sample: int = 0
    tools: str = ""

    @property
    def sampling(self) -> Sampling:
        """Sample j is drawn with seed + j."""
        sampling = self.teacher.sampling or Sampling()
        return replace(sampling, seed=sampling.seed + self.sample)

    @property
    def stream(self) -> str:
        """The name of its own random stream, made of seed, sample and prompt: no two prompts draw
        the same noise, and each the same in every run.
        """
        return f"{self.sampling.seed}:{self.prompt_id}"

    @property
    def seed(self) -> int:
        """`stream` as a number below 2^31, which every server takes."""
        return int.from_bytes(hashlib.sha256(self.stream.encode()).digest()[:4]) >> 1


class Response(TypedDict):
    """What came back; `error` is empty for an answer, and then `finish_reason` is `stop` or
    `length`.

    A response with an `error` has failed, for dispatch, account, score and split alike. If its
    `finish_reason` is `error`, it may be asked for again; else it was answered, with no text or
    with a part of one (`content_filter`), and is kept as it is: to ask again would only cost again.

    `reasoning` is what the teacher thought before it answered, empty if nothing is known of it; its
    `reasoning_tokens` are a part of `completion_tokens`, None if nobody counted them. A thought
    that was cut off is no failure: its `text` is empty, and its `finish_reason` is `length`.

    `tool_calls` are the functions that it calls, as JSON text (`data.tools`); an answer of calls
    alone has no text.
    """

    teacher: str
    text: str
    reasoning: str
    tool_calls: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    error: str


def answered(
    teacher: Teacher,
    text: str,
    finish_reason: str,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    stop: Sequence[str] = (),
    why_empty: str = "",
    reasoning: str = "",
    reasoning_tokens: int | None = None,
    tool_calls: str = "",
) -> Response:
    """What a teacher said, without white space at the ends.

    Args:
        finish_reason: in any of the words of `ENDINGS`; after another one the text is a part.
        text: begins with the thought, if that is not in `reasoning`; where the prompt opens its
            tag, with that tag.
        stop: the text ends before the first of these. For engines whose servers may go on.
        why_empty: says more of an answer without text.
    """
    cut = min((text.index(string) for string in stop if string in text), default=None)
    reasoning, text = reasoning.strip(), text[:cut].strip()
    if not reasoning:
        reasoning, text = split(text)
    if tool_calls and finish_reason in CALLED:
        finish_reason = "stop"
    finish_reason = ending(finish_reason) if cut is None else "stop"
    error = _broken_off(finish_reason)
    if not reasoning:
        reasoning_tokens = reasoning_tokens or 0
    elif not why_empty:
        why_empty = "all that it wrote is a thought"
    if not (text or tool_calls) and not (reasoning and finish_reason == "length"):
        error = ": ".join(filter(None, [EMPTY, error or why_empty]))
    return Response(
        teacher=teacher.name,
        text=text,
        reasoning=reasoning,
        tool_calls=tool_calls,
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        reasoning_tokens=reasoning_tokens,
        error=error,
    )


def ending(word: str) -> str:
    """`stop` or `length`; a server's own word where that says neither."""
    return ENDINGS.get(word.lower(), word)


def _broken_off(finish_reason: str) -> str:
    """Why an answer that ended so is not whole; empty: it is, or `max_tokens` cut it off."""
    if finish_reason in ENDINGS.values():
        return ""
    return f"the server ended it with finish_reason {finish_reason!r}"


def from_record(record: dict[str, Any]) -> Response:
    """A response that the journal has kept. Up to version 0.1.0 the thought stayed in its text, and
    any ending was that of a whole answer; nobody called a function.
    """
    if "reasoning" not in record:
        reasoning, text = split(record["text"])
        counted = None if reasoning else 0
        record = record | {"text": text, "reasoning": reasoning, "reasoning_tokens": counted}
    if record["text"]:
        finish_reason = ending(record["finish_reason"])
        record = record | {"finish_reason": finish_reason, "error": _broken_off(finish_reason)}
    return cast(Response, {"tool_calls": "", **record})


def failed(
    teacher: Teacher,
    error: str,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Response:
    """No answer, and why. The tokens are those that were billed nevertheless."""
    return Response(
        teacher=teacher.name,
        text="",
        reasoning="",
        tool_calls="",
        finish_reason="error",
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        reasoning_tokens=None,
        error=error or "unknown error",
    )


def names() -> list[str]:
    """The engines that there are: the modules of this room that have a `generate`."""
    return _names(tuple(__path__))


@cache
def _names(rooms: tuple[str, ...]) -> list[str]:
    modules = [Path(room, f"{m.name}.py") for room in rooms for m in iter_modules([room])]
    return sorted(
        module.stem for module in modules if "\ndef generate(" in module.read_text(encoding="utf-8")
    )


def engine_of(teacher: Teacher) -> ModuleType:
    """The module of a teacher's engine.

    Raises:
        InputError: there is no such engine.
    """
    check_engine(teacher)
    return import_module(f"{__name__}.{teacher.engine}")


def check_engine(teacher: Teacher) -> None:
    """Raises `InputError`: there is no such engine. Imports none: a typo is seen at once."""
    if teacher.engine not in (known := names()):
        nearest = get_close_matches(teacher.engine, known, n=1)
        raise InputError(
            f"Teacher {teacher.name!r}: there is no engine {teacher.engine!r}"
            + (f"; did you mean {nearest[0]!r}?" if nearest else f"; expected {', '.join(known)}.")
        )


def facts_of(teacher: Teacher) -> Facts:
    facts = engine_of(teacher).FACTS
    assert isinstance(facts, Facts)
    return facts


def price_of(teacher: Teacher) -> Price | None:
    """What its engine is billed: its price, or a share of it."""
    share = facts_of(teacher).share_of_price
    if not teacher.price or share == 1:
        return teacher.price
    return Price(share * teacher.price.input, share * teacher.price.output)


def check_keys(teacher: Teacher) -> None:
    """Raises `InputError`: no such engine, or a key that it lacks or does not read."""
    facts = facts_of(teacher)
    for key in facts.needs:
        if not getattr(teacher, key):
            raise InputError(
                f"Teacher {teacher.name!r}: its engine {teacher.engine!r} needs the key {key!r}."
            )
    for key in KEYS_OF_SOME:
        if getattr(teacher, key) and key not in facts.keys:
            hint = HINTS.get(key, "")
            raise InputError(
                f"Teacher {teacher.name!r}: its engine {teacher.engine!r} does not read the key "
                f"{key!r}; remove it, or choose another engine.{hint}"
            )


def check_tools(teacher: Teacher) -> None:
    """Raises `InputError`: its engine has no way for a prompt that offers functions."""
    if not facts_of(teacher).tools:
        able = ", ".join(name for name in names() if facts_of(replace(teacher, engine=name)).tools)
        raise InputError(
            f"Teacher {teacher.name!r}: prompts have `tools`, and its engine {teacher.engine!r} "
            f"cannot read calls out of an answer. Ask it by one that can ({able}), e.g. `vllm "
            "serve` with a tool parser; or remove the column."
        )
