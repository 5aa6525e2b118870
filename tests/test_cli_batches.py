"""`persyn batches`: what was sent, how far it is, and an end to it."""

import pytest
from asking import ask
from batch_server import BatchServer

from persyn_datasets import Teacher
from persyn_datasets.cli import main
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.dispatch import respond

pytestmark = pytest.mark.usefixtures("impatient", "hasty")


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_batches_are_shown_and_cancelled(dialect, capsys):
    with BatchServer(looks=2) as server:
        teacher = Teacher("m", engine="batch", base_url=server.url(dialect), api_key_env="TEST_KEY")
        server.at["look"] = lambda: (404, {})
        respond(ask(teacher, "a", "b"), "Generate", Account())
        server.at.clear()
        assert main(["batches"]) == 0
        row = capsys.readouterr().out.splitlines()[-1].split()
        assert row[:3] == ["m", "batch_1", "2"] and not server.batches["batch_1"].cancelled
        assert main(["batches", "--cancel", "batch_9"]) == 1
        assert not server.batches["batch_1"].cancelled
        assert main(["batches", "--cancel", "batch_1"]) == 0
        assert server.batches["batch_1"].cancelled


def test_no_batches(capsys):
    assert main(["batches"]) == 0
    assert capsys.readouterr().out == "none\n"
