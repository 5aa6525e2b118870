"""One real row through every model of a build, before the first answer is paid for.

A plan reads configs, tokenizers and templates. Only the weights tell whether they are whole, fit
their config, and give numbers: here they are loaded as the build loads them, one model at a time.
What they say of the row is kept as all that they say is, so that a second run loads nothing for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite

from datasets import Dataset

from persyn_datasets import signals
from persyn_datasets.config.errors import InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.student import Student
from persyn_datasets.config.teacher import Message, Teacher
from persyn_datasets.engines import Request, facts_of
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.dispatch import respond
from persyn_datasets.router.model import forward, router_text
from persyn_datasets.router.training import open_backbone
from persyn_datasets.stages.score import Score
from persyn_datasets.store import models
from persyn_datasets.store.progress import unseen
from persyn_datasets.strategies import baselines as strategies

ANSWER = "Yes."


def check(recipe: Recipe, prompts: Dataset, runner: str) -> None:
    """The first of these prompts through what judges, the student, the backbone, and the local
    teachers where others are paid.

    On a cluster only through the backbone: its nodes load the others, and not this machine.

    Raises:
        InputError: a model cannot be loaded, or has no number for the row.
    """
    messages: list[Message] = prompts[0]["messages"]
    with unseen():
        if runner == "local":
            _try_quality(recipe, prompts)
            try_student(recipe.student, messages)
        if recipe.strategy in strategies.ROUTED:
            _try_backbone(recipe, messages)
        if runner == "local":
            _try_teachers(recipe, prompts[0]["prompt_id"], messages)
    models.free()  # the teachers come next


def _try_quality(recipe: Recipe, prompts: Dataset) -> None:
    """Not where scores are not kept: a user's function may itself ask somebody who is paid."""
    if not signals.facts_of(recipe.quality).journalled:
        return
    columns = {name: prompts[name][:1] for name in prompts.column_names if name != "messages"}
    score, messages = Score(recipe.student, recipe.quality), prompts[0]["messages"]
    which = f"quality: {recipe.quality}"
    with _blamed(which):
        [value] = score.of_quality([(messages, ANSWER)], columns)
    _check_number(which, value, messages)


def try_student(student: Student, messages: list[Message]) -> None:
    """Raises `InputError`: the student cannot be loaded, or has no log-likelihood for an answer."""
    which = f"student.model: {student.model!r}"
    with unseen(), _blamed(which):
        [found] = Score(student, None).of_student([(messages, ANSWER)])
    _check_number(which, found["learnability"], messages)


def _try_backbone(recipe: Recipe, messages: list[Message]) -> None:
    router, names = recipe.router, [t.name for t in recipe.teachers]
    which = f"router.backbone: {router.backbone!r}"
    with _blamed(which):
        model, tokenizer = open_backbone(router.backbone, names, router.revision, router.max_length)
        outputs = forward(model.eval(), tokenizer, [router_text(messages)])
    _check_number(which, float(outputs.sum()), messages)


def _try_teachers(recipe: Recipe, prompt_id: str, messages: list[Message]) -> None:
    """One token of each that this process loads. If nobody is paid, each has its turn in time."""
    teachers = strategies.teachers_of(recipe)
    if not any(facts_of(t).remote for t in teachers) and not signals.asks(recipe.quality):
        return
    for teacher in teachers:
        if facts_of(teacher).in_process:
            _try_teacher(teacher, prompt_id, messages, recipe)


def _try_teacher(teacher: Teacher, prompt_id: str, messages: list[Message], recipe: Recipe) -> None:
    sampling = replace(teacher.sampling or recipe.sampling, max_tokens=1)
    teacher = replace(teacher, sampling=sampling)
    with _blamed(f"Teacher {teacher.name!r}: {teacher.model!r}"):
        request = Request(teacher, prompt_id, teacher.conversation(messages))
        respond([request], "Generate", Account())


@contextmanager
def _blamed(which: str) -> Iterator[None]:
    """Whatever a model raises, its own code included, as an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), "")
        raise InputError(
            f"{which} fails on the first row: {type(error).__name__}: {why} Fetch its files again, "
            "or take another model."
        ) from error


def _check_number(which: str, value: float | None, messages: list[Message]) -> None:
    if value is None or not isfinite(value):
        raise InputError(
            f"{which} gives {value} for an answer to {messages[-1]['content'][:60]!r}; expected a "
            "number. Are its weights whole? Take another model."
        )
