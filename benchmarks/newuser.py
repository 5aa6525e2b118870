"""What a new user waits for, beside an earlier commit, in pairs: each command of both by turns.

    git worktree add ../before 1d005fe
    python benchmarks/newuser.py --before ../before [--rounds 3] [--demo] [--busy]

Whole processes, with the code of each checkout and the libraries of this environment; Python keeps
what it compiled, as of an installed package. Ratios are of the medians, of wall time and of
processor seconds: the machine may be busy. `--demo` adds the
demo's work (its models unpacked before), each with a journal of its own; `--busy` runs a process
that never pauses beside it. All folders are temporary.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
from persyn_datasets.quickstart import FOLDER, make_inputs
from persyn_datasets.report.tables import table

NOW = Path(__file__).parents[1]
PERSYN = "import sys; from persyn_datasets.cli import main; sys.exit(main())"
TYPO = ["build", "quickstart", "--set", "reward.alhpa=0.2"]


def run(checkout: Path, folder: Path, arguments: list[str], code: int = 0) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HOME": str(folder / "home")}
    environment["PYTHONDONTWRITEBYTECODE"] = ""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PERSYN, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr[-2000:]
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tiny(folder: Path) -> None:
    """The demo's models, so small that only what surrounds them takes time; and a recipe of it."""
    sys.path.insert(0, str(NOW / "tests"))
    from conftest import save_model

    for name in ("smollm2-135m-instruct", "gemma-3-270m"):
        save_model(folder / FOLDER / name, max_position_embeddings=2048)


def compare(name: str, sides: dict[str, Path], folders: dict[str, Path], rounds: int, **of) -> list:
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, checkout in sides.items():
            times[side].append(run(checkout, folders[side], **of))
    wall, cpu = ({side: median(t[i] for t in runs) for side, runs in times.items()} for i in (0, 1))
    row = [name]
    for seconds in (wall, cpu):
        before, now = seconds["before"], seconds["now"]
        row += [f"{before:.2f}", f"{now:.2f}", f"{before / now:.1f}"]
    print(*row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout of what is compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demo", action="store_true", help="the demo's work, too")
    parser.add_argument("--busy", action="store_true", help="beside a process that never pauses")
    options = parser.parse_args()
    sides = {"before": options.before.resolve(), "now": NOW}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folders = {side: Path(name) / side for side in sides}
        for folder in folders.values():
            folder.mkdir()
            tiny(folder)
            os.chdir(folder)
            make_inputs()
        rows.append(compare("a typo", sides, folders, options.rounds, arguments=TYPO, code=1))
        dry = ["build", "quickstart", "--dry-run"]
        rows.append(
            compare("dry run, six local teachers", sides, folders, options.rounds, arguments=dry)
        )
        build = ["build", "quickstart"]
        for side, checkout in sides.items():
            run(checkout, folders[side], build)
        rows.append(
            compare("a finished build again", sides, folders, options.rounds, arguments=build)
        )
        if options.demo:
            rows.append(demo(Path(name), sides, options.busy))
    head = ["", *(f"{s}, {k}" for k in ("wall s", "CPU s") for s in ("before", "now", "ratio"))]
    print(table(head, rows))


def demo(folder: Path, sides: dict[str, Path], busy: bool) -> list[str]:
    """From the unpacked models to the summary, of each once."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    folders = {}
    try:
        for side in sides:
            folders[side] = folder / f"demo-{side}"
            folders[side].mkdir()
            os.chdir(folders[side])
            if side == "before":
                make_inputs()
            else:
                shutil.copytree(folders["before"] / FOLDER, FOLDER)
            subprocess.run(
                [sys.executable, "-c", "from persyn_datasets.quickstart import main; main()"],
                env=os.environ | {"PYTHONPATH": str(sides[side])},
                check=True,
                capture_output=True,
            )
        return compare("the demo's work", sides, folders, 1, arguments=["build", "quickstart"])
    finally:
        if other:
            other.kill()


if __name__ == "__main__":
    main()
