"""Phrases that state an answer, like `The answer is 18`; and what is a remark about it instead."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from persyn_datasets.signals.values import (
    EQUALS,
    MATH,
    alternatives,
    first_value,
    is_formula,
    last_value,
    result_of,
)

MOST_STATEMENTS = 20
# Behind `Answer:` so many words are an answer with its unit; more are a derivation.
MOST_WORDS_OF_A_LABEL = 5
# So many words without a number are an answer; more are mostly a remark.
MOST_WORDS_OF_AN_ANSWER = 3

_ANSWER = (
    r"(?:(?:final|correct|right|short|long|my|our)\s+)?(?:answers?|result|solution)"
    r"|答案|答え|答|정답|ответ|respuesta|réponse|antwort|risposta|resposta"
    r"|đáp án|الجواب|الإجابة|उत्तर"
)
_PHRASE = re.compile(
    rf"""(?:\#\#\#\#
      | (?:\b|(?<=\W)|^|(?<=[^\x00-\x7f]))(?:{_ANSWER})[*_"'`\]]*
        (?:\s+to\s+(?:the|this|your)\s+(?:question|problem))?
        \s*(?P<verb>[:：=]|\b(?:is|are|was|would\s+be|should\s+be|equals|es|est|ist|è|é|là)\b\s*:?
           |是|为|為|は|：|—)
    )[*_"'`\]\s]*""",
    re.IGNORECASE | re.VERBOSE,
)
# What is said about an answer, not what it is.
_COMMENT = re.compile(
    r"(?:(?:indeed|thus|therefore|also|still|quite|now|already|an?|the|\w+ly)\s+)*"
    r"(?:correct|right|wrong|incorrect|valid|reasonable|sensible|consistent|plausible|verified"
    r"|confirmed|checked|unique|obvious|clear|simple|exact|shown|given|found|obtained|computed"
    r"|calculated|derived|based|rounded|expressed|written|boxed|as\s+follows|above|below|close"
    r"|different|same|integer|in|(?:positive|negative|whole|round)\s+\w+)\b",
    re.IGNORECASE,
)
_COMPARISON = re.compile(r"\bthan\b|\btimes\s+(?:as|the|that|this|what)\b", re.IGNORECASE)
# No value: `not 16`, `between 18 and 20`, `5 or more`.
_RANGE = re.compile(
    r"(?:not|between|less than|more than|at least|at most)\b(?!.*\bbut\b)"
    r"|.*\bor\s+(?:more|less|fewer|higher|lower|greater)\b",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"not\b.*\bbut\s+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[\w)\]}%$*\"'!°])[.!?](?=[\s*\"'`}]|$)|[。！？\n]")
_REASON = re.compile(r"\b(?:because|since|as|given|assuming|if|when)\b|因为", re.IGNORECASE)
_CLAUSE = re.compile(rf",(?!\d{{3}})(?!\s*or\b)|[;(—]|{_REASON.pattern}", re.IGNORECASE)
# `4 (3 onions and 1 potato)`. But `5 (A)` names a choice, and `18 (or 19)` another value.
_REMARK = re.compile(r"\s\((?![A-Za-z]\)|or\b)[^()]*\)")


class Kind(IntEnum):
    """What a statement is worth against an earlier one; of two of a kind the later counts."""

    COMMENT = 0  # it says something about the answer: `The answer is correct`
    LOOSE = 1  # a value somewhere in a sentence: `The result was found in 2 ways`
    WORDS = 2  # a few words
    VALUE = 3  # a number, a formula
    DERIVATION = 4  # a heading, `Answer:`, with sentences under it


@dataclass(frozen=True)
class Statement:
    """What a response states as its answer.

    text: the words of the statement, to the end of its sentence: `18 dollars per day`.
    value: the value in it, as LaTeX or as it is written: `18`. Empty if there is none.
    several: whether it names several answers, like `\\boxed{3} or \\boxed{4}`.
    """

    text: str
    value: str
    kind: Kind = Kind.VALUE
    several: bool = False

    @property
    def is_words(self) -> bool:
        """Whether it has neither a number nor a formula."""
        text = self.value or self.text
        return not re.search(r"\d", text) and not is_formula(text)

    def yields_to(self, earlier: "Statement") -> bool:
        """Whether an earlier statement counts, and not this one.

        Words yield to a value, which they are mostly about, and not to words. What stands under a
        heading yields to the heading only if it states nothing.
        """
        if self.kind is Kind.WORDS and earlier.is_words:
            return False
        if earlier.kind is Kind.DERIVATION:
            return self.kind is Kind.COMMENT
        return earlier.kind > self.kind


def has_phrase(text: str) -> bool:
    return bool(_PHRASE.search(text))


def phrases(text: str) -> Iterator[tuple[int, int, Statement]]:
    """(start, its end, statement) of each phrase that states something, the last one first."""
    for match in list(_PHRASE.finditer(text))[: -MOST_STATEMENTS - 1 : -1]:
        heading = match["verb"] in (":", "：", "=")
        if statement := stated(text[match.end() :], heading):
            yield match.start(), match.end(), statement


def stated(rest: str, heading: bool = False) -> Statement | None:
    """What a phrase states, whose `rest` of the text follows it.

    A value right behind the phrase is it. Otherwise the phrase introduces a derivation, perhaps of
    many sentences, whose end counts: `The answer is 9 * 2 = 18`, `Answer: Her ducks lay 16 eggs. …`
    """
    sentence = _sentence(rest)
    if denied := _NOT_BUT.match(sentence):
        rest = sentence = sentence[denied.end() :]
    if not sentence:
        return None
    if values := alternatives(_CLAUSE.split(_REMARK.sub(" ", sentence))[0]):
        return Statement(sentence, ", ".join(values), several=len(values) > 1)
    if is_formula(sentence):
        return Statement(sentence, result_of(sentence))
    rest, sentence = _REMARK.sub(" ", rest).strip(), _REMARK.sub(" ", sentence)
    kind = _kind(sentence, heading)
    if _RANGE.match(_CLAUSE.split(sentence)[0]):
        return Statement(sentence, "", kind)
    first = first_value(sentence, at_start=True)
    derives = bool(EQUALS.search(sentence))
    if first and not derives and not (heading and _goes_on(sentence)):
        return Statement(sentence, first, kind)
    inside = last_value(_REASON.split(sentence)[0])
    if inside and not derives and not (heading and _goes_on(sentence)):
        return Statement(sentence, inside, kind)
    return Statement(sentence, _end_of_derivation(rest), kind)


def _kind(sentence: str, heading: bool) -> Kind:
    clause = _CLAUSE.split(sentence)[0].strip()
    if _COMMENT.match(clause):
        return Kind.COMMENT
    if _COMPARISON.search(clause):
        return Kind.LOOSE
    if heading and _goes_on(sentence):
        return Kind.DERIVATION
    value = first_value(clause, at_start=True) or EQUALS.search(sentence)
    if value or clause.startswith("that "):
        return Kind.VALUE
    short = len(clause.split()) <= MOST_WORDS_OF_AN_ANSWER
    return Kind.WORDS if short and not last_value(_REASON.split(sentence)[0]) else Kind.LOOSE


def _end_of_derivation(text: str) -> str:
    """What follows the last equals sign; the last value, if there is none."""
    *before, end = EQUALS.split(text)
    return (before and first_value(end)) or last_value(text)


def _sentence(text: str) -> str:
    text = text.replace('\\"', '"').lstrip()
    formula = MATH.match(text)
    end = _SENTENCE_END.search(text, formula.end() if formula else 0)
    text = (text[: end.start()] if end else text).strip("*_`\"' \t\n")
    return text.rstrip("*_`\"'. \t\n\\")


def _goes_on(sentence: str) -> bool:
    """Whether there is more than a value and its unit: `16 eggs are laid by them each day`."""
    return len(_REASON.split(sentence)[0].split()) > MOST_WORDS_OF_A_LABEL
