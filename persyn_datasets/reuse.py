"""A router used again on new prompts: `persyn route` and `persyn synthesize`.

<output>/data/        one Parquet file for each split
<output>/README.md, stats.json      of `synthesize`: the card and its numbers
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset

from persyn_datasets import cards, licenses, report, schema
from persyn_datasets.account import Account, check_prices
from persyn_datasets.engines import engine_of
from persyn_datasets.errors import BuildError, InputError
from persyn_datasets.recipe import Prompts
from persyn_datasets.route import Route
from persyn_datasets.router import Router
from persyn_datasets.synthesize import Synthesize

LOOKED_AT = 256  # prompts that are compared with those of the calibration
ROWS = 1000  # of a stream that are worked on at once
Rows: TypeAlias = Dataset | IterableDataset


def check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder; give another --output, or remove it.")


def warnings(router: Router, prompts: Rows) -> list[str]:
    """See `Router.unlike`; looks at some of the prompts: of a stream the first, else evenly spread."""
    if isinstance(prompts, Dataset):
        prompts = prompts.select(range(0, len(prompts), ceil(len(prompts) / LOOKED_AT)))
    return router.unlike([row["messages"] for row in islice(prompts, LOOKED_AT)])


def route(router: Router, prompts: Rows, names: Sequence[str] | None = None) -> Rows:
    """The prompts with their teacher; `names` are the teachers that are available."""
    return _map(prompts, Route(router, names), schema.ROUTED, batch_size=ROWS)


def synthesize(
    router: Router,
    prompts: Rows,
    output: Path,
    source: Prompts,
    names: Sequence[str] | None = None,
    overrides: Iterable[str] = (),
    warned: Sequence[str] = (),
    max_cost: float | None = None,
) -> Counter[str]:
    """Assign and answer, and write the answers with their card; returns prompts per teacher.

    Args:
        prompts: rows of `load_prompts`; `source` says where they come from.
        names: the teachers that are available. Default: all.
        overrides: see `Router.teachers_with`.
        warned: what `warnings` said, for the card.
        max_cost: USD; see `Account`.

    Raises:
        InputError: before anything is spent: a teacher cannot be asked, or the router does not say how.
        BuildError: every response failed, or `max_cost` is reached.
    """
    teachers = router.teachers_with(overrides, names)
    if not teachers:
        raise InputError(f"{router.path} does not say how its teachers are asked: train it with teachers=[…].")
    check_prices(teachers, max_cost)
    routed = route(router, prompts, names)
    used = routed.unique("teacher") if isinstance(routed, Dataset) else [t.name for t in teachers]
    for teacher in teachers:
        if teacher.name in used:
            engine_of(teacher).check(teacher)
    account = Account(max_cost)
    whole = None if isinstance(prompts, Dataset) else ROWS
    answers = _map(routed, Synthesize(teachers, account=account), schema.SYNTHESIZED, batch_size=whole)
    answers = answers.remove_columns(["messages"])
    counts, failures = write(answers, output, prefix="persyn-")
    stats = {
        "name": output.name,
        "prompts": source.path if licenses.is_hub_id(source.path) else Path(source.path).name,
        "rows": counts.total(),
        "failed": failures.total(),
        "errors": dict(failures.most_common(3)),
        "per_teacher": {name: {"routed": n} for name, n in counts.most_common()},
        "router": f"{router.path}@{router.revision}" if router.revision else Path(router.path).name,
        "warnings": list(warned),
        "account": account.to_list(),
        "versions": report.versions(),
        **licenses.sources(source, teachers),
    }
    metadata = cards.dataset_metadata(stats, cards.hashes(cards.files(output, cards.PATTERNS)))
    card = cards.dataset_card(None, stats, str(output))
    (output / "README.md").write_text(cards.merge("", metadata, card))
    (output / "stats.json").write_text(json.dumps(stats, indent=2))
    return counts


def write(rows: Rows, output: Path, prefix: str = "") -> tuple[Counter[str], Counter[str]]:
    """Write rows as they come, failed ones apart; returns rows per teacher, and errors. Nothing is there until all is.

    Raises:
        BuildError: every response failed.
    """
    unfinished = output.with_name(f"{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "data").mkdir(parents=True)
    features, counts, errors = rows.features, Counter[str](), Counter[str]()
    assert features is not None
    writers: dict[str, pq.ParquetWriter] = {}
    try:
        for table in rows.with_format("arrow").iter(batch_size=ROWS):
            counts.update(table["teacher"].to_pylist())
            parts = {"train": table}
            if "error" in table.column_names:
                failed = pc.not_equal(table["error"], "")
                parts = {"train": table.filter(pc.invert(failed)), "failed": table.filter(failed)}
                errors.update(parts["failed"]["error"].to_pylist())
            for split, part in parts.items():
                if part.num_rows and split not in writers:
                    file = unfinished / "data" / f"{prefix}{split}-00000-of-00001.parquet"
                    writers[split] = pq.ParquetWriter(file, features.arrow_schema)
                if part.num_rows:
                    writers[split].write_table(part.cast(features.arrow_schema))
    finally:
        for writer in writers.values():
            writer.close()
    if "train" not in writers:
        shutil.rmtree(unfinished)
        why = f"Every response failed, most with: {errors.most_common(1)[0][0]}" if errors else "There are no prompts."
        raise BuildError(why)
    unfinished.rename(output)
    return counts, errors


def _map(rows: Rows, stage: Any, adds: dict[str, Any], batch_size: int | None) -> Rows:
    assert rows.features is not None
    features = Features({**rows.features, **adds})
    if isinstance(rows, IterableDataset):
        return rows.map(stage, batched=True, batch_size=batch_size, features=features)
    return rows.map(
        stage, batched=True, batch_size=batch_size, features=features, load_from_cache_file=False,
        desc=type(stage).__name__,
    )  # fmt: skip
