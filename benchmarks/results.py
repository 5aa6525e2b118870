"""Run benchmarks and write what they found to benchmarks/RESULTS.md: what `make bench` does.

    python benchmarks/results.py "python benchmarks/routing.py --prompts 20 3" "python
    benchmarks/journal.py" …

Each prints its tables and last a line of JSON, whose "rows" are lines of the first table of
RESULTS.md: measure, ours, beside it, ratio and limit. If one fails, which a difference between the
results of the two ways is, too, nothing is written. What was predicted, tried and found is in
NOTES.md, which is appended.
"""

import os
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from json import loads
from pathlib import Path

from persyn_datasets.report.tables import table

HERE = Path(__file__).parent


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")
    return f"{len(os.sched_getaffinity(0))} cores ({name})"


def main() -> None:
    rows, outputs = [], []
    for command in sys.argv[1:]:
        shown = command[command.index("benchmarks/") :].removeprefix("benchmarks/")
        print(f"\n{shown}", flush=True)
        done = subprocess.run(command.split(), stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        if done.returncode:
            raise SystemExit(f"{shown}: failed.")
        *lines, last = done.stdout.splitlines()
        rows += [[*row, f"`{shown}`"] for row in loads(last).get("rows", [])]
        outputs += [
            f"### `{shown}`",
            "\n".join(f"\n{a}\n" if not a.startswith("|") else a for a in lines),
        ]
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "datasets", "trl")
    )
    summary = table(
        ["measure", "ours", "beside it", "ratio", "limit, how far from it", "command"], rows
    )
    parts = [
        "# What was measured",
        f"{date.today()}, {processor()}, no GPU; {versions}.\n"
        "Each line is of one run of its command, side by side; `make bench` runs those without a "
        "peer or other sizes.",
        summary,
        (HERE / "NOTES.md").read_text().strip(),
        "## What each command printed",
        *outputs,
    ]
    (HERE / "RESULTS.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
