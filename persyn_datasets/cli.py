"""The command line: `persyn build`, `route`, `synthesize`, `push`, `compare`, `tune`, `report`."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persyn_datasets.config.errors import BuildError, InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 1 bad input or failed build, with the reason last; 130 interrupted."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to interrupt
    try:
        options.run(options)
    except (InputError, BuildError) as error:
        print(f"persyn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\npersyn: interrupted. What was generated is kept: the same command goes on from "
            "here.",
            file=sys.stderr,
        )
        return 130
    except Exception as error:  # libraries raise it in many types
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        print(
            f"persyn: {error}. Free some space, and the same command goes on from here.",
            file=sys.stderr,
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="persyn",
        description=(
            "Find, prompt by prompt, the teacher your student learns most from, and let "
            "only that one answer."
        ),
        epilog="Example: persyn build quickstart --dry-run",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser(
        "build", help="build a recipe's dataset and router", description=_build.__doc__
    )
    build.add_argument(
        "recipe",
        help="a .yaml file, or the name of a recipe that comes with persyn, e.g. quickstart",
    )
    build.add_argument(
        "--output", help="folder for dataset/ and router/ (default: outputs/NAME, or NAME-STRATEGY)"
    )
    build.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe, e.g. --set reward.alpha=0.2 (may be repeated)",
    )
    build.add_argument(
        "--strategy",
        metavar="S",
        help="who answers: persyn (default), or, to compare with it, strong, mix, family-strong, "
        "car, random, oracle, quality-only, learnability-only, no-long-answers",
    )
    _runner(build)
    build.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print the plan and its cost, and stop",
    )
    _publishing(build, "--push-to-hub")
    build.set_defaults(run=_build)

    route = commands.add_parser(
        "route", help="assign a teacher to each prompt", description=_route.__doc__
    )
    synthesize = commands.add_parser(
        "synthesize",
        help="assign a teacher to each prompt and let it answer",
        description=_synthesize.__doc__,
    )
    for command, run in ((route, _route), (synthesize, _synthesize)):
        command.add_argument("router", help="Hub id or folder of a router")
        command.add_argument(
            "prompts", help="Hub id, folder, or .jsonl, .json, .csv, .tsv or .parquet file"
        )
        command.add_argument(
            "--output", required=True, help="folder for data/*.parquet; opens with load_dataset"
        )
        command.add_argument(
            "--revision", help="branch, tag or commit of a router on the Hub, e.g. v1.0.0"
        )
        command.add_argument(
            "--split", default="train", help="split of the prompts (default: train)"
        )
        command.add_argument(
            "--column", help="column with the prompts (default: messages, else prompt)"
        )
        command.add_argument(
            "--streaming",
            action="store_true",
            help="read the prompts as they are needed, a shard of 20,000 at once",
        )
        command.add_argument(
            "--teachers",
            nargs="+",
            action="extend",
            metavar="NAME",
            help="only these are available (default: all that the router knows)",
        )
        command.add_argument(
            "--budget",
            metavar="USD",
            help="what the answers may cost by expectation; the assignment of largest expected "
            "reward within. Or {tokens: 5e6}, or {usd: 9, max_share: {NAME: 0.1}}",
        )
        _runner(command)
        command.set_defaults(run=run)
    synthesize.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override how a teacher is asked, e.g. --set teachers.2.base_url=http://tgi:8080/v1 "
        "(counting from 0). A router from the Hub names servers, variables with keys, local "
        "paths and code in vain unless you name them here, too",
    )
    synthesize.add_argument(
        "--max-cost", type=float, metavar="USD", help="stop before more than this is spent"
    )
    synthesize.add_argument(
        "--max-failed",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="the share of failed answers above which nothing is written (default: 1)",
    )
    _publishing(synthesize, "--push-to-hub")
    synthesize.add_argument(
        "--append", action="store_true", help="add the rows to those that are published there"
    )

    push = commands.add_parser(
        "push", help="publish what build or synthesize wrote", description=_push.__doc__
    )
    push.add_argument("output", metavar="DIR", help="their --output")
    _publishing(push, "repo")
    push.add_argument(
        "--append",
        action="store_true",
        help="add the rows of a synthesize to those that are published",
    )
    push.set_defaults(run=_push)

    compare = commands.add_parser(
        "compare",
        help="train and evaluate students on the datasets of several strategies",
        description=_compare.__doc__,
    )
    compare.add_argument(
        "recipe", help="as for build; its sections training and evaluation count here"
    )
    compare.add_argument(
        "--strategies",
        nargs="+",
        required=True,
        metavar="S",
        help="the first is tested against each other one, e.g. persyn strong mix random",
    )
    compare.add_argument("--seeds", type=int, default=3, help="students per strategy (default: 3)")
    compare.add_argument(
        "--per-teacher",
        action="store_true",
        help="hold a tournament, too: which signal predicts what a student of one teacher gains?",
    )
    compare.add_argument(
        "--output",
        help="folder of the datasets, students and results (default: outputs/NAME-compared)",
    )
    compare.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as for build"
    )
    compare.add_argument(
        "--push-to-hub", metavar="ORG/NAME", help="publish the students as ORG/NAME-STRATEGY"
    )
    compare.add_argument("--private", action="store_true", help="make new repositories private")
    compare.set_defaults(run=_compare)

    tune = commands.add_parser(
        "tune",
        help="find the signal that predicts what your student gains",
        description=_tune.__doc__,
    )
    tune.add_argument(
        "recipe", help="as for build; its sections training and evaluation count here"
    )
    tune.add_argument("--seeds", type=int, default=1, help="students per teacher (default: 1)")
    tune.add_argument(
        "--output", help="folder of the students and results (default: outputs/NAME-tuned)"
    )
    tune.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as for build"
    )
    tune.set_defaults(run=_tune)

    page = commands.add_parser(
        "report", help="tables and pictures of a build", description=_report.__doc__
    )
    page.add_argument("output", metavar="DIR", help="the --output of a build")
    page.set_defaults(run=_report)
    return parser


def _runner(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--runner", default="local", help="local, or ray: on the cluster at $RAY_ADDRESS or here"
    )


def _publishing(command: argparse.ArgumentParser, repo: str) -> None:
    command.add_argument(
        repo,
        metavar="ORG/NAME",
        help="publish as this dataset on the Hub, the router as ORG/NAME-router",
    )
    command.add_argument("--private", action="store_true", help="make new repositories private")
    command.add_argument("--version", help="e.g. 1.1.0 (default: the next minor one)")


def _build(options: argparse.Namespace) -> None:
    """Build the dataset and the router of a recipe. Run it again to go on after an interruption:
    responses and scores are kept as they arrive and never bought twice.
    """
    from persyn_datasets.config.recipe import Recipe

    strategy = [f"strategy={options.strategy}"] if options.strategy else []
    recipe = Recipe.load(options.recipe, [*options.set, *strategy])

    # Only now what takes seconds to import: a typo in the recipe is answered at once.
    from transformers.utils import logging

    from persyn_datasets import plan
    from persyn_datasets.builder import PersynBuilder
    from persyn_datasets.hub import publish as hub
    from persyn_datasets.report import measure as report

    builder = PersynBuilder(
        recipe, options.output or Path("outputs") / recipe.title, runner=options.runner
    )
    if (
        options.push_to_hub
    ):  # after a finished build the version may be there already, with this very content
        hub.check(options.push_to_hub, None if builder.stats else options.version, options.private)
    if options.dry_run:
        print(
            plan.describe(
                recipe, plan.check(recipe), builder.stats["account"] if builder.stats else ()
            )
        )
        return
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    builder.download_and_prepare()
    assert builder.stats
    print(f"\n{report.describe(recipe, builder.stats)}\n")
    print(f"Dataset: load_dataset({str(builder.folder)!r})")
    if builder.stats["router"]:
        print(
            f"Router:  pipeline('text-classification', {str(builder.output / 'router')!r}, "
            "top_k=None)"
        )
    if options.push_to_hub:
        _publish(options, options.push_to_hub, str(builder.output))


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
    from persyn_datasets.runners import local as runner
    from persyn_datasets.stages.route import Route

    runner.check(options.runner)
    reuse.check_output(Path(options.output))
    router = Router.from_pretrained(options.router, options.revision)
    names = [name for part in options.teachers or [] for name in part.split(",")] or None
    Route(router, names)  # an unknown name is an error before the prompts are loaded
    prompts = load_prompts(
        options.prompts, split=options.split, column=options.column, streaming=options.streaming
    )
    return router, prompts, names


def _done(counts: Any, output: str) -> None:
    from persyn_datasets.report.tables import table

    print(table(["teacher", "prompts"], [[name, f"{n:,}"] for name, n in counts.most_common()]))
    print(f"\nDataset: load_dataset({output!r})")


def _budget(options: argparse.Namespace) -> Any:
    import yaml

    from persyn_datasets.config.recipe import budget_from

    return budget_from(yaml.safe_load(options.budget)) if options.budget else None


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"persyn: warning: {sentence}", file=sys.stderr)


def _route(options: argparse.Namespace) -> None:
    """Assign each prompt to a teacher by a router; nothing is generated."""
    from persyn_datasets import reuse

    router, prompts, names = _reused(options)
    _warn(reuse.warnings(router, prompts))
    counts = reuse.route(
        router, prompts, Path(options.output), names, _budget(options), options.runner
    )
    _done(counts, options.output)


def _synthesize(options: argparse.Namespace) -> None:
    """Assign each prompt to a teacher by a router, and let only that teacher answer it. The
    teachers are those in the router's config.
    """
    from persyn_datasets import reuse
    from persyn_datasets.config.recipe import Prompts
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
    """Publish a build, or the answers of synthesize, on the Hub: one commit and one tag, v1.0.0 and
    so on. What is published stays as it is; publishing the same again does nothing.
    """
    _publish(options, options.repo, options.output)


def _compare(options: argparse.Namespace) -> None:
    """Build the dataset of each strategy, train students on it (TRL), evaluate them
    (lm-evaluation-harness, and your held-out prompts), and say what can be told apart. Run it again
    to go on after an interruption.
    """
    from persyn_datasets.config.recipe import Recipe

    recipe = Recipe.load(options.recipe, options.set)

    from persyn_datasets.compare import report as comparison
    from persyn_datasets.compare.compare import compare
    from persyn_datasets.compare.students import publish_students
    from persyn_datasets.hub import publish as hub

    output = Path(options.output or Path("outputs") / f"{recipe.name}-compared")
    if options.push_to_hub:
        hub.check(options.push_to_hub, None, options.private, options.strategies)
    results = compare(recipe, options.strategies, output, options.seeds, options.per_teacher)
    print(f"\n{comparison.describe(results)}\nResults: {output}")
    if options.push_to_hub:
        for name in publish_students(results, output, options.push_to_hub, options.private):
            print(f"Published: pipeline('text-generation', {name!r})")


def _tune(options: argparse.Namespace) -> None:
    """Train one student on each teacher's calibration answers, measure what it gains, and find the
    signal that predicts it; write the recipe with that signal, or say that none is proven. Only the
    calibration is bought, which a build of the recipe finds again.
    """
    from persyn_datasets.config.recipe import Recipe

    recipe = Recipe.load(options.recipe, options.set)

    from persyn_datasets.compare import report as comparison
    from persyn_datasets.compare.tune import tune

    output = Path(options.output or Path("outputs") / f"{recipe.name}-tuned")
    results = tune(recipe, output, options.seeds)
    print(f"\n{comparison.describe_tournament(results)}\n")
    print(f"Recipe: {output / 'recipe.yaml'}" if results["winner"] else f"Results: {output}")


def _report(options: argparse.Namespace) -> None:
    """Print the tables of a build, and write its figures and one page for the browser, without any
    link, to DIR/report.
    """
    from persyn_datasets.report import measure as report
    from persyn_datasets.report import page

    recipe, stats = page.load(Path(options.output))
    print(report.describe(recipe, stats))
    print(f"\nPage: {page.write(Path(options.output), recipe, stats)}")


if __name__ == "__main__":
    sys.exit(main())
