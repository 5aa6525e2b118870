"""The rows that a recipe names: its prompts, its target, its held-out prompts."""

from datasets import Dataset

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.evaluation import HeldOut
from persyn_datasets.config.prompts import Prompts
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.target import Target
from persyn_datasets.data.prompts import load_prompts
from persyn_datasets.data.tools import COLUMN as TOOLS
from persyn_datasets.data.tools import offered

PLACE = ("path", "name", "split", "revision", "column", "answer_column")


def load(source: Prompts | Target | HeldOut) -> Dataset:
    """Rows of `prompt_id` and `messages`, with the `answer` and the response column where the
    source names one; see `load_prompts`.

    Raises:
        InputError: a column is not there, or a row lacks what it is scored or measured by.
    """
    rows = load_prompts(**{k: getattr(source, k) for k in PLACE if hasattr(source, k)})
    if not isinstance(source, Prompts) and any(offered(rows)):
        raise InputError(
            f"{source.path} has a column {TOOLS!r}, and students are measured without functions to "
            "call. Remove or rename that column."
        )
    if isinstance(source, Target):
        _check_texts(rows, source.response_column, source.path, "target.response_column")
    if isinstance(source, HeldOut):
        _check_held_out(rows, source)
    return rows


def prompts_of(recipe: Recipe) -> Dataset:
    """The recipe's prompts, without the columns of their table that hold its teachers' answers."""
    rows = load(recipe.prompts)
    answers = [
        teacher.columns["response"]
        for teacher in recipe.teachers
        if teacher.columns and teacher.model == recipe.prompts.path
    ]
    kept = ("prompt_id", "messages", "answer")
    gone = [
        column
        for column in rows.column_names
        if column not in kept
        and any(written == column or written.startswith(f"{column}.") for written in answers)
    ]
    return rows.remove_columns(gone) if gone else rows


def check_apart(source: Target | HeldOut, prompts: Dataset, named: str = "prompts") -> None:
    """Raises `InputError` if prompts of the source are among these, which are `named` so: the
    student would have seen their answers.
    """
    seen = set(prompts["prompt_id"])
    if both := sum(key in seen for key in load(source)["prompt_id"]):
        whose = "the target's" if isinstance(source, Target) else "the held-out"
        raise InputError(
            f"{source.path}: {both} of {whose} prompts are among the {named}; remove them from one "
            "of the two."
        )


def _check_held_out(rows: Dataset, held_out: HeldOut) -> None:
    if not (held_out.answer_column or held_out.response_column):
        raise InputError("evaluation.held_out: name an answer_column, a response_column, or both.")
    if held_out.answer_column:
        _check_texts(rows, "answer", held_out.path, "evaluation.held_out.answer_column")
    if column := held_out.response_column:
        _check_texts(rows, column, held_out.path, "evaluation.held_out.response_column")
    if len(set(rows["prompt_id"])) < len(rows):
        raise InputError(
            f"{held_out.path}: a held-out prompt appears twice; intervals over prompts need each "
            "once."
        )


def _check_texts(rows: Dataset, column: str, path: str, key: str) -> None:
    """Raises `InputError` if the column is not there, or a cell of it is empty or no text."""
    if column not in rows.column_names:
        raise InputError(
            f"{key}: {path} has no column {column!r}; it has {', '.join(rows.column_names)}."
        )
    for i, cell in enumerate(rows[column]):
        if not isinstance(cell, str) or not cell.strip():
            raise InputError(
                f"{path}, row {i}: its {column!r} is {cell!r}; fill it or remove the row."
            )
