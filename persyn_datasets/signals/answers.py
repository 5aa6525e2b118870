"""The final answer of a response: what it states last.

A statement is a box (`\\boxed{18}`), a phrase (`The answer is 18`, `#### 18`, `答案是 18`) or,
where a response has neither, its last value. Later statements beat earlier ones: `Answer:` as a
heading over a derivation does not beat the derivation's last line, and
`\\boxed{3}. Wait, … \\boxed{4}` says 4. A remark is no statement:
`\\boxed{18}. This result is 3 times larger than expected.` says 18.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from persyn_datasets.data.reasoning import TAGS
from persyn_datasets.signals.phrases import (
    MOST_STATEMENTS,
    Kind,
    Statement,
    has_phrase,
    phrases,
    stated,
)
from persyn_datasets.signals.quantities import quantity, unify
from persyn_datasets.signals.values import JOINED, last_value
from persyn_datasets.signals.withdrawals import said_instead

# How models open and close what they think before they answer.
_THINKING = (*TAGS, ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"))
# Of a text that repeats itself without end only so much is read, from its end.
LONGEST_ANSWER = 50_000
LONGEST_SENTENCE = 1000  # in a box
_FINAL_CHANNEL = "<|channel|>final<|message|>"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
# Plain words around a number: `6 rows of red tulips + 3 rows of blue ones = 9 rows`.
_SENTENCE = re.compile(r"(?=[^\\]*\d)(?:[^\\]*?\b[A-Za-z]{3,}\b){2}[^\\]*")

# (where it starts, where what it states begins or ends, what it states)
_Place = tuple[int, int, Statement]


def after_thinking(response: str) -> str | None:
    """What follows the thoughts; None if they never end."""
    if _FINAL_CHANNEL in response:
        return response.rpartition(_FINAL_CHANNEL)[2]
    for opening, closing in _THINKING:
        response = response.rpartition(closing)[2]
        if opening in response:
            return None
    return response


def final_statement(response: str) -> Statement | None:
    """The last statement of a response; None: it states nothing."""
    text = after_thinking(response)
    if text is None:
        return None
    text = unify(text[-LONGEST_ANSWER:])
    found: _Place | None = None
    for place in _places(text):
        if found is None or found[2].yields_to(place[2]):
            found = place
        if found[2].kind >= Kind.VALUE:
            break
    if found is None or found[2].kind is Kind.COMMENT:
        value = last_value(text)
        return Statement(value, value, Kind.LOOSE) if value else found and found[2]
    instead = said_instead(text[found[1] :])
    return Statement(instead, instead) if instead else found[2]


def _places(text: str) -> Iterator[_Place]:
    """Where something is stated, the last first, back to the last box."""
    ends = [place for place in (_last_box(text), _last_line(text)) if place]
    end = max(ends, default=None, key=lambda place: place[0])
    for place in phrases(text):
        if end and place[0] < end[0]:
            break
        yield place
    if end:
        yield end


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, content) of each box that holds something, the last one first; the inner ones of
    nested boxes.
    """
    for match in list(_BOX.finditer(text))[: -MOST_STATEMENTS - 1 : -1]:
        start = match.end()
        if text[start : start + 1] == "{":
            end = _closing(text, start)
            content = text[start + 1 : end - 1]
        else:
            end = next(re.finditer(r"[\s$]|$", text[start:])).start() + start
            content = text[start:end]
        if content.strip(" $.") and not _BOX.search(content):
            yield match.start(), end, content.strip()


def _closing(text: str, start: int) -> int:
    """Behind the brace that closes the one at `start`; of the line, if none does."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0) if text[i - 1] != "\\" else 0
        if not depth:
            return i + 1
    line = text.find("\n", start)
    return (len(text) if line < 0 else line) + 1


def _last_box(text: str) -> _Place | None:
    """Boxes that are joined by a comma, `and` or `or` are one statement. A box of words with a
    number in them is read like the words behind `The answer is`.
    """
    contents: list[str] = []
    first = last = behind = 0
    for start, end, content in _boxes(text):
        if not contents:
            last, behind = start, end
        elif not JOINED.fullmatch(text[end:first].replace("}", "")):
            break
        first = start
        if content not in contents:
            contents.insert(0, content)
    if not contents:
        return None
    joined = ", ".join(contents)
    several = len(contents) > 1
    if (
        not several
        and len(joined) < LONGEST_SENTENCE
        and _SENTENCE.fullmatch(joined)
        and not quantity(joined)
    ):
        sentence = stated(joined)
        if sentence and sentence.value:
            return last, behind, replace(sentence, kind=Kind.VALUE)
    return last, behind, Statement(joined, joined, several=several)


def _last_line(text: str) -> _Place | None:
    """The last of several lines, where it is nothing but a number: `**18**`, `$18 per day`."""
    before, _, line = text.strip().rpartition("\n")
    if not before or not quantity(line) or _BOX.search(line):
        return None
    return len(before), len(text), Statement(line, last_value(line) or line)


def stated_in(solution: str) -> str | None:
    """What a worked solution states by a box or a phrase; None: it is no solution."""
    text = unify(solution)
    if not _last_box(text) and not has_phrase(text):
        return None
    statement = final_statement(solution)
    return (statement.value or statement.text) if statement else None
