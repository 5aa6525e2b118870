"""Where a stage runs: in this process, in one process for each GPU, or on a Ray cluster. The
results are the same.
"""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import multiprocess
import torch
from datasets import Dataset, Features

from persyn_datasets.config.errors import InputError
from persyn_datasets.engines import facts_of
from persyn_datasets.stages.generate import Generate
from persyn_datasets.stages.route import Route
from persyn_datasets.stages.score import Score
from persyn_datasets.stages.synthesize import Synthesize
from persyn_datasets.store.progress import bars_of_datasets, title

RUNNERS = ("local", "ray")


def check(runner: str) -> None:
    """Raises `InputError` if there is no such runner."""
    if runner not in RUNNERS:
        raise InputError(f"runner is {runner!r}; expected one of {', '.join(RUNNERS)}.")
    if runner == "ray" and not find_spec("ray"):
        raise InputError(
            "runner is 'ray', and Ray is not installed; `pip install \"persyn-datasets[ray]\"`."
        )


def run(
    rows: Dataset, stage: Any, adds: dict[str, Any], runner: str = "local", **options: Any
) -> Dataset:
    """`rows.map(stage)`; on a machine with several GPUs, local models work on all of them.

    Args:
        adds: the columns that the stage adds, see schema.py.
        runner: one of `RUNNERS`. On Ray, stages without a model run here; see `ray_runner`.
        options: of `map`. Its cache is off by default: the journal remembers better, and no failed
            rows.
    """
    features = Features({**rows.features, **adds})
    options = {
        "load_from_cache_file": False,
        "desc": title(type(stage).__name__),
        "batched": True,
    } | options
    if runner == "ray":
        from persyn_datasets.runners import ray as ray_runner  # an extra

        if isinstance(stage, Score | Route):
            return ray_runner.map_rows(rows, stage, features)
        if isinstance(stage, Generate | Synthesize):
            stage = replace(stage, ask=ray_runner.ask)
    elif (gpus := min(torch.cuda.device_count(), len(rows))) > 1:
        on_each_gpu = {"num_proc": gpus, "with_rank": True}
        multiprocess.set_start_method("spawn", force=True)  # CUDA does not work in a forked process
        if isinstance(stage, Score | Route):
            options |= on_each_gpu
        elif isinstance(stage, Generate | Synthesize):
            _fill_journal(rows, stage, options | on_each_gpu)
    # A map over one batch has nothing to show, and the stage has a bar of its own.
    with bars_of_datasets(options["batch_size"] is not None):
        return rows.map(stage, features=features, **options)


def _fill_journal(rows: Dataset, stage: Generate | Synthesize, options: dict[str, Any]) -> None:
    """Let local teachers answer, each with a copy on every GPU; `stage` then finds the answers in
    the journal.

    Under a `max_cost`, teachers with a price are left to the one process that keeps the account.
    """
    limited = stage.account.max_cost is not None
    local = [t for t in stage.teachers if facts_of(t).in_process and not (limited and t.price)]
    if isinstance(stage, Synthesize):
        names = {t.name for t in local}
        rows = rows.filter(
            lambda teacher: teacher in names, input_columns="teacher", load_from_cache_file=False
        )
    if local and len(rows):
        options = options | {
            "num_proc": min(options["num_proc"], len(rows)),
            "remove_columns": rows.column_names,
        }
        rows.map(replace(stage, teachers=local, max_failed=1.0), **options)
