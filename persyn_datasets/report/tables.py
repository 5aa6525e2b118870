"""Tables for the terminal, for Markdown and for HTML alike."""

import re
from collections.abc import Sequence

from markupsafe import Markup, escape


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        row[:] = [
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
    cells.insert(1, ["-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def html_table(markdown: str) -> Markup:
    """The same table in HTML."""
    head, _, *rows = [
        [escape(cell.strip().replace(r"\|", "|")) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in markdown.splitlines()
    ]
    lines = [
        Markup("<tr>")
        + Markup("").join(Markup(f"<{tag}>{cell}</{tag}>") for cell in row)
        + Markup("</tr>")
        for tag, row in [("th", head), *(("td", row) for row in rows)]
    ]
    return Markup("<table>\n") + Markup("\n").join(lines) + Markup("\n</table>")
