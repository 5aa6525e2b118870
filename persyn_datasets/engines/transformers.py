"""Local teachers by `transformers`: one model in memory at a time, full batches of prompts of like
length.

The work is `local_model`'s: torch is imported when the first request comes, and a plan needs none.
"""

from collections.abc import Iterator, Sequence

from jinja2 import TemplateError

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.engines import Facts, Request, Response
from persyn_datasets.engines.account import Account
from persyn_datasets.store.models import load_tokenizer, prompt_ids

FACTS = Facts(in_process=True, renders=True, keys=("chat_template_kwargs",))


def generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """See `persyn_datasets.engines`."""
    from persyn_datasets.engines import local_model

    yield from local_model.answer(requests, account)


def check(teacher: Teacher) -> None:
    """Raises `InputError` if the model cannot be found or its chat template refuses the teacher's
    messages.
    """
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(
            teacher.model,
            revision=teacher.revision,
            trust_remote_code=teacher.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"Teacher {teacher.name!r}: model {teacher.model!r} not found: {error}"
        ) from error
    try:
        prompt_ids(
            load_tokenizer(teacher.model, teacher.revision, teacher.trust_remote_code),
            teacher.conversation([{"role": "user", "content": "?"}]),
            teacher.chat_template_kwargs,
        )
    except TemplateError as error:
        raise InputError(
            f"Teacher {teacher.name!r}: the chat template of {teacher.model!r} refuses its system "
            "prompt or examples "
            f"({error}); put them into the first user message of `examples` instead."
        ) from error
