"""Routed prompts for on-policy distillation by several teachers, each scoring what the student says
(TRL's `AsyncDistillationTrainer`, whose docstring calls it MOPD).

It reads `teacher_id` of each row, a key of its `teacher_server_urls`, and sends token ids: teachers
must share the student's tokenizer, which it does not check.
"""

from collections.abc import Sequence
from itertools import islice
from shlex import quote
from typing import Any

from datasets import Dataset

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.tools import offered
from persyn_datasets.store.models import load_tokenizer

SERVERS = "teacher_servers.json"
FIRST_PORT = 8001  # the student's is 8000
SERVE = "vllm serve {} --port {} --logprobs-mode processed_logprobs --max-logprobs -1"
TEXTS = 64  # that both tokenizers encode, beside comparing their vocabularies


def sharing(teachers: Sequence[Teacher], student: str, texts: Sequence[str]) -> list[str]:
    """The names of the teachers whose tokenizer is the student's: the same vocabulary, and the same
    ids for these texts.

    Raises:
        InputError: none does, with the reason for each; or the student is not found.
    """
    try:
        own = load_tokenizer(student)
    except (OSError, ValueError) as error:
        raise InputError(f"The student {student!r} is not found: {_line(error)}") from error
    texts = list(islice(texts, TEXTS))
    reasons = {teacher.name: _difference(teacher, own, texts) for teacher in teachers}
    if names := [name for name, reason in reasons.items() if not reason]:
        return names
    shown = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise InputError(
        f"No teacher shares the tokenizer of {student!r}, which distillation by token ids needs "
        f"({shown}). Take a student of a teacher's family, or train on the answers of "
        "`persyn synthesize`."
    )


def _difference(teacher: Teacher, own: Any, texts: Sequence[str]) -> str:
    """Why its tokenizer is another; empty if it is none."""
    try:
        theirs = load_tokenizer(teacher.model, teacher.revision, teacher.trust_remote_code)
    except (OSError, ValueError) as error:
        return f"its tokenizer is not found ({_line(error)})"
    if theirs.get_vocab() != own.get_vocab():
        return f"its vocabulary of {len(theirs)} tokens is not the student's of {len(own)}"
    if theirs(list(texts))["input_ids"] != own(list(texts))["input_ids"]:
        return "it encodes the prompts as other tokens"
    return ""


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


def teacher_ids(routed: Dataset) -> Dataset:
    """Rows of `Route` as the trainer reads them: `prompt` and `teacher_id`, with `prompt_id`.

    Raises:
        InputError: prompts offer functions, which the trainer (TRL 1.16) does not pass on.
    """
    if any(offered(routed)):
        raise InputError(
            "The prompts have a column 'tools', and TRL's distillation would leave it out. "
            "Remove or rename that column, or train on the answers of `persyn synthesize`."
        )
    rows = routed.select_columns(["prompt_id", "messages", "teacher"])
    return rows.rename_columns({"messages": "prompt", "teacher": "teacher_id"})


def servers(teachers: Sequence[Teacher]) -> tuple[dict[str, str], list[str]]:
    """`teacher_server_urls` for these teachers, and the commands that start those that have no
    server yet.

    The trainer adds `/v1` itself. It asks for the log-probabilities of prompts, which vLLM gives
    and hosted APIs do not.
    """
    urls, commands = {}, []
    for place, teacher in enumerate(teachers):
        if teacher.base_urls:
            urls[teacher.name] = teacher.base_urls[0].rstrip("/").removesuffix("/v1")
            continue
        port = FIRST_PORT + place
        urls[teacher.name] = f"http://localhost:{port}"
        commands.append(SERVE.format(quote(teacher.model), port))
    return urls, commands
