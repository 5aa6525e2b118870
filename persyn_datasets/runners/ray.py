"""The stages on a Ray cluster, by Ray Data: the same objects, the same results, the same order.

Requests to teachers are spread over actors, which write the answers into the journal. That is best
on a file system that all nodes share (`$PERSYN_JOURNAL`): then a lost node costs no more than what
it had in flight. Where it is not shared, the answers of each finished block are put into the
journal of the process that builds.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pyarrow as pa
import ray
from datasets import Dataset, Features, Value
from datasets.utils import disable_progress_bars
from huggingface_hub.utils import disable_progress_bars as disable_hub_progress_bars
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayTaskError

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data import schema
from persyn_datasets.engines import Request, Response, facts_of
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.dispatch import ask_here, respond, side_by_side
from persyn_datasets.store.journal import default_root, digest

ROWS_PER_BLOCK = 512  # of local models
TURNS_PER_BLOCK = 32  # of endpoints: requests in a block for each concurrent request
REMOTE = "remote"  # the group of all teachers that run elsewhere
CPUS = 0.25  # per actor, so that small nodes can also start the next stage's actors
_REQUEST = Features(
    {
        "index": Value("int64"),
        "name": Value("string"),
        "prompt_id": Value("string"),
        "messages": schema.MESSAGES,
        "sample": Value("int64"),
        "tools": Value("string"),
    }
)
_RESPONSE = {
    key: value for key, value in schema.RESPONSE.items() if key != "sample"
}  # the request knows it
_ANSWER = Features({"index": Value("int64"), "journalled": Value("bool"), **_RESPONSE})


def connect() -> None:
    """To the cluster at `RAY_ADDRESS`, else to one that runs on this machine, else start
    one here.
    """
    if not ray.is_initialized():
        ray.init()
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False  # stages have their own
    context.raise_original_map_exception = True


def map_rows(rows: Dataset, stage: Any, features: Features) -> Dataset:
    """`rows.map(stage)` for a stage with one model: each actor loads it once, on a GPU where there
    are any.
    """
    connect()
    gpus = min(1.0, _gpus_of_cluster())
    actors, blocks = _actors(gpus, ceil(len(rows) / ROWS_PER_BLOCK))
    tables = _blocks(
        rows, blocks, _Stage, (stage, rows.features, features, default_root()), actors, gpus
    )
    return Dataset(pa.concat_tables(tables).cast(features.arrow_schema))


def ask(requests: list[Request], account: Account, keep: Callable[..., None]) -> None:
    """Like `respond.ask_here`. Endpoints are asked from all nodes, which share each teacher's
    `concurrency` and limits per minute between them; meanwhile local teachers work one after
    another, with a copy on as many GPUs as there are.

    Batches are sent from here; under a `max_cost` endpoints with a price are asked from here, too,
    since the account is here; to local teachers with a price requests are sent as far as their
    highest prices fit, and when these are answered, more are.
    """
    connect()
    groups: dict[str, list[Request]] = {}
    here = []
    for request in requests:
        facts = facts_of(request.teacher)
        limited = account.max_cost is not None and request.teacher.price
        if not facts.journalled or facts.whole or (facts.remote and limited):
            here.append(request)
        else:
            groups.setdefault(_group(request.teacher), []).append(request)
    for group in groups.values():
        _check_gpus(group[0].teacher)

    def work(group: list[Request]) -> None:
        while group and (admitted := [request for request in group if account.admit(request)]):
            for request, response, journalled in _answers(admitted, account.stage):
                keep(request, response, journalled)
                if account.closed.is_set():
                    return
            sent = set(map(id, admitted))
            group = [request for request in group if id(request) not in sent]

    aside = [partial(ask_here, here, account, keep)]
    aside += [partial(work, groups.pop(REMOTE))] if REMOTE in groups else []
    side_by_side(account, aside, [partial(work, group) for group in groups.values()])


def _answers(requests: Sequence[Request], stage: str) -> Iterator[tuple[Request, Response, bool]]:
    """The answers as blocks of them arrive; True: it is in the journal."""
    teachers = {request.teacher.name: request.teacher for request in requests}
    first = requests[0].teacher
    gpus = _gpus(first)
    if facts_of(first).remote:
        least = min(
            min(t.concurrency, t.requests_per_minute or t.concurrency) for t in teachers.values()
        )
        actors = max(1, min(_nodes(), least, len(requests)))
        teachers = {name: _share(teacher, actors) for name, teacher in teachers.items()}
        in_flight = sum(teacher.concurrency for teacher in teachers.values())
        blocks = max(actors, ceil(len(requests) / (TURNS_PER_BLOCK * in_flight)))
    else:
        actors, blocks = _actors(gpus, ceil(len(requests) / ROWS_PER_BLOCK))
        # A model that runs outside the actor's process is started again for each block.
        blocks = blocks if facts_of(first).in_process else actors
    rows = [
        {
            "index": i,
            "name": r.teacher.name,
            "prompt_id": r.prompt_id,
            "messages": r.messages,
            "sample": r.sample,
            "tools": r.tools,
        }
        for i, r in enumerate(requests)
    ]
    table = Dataset(pa.Table.from_pylist(rows, schema=_REQUEST.arrow_schema))
    root = default_root()
    root.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=root, prefix=".shared-") as seen:
        arguments = (teachers, stage, root, Path(seen.name))
        for block in _blocks(table, blocks, _Answer, arguments, actors, gpus):
            for row in block.to_pylist():
                request, journalled = requests[row.pop("index")], row.pop("journalled")
                yield request, row, journalled


def _blocks(
    rows: Dataset, blocks: int, actor: type, arguments: tuple[Any, ...], actors: int, gpus: float
) -> Iterator[pa.Table]:
    """What actors make of the rows, block by block, in order. Raises their errors as they were."""
    bounds = [len(rows) * i // blocks for i in range(blocks + 1)]
    arrow = rows.with_format("arrow")
    # No `repartition`: its tasks need a whole CPU, which a small node does not have once the actors
    # run.
    data = ray.data.from_arrow([arrow[a:b] for a, b in pairwise(bounds) if a < b]).map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=CPUS,
        num_gpus=gpus,
    )
    try:
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, BuildError | InputError) else error from None


class _Stage:
    """An actor that works on blocks with a stage."""

    def __init__(self, stage: Any, found: Features, features: Features, journal: Path):
        _settle_in(journal)
        self.stage, self.found, self.schema = stage, found, features.arrow_schema

    def __call__(self, table: pa.Table) -> pa.Table:
        made = self.stage(self.found.decode_batch(table.to_pydict()))  # as `map` hands them over
        columns = [
            pa.array(made[f.name], f.type) if f.name in made else table[f.name] for f in self.schema
        ]
        return pa.table(columns, schema=self.schema)


class _Answer:
    """An actor that answers requests; a local model stays in memory from block to block."""

    def __init__(self, teachers: dict[str, Teacher], stage: str, journal: Path, seen: Path):
        _settle_in(journal)
        self.teachers, self.stage, self.shared = teachers, stage, seen.exists()

    def __call__(self, table: pa.Table) -> pa.Table:
        requests = [
            Request(
                self.teachers[row["name"]],
                row["prompt_id"],
                row["messages"],
                row["sample"],
                row["tools"],
            )
            for row in table.to_pylist()
        ]
        responses = respond(requests, self.stage, Account())
        made: dict[str, list[Any]] = {key: [r[key] for r in responses] for key in _RESPONSE}  # type: ignore[literal-required]
        return pa.table(
            {
                "index": table["index"],
                "journalled": [self.shared and not r["error"] for r in responses],
                **made,
            },
            schema=_ANSWER.arrow_schema,
        )


def _settle_in(journal: Path) -> None:
    os.environ["PERSYN_JOURNAL"] = str(journal)
    disable_progress_bars()
    disable_hub_progress_bars()


def _group(teacher: Teacher) -> str:
    """Teachers that are asked by the same actors: all remote ones; those that share a model."""
    if facts_of(teacher).remote:
        return REMOTE
    return digest(
        [teacher.engine, teacher.model, teacher.revision, teacher.engine_args, teacher.num_gpus]
    )


def _share(teacher: Teacher, actors: int) -> Teacher:
    """What one actor may ask of the teacher."""
    limits = {
        key: getattr(teacher, key)
        for key in ("concurrency", "requests_per_minute", "tokens_per_minute")
    }
    return replace(teacher, **{key: max(1, most // actors) for key, most in limits.items() if most})


def _gpus(teacher: Teacher) -> float:
    """GPUs of one copy of a teacher. Default: those that vLLM shares its model between; else one if
    there is one.
    """
    if facts_of(teacher).remote:
        return 0.0
    if teacher.num_gpus is not None:
        return teacher.num_gpus
    group = teacher.engine_args.get("tensor_parallel_size", 1) * teacher.engine_args.get(
        "pipeline_parallel_size", 1
    )
    return min(float(group), _gpus_of_cluster()) if group == 1 else float(group)


def _check_gpus(teacher: Teacher) -> None:
    most = max(node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"])
    if (needed := _gpus(teacher)) > most:
        raise InputError(
            f"Teacher {teacher.name!r} needs {needed:g} GPUs on one node, and the largest node of "
            f"the Ray cluster has {most:g}; change its num_gpus or engine_args, or serve the model "
            "yourself and use engine: endpoint."
        )


def _gpus_of_cluster() -> float:
    return ray.cluster_resources().get("GPU", 0.0)


def _nodes() -> int:
    """That take work."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


def _actors(gpus: float, blocks: int) -> tuple[int, int]:
    """How many actors of so many GPUs, and blocks: at least one for each actor."""
    actors = max(1, int(_gpus_of_cluster() / gpus) if gpus else _nodes())
    return actors, max(actors, blocks)
