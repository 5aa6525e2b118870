"""The batch engine against a server on loopback that speaks both dialects."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from asking import KEY, ask
from batch_server import Batch, BatchServer
from chat_server import ChatServer

from persyn_datasets import BuildError, InputError, Price, Sampling, Teacher
from persyn_datasets.engines import Request, Response, batch, endpoint, price_of
from persyn_datasets.engines.account import Account, highest_price
from persyn_datasets.engines.batch_orders import everything
from persyn_datasets.engines.dispatch import respond

pytestmark = pytest.mark.usefixtures("impatient", "hasty")
DIALECTS = ["openai", "anthropic"]


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def teach(server: BatchServer, dialect: str, **more: Any) -> Teacher:
    more = {"api_key_env": "TEST_KEY", "base_url": server.url(dialect)} | more
    return Teacher("m", engine="batch", **more)


def texts(count: int) -> list[str]:
    return [f"prompt {i}" for i in range(count)]


def outcome(custom_ids: range, kind: Any) -> Any:
    """Of the first batch only: these rows end so."""

    def behave(of: Batch, nth: int) -> None:
        if nth == 1:
            for i in custom_ids:
                of.outcomes[list(of.rows)[i]] = kind

    return behave


def answers(requests: list[Request], account: Account | None = None) -> list[Response]:
    return respond(requests, "Generate", account or Account())


def test_answers_land_in_their_rows(dialect: str) -> None:
    with BatchServer(looks=3) as server:
        requests = ask(teach(server, dialect), *texts(40))
        found = answers(requests)
        assert [r["text"] for r in found] == [f"answer to\u2028{t}" for t in texts(40)]
        assert {(r["finish_reason"], r["prompt_tokens"]) for r in found} == {("stop", 7)}
        assert len(server.batches) == 1 and server.bought.total() == 40
        looks = [r for r in server.requests if r.endswith("/batch_1")]
        assert len(looks) == 4 and not everything()


def test_what_is_sent(dialect: str) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=5, top_k=3, stop=("END",))
    more = {"system_prompt": "Be brief.", "sampling": sampling, "extra_body": {"metadata": 1}}
    with BatchServer() as server:
        teacher = teach(server, dialect, **more)
        [request] = ask(teacher, "hi")
        request = request._replace(messages=teacher.conversation(request.messages))
        answers([request])
        [sent] = server.batches["batch_1"].rows.values()
    user = {"role": "user", "content": "hi"}
    shared = {"model": "m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 5, "top_k": 3}
    if dialect == "openai":
        system = {"role": "system", "content": "Be brief."}
        own = {"messages": [system, user], "seed": request.seed, "stop": ["END"]}
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    else:
        own = {"messages": [user], "system": "Be brief.", "stop_sequences": ["END"]}
        assert server.headers[0]["x-api-key"] == KEY
        assert server.headers[0]["anthropic-version"] == "2023-06-01"
    assert sent == shared | own | {"metadata": 1}


@pytest.mark.parametrize("kind", ["expired", "missing", (500, "overloaded")])
def test_only_what_got_no_answer_is_sent_again(dialect: str, kind: Any) -> None:
    with BatchServer(outcome(range(3, 7), kind)) as server:
        account = Account()
        found = answers(ask(teach(server, dialect), *texts(10)), account)
        assert all(r["text"] and not r["error"] for r in found)
        assert server.batches["batch_2"].prompts == texts(10)[3:7]
        assert server.bought == Counter(texts(10)) and len(server.batches) == 2
        assert account.tallies[0].retries == 4 and account.tallies[0].failed == 0


def test_what_is_refused_is_not_sent_again(dialect: str) -> None:
    with BatchServer(outcome(range(2), (400, f"this prompt is bad, {KEY}"))) as server:
        found = answers(ask(teach(server, dialect), *texts(5)))
        assert ["bad, ***" in r["error"] for r in found] == [True, True, False, False, False]
        assert len(server.batches) == 1 and server.bought.total() == 3 and not everything()


def test_a_row_is_sent_three_times_at_most(dialect: str) -> None:
    def never(of: Batch, nth: int) -> None:
        of.outcomes[next(iter(of.rows))] = "expired"

    with BatchServer(never) as server:
        found = answers(ask(teach(server, dialect), *texts(3)))
        assert [bool(r["error"]) for r in found] == [True, False, False]
        assert [len(b.rows) for b in server.batches.values()] == [3, 1, 1]


def test_a_cancelled_batch_gives_what_it_has_and_is_not_bought_again(dialect: str) -> None:
    def cancelled(of: Batch, nth: int) -> None:
        outcome(range(4, 9), "cancelled")(of, nth)
        of.status, of.cancelled = "cancelled", True

    with BatchServer(cancelled) as server:
        found = answers(ask(teach(server, dialect), *texts(9)))
        assert [bool(r["text"]) for r in found] == [True] * 4 + [False] * 5
        assert all("cancelled" in r["error"] for r in found[4:])
        assert len(server.batches) == 1
        # The next run asks for the rest.
        again = answers(ask(teach(server, dialect), *texts(9)))
        assert len(server.batches) == 2 and server.bought == Counter(texts(9))
        assert again[:4] == found[:4]


def test_a_parameter_that_is_refused_is_left_out(dialect: str) -> None:
    def strict(of: Batch, nth: int) -> None:
        for custom_id, body in of.rows.items():
            if "temperature" in body:
                of.outcomes[custom_id] = (400, "Unsupported parameter: 'temperature'")

    with BatchServer(strict) as server:
        found = answers(ask(teach(server, dialect), *texts(50)))
        assert not any(r["error"] for r in found) and len(server.batches) == 2
        assert server.bought == Counter(texts(50))


def test_rows_that_make_a_batch_invalid_are_left_out() -> None:
    def invalid(of: Batch, nth: int) -> None:
        if "prompt 2" in of.prompts:
            of.status = "failed"
            of.errors = [{"code": "bad", "line": 3, "message": "line 3 is no good"}]

    with BatchServer(invalid) as server:
        found = answers(ask(teach(server, "openai"), *texts(6)))
        assert [i for i, r in enumerate(found) if r["error"]] == [2]
        assert "line 3 is no good" in found[2]["error"]
        assert server.bought == Counter(t for t in texts(6) if t != "prompt 2")


def test_a_batch_that_is_refused_as_a_whole_says_why() -> None:
    def invalid(of: Batch, nth: int) -> None:
        of.status, of.errors = "failed", [{"code": "model_not_found", "message": "no model m"}]

    with BatchServer(invalid) as server:
        found = answers(ask(teach(server, "openai"), *texts(3)))
        assert {r["error"] for r in found} == {"no model m"}
        assert len(server.batches) == 1 and not everything()


def test_a_full_queue_makes_batches_smaller() -> None:
    def full(of: Batch, nth: int) -> None:
        if len(of.rows) > 4:
            of.status = "failed"
            of.errors = [
                {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            ]

    with BatchServer(full) as server:
        found = answers(ask(teach(server, "openai"), *texts(30)))
        assert not any(r["error"] for r in found) and server.bought == Counter(texts(30))
        assert [len(b.rows) for b in server.batches.values()][:4] == [30, 15, 15, 7]


@pytest.mark.parametrize(("limit", "value", "sizes"), [("MOST_ROWS", 4, [4, 4, 2])])
def test_batches_are_split_by_rows(
    dialect: str, limit: str, value: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, limit, value)
    with BatchServer() as server:
        answers(ask(teach(server, dialect), *texts(10)))
        assert [len(b.rows) for b in server.batches.values()] == sizes


def test_batches_are_split_by_bytes(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_BYTES", 5000)
    with BatchServer() as server:
        answers(ask(teach(server, dialect), *(f"{i}" + "x" * 1500 for i in range(6))))
        assert 2 <= len(server.batches) <= 3 and server.bought.total() == 6
        assert all(len(data) < 5200 for data in server.files.values())


def test_an_endpoint_and_a_batch_share_their_answers() -> None:
    with BatchServer() as server, ChatServer() as chat:
        bought = teach(server, "openai")
        served = replace(bought, engine="endpoint")
        found = answers(ask(bought, *texts(3)))
        assert answers(ask(served, *texts(3))) == found and server.bought.total() == 3
        live = Teacher("m", engine="endpoint", base_url=chat.url)
        found = answers(ask(live, *texts(3)))
        assert answers(ask(replace(live, engine="batch"), *texts(3))) == found
        assert chat.count == 3


def test_half_the_price(dialect: str) -> None:
    with BatchServer() as server:
        teacher = teach(server, dialect, price=Price(2, 10), sampling=Sampling(max_tokens=10))
        account = Account(max_cost=1.0)
        requests = ask(teacher, *texts(8))
        assert price_of(teacher) == Price(1, 5)
        assert (
            highest_price(requests[0])
            == highest_price(requests[0]._replace(teacher=replace(teacher, engine="endpoint"))) / 2
        )
        answers(requests, account)
        assert account.spent == pytest.approx(8 * (7 * 1 + 4 * 5) / 1e6)
        # Until it is known how the server counts, one request is in flight.
        assert [len(b.rows) for b in server.batches.values()] == [1, 7]


def test_max_cost_is_kept(dialect: str) -> None:
    with BatchServer() as server:
        teacher = teach(server, dialect, price=Price(2, 10), sampling=Sampling(max_tokens=10))
        [request] = ask(teacher, "prompt 0")
        account = Account(max_cost=2.5 * highest_price(request))
        with pytest.raises(BuildError, match="max_cost"):
            answers(ask(teacher, *texts(500)), account)
        assert account.spent <= account.max_cost and 2 <= server.bought.total() < 500


@pytest.mark.parametrize("step", ["upload", "create", "look", "results"])
@pytest.mark.parametrize("what", ["hang up", (503, {"error": {"message": "busy"}})])
def test_lost_replies_buy_nothing_twice(dialect: str, step: str, what: Any) -> None:
    lost = iter([what, what])
    with BatchServer() as server:
        server.at[step] = lambda: next(lost, None)
        found = answers(ask(teach(server, dialect), *texts(10)))
        assert not any(r["error"] for r in found)
        assert server.bought == Counter(texts(10)) and not everything()


def test_a_batch_that_is_out_of_reach_is_kept(
    dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PATIENCE", 0.05)
    with BatchServer() as server:
        server.at["look"] = lambda: (404, {"error": {"message": "no such batch"}})
        found = answers(ask(teach(server, dialect), *texts(4)))
        [order] = everything()
        assert all(str(order.path) in r["error"] for r in found)
        server.at.clear()
        assert not any(r["error"] for r in answers(ask(teach(server, dialect), *texts(4))))
        assert server.bought == Counter(texts(4)) and len(server.batches) == 1


def test_a_smaller_build_leaves_the_rest_of_a_batch_to_later_ones(dialect: str) -> None:
    with BatchServer() as server:
        server.at["look"] = lambda: (404, {})
        answers(ask(teach(server, dialect), *texts(6)))
        server.at.clear()
        assert answers(ask(teach(server, dialect), *texts(2)))[1]["text"]
        assert len(everything()) == 1
        assert answers(ask(teach(server, dialect), *texts(8)))[5]["text"]
        assert server.bought == Counter(texts(8)) and not everything()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"sampling": Sampling(presence_penalty=1)}, "presence_penalty"),
        ({"sampling": Sampling(temperature=1.5)}, "temperature"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"base_url": ("http://anthropic/v1", "http://b/v1")}, "base_url"),
        ({"api_key_env": None}, "x-api-key"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(more: dict[str, Any], named: str) -> None:
    with BatchServer() as server, pytest.raises(InputError, match=named):
        batch.check(teach(server, "anthropic", **more))


def test_a_server_without_batches_is_refused_at_once() -> None:
    with ChatServer(models=["m"]) as chat, pytest.raises(InputError, match="endpoint"):
        batch.check(Teacher("m", engine="batch", base_url=chat.url))


def test_check_asks_for_nothing(dialect: str) -> None:
    with BatchServer() as server:
        batch.check(teach(server, dialect))
        assert not server.batches and all(r.startswith("GET") for r in server.requests)


def test_files_hold_no_key(dialect: str) -> None:
    with BatchServer() as server:
        server.at["look"] = lambda: (404, {})
        answers(ask(teach(server, dialect), "hi"))
        [order] = everything()
        assert KEY not in order.path.read_text() and json.loads(order.path.read_text())["batch"]


def test_names_are_not_shared_with_other_engines() -> None:
    assert batch.FACTS.answers_as == endpoint.__name__.rpartition(".")[2]
