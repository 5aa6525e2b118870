"""Quality by a verified answer: 1 if the final answer of a response is the reference, else 0
(paper §3, r_q for mathematics).

What a response states is found by `answers`; numbers are compared by `quantities`, words as text,
formulas by Math-Verify. `docs/verifiers.md` has a table of what counts as the same.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from datasets import Dataset

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Message
from persyn_datasets.signals import Facts, expressions
from persyn_datasets.signals.answers import after_thinking, final_statement, stated_in
from persyn_datasets.signals.phrases import Kind, Statement
from persyn_datasets.signals.quantities import Quantity, bare, in_base, quantity, unify

# A cut-off answer has no end, so it states no final answer.
FACTS = Facts(name="math-verify", columns=("answer",), cut=0.0)
RULES = 3  # raised whenever a verdict may change: verdicts of other rules are made again
PARSERS = ("math-verify", "latex2sympy2-extended", "sympy")
MOST_WORDS = 6

_MATHEMATICS = frozenset("pi infinity infty inf sqrt theta sin cos tan cot sec csc log ln".split())
_WORD = r"[^\W\d_]+(?:[-'’][^\W\d_]+)*"
_WORDS = re.compile(rf"\(?{_WORD}(?:[\s,/]+{_WORD})*\)?\.?")
_CLOCK = re.compile(
    r"\d{1,4}\s*(?::\s*\d{1,4})+(?:\s*[ap]\.?\s?m)?|\d{4}-\d{2}-\d{2}", re.IGNORECASE
)
_CHOICE = re.compile(r"(?:(?:option|choice|letter|answer)\s+)?\(?([A-Za-z])(?:\)|[.:]\s|[.:]?$)")
# Another choice beside the first: `(A) or (B)`, `(A) five apples or (B) six`.
_OTHER_CHOICE = re.compile(
    r"(?:,|/|&|\b(?:or|and)\b)\s*(?:option\s+)?(?:\([A-Za-z]\)|[A-Z]\b(?!\w))"
)
_LETTER = re.compile(r"[*_\s(]*[A-Z][)*_\s.]*")
_CLAUSE = re.compile(r"[,;:(—]|\bbecause\b|\bsince\b|\bas\b")
_OTHER_WORDS = re.compile(r"\s*(?:or|and/or)\b", re.IGNORECASE)
# The name of a quantity, before an equals sign: x, x_1, f(2), P(A), \\angle ABC, Area.
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:\s*\\[A-Za-z]+|\s+[A-Za-z]+)*(?:_\{?\w+\}?)?'*(?:\s*\([^()=]*\))?"
)
# One quantity, not a product or a function: x, x_1, f(2), Area.
_SYMBOL = re.compile(r"(?:[A-Za-z]|[A-Za-z][a-z]{2,})(?:_\{?\w+\}?)?'*(?:\([^()=]*\))?")
_SPLIT = re.compile(r"(?<![<>!:=\\])=(?!=)")


@dataclass(frozen=True)
class Reference:
    """A reference answer as it is compared: one of a number, words, a numeral or a formula."""

    formula: str
    number: Quantity | None = None
    words: str | None = None
    numeral: tuple[str, int] | None = None


@lru_cache(maxsize=4096)
def read(answer: str) -> Reference:
    """A reference answer; of a whole solution (`… #### 18`, `… \\boxed{18}`) what it states."""
    answer = stated_in(answer) or answer
    numeral = in_base(answer)
    if numeral and numeral[1] != 10:
        return Reference(answer, numeral=numeral)
    if number := quantity(answer, attached=False):
        return Reference(_formula(answer), number=number)
    return Reference(_formula(answer), words=words_of(answer))


def words_of(text: str) -> str | None:
    """The words that the text is, for comparing them; None if it is no words.

    Letters multiply in mathematics, so `ABC` would be `BCA`; as an answer it is a word. Times,
    dates and ratios (`3:30`) are words too.
    """
    text = " ".join(bare(text).split())
    if _CLOCK.fullmatch(text):
        return re.sub(r"[\s.]", "", text).lower()
    if not _WORDS.fullmatch(text) or "\\" in text:
        return None
    words = [word.casefold() for word in re.findall(_WORD, text)]
    if any(word in _MATHEMATICS for word in words):
        return None
    one_letter = len(words) == 1 and len(words[0]) == 1
    if one_letter and words[0].isascii() and text.islower() and "(" not in text:
        return None  # a variable
    variables = [word for word in re.findall(_WORD, text) if len(word) == 1 and word.islower()]
    if len(words) > 1 and any(word.isascii() and word != "a" for word in variables):
        return None
    return " ".join(words)


def right(answer: str, response: str) -> bool:
    """Whether a response states the reference answer in the end."""
    reference = read(answer)
    text = after_thinking(response)
    if text is None:
        return False
    statement = final_statement(text)
    if reference.words is not None:
        if _says(reference.words, text, statement):
            return True
        if len(reference.words) != 1 and reference.words.isalpha() and statement:
            return _same_letters(reference, statement)
        return False
    return statement is not None and _same(reference, statement)


def _says(words: str, text: str, statement: Statement | None) -> bool:
    """Whether a response says these words: in its statement, or in its last line.

    A last line that is one letter, a choice, counts alone. Other last lines count only where
    nothing is stated, for they may say anything.
    """
    last_line = text.strip().rpartition("\n")[2]
    if _LETTER.fullmatch(last_line):
        return _is(words, last_line)
    if (statement is None or statement.kind <= Kind.LOOSE) and _is(words, last_line):
        return True
    if statement is None:
        return False
    if statement.several:
        return words == words_of(statement.text)
    return any(_is(words, part) for part in (statement.text, statement.value) if part)


def _is(words: str, text: str) -> bool:
    """Whether a text is these words, or begins with them as a clause of its own."""
    text = bare(unify(text))
    if len(words) == 1 and (choice := _CHOICE.match(text)):
        return choice[1].casefold() == words and not _OTHER_CHOICE.search(text, choice.end(1))
    end = _CLAUSE.search(text)
    clause, rest = (text[: end.start()], text[end.end() :]) if end else (text, "")
    if _OTHER_WORDS.match(rest) or (len(words) == 1 and _LETTER.fullmatch(rest)):
        return words == words_of(text)
    return words in (words_of(text), words_of(clause) if clause.strip() else None)


def _same_letters(reference: Reference, statement: Statement) -> bool:
    """`ab` as a product, where the statement writes it as one: `a \\cdot b`."""
    formula = _formula(statement.value)
    return bool(re.search(r"\\cdot|\\times|\*", formula)) and expressions.same(
        reference.formula, formula
    )


def _same(reference: Reference, statement: Statement) -> bool:
    said = statement.value
    if quantity(statement.text) or (reference.numeral and in_base(statement.text)):
        said = statement.text  # with its unit, which the value may lack
    if reference.numeral:
        return in_base(said) == reference.numeral
    return bool(said) and _equal(reference, said)


def _equal(reference: Reference, said: str) -> bool:
    if (numeral := in_base(said)) and numeral[1] != 10:
        return False
    if reference.number and (number := quantity(said)):
        return reference.number.equals(number)
    if reference.number:
        value = _value_of_equation(said)
        if value is None:
            return False
        if value != said:
            return _equal(reference, value)
    if _is_prose(said):
        return False
    return expressions.same(reference.formula, _formula(said))


def _value_of_equation(text: str) -> str | None:
    """What an equation says of a quantity, `5` of `x = 5`; the text itself if it is no equation.

    None: it is an equation to be solved, like `3x + 5 = 0`, which says no value.
    """
    *left, value = _SPLIT.split(bare(text))
    if not left or "," in value:
        return text
    name = left[0].strip()
    if (number := quantity(value)) is not None and not number.value:
        # What equals zero is mostly an equation to be solved.
        return value if _SYMBOL.fullmatch(name) or quantity(name) else None
    if _NAME.fullmatch(name) or not re.search(r"[A-Za-z]", re.sub(r"\\[a-z]+", "", name)):
        return value
    return None if re.search(r"\d", name) else value


def _is_prose(text: str) -> bool:
    """Several words that are no LaTeX: Math-Verify would multiply their letters."""
    plain = re.sub(r"\\[A-Za-z]+", " ", text)
    words = [w for w in re.findall(r"[A-Za-z]{3,}", plain) if w.lower() not in _MATHEMATICS]
    return len(words) > 3


def _formula(text: str) -> str:
    """For Math-Verify: LaTeX without what only dresses it."""
    text = unify(text).strip().strip("$").strip().rstrip(".,;:")
    text = re.sub(r"(?<!\\)\b(pi|infinity|theta)\b", lambda m: _LATEX[m.group()], text)
    return text.replace("**", "^").replace("*", r" \cdot ")


_LATEX = {"pi": r"\pi", "infinity": r"\infty", "theta": r"\theta"}


def verdicts(rows: Sequence[tuple[str, str]]) -> list[float]:
    """1.0 where the final answer is right, else 0.0, of (reference, response) rows."""
    return [float(right(answer, text)) for answer, text in rows]


def score(
    rows: Sequence[tuple[list[Message], str]], columns: Mapping[str, list[Any]]
) -> list[float | None]:
    """1.0 where the final answer of a response is that of the column `answer`, else 0.0.

    Raises:
        InputError: there is no such column, or a prompt has no answer.
    """
    if "answer" not in columns:
        raise InputError(
            "quality 'math-verify' compares with a column 'answer', and there is none; "
            "rename yours."
        )
    for (messages, _), answer in zip(rows, columns["answer"], strict=True):
        if answer in (None, ""):
            raise InputError(
                f"The prompt {messages[-1]['content'][:60]!r} has no answer; math-verify needs one."
            )
    answered = zip(columns["answer"], rows, strict=True)
    return [*verdicts([(str(answer), text) for answer, (_, text) in answered])]


def check(spec: Mapping[str, Any], prompts: Dataset) -> None:
    """Every reference answer is right against itself, and short enough to be compared.

    Raises:
        InputError: a row has no reference answer, or one that is not understood.
    """
    if "answer" not in prompts.column_names:
        raise InputError(
            "quality: math-verify compares with reference answers; name their column with "
            "prompts.answer_column."
        )
    understood: set[str] = set()
    for row, answer in enumerate(prompts["answer"]):
        text = "" if answer is None else str(answer)
        if text in understood:
            continue
        if reason := _refusal(text):
            raise InputError(
                f"The answer {answer!r} to the prompt "
                f"{prompts[row]['messages'][-1]['content'][:60]!r} (row {row}) {reason}; "
                "expected a number, a formula in LaTeX or a few words. Correct or remove the row, "
                "or choose another quality."
            )
        understood.add(text)


def _refusal(answer: str) -> str | None:
    """Why a reference answer cannot be compared with; None: it can."""
    if not answer.strip():
        return "is empty"
    reference = read(answer)
    if reference.words and len(reference.words.split()) > MOST_WORDS:
        return f"has more than {MOST_WORDS} words, which nobody states the same way"
    stated = stated_in(answer) or answer
    opened = re.sub(r"\\[{}]", "", stated)
    if opened.count("{") != opened.count("}"):
        return "has a brace without its partner"
    if not right(answer, f"\\boxed{{{stated}}}"):
        return "is not understood by math-verify"
    return None


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Our rules, and the versions of what reads formulas."""
    return {"rules": RULES} | {package: version(package) for package in PARSERS}
