"""The command line: `persyn demo`, `build`, `route`, `synthesize`, `push`, `compare`, `tune`,
`report`, `batches`.

What takes seconds to import is imported where it is needed, after the cheap checks.
"""

import argparse
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.options import parse

KEPT = "What was generated is kept: the same command resumes from here."


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 1 bad input or failed build, with the reason last; 130 interrupted."""
    _prepare()
    options = parse(arguments)
    options.whole_process = arguments is None
    try:
        COMMANDS[options.command](options)
    except (InputError, BuildError) as error:
        if options.verbose:
            traceback.print_exc()
        print(f"persyn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\npersyn: interrupted. {KEPT}", file=sys.stderr)
        return 130
    except Exception as error:  # libraries raise it in many types
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        print(f"persyn: {error}. Free some space. {KEPT}", file=sys.stderr)
        return 1
    return 0


def _prepare() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to interrupt
    # Before torch is imported. OpenMP's threads else spin while they wait, and beside any other
    # work each step then waits for a thread that has no core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A recipe's `quality: rewards.f` is found in the working folder, after all that is installed.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _quieten(options: argparse.Namespace) -> None:
    from persyn_datasets.store.progress import hide_internals

    if not options.verbose:
        hide_internals()


def _demo(options: argparse.Namespace) -> None:
    from persyn_datasets import quickstart

    quickstart.make_inputs()

    from persyn_datasets.builder import PersynBuilder
    from persyn_datasets.hub.licenses import worked_out
    from persyn_datasets.report import page
    from persyn_datasets.report.summary import demo

    _quieten(options)
    builder = PersynBuilder("quickstart", options.output)
    builder.download_and_prepare()
    stats = builder.stats
    assert stats
    path = page.write(builder.output, builder.recipe, stats, worked_out(stats["licenses"]))
    print(demo(stats, page.examples(builder.folder, most=3), builder.output, path))


def _build(options: argparse.Namespace) -> None:
    from persyn_datasets.config.recipe import Recipe
    from persyn_datasets.engines import check_engine

    strategy = [f"strategy={options.strategy}"] if options.strategy else []
    recipe = Recipe.load(options.recipe, [*options.set, *strategy])
    for teacher in recipe.teachers:
        check_engine(teacher)

    # Only now what takes seconds to import: a typo in the recipe is answered at once.
    output = Path(options.output or Path("outputs") / recipe.title)
    if options.dry_run:
        _plan(options, recipe, output)
        return
    if not options.push_to_hub and options.runner == "local":
        from persyn_datasets.inputs import finished
        from persyn_datasets.report.summary import summary

        if stats := finished(recipe, output):
            print(f"\n{summary(recipe, stats, output)}")
            return

    from persyn_datasets.builder import PersynBuilder
    from persyn_datasets.report.summary import summary

    builder = PersynBuilder(recipe, output, runner=options.runner)
    _check_hub(options, bool(builder.stats))
    _quieten(options)
    builder.download_and_prepare()
    assert builder.stats
    print(f"\n{summary(recipe, builder.stats, builder.output)}")
    if options.push_to_hub:
        _publish(options, options.push_to_hub, str(builder.output))


def _plan(options: argparse.Namespace, recipe: Any, output: Path) -> None:
    if options.whole_process and not options.push_to_hub and not _runs_code(recipe):
        _transformers_without_torch()

    from persyn_datasets.data.build import read
    from persyn_datasets.inputs import check_folder
    from persyn_datasets.plan import checks, cost
    from persyn_datasets.runners import check

    check(options.runner)
    check_folder(output, recipe)
    build = read(output / "dataset")
    _check_hub(options, bool(build))
    _quieten(options)
    measured = build["account"] if build else ()
    print(cost.describe(recipe, checks.check(recipe), measured))


def _transformers_without_torch() -> None:
    """Import what reads configs and tokenizers, in the mode that transformers has for where torch
    is not installed: torch takes longer to import than all the rest.

    No model can be loaded afterwards: only for a process that ends with a plan.
    """
    if "torch" in sys.modules:
        return
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # that torch is missing
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401

    del sys.modules["torch"]


def _runs_code(recipe: Any) -> bool:
    """Whether a plan runs what others wrote, or a model, either of which may need torch."""
    remote = any(one.trust_remote_code for one in (recipe.student, *recipe.teachers))
    return remote or not isinstance(recipe.quality, str) or "." in recipe.quality


def _check_hub(options: argparse.Namespace, done: bool) -> None:
    """After a finished build the version may be there already, with this very content."""
    if options.push_to_hub:
        from persyn_datasets.hub import publish as hub

        hub.check(options.push_to_hub, None if done else options.version, options.private)


def _publish(options: argparse.Namespace, repo: str, output: str) -> None:
    from persyn_datasets.hub import publish as hub

    append = getattr(options, "append", False)
    tag = hub.publish(output, repo, version=options.version, private=options.private, append=append)
    print(f"Published: load_dataset({repo!r}, revision={tag!r})")


def _reused(options: argparse.Namespace) -> tuple[Any, Any, list[str] | None]:
    """The router, the prompts, and the names of the teachers that are available."""
    from persyn_datasets import reuse
    from persyn_datasets.data.prompts import load_prompts
    from persyn_datasets.router.model import Router
    from persyn_datasets.runners import check
    from persyn_datasets.stages.route import Route

    _quieten(options)
    check(options.runner)
    reuse.check_output(Path(options.output))
    if (Path(options.router) / "router" / "config.json").exists():
        raise InputError(
            f"{options.router} is the folder of a build; its router is {options.router}/router."
        )
    router = Router.from_pretrained(options.router, options.revision)
    names = [name for part in options.teachers or [] for name in part.split(",")] or None
    Route(router, names)  # an unknown name is an error before the prompts are loaded
    try:
        prompts = load_prompts(
            options.prompts, split=options.split, column=options.column, streaming=options.streaming
        )
    except InputError as error:  # names the keys of a recipe
        raise InputError(
            str(error).replace("prompts.column", "--column").replace("prompts.split", "--split")
        ) from error
    return router, prompts, names


def _done(counts: Any, output: str) -> None:
    from persyn_datasets.report.tables import table

    rows = [[name, f"{n:,}"] for name, n in counts.most_common()]
    print(f"\n{table(['teacher', 'prompts'], rows).plain()}")
    print(f"\nDataset: load_dataset({output!r})")


def _budget(options: argparse.Namespace) -> Any:
    import yaml

    from persyn_datasets.config.recipe import budget_from

    return budget_from(yaml.safe_load(options.budget)) if options.budget else None


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"persyn: warning: {sentence}", file=sys.stderr)


def _route(options: argparse.Namespace) -> None:
    from persyn_datasets import reuse

    router, prompts, names = _reused(options)
    _warn(reuse.warnings(router, prompts))
    teachers = _distilling(options, router, prompts, names) if options.distill_into else []
    counts = reuse.route(
        router,
        prompts,
        Path(options.output),
        [teacher.name for teacher in teachers] or names,
        _budget(options),
        options.runner,
        distill=bool(teachers),
    )
    _done(counts, options.output)
    if teachers:
        _write_servers(teachers, Path(options.output))


def _distilling(
    options: argparse.Namespace, router: Any, prompts: Any, names: list[str] | None
) -> list[Any]:
    """Those of the available teachers that can score what the student says."""
    from itertools import islice

    from persyn_datasets.data.distillation import TEXTS, sharing

    # Their tokenizers are loaded here, and a trainer is to send their servers what it generates.
    known = router.teachers_with(options.set, names)
    texts = [row["messages"][-1]["content"] for row in islice(prompts, TEXTS)]
    shared = sharing(known, options.distill_into, texts)
    return [teacher for teacher in known if teacher.name in shared]


def _write_servers(teachers: list[Any], output: Path) -> None:
    from persyn_datasets.data.distillation import SERVERS, servers

    urls, commands = servers(teachers)
    (output / SERVERS).write_text(json.dumps(urls, indent=2) + "\n")
    print(f"teacher_server_urls: {output / SERVERS}")
    for line in commands:
        print(f"Start a server: {line}")


def _synthesize(options: argparse.Namespace) -> None:
    from persyn_datasets import reuse
    from persyn_datasets.config.prompts import Prompts
    from persyn_datasets.hub import publish as hub

    if options.push_to_hub:
        hub.check(options.push_to_hub, options.version, options.private)
    router, prompts, names = _reused(options)
    _warn(warned := reuse.warnings(router, prompts))
    source = Prompts(options.prompts, split=options.split, column=options.column)
    counts = reuse.synthesize(
        router,
        prompts,
        Path(options.output),
        source,
        names,
        options.set,
        warned,
        options.max_cost,
        _budget(options),
        options.runner,
        options.max_failed,
    )
    _done(counts, options.output)
    if options.push_to_hub:
        _publish(options, options.push_to_hub, options.output)


def _push(options: argparse.Namespace) -> None:
    _publish(options, options.repo, options.output)


def _compare(options: argparse.Namespace) -> None:
    from persyn_datasets.config.recipe import Recipe

    recipe = Recipe.load(options.recipe, options.set)

    from persyn_datasets.compare import report as comparison
    from persyn_datasets.compare.compare import compare
    from persyn_datasets.compare.students import publish_students
    from persyn_datasets.hub import publish as hub

    output = Path(options.output or Path("outputs") / f"{recipe.name}-compared")
    if options.push_to_hub:
        hub.check(options.push_to_hub, None, options.private, options.strategies)
    _quieten(options)
    results = compare(recipe, options.strategies, output, options.seeds, options.per_teacher)
    print(f"\n{comparison.describe(results)}\nResults: {output}")
    if options.push_to_hub:
        for name in publish_students(results, output, options.push_to_hub, options.private):
            print(f"Published: pipeline('text-generation', {name!r})")


def _tune(options: argparse.Namespace) -> None:
    from persyn_datasets.config.recipe import Recipe

    recipe = Recipe.load(options.recipe, options.set)

    from persyn_datasets.compare import report as comparison
    from persyn_datasets.compare.tune import tune

    _quieten(options)
    output = Path(options.output or Path("outputs") / f"{recipe.name}-tuned")
    results = tune(recipe, output, options.seeds)
    print(f"\n{comparison.describe_tournament(results)}\n")
    print(f"Recipe: {output / 'recipe.yaml'}" if results["winner"] else f"Results: {output}")


def _report(options: argparse.Namespace) -> None:
    from persyn_datasets.hub.licenses import worked_out
    from persyn_datasets.report import page
    from persyn_datasets.report.text import describe

    output = Path(options.output)
    recipe, stats = page.load(output)
    path = page.write(output, recipe, stats, worked_out(stats["licenses"]))
    print(f"{describe(recipe, stats)}\nPage: {path}")


def _batches(options: argparse.Namespace) -> None:
    from persyn_datasets.engines.batch import standing
    from persyn_datasets.engines.batch_orders import everything
    from persyn_datasets.report.tables import table

    orders, rows = everything(), []
    known = [order.batch for order in orders]
    for name in options.cancel or []:
        if name not in known:
            raise InputError(f"There is no batch {name!r}; there is {', '.join(known) or 'none'}.")
    for order in orders:
        chosen = not options.cancel or order.batch in options.cancel
        how_far = standing(order, cancel=options.cancel is not None and chosen)
        count = sum(row is not None for row in order.rows)
        rows.append([order.teacher["name"], order.batch, f"{count:,}", how_far])
    print(table(["teacher", "batch", "requests", "state"], rows).plain() if rows else "none")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "build": _build,
    "route": _route,
    "synthesize": _synthesize,
    "push": _push,
    "compare": _compare,
    "tune": _tune,
    "report": _report,
    "batches": _batches,
}


if __name__ == "__main__":
    sys.exit(main())
