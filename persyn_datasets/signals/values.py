"""The values in a text: formulas and numbers as they are written, and what a formula comes to."""

import re

from persyn_datasets.signals.quantities import quantity

_PLAIN_MATHEMATICS = frozenset("and or pi sqrt sin cos tan cot log ln infinity theta".split())
MATH = re.compile(
    r"\$\$(?P<a>.{1,2000}?)\$\$|\\\[(?P<b>.{1,2000}?)\\\]|\\\((?P<c>.{1,2000}?)\\\)"
    r"|(?<![\\\d$])\$(?P<d>[^\n$]{1,2000}?)(?<!\\)\$(?!\d)",
    re.DOTALL,
)
_PERHAPS = r"(?:\s+(?:maybe|perhaps|possibly|even))?"
JOINED = re.compile(
    rf"[\s$.*(]*(?:,|;|\band\b|\bor\b|,\s*and\b|,\s*or\b){_PERHAPS}[\s$*(]*", re.IGNORECASE
)
_OR = re.compile(rf"[\s$*,(]*\bor\b{_PERHAPS}[\s$*]*", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w.,])(?:(?<![\d\w)\]}%]\s)-\s?)?"
    r"(?:[$€£¥₹]\s?)?-?"
    r"(?:\d+\s+\d+/\d+|\d+\s?/\s?\d+"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d.])|\d+|(?=\.\d))(?:\.\d+)?"
    r"(?:[eE][-+]?\d+)?)"
    r"(?:\s?(?:%|percent\b)|\s?°|\s?(?:mm|cm|km|kg|mg|g|ml|cents?|inches|feet|hours?|minutes?)\b)?"
)
EQUALS = re.compile(r"(?<![<>!:=])=(?!=)|≈|\\approx")


def is_formula(text: str) -> bool:
    """Whether there is mathematics only: no words but `and`, `or` and those that LaTeX marks."""
    plain = re.sub(r"\\[A-Za-z]+(?:\s*\{[^{}]*[A-Za-z]{3}[^{}]*\})?", " ", text)
    words = [word.lower() for word in re.findall(r"[^\W\d_]{2,}", plain)]
    return all(word in _PLAIN_MATHEMATICS for word in words)


def result_of(formula: str) -> str:
    """What a formula comes to: of a derivation what follows its last equals sign."""
    parts = EQUALS.split(formula)
    left = re.sub(r"\\[A-Za-z]+(?:\{[^{}\d]*\})?", " ", parts[0])
    derivation = len(parts) > 2 or (len(parts) == 2 and not re.search("[A-Za-z]", left))
    several = re.search(r",(?!\d{3})", formula)
    return parts[-1].strip() if derivation and not several else formula


def first_value(text: str, at_start: bool = False) -> str:
    """The first formula or number; empty if there is none, or not at the start."""
    text = text.lstrip("*_ \t\n")
    found = [m for m in (MATH.search(text), _NUMBER.search(text)) if m]
    if not found:
        return ""
    match = min(found, key=lambda m: m.start())
    if at_start and not re.fullmatch(
        r"(?:about|approximately|around|exactly|simply|just|only|that|x|y|n|[a-z]\s*="
        r"|[\s:=~≈*_(])*",
        text[: match.start()],
        re.IGNORECASE,
    ):
        return ""
    return _content(match)


def last_value(text: str) -> str:
    """The last formula or number. Several that are joined by `or` are one; formulas also where a
    comma or `and` joins them.
    """
    formulas = list(MATH.finditer(text))
    end = formulas[-1].end() if formulas else 0
    numbers = list(_NUMBER.finditer(text, end))
    if numbers:
        return _joined_by_or(text, numbers)
    if not formulas:
        return ""
    contents = [_content(formulas[-1])]
    for before, after in zip(formulas[-2::-1], formulas[:0:-1], strict=True):
        if not JOINED.fullmatch(text[before.end() : after.start()]):
            break
        contents.insert(0, _content(before))
    return ", ".join(contents)


def _joined_by_or(text: str, numbers: list[re.Match[str]]) -> str:
    """The last number, or those that it stands beside as one of several."""
    first = len(numbers) - 1
    while first and _OR.fullmatch(text[numbers[first - 1].end() : numbers[first].start()]):
        first -= 1
    values = alternatives(text[numbers[first].start() : numbers[-1].end()])
    return ", ".join(values) or numbers[-1].group().strip()


def alternatives(clause: str) -> list[str]:
    """The values that a clause leaves open: `18 or 19`. Empty if there is no such list.

    `0.5 or 50%` is one value, for which the percentage stands; `24 months or 2 years` is no list.
    """
    parts = [part.strip(" ()*_") for part in _OR.split(clause.removeprefix("either "))]
    read = [number for part in parts if (number := quantity(part))]
    if len(parts) < 2 or len(read) < len(parts):
        return []
    if all(read[0].equals(other) for other in read):
        return [part for part, number in zip(parts, read, strict=True) if number.percent][:1]
    units = {unit for part in parts if (unit := re.sub(r"^\W*[\d.,/]+\s*", "", part))}
    return parts if len(units) < 2 else []


def _content(match: re.Match[str]) -> str:
    """A formula without its delimiters, or a number."""
    if match.re is _NUMBER:
        return match.group().strip()
    return result_of(next(group for group in match.groups() if group is not None).strip())
