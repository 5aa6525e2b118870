"""Recorded teachers: answers that already exist as a dataset, matched on the prompt."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from persyn_datasets.account import Account
from persyn_datasets.engines import Request, Response, failed
from persyn_datasets.errors import InputError
from persyn_datasets.prompts import load_table, prompt_id, to_messages
from persyn_datasets.teacher import Teacher

COLUMNS = ("prompt", "teacher", "response")


@lru_cache(maxsize=4)
def _answers(path: str, revision: str | None) -> dict[str, dict[str, list[str]]]:
    """teacher → prompt id → responses, in their order. Sample j of a prompt is the j-th of them."""
    table = load_table(path, revision=revision)
    missing = [c for c in COLUMNS if c not in table.column_names]
    if missing:
        raise InputError(
            f"{path}: recorded answers need the columns {', '.join(COLUMNS)}; missing {', '.join(missing)}."
        )
    answers: dict[str, dict[str, list[str]]] = {}
    for row, (prompt, teacher, response) in enumerate(zip(*(table[c] for c in COLUMNS), strict=True)):
        key = prompt_id(to_messages(prompt, f"{path}, row {row}, column 'prompt'"))
        answers.setdefault(teacher, {}).setdefault(key, []).append(response)
    return answers


def generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """See `persyn_datasets.engines`. A prompt without a recorded answer is an error row, never an empty answer."""
    for i, (teacher, key, _, sample) in enumerate(requests):
        texts = _answers(teacher.model, teacher.revision).get(teacher.name, {}).get(key, [])
        if not (text := texts[sample] if sample < len(texts) else ""):
            which = f"answer number {sample + 1}" if sample else "answer"
            yield i, failed(teacher, f"no {which} of {teacher.name!r} to this prompt is recorded in {teacher.model}")
            continue
        yield (
            i,
            Response(
                teacher=teacher.name,
                text=text,
                finish_reason="stop",
                prompt_tokens=None,
                completion_tokens=None,
                error="",
            ),
        )


def check(teacher: Teacher) -> None:
    """Raises `InputError` if the dataset cannot be read or holds nothing of this teacher."""
    answers = _answers(teacher.model, teacher.revision)
    if teacher.name not in answers:
        raise InputError(
            f"Teacher {teacher.name!r}: {teacher.model} has no answers of it; it has {', '.join(sorted(answers))}."
        )
