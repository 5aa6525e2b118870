"""The options of the command line. Only `argparse`, whose import takes 10 ms, where a library with
prettier help takes ten times as long: `persyn --help` answers at once.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from persyn_datasets import __version__

EXAMPLES = """
examples:
  persyn demo                               a dataset and a router, offline
  persyn build recipe.yaml --dry-run        check everything, show plan and cost
  persyn build recipe.yaml --output DIR     interrupted? Run it again to resume
  persyn report DIR                         tables, figures and a page
"""


def parser() -> argparse.ArgumentParser:
    """Every command is the name of a function in `cli`, as `options.command`."""
    top = argparse.ArgumentParser(
        prog="persyn",
        description="Find, prompt by prompt, the teacher your student learns most from, and let\n"
        "only that teacher answer.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"persyn {__version__}")
    _verbose(top, default=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, description: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=description or f"{summary}.")
        _verbose(added, default=argparse.SUPPRESS)
        return added

    _demo(command("demo", "try it: build a dataset and a router on real small models", DEMO))
    _build(command("build", "build a recipe's dataset and router", BUILD))
    route = command("route", "assign a teacher to each prompt", ROUTE)
    _reuse(route)
    route.add_argument(
        "--distill-into",
        metavar="STUDENT",
        help="route among the teachers that share this student's tokenizer, and write the prompts "
        "with a teacher_id and the map of servers for TRL's AsyncDistillationTrainer",
    )
    _set(route, "with --distill-into, how a teacher is asked, as for synthesize")
    synthesize = command("synthesize", "assign a teacher to each prompt and let it answer", SYNTH)
    _reuse(synthesize)
    _synthesize(synthesize)
    _push(command("push", "publish what build or synthesize wrote", PUSH))
    _compare(command("compare", "train and evaluate students of several strategies", COMPARE))
    _tune(command("tune", "find the signal that predicts what your student gains", TUNE))
    _report(command("report", "show the tables, figures and page of a build", REPORT))
    _batches(command("batches", "list the batches that were sent and not yet collected", BATCHES))
    return top


DEMO = """The whole pipeline, offline: two small models, prompted in six ways, answer generated
problems. It installs nothing; if a package is missing, it says what to install."""
BUILD = """Build the dataset and the router of a recipe. Run the same command again to resume after
an interruption: responses and scores are kept as they arrive and never paid for twice."""
ROUTE = "Assign a teacher to each prompt with a router; nothing is generated."
SYNTH = """Assign a teacher to each prompt with a router, and let only that teacher answer it. The
teachers are those in the router's config."""
PUSH = """Publish a build, or the answers of synthesize, on the Hub: one commit and one tag, v1.0.0
and so on. Published versions never change; publishing the same content again does nothing."""
COMPARE = """Build the dataset of each strategy, train students on it (TRL), evaluate them
(lm-evaluation-harness, and your held-out prompts), and report which differences are significant.
Run it again to resume after an interruption."""
TUNE = """Train one student on each teacher's calibration answers, measure what it gains, and find
the signal that predicts it; write the recipe with that signal, or say that none is proven. It pays
for the calibration only, which a later build of the recipe reuses."""
REPORT = """Print the tables of a build, and write its figures and a page for the browser, which
needs no network, to DIR/report."""
TRAINED = "as for build; the sections training and evaluation are used here"
BATCHES = """List the batches that builds have sent, and their progress. A build collects them when
it runs again. From a cancelled batch it takes the answers so far, and sends the rest again."""


def _verbose(command: argparse.ArgumentParser, default: Any) -> None:
    command.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=default,
        help="show the libraries' own messages, and the traceback of an error",
    )


def _batches(batches: argparse.ArgumentParser) -> None:
    batches.add_argument(
        "--cancel",
        nargs="*",
        metavar="ID",
        help="cancel these batches; without an ID, all of them",
    )


def _demo(demo: argparse.ArgumentParser) -> None:
    what = "folder for dataset/ and router/ (default: outputs/quickstart)"
    _output(demo, what, default="outputs/quickstart")


def _build(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "recipe",
        help="a .yaml file, the name of a recipe that comes with persyn (e.g. quickstart), or a "
        "dataset on the Hub that persyn published",
    )
    _output(build, "folder for dataset/ and router/ (default: outputs/NAME, or NAME-STRATEGY)")
    _set(build, "a key of the recipe, e.g. --set reward.alpha=0.2 (may be repeated)")
    build.add_argument(
        "--strategy",
        metavar="S",
        help="who answers: persyn (default), or, to compare with it, strong, mix, family-strong, "
        "car, random, oracle, quality-only, learnability-only, shares-at-random, "
        "best-per-group, nearest-neighbours, best-single",
    )
    _runner(build)
    build.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print the plan and its cost, and stop",
    )
    _publishing(build, "--push-to-hub")


def _reuse(command: argparse.ArgumentParser) -> None:
    command.add_argument("router", help="Hub id or folder of a router, e.g. outputs/mine/router")
    command.add_argument(
        "prompts", help="Hub id, folder, or .jsonl, .json, .csv, .tsv or .parquet file"
    )
    _output(command, "folder for data/*.parquet; opens with load_dataset", required=True)
    command.add_argument(
        "--revision", help="branch, tag or commit of a router on the Hub, e.g. v1.0.0"
    )
    command.add_argument("--split", default="train", help="split of the prompts (default: train)")
    command.add_argument(
        "--column", help="column with the prompts (default: messages, else prompt)"
    )
    command.add_argument(
        "--streaming",
        action="store_true",
        help="read the prompts as they are needed, 20,000 at a time",
    )
    command.add_argument(
        "--teachers",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="route among these only (default: all that the router knows)",
    )
    command.add_argument(
        "--budget",
        metavar="USD",
        help="limit on the expected cost of the answers; the assignment is that of the largest "
        "expected reward within it. Or {tokens: 5e6}, or {usd: 9, max_share: {NAME: 0.1}}",
    )
    _runner(command)


def _synthesize(command: argparse.ArgumentParser) -> None:
    _set(
        command,
        "how a teacher is asked, e.g. --set teachers.2.base_url=http://tgi:8080/v1 (counting "
        "from 0). Servers, keys, local paths and code that somebody else's router names are used "
        "only if you name them here, too",
    )
    command.add_argument(
        "--max-cost", type=float, metavar="USD", help="stop before spending more than this"
    )
    command.add_argument(
        "--max-failed",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="the share of failed answers above which nothing is written (default: 1)",
    )
    _publishing(command, "--push-to-hub")
    _append(command)


def _push(push: argparse.ArgumentParser) -> None:
    push.add_argument("output", metavar="DIR", help="the --output of build or synthesize")
    _publishing(push, "repo")
    _append(push)


def _compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("recipe", help=TRAINED)
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
        help="run a tournament, too: which signal predicts what a student of one teacher gains?",
    )
    _output(compare, "folder of datasets, students and results (default: outputs/NAME-compared)")
    _set(compare, "as for build")
    compare.add_argument(
        "--push-to-hub", metavar="ORG/NAME", help="publish the students as ORG/NAME-STRATEGY"
    )
    _private(compare)


def _tune(tune: argparse.ArgumentParser) -> None:
    tune.add_argument("recipe", help=TRAINED)
    tune.add_argument("--seeds", type=int, default=1, help="students per teacher (default: 1)")
    _output(tune, "folder of the students and results (default: outputs/NAME-tuned)")
    _set(tune, "as for build")


def _report(report: argparse.ArgumentParser) -> None:
    report.add_argument("output", metavar="DIR", help="the --output of a build")


def _output(command: argparse.ArgumentParser, what: str, **more: Any) -> None:
    command.add_argument("--output", metavar="DIR", help=what, **more)


def _set(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"override {what}"
    )


def _runner(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--runner",
        default="local",
        help="local (default), or ray: on the cluster at $RAY_ADDRESS, else on this machine",
    )


def _private(command: argparse.ArgumentParser) -> None:
    command.add_argument("--private", action="store_true", help="make new repositories private")


def _publishing(command: argparse.ArgumentParser, repo: str) -> None:
    command.add_argument(
        repo,
        metavar="ORG/NAME",
        help="publish as this dataset on the Hub, the router as ORG/NAME-router",
    )
    _private(command)
    command.add_argument("--version", help="e.g. 1.1.0 (default: the next minor one)")


def _append(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--append",
        action="store_true",
        help="add the rows of synthesize to those already published there",
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    return parser().parse_args(arguments)
