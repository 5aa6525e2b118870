"""What verifiers call right: counts on recorded answers to GSM8K, and kinds of answers one by one.

    python studies/verifiers/table.py FOLDER [--every N] [--processes 2] [--page docs/verifiers.md]

FOLDER holds one Parquet file per teacher with the columns `answer` (a reference number) and
`response`. The kinds are those of tests/signals/test_answers.py. Each verifier is the package's own
code; one that is not installed is left out. With `--page`, the tables are written into that page
between their marks.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from persyn_datasets.report.tables import table
from persyn_datasets.signals.math_verify import right as ours

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "signals"))

PACKAGES = ("math-verify", "latex2sympy2-extended", "sympy", "lm_eval", "trl", "inspect-ai")
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def last_number(answer: str, text: str) -> bool:
    """The rule that needs no package: the last number of the text."""
    found = NUMBER.findall(text)
    try:
        return bool(found) and _float(found[-1]) == _float(answer)
    except ValueError:
        return False


def _float(text: str) -> float:
    return float(text.replace(",", "").rstrip("."))


def math_verify(answer: str, text: str) -> bool:
    """As its README shows."""
    from math_verify import parse, verify

    return bool(verify(parse(answer), parse(text)))


@lru_cache(maxsize=1)
def _gsm8k() -> dict[str, Any]:
    """The task of lm-evaluation-harness: its filters and its metric's options."""
    import lm_eval
    import yaml

    return yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())


def lm_eval(name: str, answer: str, text: str) -> bool:
    """A filter of lm-evaluation-harness's gsm8k, then its exact match."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    [steps] = [f["filter"] for f in _gsm8k()["filter_list"] if f["name"] == name]
    extract = RegexFilter(**{k: v for k, v in steps[0].items() if k != "function"})
    [metric] = _gsm8k()["metric_list"]
    options = {k: metric[k] for k in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    [[found]] = extract.apply([[text]], [{}])
    return bool(exact_match_hf_evaluate([found], [answer], **options)["exact_match"])


def inspect_ai(answer: str, text: str) -> bool:
    """`match(numeric=True)`."""
    from inspect_ai.scorer._common import match_str

    return match_str(text, answer, location="end", numeric=True)[1]


def trl(answer: str, text: str) -> bool:
    """`accuracy_reward`; a reference that it cannot read counts as wrong."""
    from trl.rewards import accuracy_reward

    return bool(accuracy_reward([[{"role": "assistant", "content": text}]], [answer])[0])


VERIFIERS: dict[str, Callable[[str, str], bool]] = {
    "persyn": ours,
    "last number": last_number,
    "math-verify": math_verify,
    "inspect-ai, match(numeric)": inspect_ai,
    "lm-eval, flexible-extract": partial(lm_eval, "flexible-extract"),
    "TRL, accuracy_reward": trl,
    "lm-eval, strict-match": partial(lm_eval, "strict-match"),
}


def installed() -> dict[str, Callable[[str, str], bool]]:
    found = dict(VERIFIERS)
    if not find_spec("inspect_ai"):
        del found["inspect-ai, match(numeric)"]
    return found


def verdicts(rows: list[tuple[str, str]]) -> dict[str, list[bool]]:
    return {name: [rule(*row) for row in rows] for name, rule in installed().items()}


def recorded(folder: Path, every: int, processes: int) -> str:
    """Right answers by verifier, and the teachers that each puts on other places."""
    files = sorted(folder.glob("*.parquet"))
    rows = []
    for file in files:
        columns = pq.read_table(file, columns=["answer", "response"]).to_pydict()
        pairs = zip(map(str, columns["answer"]), columns["response"], strict=True)
        rows.append(list(pairs)[::every])
    with ProcessPoolExecutor(processes) as pool:
        found = list(pool.map(verdicts, rows))
    teachers = [file.stem for file in files]
    orders = {
        name: sorted(teachers, key=lambda t: (-sum(found[teachers.index(t)][name]), t))
        for name in installed()
    }
    reference = orders["persyn"]
    lines = [
        [
            name,
            f"{sum(sum(of_teacher[name]) for of_teacher in found):,}",
            str(sum(a != b for a, b in zip(orders[name], reference, strict=True))),
            f"{sum(_differ(of_teacher, name, True) for of_teacher in found):,}",
            f"{sum(_differ(of_teacher, name, False) for of_teacher in found):,}",
        ]
        for name in sorted(installed(), key=lambda n: -sum(sum(f[n]) for f in found))
    ]
    head = [
        "verifier",
        "right",
        "teachers on another place",
        "right here only",
        "right for us only",
    ]
    return f"{sum(map(len, rows)):,} answers of {len(files)} teachers\n\n{table(head, lines)}"


def _differ(found: dict[str, list[bool]], name: str, here: bool) -> int:
    pairs = zip(found[name], found["persyn"], strict=True)
    return sum(theirs == here and us != here for theirs, us in pairs)


def kinds() -> str:
    """Verdicts that are as they should be, of all of a kind."""
    from test_answers import KINDS

    lines = []
    for kind, rows in KINDS.items():
        given = [(answer, text) for answer, text, _ in rows if len(answer) < 1000]
        wanted = [right for answer, _, right in rows if len(answer) < 1000]
        found = verdicts(given)
        counts = (
            sum(a == b for a, b in zip(found[name], wanted, strict=True)) for name in installed()
        )
        lines.append([kind.replace("_", " "), str(len(given)), *map(str, counts)])
    return table(["kind", "cases", *installed()], lines)


def versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{', '.join(found)}; {date.today()}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take each N-th answer only")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    made = {
        "versions": versions(),
        "kinds": kinds(),
        "recorded": recorded(options.folder, options.every, options.processes),
    }
    for text in made.values():
        print(text, end="\n\n")
    if options.page:
        page = options.page.read_text()
        for mark, text in made.items():
            begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
            before, rest = page.split(begin)
            page = f"{before}{begin}{text}\n{end}{rest.split(end)[1]}"
        options.page.write_text(page)


if __name__ == "__main__":
    main()
