"""How many tokens a prompt has: counted where its tokenizer is here, else at most.

An engine that renders prompts itself sends the very tokens that are counted here. What a server
bills can only be bounded, since its template may be another than the one that is published:

A token of a byte-level or byte-fallback tokenizer stands for at least one byte of what it reads,
and some tokenizers read a normal form of the text that is longer than the text. Beside the messages
a server bills what its chat template writes: a frame around each message, and around all of them up
to a system prompt of its own (the longest that we know, Command R's, has some 900 tokens). The rest
of the body may be written into the prompt, too, as OpenAI does with a schema.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from jinja2 import TemplateError

from persyn_datasets.config.teacher import Message, Teacher
from persyn_datasets.engines import OF_BODY, facts_of
from persyn_datasets.store import models

TEMPLATE_TOKENS = 2048
MESSAGE_TOKENS = 64
INDENT = 4  # of JSON, the widest that is usual
FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def tokens_at_most(teacher: Teacher, messages: Sequence[Message], tools: str = "") -> int:
    """Tokens of these messages and `tools`, or what a server can bill for them at most."""
    counted = tokens_counted(teacher, messages, tools) if facts_of(teacher).renders else None
    return by_bytes(messages, tools) + beside(teacher) if counted is None else counted


def tokens_counted(teacher: Teacher, messages: Sequence[Message], tools: str = "") -> int | None:
    """Tokens of these messages and `tools` by the teacher's own tokenizer and chat template; None
    if they are not here (an endpoint's are, where its model's name is a folder), or if the template
    refuses.
    """
    facts = facts_of(teacher)
    if not facts.renders and not (facts.journalled and Path(teacher.model).is_dir()):
        return None
    weights = teacher.model, teacher.revision, teacher.trust_remote_code
    try:
        tokenizer, switches = models.load_tokenizer(*weights), template_switches(teacher, tools)
        return len(models.prompt_ids(tokenizer, list(messages), switches))
    except (OSError, ValueError, TemplateError):
        return None


def template_switches(teacher: Teacher, tools: str) -> Mapping[str, Any]:
    """What a chat template gets beside the messages."""
    offered = {"tools": json.loads(tools)} if tools else {}
    return teacher.chat_template_kwargs | offered


def by_bytes(messages: Sequence[Message], tools: str = "") -> int:
    """Tokens that any tokenizer and template can make of these messages and `tools`, at most."""
    written = sum(MESSAGE_TOKENS + bytes_at_most(message["content"]) for message in messages)
    # Some templates write functions as source code: at most in twice the bytes, as far as we know.
    return TEMPLATE_TOKENS + written + (2 * _as_json(json.loads(tools)) if tools else 0)


def beside(teacher: Teacher) -> int:
    """Tokens of what a request has beside the messages, at most: as JSON, however it is written."""
    return sum(_as_json(value) for key in OF_BODY if (value := getattr(teacher, key)))


def _as_json(value: Any) -> int:
    """Bytes of a value's JSON in its longest form."""
    texts = (json.dumps(value, ensure_ascii=ascii, indent=INDENT) for ascii in (False, True))
    return max(map(bytes_at_most, texts))


def bytes_at_most(text: str) -> int:
    """Bytes of the text in its longest normal form."""
    if text.isascii():
        return len(text)
    return max(len(form.encode(errors="replace")) for form in (text, *_forms(text)))


def _forms(text: str) -> list[str]:
    return [normalize(form, text) for form in FORMS]  # type: ignore[arg-type]
