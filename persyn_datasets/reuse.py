"""A router used again on new prompts: `persyn route` and `persyn synthesize`.

<output>/data/        Parquet files of each split, one for every `ROWS_PER_SHARD` prompts
<output>/README.md, stats.json      of `synthesize`: the card and its numbers
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.prompts import Prompts
from persyn_datasets.config.reasoning import KeepReasoning
from persyn_datasets.config.shares import part_of
from persyn_datasets.config.teacher import Teacher, check_prices
from persyn_datasets.data import schema
from persyn_datasets.data.build import STATS, Answered, Line
from persyn_datasets.data.conversations import conversations
from persyn_datasets.data.distillation import teacher_ids
from persyn_datasets.data.rows import rows_hash
from persyn_datasets.data.tools import offered
from persyn_datasets.engines import check_tools, engine_of
from persyn_datasets.engines.account import Account, merge
from persyn_datasets.engines.dispatch import identity_of
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
UNFINISHED = ".unfinished"
Rows: TypeAlias = Dataset | IterableDataset


def check_output(output: Path) -> None:
    """Raises `InputError` unless the output is free, or holds an interrupted run."""
    free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not free and not (output / UNFINISHED).is_dir():
        raise InputError(f"{output} is not an empty folder; give another --output, or remove it.")


def unfinished_of(output: Path) -> Path:
    """The folder for everything that is not finished: next to the output, or inside it if it exists
    already, e.g. as the working folder, a link or a mounted volume.
    """
    if output.is_dir():
        return output / UNFINISHED
    return output.with_name(f"{output.name}{UNFINISHED}")


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
    distill: bool = False,
) -> Counter[str]:
    """Write the prompts with their teacher; returns prompts per teacher.

    Args:
        names: the teachers that are available. Default: all.
        budget: see `Budget`; at the prices in the router.
        runner: see `run`.
        distill: write them as `teacher_ids` does.

    Raises:
        InputError: the `budget` is too small, or cannot be kept.
    """
    routing = Route(router, names)
    if budget:
        teachers = [Teacher.from_dict(t) for t in router.config.persyn["teachers"]]
        prompts = _routed(prompts, routing, budget, teachers, runner)

    def routed(rows: Dataset, _: Any) -> tuple[Dataset, list[Line]]:
        if not budget:
            rows = run(rows, routing, schema.ROUTED, runner, batch_size=ROWS)
        return (teacher_ids(rows) if distill else rows), []

    what = [router.content, names, *(["teacher_id"] if distill else [])]
    done = _by_shard(prompts, unfinished_of(output), digest(what), routed)
    _finish(output)
    return _sum(done, "counts")


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
    max_failed: float = 1.0,
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
        max_failed: the share of failed answers above which nothing is written to `output`.

    Raises:
        InputError: before anything is spent: a teacher cannot be asked, or the router does not say
            how.
        BuildError: every response failed, or more than `max_failed`, or `max_cost` is reached. What
            was answered is kept, and only what failed is asked again by the same call.
    """
    if not 0 <= max_failed <= 1:
        raise InputError(f"max_failed is {max_failed}; expected a share from 0 to 1.")
    teachers = _teachers(router, overrides, names, max_cost)
    # As the router's own build did, whose rewards are of such completions.
    keep: KeepReasoning = router.config.persyn.get("keep_reasoning", "inline")
    routing = Route(router, names)
    used = [t.name for t in teachers]
    at_once = bool(budget) or isinstance(prompts, Dataset)
    if at_once:
        prompts = _routed(prompts, routing, budget, teachers, runner)
        used = prompts.unique("teacher")
    for teacher in teachers:
        if teacher.name in used:
            if isinstance(prompts, Dataset) and any(offered(prompts)):
                check_tools(teacher)
            engine_of(teacher).check(teacher)

    def answer(rows: Dataset, before: float) -> tuple[Dataset, list[Line]]:
        if not at_once:  # a column `router_scores` would be another router's
            rows = run(rows, routing, schema.ROUTED, runner, batch_size=ROWS)
        account = Account(max_cost, before)
        stage = Synthesize(teachers, account=account, keep_reasoning=keep)
        adds = schema.synthesized(rows.column_names)
        rows = run(rows, stage, adds, runner, batch_size=None)
        return rows.remove_columns(schema.steering(rows.column_names)), account.to_list()

    address = digest([router.content, names, [identity_of(t) for t in teachers], keep])
    unfinished = unfinished_of(output)
    done = _by_shard(prompts, unfinished, address, answer, "persyn-", max_failed)
    _write_conversations(unfinished)
    stats = _answered(done, router, source, teachers, warned, output.resolve().name)
    _write_card(stats, unfinished, output)
    _finish(output)
    return _sum(done, "counts")


def _teachers(
    router: Router, overrides: Iterable[str], names: Sequence[str] | None, max_cost: float | None
) -> list[Teacher]:
    """The router's teachers, as they are asked here."""
    teachers = router.teachers_with(overrides, names)
    if not teachers:
        raise InputError(
            f"{router.path} does not say how its teachers are asked: train it with teachers=[…]."
        )
    check_prices(teachers, max_cost)
    return teachers


def _answered(
    done: list[dict[str, Any]],
    router: Router,
    source: Prompts,
    teachers: Sequence[Teacher],
    warned: Sequence[str],
    name: str,
) -> Answered:
    """What the card of these shards says."""
    counts, failures = _sum(done, "counts"), _sum(done, "errors")
    return {
        "name": name,
        "prompts": source.path if licenses.is_hub_id(source.path) else Path(source.path).name,
        "rows": counts.total(),
        "failed": failures.total(),
        "errors": dict(failures.most_common(3)),
        "per_teacher": {name: {"routed": n} for name, n in counts.most_common()},
        "router": f"{router.path}@{router.revision}" if router.revision else Path(router.path).name,
        "warnings": list(warned),
        "account": merge(line for shard in done for line in shard["account"]),
        "versions": report.versions(),
        "max_length": None,
        **licenses.sources(source, teachers),
    }


def _write_card(stats: Answered, unfinished: Path, output: Path) -> None:
    metadata = cards.dataset_metadata(stats, cards.hashes(cards.files(unfinished, cards.PATTERNS)))
    card = cards.dataset_card(None, stats, str(output))
    (unfinished / "README.md").write_text(cards.merge("", metadata, card))
    (unfinished / STATS).write_text(json.dumps(stats, indent=2))


def _write_conversations(unfinished: Path) -> None:
    """A file of the config `messages` beside each of `train`."""
    (unfinished / "messages").mkdir(exist_ok=True)
    for file in (unfinished / "data").glob("persyn-train-*.parquet"):
        rows = Dataset.from_parquet(str(file))
        assert isinstance(rows, Dataset)
        name = file.name.removeprefix("persyn-")
        conversations(rows).to_parquet(unfinished / "messages" / name)


def _routed(
    prompts: Rows, routing: Route, budget: Budget | None, teachers: Sequence[Teacher], runner: str
) -> Dataset:
    """All prompts with their teacher, within the budget if there is one."""
    if not isinstance(prompts, Dataset):
        raise InputError(
            "A budget is shared by all prompts, and a stream does not know them in advance; leave "
            "out --streaming."
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
    unfinished: Path,
    address: str,
    work: Callable[[Dataset, float], tuple[Dataset, list[Line]]],
    prefix: str = "",
    max_failed: float = 1.0,
) -> list[dict[str, Any]]:
    """Work on `ROWS_PER_SHARD` prompts at a time and write what comes of them, failed rows apart.

    A finished shard is found again, by its prompts and by `address`, when an interrupted run is
    started anew; one with failed rows is worked on again.

    Args:
        unfinished: where `data/` is made.
        work: takes a shard and the USD that were spent on those before it; gives its rows, and
            lines of its account.

    Returns:
        Of each shard: `files` by split, `counts` of rows by teacher, `errors`, and `account`.

    Raises:
        BuildError: every response failed, or more than `max_failed`.
    """
    shards = unfinished / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    for made in ("data", "messages"):
        shutil.rmtree(unfinished / made, ignore_errors=True)
    done: list[dict[str, Any]] = []
    for i, rows in enumerate(_shards(prompts)):
        note = shards / f"{i:05d}-{digest([address, _content(rows)])}.json"
        shard = json.loads(note.read_text()) if note.exists() else None
        if not shard or shard["errors"] or not _there(shard, shards):
            before = sum(
                line["usd"] + line["reused_usd"] for shard in done for line in shard["account"]
            )
            shard = _write(*work(rows, before), note)
        done.append(shard)
        _check_failed(done, max_failed, at_least=ROWS_PER_SHARD)
    if not any("train" in shard["files"] for shard in done):
        errors = _sum(done, "errors").most_common(1)
        why = (
            f"Every response failed, most with: {errors[0][0]}"
            if errors
            else "There are no prompts."
        )
        raise BuildError(why)
    _check_failed(done, max_failed)
    _gather(done, unfinished, prefix)
    return done


def _gather(done: list[dict[str, Any]], unfinished: Path, prefix: str) -> None:
    """Move the shards' files to where the dataset has them."""
    shards, data = unfinished / "shards", unfinished / "data"
    data.mkdir()
    for split in ("train", "failed"):
        files = [shard["files"][split] for shard in done if split in shard["files"]]
        for i, file in enumerate(files):
            name = f"{prefix}{split}-{i:05d}-of-{len(files):05d}.parquet"
            os.replace(shards / file, data / name)
    shutil.rmtree(shards)


def _sum(done: list[dict[str, Any]], key: str) -> Counter[str]:
    return sum((Counter(shard[key]) for shard in done), Counter())


def _there(shard: dict[str, Any], shards: Path) -> bool:
    return all((shards / file).exists() for file in shard["files"].values())


def _check_failed(done: list[dict[str, Any]], max_failed: float, at_least: int = 1) -> None:
    """Raises `BuildError` if more than the share `max_failed` failed, of at least so many rows."""
    rows = sum(sum(shard["counts"].values()) for shard in done)
    errors = _sum(done, "errors")
    if errors.total() > part_of(max_failed, max(rows, at_least)):
        reasons = "; ".join(f"{n:,} × {error[:200]}" for error, n in errors.most_common(3))
        raise BuildError(
            f"{errors.total():,} of {rows:,} responses failed, and max_failed is {max_failed:.0%}: "
            f"{reasons}. All answers are kept: fix it, or raise max_failed, and run the same "
            "command again."
        )


def _finish(output: Path) -> None:
    """Move the finished files to the output. A run that is killed before is resumed by the same
    command.
    """
    unfinished = unfinished_of(output)
    if not output.is_dir():
        unfinished.rename(output)
        return
    for entry in sorted(unfinished.iterdir(), key=lambda entry: entry.name == STATS):
        place = output / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        entry.replace(place)
    unfinished.rmdir()


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
    return rows_hash(rows.remove_columns([c for c in rows.column_names if c == "router_scores"]))


def _write(rows: Dataset, account: list[Line], note: Path) -> dict[str, Any]:
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
    named = "teacher_id" if "teacher_id" in table.column_names else "teacher"
    counts = Counter(table[named].to_pylist())
    shard = {"files": files, "counts": counts, "errors": errors, "account": account}
    replace_file(note, json.dumps(shard).encode())
    return shard
