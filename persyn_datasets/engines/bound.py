"""How many tokens a prompt can have at most, without its tokenizer.

A token of a byte-level or byte-fallback tokenizer stands for at least one byte of what it reads,
and some tokenizers read a normal form of the text that is longer than the text. Beside the messages
a server bills what its chat template writes: a frame around each message, and around all of them up
to a system prompt of its own (the longest that we know, Command R's, has some 900 tokens).
"""

from collections.abc import Sequence
from unicodedata import normalize

from persyn_datasets.config.teacher import Message

TEMPLATE_TOKENS = 2048
MESSAGE_TOKENS = 64
FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def bytes_at_most(text: str) -> int:
    """Bytes of the text in its longest normal form."""
    if text.isascii():
        return len(text)
    return max(len(form.encode(errors="replace")) for form in (text, *_forms(text)))


def _forms(text: str) -> list[str]:
    return [normalize(form, text) for form in FORMS]  # type: ignore[arg-type]


def tokens_at_most(messages: Sequence[Message]) -> int:
    """Tokens that a server can bill for these messages, at most."""
    return TEMPLATE_TOKENS + tokens_of_messages(messages)


def tokens_of_messages(messages: Sequence[Message]) -> int:
    """Those of the messages and their frames, without the rest of the template."""
    return sum(MESSAGE_TOKENS + bytes_at_most(message["content"]) for message in messages)
