"""The tasks of lm-evaluation-harness that a recipe names: are they there, and where from?"""

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.evaluation import Evaluation
from persyn_datasets.data import sources

OURS = Path(__file__).parents[1] / "tasks"
_READERS = {".csv": "csv", ".parquet": "parquet"}


def check(evaluation: Evaluation, prompts: Dataset) -> None:
    """Raises `InputError`: nothing to do, an unknown task, or a held-out prompt that is among the
    prompts.
    """
    if not evaluation.tasks and not evaluation.held_out:
        raise InputError(
            "evaluation: there is nothing to do; give tasks, e.g. [gsm8k], or held_out: {path: …}."
        )
    for task in evaluation.data:
        if not (OURS / f"{task}.yaml").exists() or task not in evaluation.tasks:
            ours = ", ".join(sorted(file.stem for file in OURS.glob("*.yaml")))
            raise InputError(
                f"evaluation.data: found {task!r}; expected one of {ours} that is among "
                "evaluation.tasks. For another, put a YAML file with your data into "
                "evaluation.include_path."
            )
    known = manager(evaluation).all_tasks if evaluation.tasks else []
    for task in evaluation.tasks:
        if task not in known:
            raise InputError(
                f"evaluation.tasks: lm-evaluation-harness has no task {task!r}; `lm-eval ls tasks` "
                "lists them, and evaluation.include_path names a folder with your own."
            )
    for task in evaluation.tasks:
        _build(evaluation, task)
    if evaluation.held_out:
        sources.check_apart(evaluation.held_out, prompts)


def named(evaluation: Evaluation, task: str) -> str:
    """A task as the harness takes it: its name, or a YAML file of it with other data."""
    data = evaluation.data
    return _with_data(task, data[task]) if task in data else task


def manager(evaluation: Evaluation) -> Any:
    """The tasks there are. The harness's take seconds to list: not if `include_path` has all that
    are named.
    """
    return _manager(evaluation.tasks, evaluation.include_path)


def _build(evaluation: Evaluation, task: str) -> None:
    """A task that cannot be built (a package, a data set or a file is missing) would fail after
    everything was paid for.
    """
    try:
        manager(evaluation).load([named(evaluation, task)])
    except Exception as error:  # whatever the task's own code raises
        reason = str(error).strip().splitlines() or [""]
        raise InputError(
            f"evaluation.tasks: {task!r} cannot be built: {type(error).__name__}: {reason[0]}"
        ) from error


@lru_cache
def _with_data(task: str, file: str) -> str:
    values = {
        "include": str(OURS / f"{task}.yaml"),
        "task": task,
        "dataset_path": _READERS.get(Path(file).suffix, "json"),
        "dataset_kwargs": {"data_files": {"test": file}},
    }
    path = Path(tempfile.mkdtemp(prefix="persyn-task-")) / f"{task}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@lru_cache(maxsize=1)
def _manager(tasks: tuple[str, ...], include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    folders = [str(OURS), *([include_path] if include_path else [])]
    local = TaskManager(include_path=folders, include_defaults=False)
    if set(tasks) <= set(local.all_tasks):
        return local
    return TaskManager(include_path=folders)
