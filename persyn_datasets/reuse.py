"""A router used again on new prompts: `persyn route` and `persyn synthesize`.

<output>/data/        Parquet files of each split, one for every `ROWS_PER_SHARD` prompts
<output>/README.md, stats.json      of `synthesize`: the card and its numbers
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.recipe import Prompts
from persyn_datasets.config.teacher import Teacher, check_prices
from persyn_datasets.data import schema
from persyn_datasets.engines import engine_of
from persyn_datasets.engines.account import Account, merge
from persyn_datasets.hub import cards, licenses
from persyn_datasets.report import measure as report
from persyn_datasets.router.model import Router
from persyn_datasets.runners.local import run
from persyn_datasets.stages.route import Route
from persyn_datasets.stages.synthesize import Synthesize
from persyn_datasets.store.journal import digest, replace_file
from persyn_datasets.strategies.budget import Budget, within_budget

LOOKED_AT = 256  # prompts that are compared with those of the calibration
ROWS = 1000  # that are routed at once
ROWS_PER_SHARD = 20_000
Rows: TypeAlias = Dataset | IterableDataset


def check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder; give another --output, or remove it.")


def warnings(router: Router, prompts: Rows) -> list[str]:
    """See `Router.unlike`; looks at some of the prompts: of a stream the first, else evenly
    spread.
    """
    if isinstance(prompts, Dataset):
        prompts = prompts.select(range(0, len(prompts), ceil(len(prompts) / LOOKED_AT)))
    return router.unlike([row["messages"] for row in islice(prompts, LOOKED_AT)])


def route(
    router: Router,
    prompts: Rows,
    output: Path,
    names: Sequence[str] | None = None,
    budget: Budget | None = None,
    runner: str = "local",
) -> Counter[str]:
    """Write the prompts with their teacher; returns prompts per teacher.

    Args:
        names: the teachers that are available. Default: all.
        budget: see `Budget`; at the prices in the router.
        runner: see `run`.

    Raises:
        InputError: the `budget` is too small, or cannot be kept.
    """
    routing = Route(router, names)
    if budget:
        teachers = [Teacher.from_dict(t) for t in router.config.persyn["teachers"]]
        prompts = _routed(prompts, routing, budget, teachers, runner)
    done = _by_shard(
        prompts,
        output,
        digest([router.content, names]),
        lambda rows, _: (
            rows if budget else run(rows, routing, schema.ROUTED, runner, batch_size=ROWS),
            [],
        ),
    )
    return sum((Counter(shard["counts"]) for shard in done), Counter())


def synthesize(
    router: Router,
    prompts: Rows,
    output: Path,
    source: Prompts,
    names: Sequence[str] | None = None,
    overrides: Iterable[str] = (),
    warned: Sequence[str] = (),
    max_cost: float | None = None,
    budget: Budget | None = None,
    runner: str = "local",
) -> Counter[str]:
    """Assign and answer, and write the answers with their card; returns prompts per teacher.

    Args:
        prompts: rows of `load_prompts`; `source` says where they come from.
        names: the teachers that are available. Default: all.
        overrides: see `Router.teachers_with`.
        warned: what `warnings` said, for the card.
        max_cost: USD; see `Account`. A prompt that comes again in another shard counts again.
        budget: see `Budget`.
        runner: see `run`.

    Raises:
        InputError: before anything is spent: a teacher cannot be asked, or the router does not say
            how.
        BuildError: every response failed, or `max_cost` is reached.
    """
    teachers = router.teachers_with(overrides, names)
    if not teachers:
        raise InputError(
            f"{router.path} does not say how its teachers are asked: train it with teachers=[…]."
        )
    check_prices(teachers, max_cost)
    routing = Route(router, names)
    used = [t.name for t in teachers]
    at_once = bool(budget) or isinstance(prompts, Dataset)
    if at_once:
        prompts = _routed(prompts, routing, budget, teachers, runner)
        used = prompts.unique("teacher")
    for teacher in teachers:
        if teacher.name in used:
            engine_of(teacher).check(teacher)

    def answer(rows: Dataset, before: float) -> tuple[Dataset, list[dict[str, Any]]]:
        if not at_once:  # a column `router_scores` would be another router's
            rows = run(rows, routing, schema.ROUTED, runner, batch_size=ROWS)
        account = Account(max_cost, before)
        rows = run(
            rows, Synthesize(teachers, account=account), schema.SYNTHESIZED, runner, batch_size=None
        )
        return rows.remove_columns(["messages"]), account.to_list()

    address = digest([router.content, names, [t.identity() for t in teachers]])
    done = _by_shard(prompts, output, address, answer, prefix="persyn-")
    counts, failures = (
        sum((Counter(shard[key]) for shard in done), Counter()) for key in ("counts", "errors")
    )
    stats = {
        "name": output.name,
        "prompts": source.path if licenses.is_hub_id(source.path) else Path(source.path).name,
        "rows": counts.total(),
        "failed": failures.total(),
        "errors": dict(failures.most_common(3)),
        "per_teacher": {name: {"routed": n} for name, n in counts.most_common()},
        "router": f"{router.path}@{router.revision}" if router.revision else Path(router.path).name,
        "warnings": list(warned),
        "account": merge(line for shard in done for line in shard["account"]),
        "versions": report.versions(),
        **licenses.sources(source, teachers),
    }
    metadata = cards.dataset_metadata(stats, cards.hashes(cards.files(output, cards.PATTERNS)))
    card = cards.dataset_card(None, stats, str(output))
    (output / "README.md").write_text(cards.merge("", metadata, card))
    (output / "stats.json").write_text(json.dumps(stats, indent=2))
    return counts


def _routed(
    prompts: Rows, routing: Route, budget: Budget | None, teachers: Sequence[Teacher], runner: str
) -> Dataset:
    """All prompts with their teacher, which a budget has a say in."""
    if not isinstance(prompts, Dataset):
        raise InputError(
            "A budget is shared by all prompts, and a stream does not show them: leave out "
            "--streaming."
        )
    if budget:
        budget.check(teachers)
    routed = run(
        prompts, routing, schema.ROUTED, runner, batch_size=ROWS, load_from_cache_file=True
    )
    assert isinstance(routing.router, Router)
    return within_budget(routed, routing.router, budget, teachers)[0] if budget else routed


def _by_shard(
    prompts: Rows,
    output: Path,
    address: str,
    work: Callable[[Dataset, float], tuple[Dataset, list[dict[str, Any]]]],
    prefix: str = "",
) -> list[dict[str, Any]]:
    """Work on `ROWS_PER_SHARD` prompts at a time and write what comes of them, failed rows apart.

    A finished shard is found again, by its prompts and by `address`, when an interrupted run is
    started anew. In `output` nothing is there until all is.

    Args:
        work: takes a shard and the USD that were spent on those before it; gives its rows, and
            lines of its account.

    Returns:
        Of each shard: `files` by split, `counts` of rows by teacher, `errors`, and `account`.

    Raises:
        BuildError: every response failed.
    """
    unfinished = output.with_name(f"{output.name}.unfinished")
    shards = unfinished / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(unfinished / "data", ignore_errors=True)
    done: list[dict[str, Any]] = []
    for i, rows in enumerate(_shards(prompts)):
        note = shards / f"{i:05d}-{digest([address, _content(rows)])}.json"
        shard = json.loads(note.read_text()) if note.exists() else None
        if not shard or not all((shards / file).exists() for file in shard["files"].values()):
            before = sum(
                line["usd"] + line["reused_usd"] for shard in done for line in shard["account"]
            )
            shard = _write(*work(rows, before), note)
        done.append(shard)
    if not any("train" in shard["files"] for shard in done):
        shutil.rmtree(unfinished)
        errors = sum((Counter(shard["errors"]) for shard in done), Counter())
        why = (
            f"Every response failed, most with: {errors.most_common(1)[0][0]}"
            if errors
            else "There are no prompts."
        )
        raise BuildError(why)
    (unfinished / "data").mkdir()
    for split in ("train", "failed"):
        files = [shard["files"][split] for shard in done if split in shard["files"]]
        for i, file in enumerate(files):
            os.replace(
                shards / file,
                unfinished / "data" / f"{prefix}{split}-{i:05d}-of-{len(files):05d}.parquet",
            )
    shutil.rmtree(shards)
    unfinished.rename(output)
    return done


def _shards(prompts: Rows) -> Iterator[Dataset]:
    if isinstance(prompts, Dataset):
        starts = range(0, len(prompts), ROWS_PER_SHARD)
        yield from (prompts.select(range(i, min(i + ROWS_PER_SHARD, len(prompts)))) for i in starts)
    else:
        for batch in prompts.iter(
            batch_size=ROWS_PER_SHARD
        ):  # in Arrow format each row would be a table of its own
            yield Dataset.from_dict(batch, features=prompts.features)


def _content(rows: Dataset) -> str:
    """A hash of the rows. Scores may differ in their last digits from run to run."""
    rows = rows.remove_columns([c for c in rows.column_names if c == "router_scores"])
    table, sink = rows.with_format("arrow")[:].combine_chunks(), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:32]


def _write(rows: Dataset, account: list[dict[str, Any]], note: Path) -> dict[str, Any]:
    """Write a shard; its note last: it says that the shard is whole."""
    table = rows.with_format("arrow")[:].cast(rows.features.arrow_schema)
    parts, errors = {"train": table}, Counter[str]()
    if "error" in table.column_names:
        failed = pc.not_equal(table["error"], "")
        parts = {"train": table.filter(pc.invert(failed)), "failed": table.filter(failed)}
        errors.update(parts["failed"]["error"].to_pylist())
    files = {
        split: f"{note.stem}-{split}.parquet" for split, part in parts.items() if part.num_rows
    }
    for split, file in files.items():
        pq.write_table(parts[split], note.with_name(file))
    counts = Counter(table["teacher"].to_pylist())
    shard = {"files": files, "counts": counts, "errors": errors, "account": account}
    replace_file(note, json.dumps(shard).encode())
    return shard
