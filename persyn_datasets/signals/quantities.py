"""Read an answer that is one number: `12\\,500`, `$75.00`, `1\\frac{4}{5}`, `35\\%`, `24 apples`,
`6.72 \\times 10^{-5}`, `52_8`.

Math-Verify reads most of these as something else (`12\\,500` as 512) or compares them at six
decimal places, so numbers are read and compared here, exactly. What is no number by itself goes to
Math-Verify.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

# As a rounded decimal a value must be written to this many digits to count as the value itself.
SIGNIFICANT_DIGITS = 6
_LONGEST_NUMBER = 400  # characters; nobody's answer, and slow to read

# unit: what it measures, and how many of the first unit of that kind it is
Unit = tuple[str, Fraction]
_UNITS: dict[str, Unit] = {
    name: (kind, Fraction(size))
    for kind, sizes in {
        "length": {
            "m meter metre": "1",
            "mm millimeter millimetre": "1/1000",
            "cm centimeter centimetre": "1/100",
            "km kilometer kilometre": "1000",
            "in inch": "254/10000",
            "ft foot feet": "3048/10000",
            "yd yard": "9144/10000",
            "mi mile": "1609344/1000",
        },
        "mass": {
            "g gram": "1",
            "mg milligram": "1/1000",
            "kg kilogram kilo": "1000",
            "lb pound": "45359237/100000",
            "oz ounce": "45359237/1600000",
        },
        "time": {
            "s sec second": "1",
            "min minute": "60",
            "h hr hour": "3600",
            "day": "86400",
            "week": "604800",
        },
        "volume": {"l liter litre": "1", "ml milliliter millilitre": "1/1000"},
        "dollars": {"$ dollar usd": "1", "¢ cent": "1/100"},
        "euros": {"€ euro eur": "1"},
        "pounds sterling": {"£": "1"},
        "rupees": {"₹ rupee": "1"},
        "yen": {"¥ yen": "1"},
        "angle": {"degree deg": "1"},
        "celsius": {"°c celsius": "1"},
        "fahrenheit": {"°f fahrenheit": "1"},
    }.items()
    for names, size in sizes.items()
    for name in names.split()
}
_POWERS = {"square": 2, "sq": 2, "cubic": 3}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_BASES = {
    word: base
    for base, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve".split(), start=2
    )
} | {"sixteen": 16}
# Words behind a number that are no unit: `2 pi`, `3 and 5`, `5 squared`.
_NO_UNITS = frozenset(
    """pi e i x y z n sqrt root sin cos tan cot sec csc log ln exp mod and or to over plus minus
    squared cubed factorial half halves quarter quarters choose theta infinity""".split()
)

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|mathit|mathsf|bf|rm)\s*"
    r"\{([^{}]*)\}"
)
_SPACES = re.compile(r"\\[,;:> ]|\\q?quad\b|\\hspace\{[^{}]*\}|~|[\u00a0\u2000-\u200a\u202f\u205f]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SYMBOLS = {
    "−": "-",
    "－": "-",
    "﹣": "-",
    "‐": "-",
    "‑": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": r"\div ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "√": r"\sqrt",
    "≈": r"\approx ",
    "٫": ".",
    "٬": ",",
    "\u200b": "",
    "\ufeff": "",
}

_SIGN = r"(?:(?P<sign>[-+])\s*)?"
_CURRENCY = r"(?:(?P<currency>[$€£¥₹]|Rs\.?|USD)\s*)?"
_FRACTION = (
    r"(?:(?P<whole>\d+)\s*)?\\[dtc]?frac\s*(?:\{\s*(?P<top>-?\d+)\s*\}|(?P<top1>\d))\s*"
    r"(?:\{\s*(?P<bottom>\d+)\s*\}|(?P<bottom1>\d))"
)
_SLASH = r"(?:(?P<whole2>\d+)\s+)?(?P<top2>\d+)\s*/\s*(?P<bottom2>\d+)"
_DECIMAL = (
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ ']\d{3})+(?!\d)|\d+|(?=\.\d))"
    r"(?P<decimals>\.\d*)?"
    r"(?:[eE](?P<e>[-+]?\d+)|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{?(?P<ten>-?\d+)\}?)?"
)
_QUANTITY = re.compile(
    rf"{_SIGN}{_CURRENCY}(?P<sign2>-)?\s*(?:{_FRACTION}|{_SLASH}|{_DECIMAL})(?P<rest>.*)", re.DOTALL
)
_ABOUT = re.compile(
    r"^(?:approximately|about|around|roughly|exactly|only|just|\\approx|a total of)\s+"
)
_DEGREES = re.compile(r"^\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree)\s*([CF]\b)?")
_PERCENT = re.compile(r"^\s*(?:%|percent(?:age)?\b|per cent\b|pct\b)(?:\s+points?)?")
_POWER = re.compile(r"\s*\^\s*\{?\s*([23])\s*\}?\s*$")
_IN_BASE = re.compile(
    r"\(?\s*(?P<digits>[0-9A-Fa-f]+)\s*\)?\s*"
    r"(?:_\s*\{?|\(?\s*(?:in\s+)?(?=base))\s*(?:base\s*)?(?P<base>\d+|[a-z]+)\s*\}?\s*\)?"
)


@dataclass(frozen=True)
class Quantity:
    """One number as it was written.

    step: one unit in the last decimal place; None for a number without a point.
    digits: significant digits.
    percent: whether it has a percent sign; its value is then that of the digits, 35 for 35%.
    unit: what it measures and the size of its unit; None without a unit that is known here.
    """

    value: Fraction
    step: Fraction | None = None
    digits: int = 0
    percent: bool = False
    unit: Unit | None = None

    def equals(self, other: "Quantity") -> bool:
        """Whether both are the same value.

        35% is 35 as well as 0.35, since questions ask for either. A unit that only one of both
        states decides nothing.
        """
        a, b = self, other
        if a.unit and b.unit:
            if a.unit[0] != b.unit[0]:
                return False
            a, b = a._times(a.unit[1]), b._times(b.unit[1])
        if a.percent == b.percent:
            return _near(a, b)
        percent, number = (a, b) if a.percent else (b, a)
        return _near(percent, number) or _near(percent._times(Fraction(1, 100)), number)

    def _times(self, size: Fraction) -> "Quantity":
        step = None if self.step is None else self.step * size
        return Quantity(self.value * size, step, self.digits)


def _near(a: Quantity, b: Quantity) -> bool:
    """Equal, or one is a decimal of six digits or more that was rounded or cut from the other."""
    steps = [q.step for q in (a, b) if q.step is not None and q.digits >= SIGNIFICANT_DIGITS]
    return a.value == b.value or any(abs(a.value - b.value) < step for step in steps)


def unify(text: str) -> str:
    """The same text with one character for each sign: LaTeX's for what LaTeX has, ASCII digits."""
    for sign, latex in _SYMBOLS.items():
        text = text.replace(sign, latex)
    text = re.sub(
        "[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text
    )
    text = re.sub("[¼-¾⅐-⅞]", lambda m: f" {unicodedata.normalize('NFKC', m.group())}", text)
    text = text.replace("⁄", "/")
    text = "".join(
        str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text
    )
    # Full-width forms are ASCII's, 0xFEE0 further on.
    text = "".join(chr(ord(c) - 0xFEE0) if "！" <= c <= "～" else c for c in text)
    text = re.sub(r"\\!\s*", "", text.replace("{,}", ","))
    text = text.replace(r"\$", "$").replace(r"\%", "%")
    # A thin space between groups of three digits, as in `12\,500`, before all become plain spaces.
    text = re.sub(r"(?<=\d)(?:\\[,;: ]|~|[\u2009\u202f\u00a0])(?=\d{3}(?!\d))", "", text)
    return _SPACES.sub(" ", text)


def bare(text: str) -> str:
    """Without what only dresses it: dollars, markdown, `\\text`, a full stop."""
    text = unify(text).strip()
    while (shorter := _undress(text)) != text:
        text = shorter
    return text


def _undress(text: str) -> str:
    text = _WRAPPER.sub(r" \1 ", text)
    text = text.replace(r"\displaystyle", "").strip().strip("*`_").strip()
    text = text.rstrip(".,;:。，；、").strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ('"', '"')):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left + right):
            inside = text[len(left) : -len(right)]
            if left not in inside and right not in inside:
                text = inside.strip()
    return text


def quantity(text: str, attached: bool = True) -> Quantity | None:
    """The number that the text is, with at most a few words behind it; None: it is something else.

    attached: whether one letter right behind the number is a unit, as in `5m`.
    """
    text = _ABOUT.sub("", bare(text))
    if len(text) > _LONGEST_NUMBER:
        return None
    # `52 base 10` is 52; a numeral of another base is compared as one, by its digits.
    based = in_base(text)
    if based and based[1] == 10:
        text = based[0]
    match = _QUANTITY.fullmatch(text)
    if not match:
        return None
    read = _number(match)
    if read is None:
        return None
    value, step, digits = read
    rest = _rest(match["rest"], attached)
    if rest is None:
        return None
    scale, percent, unit = rest
    if match["currency"] and not unit:
        unit = _UNITS.get(match["currency"].lower(), ("rupees", Fraction(1)))
    if match["sign"] == "-" or match["sign2"]:
        value = -value
    step = None if step is None else step * scale
    return Quantity(value * scale, step, digits, percent, unit)


def _number(match: re.Match[str]) -> tuple[Fraction, Fraction | None, int] | None:
    """(value without its sign, one unit in the last decimal place, significant digits)."""
    if match["digits"] is None:
        whole = int(match["whole"] or match["whole2"] or 0)
        top = int(match["top"] or match["top1"] or match["top2"])
        bottom = int(match["bottom"] or match["bottom1"] or match["bottom2"])
        if not bottom or (whole and top < 0):
            return None
        return whole + Fraction(top, bottom), None, 0
    decimals = (match["decimals"] or "").strip(".")
    digits = re.sub(r"\D", "", match["digits"]) + decimals
    exponent = int(match["e"] or match["ten"] or 0)
    if abs(exponent) > _LONGEST_NUMBER:  # `1e999999999` would be written out
        return None
    # As an integer times a power of ten, so that 0.1 is exactly 1/10.
    last_place = Fraction(10) ** (exponent - len(decimals))
    value = int(digits or "0") * last_place
    return value, last_place if decimals else None, len(digits.lstrip("0"))


_Rest = tuple[int, bool, Unit | None]


def _rest(text: str, attached: bool) -> _Rest | None:
    """(scale, percent, unit) of what stands behind a number; None: more than a unit."""
    unit: Unit | None = None
    if percent := _PERCENT.match(text):
        text = text[percent.end() :]
    elif degrees := _DEGREES.match(text):
        unit = _UNITS[f"°{degrees[1].lower()}" if degrees[1] else "degree"]
        text = text[degrees.end() :]
    if percent or unit or not text.strip():
        return (1, bool(percent), unit) if _are_words(text.split()) else None
    if text[0].isalpha() and not attached and not text[1:2].isalpha():
        return None  # `5x` is a product
    power = _POWER.search(text)
    words = text[: power.start() if power else None].replace("/", " per ").split()
    scale = 1
    if words and words[0].lower() in _SCALES:
        scale = 10 ** _SCALES[words.pop(0).lower()]
    unit = _unit(words, int(power[1]) if power else 1)
    glued = text[0].isascii() and text[0].isalpha()
    if not _are_words(words) or (not unit and (glued or power)):
        return None
    return scale, False, unit


def _are_words(words: list[str]) -> bool:
    """A few words, none of them mathematics; letters by themselves only where they are a unit."""
    plain = [word.strip("().,").lower() for word in words]
    return len(plain) <= 6 and all(
        word.replace("-", "").replace("'", "").isalpha()
        and word not in _NO_UNITS
        and (len(word) > 1 or word in _UNITS or word == "a" or not word.isascii())
        for word in plain
    )


def _unit(words: list[str], power: int) -> Unit | None:
    """The unit, if these words are one that is known here: `cm`, `square feet`, `inches` (^2)."""
    names = [word.strip(".").lower() for word in words]
    if names and names[0] in _POWERS:
        power = _POWERS[names.pop(0)]
    if len(names) != 1:
        return None
    forms = (names[0].removesuffix(plural) for plural in ("", "s", "es"))
    known = next((form for form in forms if form in _UNITS), None)
    if known is None:
        return None
    kind, size = _UNITS[known]
    return (kind, size) if power == 1 else (f"{kind}^{power}", size**power)


def in_base(text: str) -> tuple[str, int] | None:
    """(digits, base) of a numeral that states it: `52_8`, `(52)_{\\text{eight}}`, `52 base 8`.

    A numeral without base is of base ten, so `52` is not `52_8`.
    """
    match = _IN_BASE.fullmatch(bare(text))
    if not match:
        return None
    digits = match["digits"].upper().lstrip("0") or "0"
    base = int(match["base"]) if match["base"].isdigit() else _BASES.get(match["base"], 0)
    fits = 2 <= base <= 16 and all(int(digit, 16) < base for digit in digits)
    return (digits, base) if fits else None
