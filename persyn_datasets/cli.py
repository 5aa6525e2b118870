"""The command line: `persyn build`, `persyn route`, `persyn synthesize`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persyn_datasets.errors import BuildError, InputError


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
        print("\npersyn: interrupted. What was generated is kept: the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="persyn",
        description="Find, prompt by prompt, the teacher your student learns most from, and let only that one answer.",
        epilog="Example: persyn build quickstart --dry-run",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="build a recipe's dataset and router", description=_build.__doc__)
    build.add_argument("recipe", help="a .yaml file, or the name of a recipe that comes with persyn, e.g. quickstart")
    build.add_argument("--output", help="folder for dataset/ and router/ (default: outputs/NAME)")
    build.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                       help="override a key of the recipe, e.g. --set reward.alpha=0.2 (may be repeated)")  # fmt: skip
    build.add_argument("--dry-run", action="store_true", help="check everything, print the plan and its cost, and stop")
    build.set_defaults(run=_build)

    route = commands.add_parser("route", help="assign a teacher to each prompt", description=_route.__doc__)
    synthesize = commands.add_parser(
        "synthesize", help="assign a teacher to each prompt and let it answer", description=_synthesize.__doc__
    )
    for command, run in ((route, _route), (synthesize, _synthesize)):
        command.add_argument("router", help="Hub id or folder of a router")
        command.add_argument("prompts", help="Hub id, folder, or .jsonl, .json, .csv, .tsv or .parquet file")
        command.add_argument("--output", required=True, help="folder for data/*.parquet; opens with load_dataset")
        command.add_argument("--split", default="train", help="split of the prompts (default: train)")
        command.add_argument("--column", help="column with the prompts (default: messages, else prompt)")
        command.set_defaults(run=run)
    return parser


def _build(options: argparse.Namespace) -> None:
    """Build the dataset and the router of a recipe. Run it again to go on after an interruption: responses and
    scores are kept as they arrive and never bought twice."""
    from transformers.utils import logging

    from persyn_datasets import plan, report
    from persyn_datasets.builder import PersynBuilder
    from persyn_datasets.recipe import Recipe

    recipe = Recipe.load(options.recipe, options.set)
    builder = PersynBuilder(recipe, options.output or Path("outputs") / recipe.name)
    if options.dry_run:
        print(plan.describe(recipe, plan.check(recipe)))
        return
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    builder.download_and_prepare()
    assert builder.stats
    print(f"\n{report.describe(recipe, builder.stats)}\n")
    print(f"Dataset: load_dataset({str(builder.folder)!r})")
    print(f"Router:  pipeline('text-classification', {str(builder.output / 'router')!r}, top_k=None)")


def _routed(options: argparse.Namespace) -> tuple[Any, Any]:
    from datasets import Features

    from persyn_datasets import schema
    from persyn_datasets.prompts import load_prompts
    from persyn_datasets.route import Route
    from persyn_datasets.router import Router

    output = Path(options.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder; give another --output, or remove it.")
    router = Router.from_pretrained(options.router)
    prompts = load_prompts(options.prompts, split=options.split, column=options.column)
    features = Features({**prompts.features, **schema.ROUTED})
    return router, prompts.map(Route(router), batched=True, features=features, desc="Route")


def _write(rows: Any, output: str) -> None:
    from collections import Counter

    from persyn_datasets.tables import table

    for split in rows:
        folder = Path(output) / "data"
        folder.mkdir(parents=True, exist_ok=True)
        rows[split].to_parquet(folder / f"{split}-00000-of-00001.parquet")
    counts = Counter(name for part in rows.values() for name in part["teacher"])
    print(table(["teacher", "prompts"], [[name, f"{n:,}"] for name, n in counts.most_common()]))
    print(f"\nDataset: load_dataset({output!r})")


def _route(options: argparse.Namespace) -> None:
    """Assign each prompt to a teacher by a router; nothing is generated."""
    _write({"train": _routed(options)[1]}, options.output)


def _synthesize(options: argparse.Namespace) -> None:
    """Assign each prompt to a teacher by a router, and let only that teacher answer it. The teachers are those
    in the router's config."""
    from datasets import Features

    from persyn_datasets import schema
    from persyn_datasets.engines import engine_of
    from persyn_datasets.synthesize import Synthesize

    router, routed = _routed(options)
    if not router.teachers:
        raise InputError(f"{options.router} does not say how its teachers are asked: train it with teachers=[…].")
    used = set(routed.unique("teacher"))
    for teacher in router.teachers:
        if teacher.name in used:
            engine_of(teacher).check(teacher)
    rows = routed.map(
        Synthesize(router.teachers), batched=True, batch_size=None, load_from_cache_file=False, desc="Synthesize",
        features=Features({**routed.features, **schema.SYNTHESIZED}), remove_columns=["messages"],
    )  # fmt: skip
    failed = rows.filter(lambda error: error != "", input_columns="error")
    done = rows.filter(lambda error: error == "", input_columns="error")
    if len(done) == 0:
        raise BuildError(f"Every response failed, the first with: {rows[0]['error']}")
    _write({"train": done} | ({"failed": failed} if len(failed) else {}), options.output)


if __name__ == "__main__":
    sys.exit(main())
