"""Where a stage runs: in this process, in one process for each GPU, or on a Ray cluster. The
results are the same.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import dill
import multiprocess
import pyarrow as pa
import torch
from datasets import Dataset, Features, concatenate_datasets

from persyn_datasets.config.teacher import Sampling, Teacher
from persyn_datasets.data.responses import Responses, with_columns
from persyn_datasets.engines import engine_of, facts_of
from persyn_datasets.stages.generate import Generate
from persyn_datasets.stages.rank import Rank
from persyn_datasets.stages.route import Route
from persyn_datasets.stages.score import Score
from persyn_datasets.stages.synthesize import Synthesize
from persyn_datasets.store.meter import metered
from persyn_datasets.store.progress import bars_of_datasets, title

BYTES_AT_ONCE = 2**28  # of texts; a batch in memory takes several times as much
BYTES_OF_A_TOKEN = 4


def run(
    rows: Dataset, stage: Any, adds: dict[str, Any], runner: str = "local", **options: Any
) -> Dataset:
    """`rows.map(stage)`; on a machine with several GPUs, local models work on all of them.

    Args:
        adds: the columns that the stage adds, see schema.py.
        runner: one of `runners.RUNNERS`. On Ray, stages without a model run here; see `ray_runner`.
        options: of `map`. Its cache is off by default: the journal remembers better, and no failed
            rows. `batch_size=None` is all rows at once, or as many as memory and an Arrow column
            hold.
    """
    features = Features({**rows.features, **adds})
    options = {
        "load_from_cache_file": False,
        "desc": title(type(stage).__name__),
        "batched": True,
    } | options
    if options["batch_size"] is None and (most := rows_at_once(rows, stage)) < len(rows):
        if isinstance(stage, Rank) and stage.normalize == "corpus":
            return _rank_in_parts(rows, stage, features, most)
        options["batch_size"] = most
    if not isinstance(stage, Score | Route):
        return _run(rows, stage, features, runner, options)
    gpus = min(torch.cuda.device_count(), len(rows))
    with metered(type(stage).__name__, gpus, on_cluster=runner == "ray"):
        return _run(rows, stage, features, runner, options)


def _run(
    rows: Dataset, stage: Any, features: Features, runner: str, options: dict[str, Any]
) -> Dataset:
    if runner == "ray":
        from persyn_datasets.runners import ray as ray_runner  # an extra

        if isinstance(stage, Score | Route):
            return ray_runner.map_rows(rows, stage, features)
        if isinstance(stage, Generate | Synthesize):
            stage = replace(stage, ask=ray_runner.ask)
    elif (gpus := min(torch.cuda.device_count(), len(rows))) > 1:
        if isinstance(stage, Route) or (isinstance(stage, Score) and stage.student is not None):
            return _on_each_gpu(rows, stage, gpus, options | {"features": features})
        if isinstance(stage, Generate | Synthesize):
            _fill_journal(rows, stage, gpus, options)
    # A map over one batch has nothing to show, and the stage has a bar of its own.
    with bars_of_datasets(options["batch_size"] is not None):
        return rows.map(stage, features=features, **options)


def rows_at_once(rows: Dataset, stage: Any) -> int:
    """Of how many rows the texts, with the answers that a stage adds, stay below `BYTES_AT_ONCE`.

    An answer has `max_tokens` of `BYTES_OF_A_TOKEN` at most, or what its engine's `answer_bytes`
    says.
    """
    of_a_row = rows.data.nbytes / max(1, len(rows.data))
    if isinstance(stage, Generate | Synthesize):
        sizes = [_answer_bytes(teacher) for teacher in stage.teachers]
        of_a_row += sum(sizes) * stage.samples if isinstance(stage, Generate) else max(sizes)
    return max(1, int(BYTES_AT_ONCE / max(1.0, of_a_row)))


def _answer_bytes(teacher: Teacher) -> float:
    if measured := getattr(engine_of(teacher), "answer_bytes", None):
        return float(measured(teacher))
    return float((teacher.sampling or Sampling()).max_tokens * BYTES_OF_A_TOKEN)


def _rank_in_parts(rows: Dataset, rank: Rank, features: Features, most: int) -> Dataset:
    """`Rank` over all rows, which needs no texts; then its columns beside the texts, in parts."""
    rows = rows.with_format("arrow")
    light = pa.concat_tables(
        pa.table(
            {
                "prompt_id": batch["prompt_id"],
                "responses": Responses(batch["responses"]).with_fields(text=None),
            }
        )
        for batch in rows.iter(batch_size=most)
    )
    ranked = rank(light)
    assert isinstance(ranked, pa.Table)

    def beside(batch: pa.Table, indices: list[int]) -> pa.Table:
        part = ranked.slice(indices[0], len(batch))
        signals = Responses(part["responses"])
        added = {key: signals.field(key).combine_chunks() for key in ("reward", "rank")}
        column = Responses(batch["responses"]).with_fields(**added)
        return with_columns(batch, responses=column, best_teacher=part["best_teacher"])

    options = {"batched": True, "with_indices": True, "batch_size": most, "features": features}
    return rows.map(beside, **options, load_from_cache_file=False, desc=title("Rank"))


def _fill_journal(
    rows: Dataset, stage: Generate | Synthesize, gpus: int, options: dict[str, Any]
) -> None:
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
        stage = replace(stage, teachers=local, max_failed=1.0)
        _on_each_gpu(rows, stage, gpus, options | {"remove_columns": rows.column_names})


def _on_each_gpu(rows: Dataset, stage: Any, gpus: int, options: dict[str, Any]) -> Dataset:
    """`rows.map(stage)` in a process for each GPU, with a part of the rows each, in order.

    The processes are started afresh, since CUDA does not work in a forked one; and not by `map`'s
    `num_proc`, which would start them by the start method of the user's whole program.
    """
    gpus = min(gpus, len(rows))
    parts = [
        (rows.shard(gpus, i, contiguous=True), partial(stage, rank=i), options | _file_for(rows))
        for i in range(gpus)
    ]
    # What a script defines is pickled by value, with what it refers to.
    pickled = [dill.dumps(part, recurse=True) for part in parts]
    with _no_main_module(), multiprocess.get_context("spawn").Pool(gpus) as pool:
        return concatenate_datasets(pool.map(_map_part, pickled, chunksize=1))


def _map_part(pickled: bytes) -> Dataset:
    rows, stage, options = dill.loads(pickled)
    with bars_of_datasets(stage.keywords["rank"] == 0 and options["batch_size"] is not None):
        return rows.map(stage, **options)


def _file_for(rows: Dataset) -> dict[str, str]:
    """Where a part of the result is kept: beside the rows, where these are in files."""
    if not rows.cache_files:
        return {}
    folder = Path(rows.cache_files[0]["filename"]).parent
    return {"cache_file_name": str(folder / f"cache-{uuid4().hex}.arrow")}


@contextmanager
def _no_main_module() -> Iterator[None]:
    """For processes that are started afresh: they would first run the user's script again, but for
    its part under `if __name__ == "__main__"`, which not every script has.
    """
    main = sys.modules["__main__"]
    hidden = {key: getattr(main, key, None) for key in ("__spec__", "__file__")}
    try:
        for key in hidden:
            setattr(main, key, None)
        yield
    finally:
        for key, value in hidden.items():
            setattr(main, key, value)
