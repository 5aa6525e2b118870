"""How students are evaluated: tasks of lm-evaluation-harness, and the user's own held-out prompts.
See `evaluate`.
"""

import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from persyn_datasets.config.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


TASKS = Path(__file__).parents[1] / "tasks"
_READERS = {".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class HeldOut:
    """Prompts that no student has seen; see `load_prompts`.

    `answer_column`: exact match of the student's greedy answers (at most `max_tokens`) by
        math-verify.
    `response_column`: mean log-probability per token of these reference responses, in nats: it
    tells students apart that are too small for right answers.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    path: str
    name: str | None = None
    split: str = "test"
    revision: str | None = None
    column: str | None = None
    answer_column: str | None = None
    response_column: str | None = None
    max_tokens: int = 1024

    def load(self) -> "Dataset":
        """Raises `InputError` if there is nothing to measure, or a row lacks what it is measured
        by.
        """
        from persyn_datasets.data.prompts import load_prompts

        source = {
            k: getattr(self, k)
            for k in ("path", "name", "split", "revision", "column", "answer_column")
        }
        rows = load_prompts(**source)
        if not (self.answer_column or self.response_column):
            raise InputError(
                "evaluation.held_out: name an answer_column, a response_column, or both."
            )
        if self.response_column and self.response_column not in rows.column_names:
            raise InputError(
                f"evaluation.held_out.response_column: {self.path} has no column "
                f"{self.response_column!r}; it has "
                f"{', '.join(rows.column_names)}."
            )
        for column in ["answer"] * bool(self.answer_column) + [self.response_column] * bool(
            self.response_column
        ):
            for row, cell in enumerate(rows[column]):
                if not isinstance(cell, str) or not cell.strip():
                    raise InputError(
                        f"{self.path}, row {row}: its {column!r} is {cell!r}; fill it or remove "
                        "the row."
                    )
        if len(set(rows["prompt_id"])) < len(rows):
            raise InputError(
                f"{self.path}: a held-out prompt is there twice; intervals over prompts need each "
                "once."
            )
        return rows


@dataclass(frozen=True)
class Evaluation:
    """How students are evaluated.

    `tasks`: names of tasks or groups of lm-evaluation-harness; `include_path`: a folder with YAML
    files of your own ones, which may run code; a group there may only name tasks from there.
    `data`: of a task of ours, the file (JSON, JSON Lines, CSV or Parquet) that is read instead of
    its data set on the Hub, with the same columns. `limit`: prompts per task, at most.
    `max_gen_toks`: new tokens of an answer, at most, where a task states no limit of its own; half
    the student's context, if that is less. The other keys are those of `lm_eval.simple_evaluate`.

    Beside the harness's tasks there are `persyn_math` and `persyn_svamp`, graded by the verifier
    that scores teachers' answers; see `docs/verifiers.md`.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    tasks: tuple[str, ...] = ()
    include_path: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = True
    max_gen_toks: int = 1024
    batch_size: int | str = 8
    held_out: HeldOut | None = None

    def check(self, prompts: "Dataset") -> None:
        """Raises `InputError`: nothing to do, an unknown task, or a held-out prompt that is among
        the prompts.
        """
        if not self.tasks and not self.held_out:
            raise InputError(
                "evaluation: there is nothing to do; give tasks, e.g. [gsm8k], or held_out: "
                "{path: …}."
            )
        if self.max_gen_toks < 1:
            raise InputError(f"evaluation.max_gen_toks is {self.max_gen_toks}; expected 1 or more.")
        known = manager(self).all_tasks if self.tasks else []
        for task in self.data:
            if not (TASKS / f"{task}.yaml").exists() or task not in self.tasks:
                ours = ", ".join(sorted(file.stem for file in TASKS.glob("*.yaml")))
                raise InputError(
                    f"evaluation.data: found {task!r}; expected one of {ours} that is among "
                    "evaluation.tasks. For another, put a YAML file with your data into "
                    "evaluation.include_path."
                )
        for task in self.tasks:
            if task not in known:
                raise InputError(
                    f"evaluation.tasks: lm-evaluation-harness has no task {task!r}; `lm-eval ls "
                    "tasks` lists them, and "
                    "evaluation.include_path names a folder with your own."
                )
        for task in self.tasks:
            self._build(task)
        if self.held_out:
            seen = set(prompts["prompt_id"])
            if both := sum(key in seen for key in self.held_out.load()["prompt_id"]):
                raise InputError(
                    f"{self.held_out.path}: {both} held-out prompts are among the prompts; remove "
                    "them."
                )

    def named(self, task: str) -> str:
        """A task as the harness takes it: its name, or a YAML file of it with other data."""
        return _with_data(task, self.data[task]) if task in self.data else task

    def _build(self, task: str) -> None:
        """A task that cannot be built (a package, a data set or a file is missing) would fail after
        everything was paid for.
        """
        try:
            manager(self).load([self.named(task)])
        except Exception as error:  # whatever the task's own code raises
            reason = str(error).strip().splitlines() or [""]
            raise InputError(
                f"evaluation.tasks: {task!r} cannot be built: {type(error).__name__}: {reason[0]}"
            ) from error


@lru_cache
def _with_data(task: str, file: str) -> str:
    values = {
        "include": str(TASKS / f"{task}.yaml"),
        "task": task,
        "dataset_path": _READERS.get(Path(file).suffix, "json"),
        "dataset_kwargs": {"data_files": {"test": file}},
    }
    path = Path(tempfile.mkdtemp(prefix="persyn-task-")) / f"{task}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def manager(evaluation: Evaluation) -> Any:
    """The tasks there are. The harness's take seconds to list: not if `include_path` has all that
    are named.
    """
    return _manager(evaluation.tasks, evaluation.include_path)


@lru_cache(maxsize=1)
def _manager(tasks: tuple[str, ...], include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    folders = [str(TASKS), *([include_path] if include_path else [])]
    local = TaskManager(include_path=folders, include_defaults=False)
    if set(tasks) <= set(local.all_tasks):
        return local
    return TaskManager(include_path=folders)
