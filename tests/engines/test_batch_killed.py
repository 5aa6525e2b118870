"""Builds killed by `kill -9` at every step of a batch; the next run buys nothing twice."""

import multiprocessing
import os
from collections import Counter
from pathlib import Path
from threading import Event

import pytest
from asking import ask
from batch_server import BatchServer
from test_batch import answers, teach, texts

from persyn_datasets.config.teacher import Teacher
from persyn_datasets.engines import batch
from persyn_datasets.engines.batch_orders import everything

pytestmark = pytest.mark.usefixtures("impatient", "hasty")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["persyn_datasets.engines.batch", "asking", "test_batch"])


def build(teacher: Teacher, journal: str, count: int) -> None:
    os.environ |= {"PERSYN_JOURNAL": journal, "TEST_KEY": "sk", "HF_HUB_OFFLINE": "0"}
    batch.FIRST_LOOK = batch.LAST_LOOK = batch.STEP = 0.005
    answers(ask(teacher, *texts(count)))


def killed_at(step: str, server: BatchServer, teacher: Teacher, journal: Path, count: int) -> None:
    """A build in a process of its own, killed while the server is at this step."""
    reached, may_go_on = Event(), Event()

    def stop() -> None:
        reached.set()
        may_go_on.wait(60)

    server.at[step] = stop
    process = FORKS.Process(target=build, args=(teacher, str(journal), count))
    process.start()
    assert reached.wait(60)
    process.kill()
    process.join()
    server.at.clear()
    may_go_on.set()


@pytest.mark.parametrize(
    ("dialect", "step"),
    [("openai", "upload")]
    + [(d, s) for d in ("openai", "anthropic") for s in ("create", "look", "results")],
)
def test_a_killed_build_finds_its_batches(dialect: str, step: str, journal_root, tmp_path) -> None:
    with BatchServer() as server:
        teacher = teach(server, dialect)
        killed_at(step, server, teacher, journal_root, 12)
        known = len(everything())
        assert known == (0 if step == "upload" else 1)
        found = answers(ask(teacher, *texts(12)))
        assert [r["text"] for r in found] == [f"answer to\u2028{t}" for t in texts(12)]
        assert server.bought == Counter(texts(12)) and len(server.batches) == 1
        assert not everything()
        asked = len(server.requests)
        assert answers(ask(teacher, *texts(12))) == found and len(server.requests) == asked


def test_what_others_sent_meanwhile_is_not_taken_for_ours(journal_root) -> None:
    """Anthropic's API names no batch: one of as many rows may be somebody else's."""
    with BatchServer(looks=4) as server:
        teacher = teach(server, "anthropic")
        killed_at("create", server, teacher, journal_root, 3)
        ours = server.batches["batch_1"]
        theirs = {f"x-{i}": body for i, body in enumerate(ours.rows.values())}
        server.make(theirs)
        del server.batches["batch_1"]  # as if it had never been made
        server.bought.clear()
        assert all(r["text"] for r in answers(ask(teacher, *texts(3))))
        assert server.bought == Counter(texts(3))
