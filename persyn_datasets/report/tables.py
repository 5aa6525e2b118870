"""Tables, rendered for Markdown, for HTML and for a terminal from the same cells."""

from collections.abc import Mapping, Sequence
from textwrap import wrap

from markupsafe import Markup, escape

from persyn_datasets.data.build import Line
from persyn_datasets.store.meter import Work

TERMINAL = 80  # columns
LEAST_HEAD = 8  # characters of a head's line


# Explained where the mouse rests on them.
GLOSSARY = {
    "quality": "r_q: whether the answer is right (1 or 0), or how good a reward model or function "
    "considers it",
    "learnability": "r_l: how likely the student finds the answer, as mean log-probability per "
    "token; closer to 0 is more likely",
    "reward": "r = (1 − α)·quality + α·learnability, both on a common scale: what the student is "
    "expected to learn from the answer",
    "hit@1": "how often the first choice is one of the prompt's best teachers",
    "hit@3": "how often one of the prompt's best teachers is among the first three choices",
    "regret": "the reward lost: the oracle's minus this one's",
    "router": "chooses a teacher by reading the prompt",
    "best single": "all prompts go to the teacher that is best on the training prompts",
    "best per group": "each group of prompts goes to the teacher that is best there",
    "nearest neighbours": "the teacher that is best on the most similar training prompts",
    "shares at random": "the router's own choices, shuffled among the prompts: its lead over this "
    "comes from reading them",
    "random": "a teacher drawn at random for each prompt",
    "oracle": "the teacher whose answer to this very prompt was best: an upper bound that needs "
    "all answers",
    "best in calibration": "on how many calibration prompts this teacher's answer was best",
    "calibration": "the prompts that all teachers answer, from which the router learns",
    "held-out": "calibration prompts that the router was not trained on",
    "p": "how often a difference this large would come by chance alone",
}


class Table(str):
    """A table as Markdown, so that it can be joined with other text.

    In a template of HTML it is an HTML table, and `plain` is for a terminal.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __new__(cls, head: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
        made = super().__new__(cls, _markdown(head, rows))
        made.head, made.rows = list(head), [list(row) for row in rows]
        return made

    def __html__(self) -> Markup:
        lines = [
            Markup("<tr>")
            + Markup("").join(Markup(f"<{tag}>{explained(cell)}</{tag}>") for cell in row)
            + Markup("</tr>")
            for tag, row in [("th", self.head), *(("td", row) for row in self.rows)]
        ]
        return Markup("<table>\n") + Markup("\n").join(lines) + Markup("\n</table>")

    def plain(self, width: int = TERMINAL) -> str:
        """At most `width` characters wide: heads over several lines, and, where that is not enough,
        the first column cut, then the last columns in a table of their own.
        """
        columns = range(1, len(self.head))
        numbers = [max((len(row[i]) for row in self.rows), default=0) for i in columns]
        heads = [
            wrap(cell, max(LEAST_HEAD, n), break_long_words=False) or [""]
            for cell, n in zip(self.head[1:], numbers, strict=True)
        ]
        widths = [max(n, *map(len, head)) for n, head in zip(numbers, heads, strict=True)]
        first = max(len(row[0]) for row in [self.head, *self.rows])
        fits, used = 0, min(first, width // 3)
        while fits < len(widths) and used + 2 + widths[fits] <= width:
            used += 2 + widths[fits]
            fits += 1
        fits = max(fits, 1)
        first = min(first, max(width // 3, width - sum(2 + w for w in widths[:fits])))
        text = _plain(self, first, heads[:fits], widths[:fits])
        if fits == len(widths):
            return text
        rest = Table(
            [self.head[0], *self.head[fits + 1 :]],
            [[row[0], *row[fits + 1 :]] for row in self.rows],
        )
        return f"{text}\n\n{rest.plain(width)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The first column is text, the others are numbers."""
    return Table(head, rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        row[:] = [
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
    cells.insert(1, ["-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _plain(table: Table, first: int, heads: list[list[str]], widths: list[int]) -> str:
    deep = max(map(len, heads), default=1)
    lines = []
    for i in range(deep):
        cells = [(head[i - deep + len(head)] if i >= deep - len(head) else "") for head in heads]
        lines.append([table.head[0] if i == deep - 1 else "", *cells])
    lines += [list(row[: len(widths) + 1]) for row in table.rows]
    return "\n".join(
        "  ".join(
            [
                cut(line[0], first).ljust(first),
                *(cell.rjust(w) for cell, w in zip(line[1:], widths, strict=True)),
            ]
        ).rstrip()
        for line in lines
    )


def explained(text: str) -> Markup:
    """The text for HTML; a word of the glossary with its explanation."""
    if text.lower() not in GLOSSARY:
        return escape(text)
    return Markup('<abbr title="{}">{}</abbr>').format(GLOSSARY[text.lower()], text)


def cut(text: str, width: int) -> str:
    """At most so many characters, the last one … if some are missing."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def account_table(lines: list[Line]) -> str:
    """The account as a Markdown table, with a last line of sums."""
    head = [
        "stage · teacher",
        "answers",
        "reused",
        "failed",
        "retries",
        "prompt tokens",
        "completion tokens",
        "USD",
        "tokens/s",
    ]
    rows = [
        [f"{line['stage']} · {line['teacher']}", *_numbers([line]), _speed(line)] for line in lines
    ]
    return table(head, [*rows, ["all", *_numbers(lines), "–"]])


def compute_table(works: Mapping[str, Work]) -> str:
    """What this machine worked on; see `meter.Work`."""
    head = ["work", "seconds", "CPU seconds", "GPU seconds"]
    rows = [
        [what, *("–" if value is None else f"{value:,.1f}" for value in _seconds(work))]
        for what, work in works.items()
    ]
    return table(head, rows)


def _seconds(work: Work) -> tuple[float, float | None, float | None]:
    return work["seconds"], work["cpu_seconds"], work["gpu_seconds"]


def _numbers(lines: Sequence[Line]) -> list[str]:
    """The sums of these lines."""
    counts = [
        sum(line["answers"] for line in lines),
        sum(line["reused"] for line in lines),
        sum(line["failed"] for line in lines),
        sum(line["retries"] for line in lines),
        sum(line["prompt_tokens"] for line in lines),
        sum(line["completion_tokens"] for line in lines),
    ]
    usd = sum(line["usd"] + line["reused_usd"] for line in lines)
    return [*(f"{count:,}" for count in counts), f"{usd:,.4f}"]


def _speed(line: Line) -> str:
    if not (line["new_tokens"] and line["seconds"]):
        return "–"
    return f"{line['new_tokens'] / line['seconds']:,.0f}"
