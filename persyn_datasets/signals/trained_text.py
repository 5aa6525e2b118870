"""Prompt and answer as the student is trained on them: the one place that says so.

TRL's `SFTTrainer` (1.16), given a row of prompt + completion, renders both by the student's chat
template. The tokens that this text has in common with the prompt and its generation prompt carry no
loss, all others do, those that the template adds before the answer and behind it too. Nothing else
may be assumed: templates put an empty think block, a channel or a recipient before an answer, trim
it, rewrite its white space, or leave its reasoning out; a tokenizer may merge across the border.

So the answer's tokens are found in that very text, by their places in it. Calls of functions, which
each template writes in a way of its own, are what is rendered where a text would be.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

from datasets import Json
from jinja2 import TemplateError

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.student import Student
from persyn_datasets.config.teacher import Message
from persyn_datasets.data.tools import message
from persyn_datasets.store.journal import digest
from persyn_datasets.store.models import load_tokenizer, template_of
from persyn_datasets.store.templates import TEMPLATE_DATE, at_date

MARK = "\ufdd0"  # no character, by Unicode: no text has it
_TEXTS_AT_ONCE = 256
_THOUGHT = "<think>"
_THINKING = f"{_THOUGHT}\nOne and one.\n</think>\n\nTwo."


class Row(NamedTuple):
    """A prompt and its answer. `tools` is what the prompt offers, `calls` what the answer calls, as
    JSON text (`data.tools`).
    """

    messages: list[Message]
    answer: str
    tools: str = ""
    calls: str = ""


Rows = Sequence[tuple[list[Message], str] | Row]


@dataclass(frozen=True)
class TrainedText:
    """A row as the trainer reads it.

    ids: all token ids. Those from `loss_from` on carry loss.
    start, end: `ids[start:end]` is the answer, without a `<think>` with which both it and the
        generation prompt begin: that is given, and carries no loss. Behind it are the end of the
        turn and what the template writes after that, which carry loss, too.
    added: what the template writes between prompt and answer that carries loss.
    dropped: what the template leaves out of the answer.
    """

    ids: list[int]
    loss_from: int
    start: int
    end: int
    added: str = ""
    dropped: str = ""

    @property
    def context(self) -> list[int]:
        return self.ids[: self.start]

    @property
    def answer(self) -> list[int]:
        return self.ids[self.start : self.end]


@dataclass(frozen=True)
class _Prompt:
    text: str  # with the generation prompt
    ids: list[int]
    probe: str  # with an answer that is only `MARK`, and what follows it
    tail: str


class ChatFormat:
    """How a student is spoken to in training.

    Attributes:
        tokenizer: one of its own, to be given to the trainer as `processing_class`. Its template is
            the student's (or the plain one of a base student), at `TEMPLATE_DATE`.
        published_template: the student's own, whose switches are by default as in training: for the
            trained student.
        options: `chat_template_kwargs`, which the trainer wants as a column of that name.
    """

    def __init__(self, student: Student):
        self.student = student
        self.options = dict(student.chat_template_kwargs or {})
        own = load_tokenizer(student.model, student.revision, student.trust_remote_code)
        self.template = template_of(own)
        self.published_template = with_defaults(self.template, self.options)
        self.tokenizer = copy(own)
        self.tokenizer.chat_template = at_date(self.template)
        self._prompt = lru_cache(maxsize=8)(self._rendered_prompt)

    def identity(self) -> dict[str, Any]:
        """What a score depends on besides the weights."""
        asked = self._apply([{"role": "user", "content": "x"}], add_generation_prompt=True)
        return {
            "template": digest(self.template),
            "chat_template_kwargs": self.options,
            "date": TEMPLATE_DATE.isoformat(),
            # Once it counted where the generation prompt has it.
            **({"given": _THOUGHT} if _THOUGHT in asked else {}),
        }

    def render(self, rows: Rows) -> Iterator[TrainedText]:
        """Of each row, in order.

        Raises:
            InputError: the template refuses a row, or has no place for an answer.
        """
        for first in range(0, len(rows), _TEXTS_AT_ONCE):
            some = [Row(*row) for row in rows[first : first + _TEXTS_AT_ONCE]]
            texts = [self.answered(row) for row in some]
            fast = self.tokenizer.is_fast
            encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast)
            for i, row in enumerate(some):
                offsets = encoded["offset_mapping"][i] if fast else None
                yield self._row(row, texts[i], encoded["input_ids"][i], offsets)

    def probe(self, messages: list[Message], tools: str = "") -> str:
        """The messages and an answer, rendered."""
        return self._prompt(json.dumps(messages), tools).probe

    def answered(self, row: Row) -> str:
        """A row, rendered."""
        said: Any = {"role": "assistant", "content": row.answer}
        if row.calls:  # as the trainer gets it: `datasets` rounds numbers when it reads JSON
            said = Json().decode_example(message(row.answer, row.calls))
        return self._apply([*row.messages, said], row.tools)

    def _place(self, row: Row, text: str, prompt: _Prompt) -> tuple[int, int, str]:
        """Where in its text a row's answer is, and what of it is not there."""
        if not row.calls:
            return answer_place(text, row.answer, prompt.probe, prompt.tail)
        stop = len(text) - len(prompt.tail) if text.endswith(prompt.tail) else len(text)
        begin = common_prefix(text, prompt.probe)
        if not row.answer.strip():
            return begin, stop, ""
        alone = self.answered(row._replace(calls=""))
        first, last, dropped = answer_place(alone, row.answer, prompt.probe, prompt.tail)
        if common_prefix(text, alone) >= last:
            return first, stop, dropped
        kept = "".join(row.answer.split()) in "".join(text[begin:stop].split())
        return begin, stop, "" if kept else row.answer.strip()

    def _row(self, row: Row, text: str, ids: list[int], offsets: Any) -> TrainedText:
        prompt = self._prompt(json.dumps(row.messages), row.tools)
        begin, stop, dropped = self._place(row, text, prompt)
        loss_from = common_prefix(prompt.ids, ids)
        spans = self._spans(text, ids, begin, stop) if offsets is None else _spans(offsets)
        inside = [i for i, span in enumerate(spans) if _overlaps(span, begin, stop)]
        # What is given carries no loss, nor does the first token of all, predicted from nothing.
        start = max(inside[0] if inside else 0, loss_from, 1)
        end = max(inside[-1] + 1, start) if inside else start
        trained_from = spans[loss_from][0] if loss_from < len(spans) else len(text)
        return TrainedText(ids, loss_from, start, end, text[trained_from:begin], dropped)

    def _spans(self, text: str, ids: list[int], begin: int, stop: int) -> list[tuple[int, int]]:
        """Of a tokenizer that does not say where its tokens are: by the ids of what comes before
        and of what comes after.
        """
        before, after = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (text[:begin], text[stop:])
        )
        first = common_prefix(before, ids)
        last = len(ids) - common_prefix(after[::-1], ids[first:][::-1])
        inside = [(begin, stop)] * (last - first)
        return [(0, begin)] * first + inside + [(stop, len(text))] * (len(ids) - last)

    def _rendered_prompt(self, messages: str, tools: str = "") -> _Prompt:
        prompt = json.loads(messages)
        text = self._apply(prompt, tools, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        probe = self._apply([*prompt, {"role": "assistant", "content": MARK}], tools)
        if MARK not in probe:
            raise InputError(
                f"The chat template of the student {self.student.model!r} leaves the answer out: "
                "it reads contents in parts, as for images. Take a student for texts, or give its "
                "tokenizer a template for texts."
            )
        return _Prompt(text, ids, probe, probe.rpartition(MARK)[2])

    def _apply(self, messages: list[Message], tools: str = "", **options: Any) -> str:
        if tools:
            options["tools"] = json.loads(tools)
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages, tokenize=False, **self.options, **options
            )
        except TemplateError as error:
            roles = ", ".join(m["role"] for m in messages)
            raise InputError(
                f"The chat template of the student {self.student.model!r} refuses messages of "
                f"{roles}: {error}. Remove or rewrite the prompt "
                f"{messages[-1]['content'][:60]!r} and its like, or take another student."
            ) from error
        return str(text)


def answer_place(text: str, answer: str, probe: str, tail: str) -> tuple[int, int, str]:
    """Where in a rendered text its answer begins and ends, and what of it is not there.

    Args:
        probe: the same messages, rendered with another answer.
        tail: what is rendered behind an answer.
    """
    stop = len(text) - len(tail) if text.endswith(tail) else len(text)
    body = text[:stop]
    for kept in dict.fromkeys([answer, answer.rstrip(), answer.lstrip(), answer.strip()]):
        if kept.strip() and body.endswith(kept):
            return stop - len(kept), stop, ""
    # The template took it apart: the same characters, but for white space, from its end backwards.
    begin, missing = _matched_backwards(body, answer, 0)
    if missing:  # what comes before the answer may end like what is missing
        header = common_prefix(text, probe)
        begin, missing = _matched_backwards(body, answer, header)
    return begin, stop, missing


def _matched_backwards(body: str, answer: str, floor: int) -> tuple[int, str]:
    """The place in `body` from which on it is the end of `answer`, white space aside; and the
    beginning of `answer` that is not there.
    """
    begin = place = len(body)
    kept = left = len(answer)
    while left > 0:
        if answer[left - 1].isspace():
            left -= 1
            continue
        while place > floor and body[place - 1].isspace():
            place -= 1
        if place <= floor or body[place - 1] != answer[left - 1]:
            break
        begin = place = place - 1
        kept = left = left - 1
    while begin > floor and kept > 0 and body[begin - 1] == answer[kept - 1]:
        begin, kept = begin - 1, kept - 1  # its own white space
    return begin, answer[:left].strip()


def common_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items they have in common before they differ."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _spans(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Each token's characters. A tokenizer may leave white space out of a token's offsets (it
    belongs to the token all the same), or give every byte of a character the whole character.
    """
    spans, reached = [], 0
    for _, end in offsets:
        spans.append((reached, max(end, reached)))
        reached = max(end, reached)
    return spans


def _overlaps(span: tuple[int, int], begin: int, stop: int) -> bool:
    first, last = span
    return last > begin and (first < stop or first == last == stop)


def with_defaults(template: str, options: Mapping[str, Any]) -> str:
    """The template, with values for switches that its caller leaves open."""
    lines = [
        f"{{% if {key} is not defined %}}{{% set {key} = {value!r} %}}{{% endif %}}\n"
        for key, value in options.items()
    ]
    return "".join(lines) + template


def check(student: Student, prompts: Iterable[list[Message]], thinking: bool = False) -> None:
    """Can the student be trained on answers to these prompts? One prompt of each sequence of roles
    goes through its template.

    Args:
        thinking: some answers will hold their reasoning.

    Raises:
        InputError: the template refuses such messages, leaves out a message or an answer (a
            template for images), or the reasoning of an answer.
    """
    form = ChatFormat(student)
    who = f"The chat template of the student {student.model!r}"
    for messages in {tuple(m["role"] for m in prompt): prompt for prompt in prompts}.values():
        answered = [*messages, {"role": "assistant", "content": "Two."}]
        [text] = form.render([(messages, "Two.")])
        probe = "".join(form.probe(messages).split())
        for m in (m for m in messages if m["role"] != "assistant"):
            if "".join(m["content"].split()) not in probe:
                raise InputError(
                    f"{who} leaves out the {m['role']} message {m['content'][:60]!r}, so that the "
                    "student would be trained on answers to something else. Take another student, "
                    "or put what it says into the first user message."
                )
        trained: Any = form.tokenizer.apply_chat_template(answered, **form.options)
        if not text.answer or list(trained["input_ids"]) != text.ids:
            raise InputError(
                f"The tokenizer of the student {student.model!r} does not encode a rendered text "
                "as its chat template does, so that the answer's tokens cannot be found. Take a "
                "student with a tokenizer of the `tokenizers` library."
            )
        [thought] = form.render([(messages, _THINKING)])
        if thinking and thought.dropped:
            raise InputError(
                f"{who} leaves the reasoning out of an answer, and a teacher's answers hold "
                "theirs: the student would learn conclusions only. If it shall, set "
                "keep_reasoning: drop; else take a student whose template keeps it, or teachers "
                "that do not think."
            )
