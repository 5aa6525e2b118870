"""Chat templates that write the day on which they are rendered (Llama 3.2's, gpt-oss's)."""

import json
from datetime import date

# Answers and scores of one day must be those of another, so it is always this one.
TEMPLATE_DATE = date(2026, 1, 1)
_DIRECTIVES = [f"%{flag}{c}" for flag in ("-", "") for c in "aAbBcdDeFGHIjmMpSTuUVwWxXyYzZ"]


def writes_date(template: str) -> bool:
    return "strftime_now" in template


def at_date(template: str, day: date = TEMPLATE_DATE) -> str:
    """The template, with `strftime_now` always of one day, whatever the format."""
    if not writes_date(template):
        return template
    replaced = "".join(
        f" | replace({json.dumps(directive)}, {json.dumps(day.strftime(directive))})"
        for directive in _DIRECTIVES
    )
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}"
    return f"{macro}\n{template}"  # Jinja takes the line's end for the block's
