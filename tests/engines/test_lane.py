"""A teacher of the endpoint engine at work, against real servers on loopback: tries, limits, money,
counts.
"""

import time
from collections import Counter
from typing import Any

import pytest
from asking import OK, after, answers, ask, closed_port, in_turn, one, teach, words
from chat_server import ChatServer, Reply, completion, echo

from persyn_datasets.config.errors import BuildError
from persyn_datasets.config.teacher import Price, Sampling
from persyn_datasets.engines import endpoint, lane, rate
from persyn_datasets.engines import server as engine_server
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.dispatch import respond
from persyn_datasets.store import models
from persyn_datasets.store.models import load_tokenizer, prompt_ids

pytestmark = pytest.mark.usefixtures("impatient")


def test_sampling_reaches_the_server() -> None:
    sampling = Sampling(temperature=0, top_p=0.9, max_tokens=5, seed=11, stop=("END",))
    _, server = one(echo, sampling=sampling)
    body = server.bodies[0]
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "top_p": 0.9,
        "max_tokens": 5,
        "seed": ask(teach("http://h/v1", sampling=sampling), "hi")[0].seed,
        "stop": ["END"],
        "stream": False,
    }
    _, server = one(echo)
    assert server.bodies[0]["temperature"] == 0.7 and "stop" not in server.bodies[0]


def test_every_prompt_and_sample_has_a_seed_of_its_own() -> None:
    """A server starts its noise at the seed: one for all would give all prompts the same noise."""
    with ChatServer() as server:

        def sent(seed: int, sample: int, *prompts: str) -> list[int]:
            del server.bodies[:]
            requests = ask(teach(server, sampling=Sampling(seed=seed), concurrency=1), *prompts)
            answers([request._replace(sample=sample) for request in requests])
            return [body["seed"] for body in server.bodies]

        first = sent(3, 0, *words(50))
        assert len(set(first)) == 50 and all(0 <= seed < 2**31 for seed in first)
        assert sent(3, 0, *words(50)) == first  # in every run
        assert set(sent(3, 1, *words(50))).isdisjoint(first)
        assert sent(4, 0, *words(50)) == sent(3, 1, *words(50))  # sample j has seed + j


def test_top_p_of_one_is_left_out_where_it_is_refused() -> None:
    def tgi(request: dict[str, Any], nth: int) -> Any:
        if request.get("top_p", 0.5) >= 1:
            return 422, {}, {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0"}
        return echo(request, nth)

    response, server = one(tgi)
    assert response["error"] == "" and server.count == 2


def test_lasting_fault_fails_the_row() -> None:
    response, server = one(in_turn((503, {}, {"error": {"message": "no capacity " + "x" * 900}})))
    assert server.count == lane.TRIES == 6
    assert response["error"].startswith("HTTP 503: no capacity xx") and len(response["error"]) < 350
    assert response["error"].endswith("(tried 6 times)")
    assert (response["text"], response["finish_reason"], response["prompt_tokens"]) == (
        "",
        "error",
        None,
    )


def test_bad_request_fails_only_its_row_and_is_not_retried() -> None:
    def picky(request: dict[str, Any], nth: int) -> Any:
        if request["messages"][0]["content"] == "long":
            return 400, {}, {"object": "error", "message": "prompt is too long"}
        return echo(request, nth)

    with ChatServer(picky) as server:
        responses = answers(ask(teach(server), "a", "long", "b"))
        assert [r["error"] for r in responses] == ["", "HTTP 400: prompt is too long", ""]
        assert server.count == 3


@pytest.mark.parametrize(
    "body",
    [
        "no json",
        "",
        "[]",
        "3",
        b"\xff",
        {},
        {"choices": []},
        {"choices": None},
        {"choices": "abc"},
        {"choices": [{}]},
        {"choices": [{"message": "abc", "finish_reason": "stop"}]},
        {"choices": {"a": 1}},
        completion(None, None),
        {"error": {"message": "upstream is down"}},
    ],
)
def test_malformed_answers_are_retried_then_errors(body: Any) -> None:
    response, server = one(in_turn((200, {}, body)))
    assert response["error"].startswith("not a chat completion: ") and server.count == 6
    if isinstance(body, dict) and "error" in body:
        assert "upstream is down" in response["error"]
    assert one(in_turn((200, {}, body), OK))[0]["text"] == "fine"


@pytest.mark.parametrize("text", ["", None])
def test_empty_answer_is_kept_but_marked(text: str | None) -> None:
    response, server = one(in_turn((200, {}, completion(text, "length"))))
    assert (response["text"], response["finish_reason"], response["error"]) == (
        "",
        "length",
        "empty response",
    )
    assert server.count == 1


def test_text_can_be_stored() -> None:
    response, _ = one(in_turn((200, {}, completion("half \ud83d"))))
    assert response["text"] == "half ?"


def test_usage() -> None:
    response, _ = one(in_turn((200, {}, completion("three small words"))))
    assert (response["prompt_tokens"], response["completion_tokens"]) == (7, 3)
    response, _ = one(in_turn((200, {}, completion("words", usage=None))))
    assert (response["prompt_tokens"], response["completion_tokens"]) == (None, None)


def test_several_servers_share_the_work() -> None:
    with ChatServer(after(0.01)) as a, ChatServer(after(0.01)) as b, ChatServer(after(1.0)) as slow:
        assert not any(
            r["error"]
            for r in answers(ask(teach((a.url, b.url, slow.url), concurrency=4), *words(200)))
        )
        assert min(a.count, b.count) > 3 * slow.count > 0
        assert max(server.max_active for server in (a, b, slow)) <= 4


def test_few_requests_go_to_the_idle_server() -> None:
    with ChatServer(after(0.1)) as a, ChatServer(after(0.1)) as b:
        answers(ask(teach((a.url, b.url)), *words(8)))
        assert (a.count, b.count) == (4, 4)


def test_servers_that_stay_down_fail_their_requests_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_server, "PAUSE", 0.1)
    monkeypatch.setattr(lane, "NEVER", 0.2)
    began = time.monotonic()
    teacher = teach((closed_port(), closed_port()), concurrency=4)
    errors = [r["error"] for r in answers(ask(teacher, *words(2000)))]
    assert time.monotonic() - began < 20
    assert all("connection failed" in error for error in errors)
    assert sum("no server has answered for 0.2 s" in error for error in errors) > 1900


def test_tries_end_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "IN_ALL", 0.8)
    monkeypatch.setattr(lane, "TRIES", 1000)
    response, server = one(lambda request, nth: (time.sleep(0.1), (500, {}, {"error": "again"}))[1])
    assert 2 <= server.count < 10
    assert response["error"] == f"HTTP 500: again (tried {server.count} times)"


@pytest.mark.parametrize(
    ("unit", "limit"), [("requests_per_minute", 10), ("tokens_per_minute", 80)]
)
def test_limits_per_minute(unit: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MINUTE", 2.0)
    times: list[float] = []

    def reply(request: dict[str, Any], nth: int) -> Reply:
        times.append(time.monotonic())
        return OK  # 7 tokens and 1

    rate.window.cache_clear()
    with ChatServer(reply) as server:
        teacher = teach(server, sampling=Sampling(max_tokens=8), **{unit: limit})
        for batch in (words(20), words(15)):  # the second call knows of the first
            answers(ask(teacher, *batch))
    assert len(times) == 35
    for i in range(35 - 11):  # half the time, since they travel: at most one more than 10 in it
        assert times[i + 11] - times[i] > 1.0


def test_limits_do_not_hold_up_other_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    rate.window.cache_clear()
    with ChatServer() as server:
        slow, free = teach(server, name="slow", requests_per_minute=1), teach(server, name="free")
        results = endpoint.generate(ask(slow, *words(3)) + ask(free, *words(50)), Account())
        first = [next(results)[1]["teacher"] for _ in range(51)]
        results.close()  # type: ignore[attr-defined]
        assert first.count("free") == 50


def test_max_cost_ends_cleanly() -> None:
    price = Price(0, 1e6)  # a dollar for a token
    with ChatServer(after(0.01)) as server:
        teacher = teach(server, price=price, sampling=Sampling(max_tokens=4), concurrency=4)
        account = Account(max_cost=20)
        with pytest.raises(BuildError, match=r"max_cost \$20.*\$17\.0000.*83 of 100"):
            respond(ask(teacher, *words(100)), "Test", account)
        assert (
            server.count == account.tallies[0].answers == 17
        )  # 16 and 4 at most stay within 20, 17 and 4 do not
        assert account.reserved == 0


def test_max_cost_waits_for_what_is_tried_again() -> None:
    """A request that waits for another try holds money back; it must not be held up by those that
    wait for it.
    """
    tries: Counter[str] = Counter()

    def reply(request: dict[str, Any], nth: int) -> Reply:
        prompt = request["messages"][0]["content"]
        tries[prompt] += 1
        return (500, {}, {}) if tries[prompt] == 1 else OK

    with ChatServer(reply) as server:
        teacher = teach(server, price=Price(0, 1e6), sampling=Sampling(max_tokens=4), concurrency=4)
        responses = respond(ask(teacher, *words(10)), "Test", Account(max_cost=13))
        assert [r["error"] for r in responses] == [""] * 10 and server.count == 20


def test_what_the_server_does_not_count_is_counted(
    chat_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def load(model: str, *more: Any) -> Any:
        loads.append(model)
        return load_tokenizer(model, *more)

    monkeypatch.setattr(models, "load_tokenizer", load)
    partial = completion("the answer", usage={"completion_tokens": 9})
    with ChatServer(
        in_turn((200, {}, completion("the answer", usage=None)), (200, {}, partial))
    ) as server:
        teacher = teach(server, model=chat_model)
        first, second = (answers(ask(teacher, text))[0] for text in ("hi", "hi you"))
    tokenizer = load_tokenizer(chat_model)
    assert (
        first["prompt_tokens"]
        == len(prompt_ids(tokenizer, [{"role": "user", "content": "hi"}]))
        > 10
    )
    assert (
        first["completion_tokens"]
        == len(tokenizer("the answer", add_special_tokens=False)["input_ids"])
        > 2
    )
    assert (
        second["prompt_tokens"] == first["prompt_tokens"] + 4 and second["completion_tokens"] == 9
    )
    assert loads == [chat_model]


def test_a_missing_tokenizer_is_looked_for_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        response, _ = one(in_turn((200, {}, completion("words", usage=None))))
        assert (response["prompt_tokens"], response["completion_tokens"], response["error"]) == (
            None,
            None,
            "",
        )
    assert [r.getMessage() for r in caplog.records if "not counted" in r.getMessage()] == [
        "The tokens of m are not counted: neither by its server nor by a tokenizer (no such model)."
    ]
