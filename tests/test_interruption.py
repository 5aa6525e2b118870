"""A build over endpoints and a local teacher, killed, terminated and resumed."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import ChatServer, completion
from datasets import load_dataset
from pool import COMMAND, answer, make_recipe, save

from persyn_datasets.cli import main

CONCURRENCY = 4
# The imports once, then one clean process per run.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["persyn_datasets.builder", "persyn_datasets.engines.transformers", "pool"]
)


def solve(request, nth):
    time.sleep(0.05)
    return 200, {}, completion(answer(request["model"], request["messages"][-1]["content"]))


def recipe_of(folder, model, server):
    folder.mkdir()
    values = make_recipe(folder, model, sampling={"temperature": 0, "max_tokens": 8})
    shared = {"engine": "endpoint", "base_url": server.url, "concurrency": CONCURRENCY}
    values["teachers"] = [{"name": n, "model": n, **shared} for n in ("adder", "multiplier")]
    values["teachers"].append({"name": "local", "model": model, "system_prompt": "Count."})
    return save(folder, values)


def build(folder, journal):
    os.environ["PERSYN_JOURNAL"] = journal
    os.environ["HF_HOME"] = str(Path(journal).parent / "home")
    sys.exit(main(["build", str(folder / "recipe.yaml"), "--output", str(folder / "out")]))


def tables(folder):
    """Everything that was built, without what may differ in the last bit."""
    found = {}
    for file in sorted((folder / "out" / "dataset").rglob("*.parquet")):
        rows = load_dataset("parquet", data_files=str(file), split="train").to_list()
        found[str(file.relative_to(folder))] = json.loads(
            json.dumps(rows), parse_float=lambda value: round(float(value), 4)
        )
    return found


def run(folder, seconds=None):
    """The exit code, or None if it was killed after so many seconds."""
    process = FORKS.Process(target=build, args=(folder, str(folder / "journal")))
    process.start()
    process.join(seconds)
    if process.exitcode is not None:
        return process.exitcode
    process.kill()
    process.join()
    return None


def test_ten_kills_cost_only_what_was_in_flight_and_change_nothing(chat_model, tmp_path):
    with ChatServer(solve) as server:
        recipe_of(tmp_path / "calm", chat_model, server)
        start = time.monotonic()
        assert run(tmp_path / "calm") == 0
        took, asked, calm = time.monotonic() - start, server.count, tables(tmp_path / "calm")
        r, kills, builds = random.Random(0), 0, 0
        while kills < 10:  # a build that ends before its next kill makes room for another one
            server.bodies.clear()
            folder, before = tmp_path / str(builds), kills
            recipe_of(folder, chat_model, server)
            while (code := run(folder, r.uniform(0, 0.6 * took) if kills < 10 else None)) is None:
                kills += 1
            assert code == 0
            assert len({(b["model"], b["messages"][-1]["content"]) for b in server.bodies}) == asked
            assert server.count - asked <= (kills - before) * CONCURRENCY
            assert tables(folder) == calm
            builds += 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_says_how_to_go_on(number, chat_model, tmp_path):
    def slow(request, nth):
        if nth == 20:
            process.send_signal(number)
        time.sleep(0.2)
        return solve(request, nth)

    with ChatServer(slow) as server:
        recipe = recipe_of(tmp_path / "build", chat_model, server)
        process = subprocess.Popen(
            [*COMMAND, "build", recipe, "--output", str(tmp_path / "out")],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            # A shell's background job ignores SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        words = process.communicate(timeout=120)[1]
        assert process.returncode == 130
        assert (
            "interrupted. What was generated is kept: the same command resumes"
            in words.splitlines()[-1]
        )
        assert "Traceback" not in words
        before, server.reply = server.count, solve
        assert main(["build", recipe, "--output", str(tmp_path / "out")]) == 0
        assert (
            len({json.dumps(b["messages"]) + b["model"] for b in server.bodies})
            >= server.count - CONCURRENCY
        )
        assert before < server.count
