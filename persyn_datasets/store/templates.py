"""Chat templates that write the day on which they are rendered (Llama 3.2's, gpt-oss's)."""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

# Answers and scores of one day must be those of another, so it is always this one.
TEMPLATE_DATE = date(2026, 1, 1)
FILES = ("chat_template.jinja", "tokenizer_config.json")
_DIRECTIVES = [f"%{flag}{c}" for flag in ("-", "") for c in "aAbBcdDeFGHIjmMpSTuUVwWxXyYzZ"]


def writes_date(template: str) -> bool:
    return "strftime_now" in template


def model_writes_date(model: str, revision: str | None = None) -> bool:
    """Whether a model's chat template does; by its files, since to ask its tokenizer takes seconds
    and imports torch.
    """
    return any(writes_date(text) for text in _files(model, revision))


def _files(model: str, revision: str | None) -> Iterator[str]:
    """The texts of the files in which a model's chat template may be."""
    for name in FILES:
        file = Path(model, name)
        if not Path(model).is_dir():
            with suppress(EntryNotFoundError):  # newer models have the first, older ones the second
                file = Path(hf_hub_download(model, name, revision=revision))
        if file.is_file():
            yield file.read_text(encoding="utf-8")


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
