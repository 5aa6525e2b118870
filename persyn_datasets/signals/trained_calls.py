"""Can a student be trained on calls of functions? Its chat template tells, before anything is paid
for.
"""

import json
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.student import Student
from persyn_datasets.config.teacher import Message, Teacher
from persyn_datasets.data.tools import offered, to_calls, to_tools
from persyn_datasets.signals.trained_text import MARK, ChatFormat, Row, common_prefix

# A function that no prompt names.
NAME, KEY, VALUES = "persyn_probe", "persyn_key", ("persyn_one", "persyn_two")
PARAMETERS = {"type": "object", "properties": {KEY: {"type": "string", "description": "Any."}}}
FUNCTION = {"name": NAME, "description": "Probes.", "parameters": PARAMETERS}
TOOLS = to_tools([{"type": "function", "function": FUNCTION}], "the probe")


def check(student: Student, prompts: Dataset, teachers: Sequence[Teacher]) -> None:
    """Every list of functions that prompts offer goes through the student's template; and with one
    prompt of each sequence of roles a call, and two if teachers may make them.

    Raises:
        InputError: the template refuses them or leaves something out.
    """
    form = ChatFormat(student)
    rows = zip(prompts["messages"], offered(prompts), strict=True)
    offering = [(messages, tools) for messages, tools in rows if tools]
    single = all(t.extra_body.get("parallel_tool_calls") is False for t in teachers)
    for messages, tools in {tools: (messages, tools) for messages, tools in offering}.values():
        form.probe(messages, tools)
    for messages in {tuple(m["role"] for m in found): found for found, _ in offering}.values():
        _check_offer(form, messages)
        _check_call(form, messages)
        if not single:
            _check_two(form, messages)


def _check_offer(form: ChatFormat, messages: list[Message]) -> None:
    probe = "".join(form.probe(messages, TOOLS).split())
    if NAME not in probe:
        raise InputError(
            f"{_who(form)} leaves out `tools`, so that the student would be trained on calls of "
            "functions that it never saw. Take a student whose template has them, or remove the "
            "column."
        )
    for m in (m for m in messages if m["role"] != "assistant"):
        if "".join(m["content"].split()) not in probe:
            raise InputError(
                f"{_who(form)} leaves out the {m['role']} message {m['content'][:60]!r} where a "
                "prompt offers functions. Take another student."
            )


def _check_call(form: ChatFormat, messages: list[Message]) -> None:
    row = Row(messages, "", TOOLS, calls(VALUES[0]))
    probe, text = form.probe(messages, TOOLS), form.answered(row)
    called = text[common_prefix(text, probe) :]
    if any(part not in called for part in (NAME, KEY, VALUES[0])):
        raise InputError(
            f"{_who(form)} leaves out the `tool_calls` of an answer. Take a student whose template "
            "has them, or remove the column `tools`."
        )
    if not text.endswith(probe.rpartition(MARK)[2]):
        raise InputError(
            f"{_who(form)} ends a call otherwise than a text, and where the answer ends is not "
            "known. Take another student, or remove the column `tools`."
        )
    said: Any = {"role": "assistant", "content": "", "tool_calls": json.loads(row.calls)}
    trained: Any = form.tokenizer.apply_chat_template(
        [*messages, said], tools=json.loads(TOOLS), **form.options
    )
    [ours] = form.render([row])
    if not ours.answer or list(trained["input_ids"]) != ours.ids:
        raise InputError(
            f"The tokenizer of the student {form.student.model!r} does not encode calls as its "
            "chat template does. Take a student with a tokenizer of the `tokenizers` library."
        )


def _check_two(form: ChatFormat, messages: list[Message]) -> None:
    try:
        text = form.answered(Row(messages, "", TOOLS, calls(*VALUES)))
        why = "leaves one out"
    except InputError as error:
        text, why = "", f"{error}"
    if any(value not in text for value in VALUES):
        raise InputError(
            f"{_who(form)} takes one call in an answer, and teachers may make several ({why}). Ask "
            "each teacher with extra_body: {parallel_tool_calls: false}, or take another student."
        )


def calls(*values: str) -> str:
    """A call of the probe with each of these values, as JSON text."""
    return to_calls([{"function": {"name": NAME, "arguments": {KEY: value}}} for value in values])


def _who(form: ChatFormat) -> str:
    return f"The chat template of the student {form.student.model!r}"
