"""What a model thinks before it answers: taken apart from its answer, and put before it again.

Some servers return it in a field of its own. Else it is the beginning of the text, between tags.
Many chat templates open the tag themselves, so that the text begins within the thought.
"""

import re
from collections.abc import Mapping
from typing import Any

from persyn_datasets.config.reasoning import Reads

TAGS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
# gpt-oss, where a server returns its channels as they are.
CHANNELS = (
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)


def split(text: str) -> tuple[str, str]:
    """The thought with which a text begins and the answer behind it, both without white space at
    their ends. The thought is empty if there is none.

    A thought that is opened and not closed has no answer: it was cut off. A closing tag without an
    opening one ends a thought if it ends its line; within a line it may be what is talked about.
    """
    text = text.strip()
    for opening, closing in (*TAGS, CHANNELS):
        if text.startswith(opening):
            # A model may repeat the tag that its template has written.
            inside = text.removeprefix(opening).lstrip().removeprefix(opening)
            thought, _, answer = inside.partition(closing)
            return thought.strip(), answer.strip()
    for opening, closing in TAGS:
        end = re.search(rf"{re.escape(closing)}[ \t]*(?:\n|$)", text)
        if end and opening not in text[: end.start()]:
            return text[: end.start()].strip(), text[end.end() :].strip()
    return "", text


def is_open(text: str) -> bool:
    """Does it begin with a thought that does not end?"""
    tags = (*TAGS, CHANNELS)
    return any(text.startswith(opening) and closing not in text for opening, closing in tags)


def opened_by(prompt: str) -> str:
    """The tag that a rendered prompt ends with; empty: it opens no thought."""
    return next((opening for opening, _ in TAGS if prompt.rstrip().endswith(opening)), "")


def inline(reasoning: str, answer: str) -> str:
    """Both as one text, in the form that chat templates (Qwen3's, DeepSeek's) write and read.

    Without an answer the thought stays open.
    """
    if not reasoning:
        return answer
    return f"<think>\n{reasoning}" + (f"\n</think>\n\n{answer}" if answer else "")


def read(response: Mapping[str, Any], what: Reads) -> str:
    """What of a response is read, as one text; empty if there is nothing of that kind.

    A thought that was cut off stands for the answer that never came: a teacher that does not finish
    shall not look better than one that does, because only its short thoughts count.
    """
    reasoning, answer = response.get("reasoning") or "", response["text"]
    if what == "reasoning":
        return inline(reasoning, "") if reasoning else ""
    called = bool(response.get("tool_calls"))
    if what == "answer" and (answer or called):
        return str(answer)
    if called and reasoning and not answer:
        return f"{inline(reasoning, '')}\n</think>\n\n"  # the thought has ended, with calls
    return inline(reasoning, answer)


def written_length(response: Mapping[str, Any]) -> int:
    """Characters of all that it wrote: thought, answer and calls."""
    parts = (response.get("reasoning"), response["text"], response.get("tool_calls"))
    return sum(len(part or "") for part in parts)
