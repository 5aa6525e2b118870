"""The final answer of a response: what it states last.

A statement is a box (`\\boxed{18}`), a phrase (`The answer is 18`, `#### 18`, `答案是 18`) or,
where a response has neither, its last value. Later statements beat earlier ones: `Answer:` as a
heading over a derivation does not beat the derivation's last line, and
`\\boxed{3}. Wait, … \\boxed{4}` says 4.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

from persyn_datasets.data.reasoning import TAGS
from persyn_datasets.signals.quantities import quantity, unify

# How models open and close what they think before they answer.
_THINKING = (*TAGS, ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"))
# Of a text that repeats itself without end only so much is read, from its end.
LONGEST_ANSWER = 50_000
MOST_STATEMENTS = 20
# Behind `Answer:` so many words are an answer with its unit; more are a derivation.
MOST_WORDS_OF_A_LABEL = 5
_PLAIN_MATHEMATICS = frozenset("and or pi sqrt sin cos tan cot log ln infinity theta".split())
_FINAL_CHANNEL = "<|channel|>final<|message|>"

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
_WITHDRAWN = re.compile(
    r"\b(?:wait|actually|hold on|hmm|correction|oops|my mistake|i made a mistake"
    r"|that(?:'s| is) wrong"
    r"|let me (?:re|correct)\w*)\b",
    re.IGNORECASE,
)
# What is said about an answer, not what it is.
_COMMENT = re.compile(
    r"(?:indeed |thus |therefore |also )?(?:correct|valid|reasonable|consistent|plausible|verified"
    r"|confirmed|unique|as follows|shown|given|in the box|above|below)(?: (?:above|below|here))?",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_MATH = re.compile(
    r"\$\$(?P<a>.{1,2000}?)\$\$|\\\[(?P<b>.{1,2000}?)\\\]|\\\((?P<c>.{1,2000}?)\\\)"
    r"|(?<![\\\d$])\$(?P<d>[^\n$]{1,2000}?)(?<!\\)\$(?!\d)",
    re.DOTALL,
)
_JOINED = re.compile(r"[\s$.*]*(?:,|;|\band\b|\bor\b|,\s*and\b|,\s*or\b)[\s$*]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[\w)\]}%$*\"'!°])[.!?](?=[\s*\"'`}]|$)|[。！？\n]")
_REASON = re.compile(r"\b(?:because|since|as|given|assuming|if|when)\b|因为", re.IGNORECASE)
_REMARK = re.compile(r"\s\([^()]*\)")
_NUMBER = re.compile(
    r"(?<![\w.,])(?:(?<![\d\w)\]}%]\s)-\s?)?"
    r"(?:[$€£¥₹]\s?)?-?"
    r"(?:\d+\s+\d+/\d+|\d+\s?/\s?\d+"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d.])|\d+|(?=\.\d))(?:\.\d+)?"
    r"(?:[eE][-+]?\d+)?)"
    r"(?:\s?(?:%|percent\b)|\s?°|\s?(?:mm|cm|km|kg|mg|g|ml|cents?|inches|feet|hours?|minutes?)\b)?"
)
_EQUALS = re.compile(r"(?<![<>!:=])=(?!=)|≈|\\approx")


@dataclass(frozen=True)
class Statement:
    """What a response states as its answer.

    text: the words of the statement, to the end of its sentence: `18 dollars per day`.
    value: the value in it, as LaTeX or as it is written: `18`. Empty if there is none.
    """

    text: str
    value: str


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
    box = max(filter(None, (_last_box(text), _last_line(text))), default=None, key=itemgetter(0))
    comment = None
    for start, phrase in _phrases(text):
        if box and start < box[0]:
            break
        if not _COMMENT.fullmatch(phrase.text):
            return phrase
        comment = comment or phrase
    if box:
        return box[1]
    value = last_value(text)
    return Statement(value, value) if value else comment


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


def _last_box(text: str) -> tuple[int, Statement] | None:
    """Boxes that are joined by a comma, `and` or `or` are one statement."""
    contents: list[str] = []
    first = last = 0
    for start, end, content in _boxes(text):
        if not contents:
            last = start
        elif not _JOINED.fullmatch(text[end:first].replace("}", "")):
            break
        first = start
        if content not in contents:
            contents.insert(0, content)
    joined = ", ".join(contents)
    return (last, Statement(joined, joined)) if contents else None


def _last_line(text: str) -> tuple[int, Statement] | None:
    """The last of several lines, where it is nothing but a number: `**18**`, `$18 per day`."""
    before, _, line = text.strip().rpartition("\n")
    if not before or not quantity(line) or _BOX.search(line):
        return None
    return len(before), Statement(line, last_value(line) or line)


def _phrases(text: str) -> Iterator[tuple[int, Statement]]:
    """The phrases that state something, the last one first; of one that is withdrawn after, what
    then follows.
    """
    for match in list(_PHRASE.finditer(text))[: -MOST_STATEMENTS - 1 : -1]:
        rest = text[match.end() :]
        statement = _stated(rest, heading=match["verb"] in (":", "：", "="))
        if not statement:
            continue
        withdrawn = _WITHDRAWN.search(rest)
        later = last_value(rest[withdrawn.end() :]) if withdrawn else ""
        yield match.start(), Statement(later, later) if later else statement


def _stated(rest: str, heading: bool) -> Statement | None:
    """What a phrase states, whose `rest` of the text follows it.

    A value right behind the phrase is it. Otherwise the phrase introduces a derivation, perhaps of
    many sentences, whose end counts: `The answer is 9 * 2 = 18`, `Answer: Her ducks lay 16 eggs. …`
    """
    sentence = _sentence(rest)
    if not sentence:
        return None
    if is_formula(sentence):
        return Statement(sentence, _result(sentence))
    rest, sentence = _REMARK.sub(" ", rest).strip(), _REMARK.sub(" ", sentence)
    first = first_value(sentence, at_start=True)
    derives = bool(_EQUALS.search(sentence))
    if first and not derives and not (heading and _goes_on(sentence)):
        return Statement(sentence, first)
    inside = last_value(_REASON.split(sentence)[0])
    if inside and not derives and not (heading and _goes_on(sentence)):
        return Statement(sentence, inside)
    return Statement(sentence, _end_of_derivation(rest))


def _end_of_derivation(text: str) -> str:
    """What follows the last equals sign; the last value, if there is none."""
    *before, end = _EQUALS.split(text)
    return (before and first_value(end)) or last_value(text)


def _sentence(text: str) -> str:
    text = text.replace('\\"', '"').lstrip()
    formula = _MATH.match(text)
    end = _SENTENCE_END.search(text, formula.end() if formula else 0)
    text = (text[: end.start()] if end else text).strip("*_`\"' \t\n")
    return text.rstrip("*_`\"'. \t\n\\")


def is_formula(text: str) -> bool:
    """Whether there is mathematics only: no words but `and`, `or` and those that LaTeX marks."""
    plain = re.sub(r"\\[A-Za-z]+(?:\s*\{[^{}]*[A-Za-z]{3}[^{}]*\})?", " ", text)
    words = [word.lower() for word in re.findall(r"[^\W\d_]{2,}", plain)]
    return all(word in _PLAIN_MATHEMATICS for word in words)


def _result(formula: str) -> str:
    """What a formula comes to: of a derivation what follows its last equals sign."""
    parts = _EQUALS.split(formula)
    left = re.sub(r"\\[A-Za-z]+(?:\{[^{}\d]*\})?", " ", parts[0])
    derivation = len(parts) > 2 or (len(parts) == 2 and not re.search("[A-Za-z]", left))
    several = re.search(r",(?!\d{3})", formula)
    return parts[-1].strip() if derivation and not several else formula


def _goes_on(sentence: str) -> bool:
    """Whether there is more than a value and its unit: `16 eggs are laid by them each day`."""
    return len(_REASON.split(sentence)[0].split()) > MOST_WORDS_OF_A_LABEL


def first_value(text: str, at_start: bool = False) -> str:
    """The first formula or number; empty if there is none, or not at the start."""
    text = text.lstrip("*_ \t\n")
    found = [m for m in (_MATH.search(text), _NUMBER.search(text)) if m]
    if not found:
        return ""
    match = min(found, key=lambda m: m.start())
    if at_start and not re.fullmatch(
        r"(?:about|approximately|around|exactly|simply|just|only|that|x|y|n|[a-z]\s*=|[\s:=~≈*_(])*",
        text[: match.start()],
        re.IGNORECASE,
    ):
        return ""
    return _content(match)


def last_value(text: str) -> str:
    """The last formula or number; formulas that are joined by a comma, `and` or `or` are one."""
    formulas = list(_MATH.finditer(text))
    end = formulas[-1].end() if formulas else 0
    numbers = list(_NUMBER.finditer(text, end))
    if numbers:
        return numbers[-1].group().strip()
    if not formulas:
        return ""
    contents = [_content(formulas[-1])]
    for before, after in zip(formulas[-2::-1], formulas[:0:-1], strict=True):
        if not _JOINED.fullmatch(text[before.end() : after.start()]):
            break
        contents.insert(0, _content(before))
    return ", ".join(contents)


def _content(match: re.Match[str]) -> str:
    """A formula without its delimiters, or a number."""
    if match.re is _NUMBER:
        return match.group().strip()
    return _result(next(group for group in match.groups() if group is not None).strip())


def stated_in(solution: str) -> str | None:
    """What a worked solution states by a box or a phrase; None: it is no solution."""
    text = unify(solution)
    if not _last_box(text) and not _PHRASE.search(text):
        return None
    statement = final_statement(solution)
    return (statement.value or statement.text) if statement else None
