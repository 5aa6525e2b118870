from itertools import chain

import pytest

from persyn_datasets import Teacher
from persyn_datasets.engines import Request, answered
from persyn_datasets.engines.account import Account, merge
from persyn_datasets.report.tables import account_table

TEACHER = Teacher("org/teacher", name="ann")


def ask(key):
    return Request(TEACHER, key, [{"role": "user", "content": key}])


def answer(tokens):
    return answered(TEACHER, "yes", "stop", 3, tokens)


def test_throughput_is_that_of_what_was_generated_now(monkeypatch):
    """From the first request to the last answer of a stage; waiting between two rounds of it does
    not count.
    """
    clock = chain([100.0, 104.0, 110.0], [500.0, 503.0])
    monkeypatch.setattr("persyn_datasets.engines.account.time.monotonic", lambda: next(clock))
    account = Account()
    account.open("Synthesize")
    account.settle(ask("journal"), answer(1000), reused=True)
    assert account.admit(ask("a"))  # at 100
    account.settle(ask("a"), answer(30))  # 104
    account.settle(ask("b"), answer(50))  # 110
    account.open("Synthesize")
    assert account.admit(ask("c"))  # 500
    account.settle(ask("c"), answer(50))  # 503
    (line,) = account.to_list()
    assert (line["new_tokens"], line["seconds"], line["completion_tokens"]) == (130, 13.0, 1130)
    cells = [row.split("|")[-2].strip() for row in account_table(account.to_list()).splitlines()]
    assert cells[0] == "tokens/s" and cells[2:] == ["10", "–"]
    (both,) = merge([line, line])
    assert (both["new_tokens"], both["seconds"]) == (260, 26.0)


@pytest.mark.parametrize(("asked", "tokens"), [(False, 30), (True, 30), (True, None)])
def test_no_throughput_of_records_nor_in_no_time_nor_without_a_count(asked, tokens, monkeypatch):
    monkeypatch.setattr("persyn_datasets.engines.account.time.monotonic", lambda: 100.0)
    account = Account()
    account.open("Generate")
    assert not asked or account.admit(ask("a"))
    account.settle(ask("a"), answer(tokens))
    account.settle(ask("b"), answer(tokens))
    (line,) = account.to_list()
    assert line["seconds"] == 0 and line["answers"] == 2
    assert account_table(account.to_list()).splitlines()[2].split("|")[-2].strip() == "–"
