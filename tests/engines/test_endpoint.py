"""The endpoint engine against a real server on loopback: keys, addresses, checks, and all
at once.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from asking import KEY, after, answers, ask, closed_port, in_turn, one, refusal, teach, words
from chat_server import ChatServer, completion, echo
from datasets import Dataset
from fault_server import KINDS, FaultServer
from huggingface_hub import close_session, set_async_client_factory
from huggingface_hub.utils import httpx
from huggingface_hub.utils._http import default_async_client_factory

from persyn_datasets import Generate
from persyn_datasets.config.errors import InputError
from persyn_datasets.engines import Request, Response, endpoint
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.dispatch import respond

pytestmark = pytest.mark.usefixtures("impatient")


def test_answers_land_in_their_rows_and_overlap() -> None:
    def slow_start(request: dict[str, Any], nth: int) -> Any:
        time.sleep(0.4)  # long enough to overlap on a busy machine
        return echo(request, nth)

    with ChatServer(slow_start) as first, ChatServer(slow_start) as second:
        teachers = [
            teach(first, name="a"),
            teach(second, name="b"),
            teach(first, model="n", name="c"),
        ]
        requests = [ask(teachers[i % 3], f"prompt {i}")[0] for i in range(240)]
        began = time.monotonic()
        order = [index for index, _ in endpoint.generate(requests, Account())]
        assert time.monotonic() - began < 20  # one after the other: 96 s
        assert order != sorted(order) == list(range(240))
        assert 8 < first.max_active <= 32 and 8 < second.max_active <= 32
        for request, response in zip(requests, answers(requests), strict=True):
            assert response["teacher"] == request.teacher.name
            assert response["text"].startswith(
                f"{request.teacher.model} on {request.messages[0]['content']} ["
            )
            assert (response["finish_reason"], response["error"]) == ("stop", "")


def test_no_requests() -> None:
    assert list(endpoint.generate([], Account())) == []


def test_works_inside_a_running_event_loop() -> None:
    async def notebook(server: ChatServer) -> list[Response]:
        return answers(ask(teach(server), "a", "b"))

    with ChatServer() as server:
        assert [r["text"][:6] for r in asyncio.run(notebook(server))] == ["m on a", "m on b"]


def test_key_is_sent_and_never_shown() -> None:
    def parrot(request: dict[str, Any], nth: int) -> Any:
        return (
            401,
            {"X-Error-Message": KEY},
            {"error": {"message": f"Incorrect API key provided: {KEY}"}},
        )

    response, server = one(parrot, api_key_env="TEST_KEY")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert response["error"] == "HTTP 401: Incorrect API key provided: ***"
    response, server = one(in_turn((200, {}, {"error": KEY})), api_key_env="TEST_KEY")
    assert server.count == 6 and KEY not in json.dumps(response)
    teacher = teach(server, api_key_env="TEST_KEY")
    assert KEY not in repr(teacher) + json.dumps(teacher.to_dict())


def test_each_teacher_sends_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "other\n")
    with ChatServer() as server:
        teachers = [
            teach(server, name=str(key), api_key_env=key) for key in ("TEST_KEY", "OTHER_KEY", None)
        ]
        answers([request for teacher in teachers for request in ask(teacher, "hi")])
        sent = {headers.get("authorization") for headers in server.headers}
        assert sent == {f"Bearer {KEY}", "Bearer other", None}


def test_users_token_goes_to_no_foreign_host() -> None:
    with ChatServer(models=["m"]) as server:
        endpoint.check(teach(server))
        assert answers(ask(teach(server), "hi"))[0]["error"] == ""
        assert server.count == 1 and len(server.headers) == 2
        assert all("authorization" not in headers for headers in server.headers)
        assert "hf_must" not in str(server.headers)


@pytest.fixture
def outside() -> Iterator[list[httpx.Request]]:
    """Stands in for all hosts; the requests that they got."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=completion("fine"))

    set_async_client_factory(lambda: httpx.AsyncClient(transport=httpx.MockTransport(handler)))
    yield seen
    set_async_client_factory(default_async_client_factory)


@pytest.mark.parametrize(
    ("url", "asked", "token"),
    [
        (
            "https://router.huggingface.co/v1",
            "https://router.huggingface.co/v1/chat/completions",
            True,
        ),
        (
            "http://router.huggingface.co/v1",
            "http://router.huggingface.co/v1/chat/completions",
            False,
        ),
        (
            "https://huggingface.co.evil.com/v1",
            "https://huggingface.co.evil.com/v1/chat/completions",
            False,
        ),
        ("https://evilhuggingface.co/v1/", "https://evilhuggingface.co/v1/chat/completions", False),
        ("http://host:8080", "http://host:8080/v1/chat/completions", False),
        ("https://host/v1beta/openai", "https://host/v1beta/openai/chat/completions", False),
    ],
)
def test_addresses_and_whom_the_token_is_for(
    outside: list[httpx.Request], url: str, asked: str, token: bool
) -> None:
    assert answers(ask(teach(url), "hi"))[0]["text"] == "fine"
    assert str(outside[0].url) == asked
    assert outside[0].headers.get("authorization") == (
        "Bearer hf_must_not_leave" if token else None
    )


def test_faulty_teacher_fails_its_rows_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with ChatServer() as server:
        good, keyless = (
            teach(server, name="good"),
            teach(server, name="keyless", api_key_env="TEST_KEY"),
        )
        responses = answers(
            ask(good, "a") + ask(keyless, "b") + ask(replace(good, base_url="localhost:80/v1"), "c")
        )
        assert [bool(r["error"]) for r in responses] == [False, True, True] and server.count == 1
        assert (
            "TEST_KEY is not set" in responses[1]["error"]
            and "http://host:8080/v1" in responses[2]["error"]
        )


def test_closing_stops_the_work() -> None:
    with ChatServer(after(0.05)) as server:
        results = endpoint.generate(ask(teach(server), *map(str, range(5000))), Account())
        next(results)
        began = time.monotonic()
        results.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 4  # all 5,000: 8 s
        assert not [thread for thread in threading.enumerate() if thread.name == "persyn-endpoint"]
        time.sleep(0.2)
        count = server.count
        time.sleep(0.2)
        assert server.count == count < 200


def test_a_bug_is_raised_after_what_was_answered() -> None:
    with ChatServer() as server:
        bad = Request(teach(server), "bad", [{"role": "user", "content": {"a set"}}])  # type: ignore[dict-item]
        with pytest.raises(TypeError, match="JSON"):
            list(endpoint.generate([*ask(teach(server), "a"), bad], Account()))
        assert not [thread for thread in threading.enumerate() if thread.name == "persyn-endpoint"]


def test_check_accepts() -> None:
    listings = [{"data": [{"id": name}]} for name in ("m", "m:latest", "models/m")]
    replies = [(200, body) for body in (*listings, {"data": []}, {"data": None}, [{"id": "m"}], 3)]
    for status, body in [*replies, (404, {}), (405, {}), (429, {})]:
        with ChatServer(models_reply=(status, {}, body)) as server:
            endpoint.check(teach(server))
            endpoint.check(teach(server, api_key_env="TEST_KEY"))
            assert [headers.get("authorization") for headers in server.headers] == [
                None,
                f"Bearer {KEY}",
            ]
    with ChatServer(models=["org/m"]) as server:
        endpoint.check(teach(server, model="org/m:fastest"))


def test_check_missing_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", "  "):
        monkeypatch.delenv("TEST_KEY") if value is None else monkeypatch.setenv("TEST_KEY", value)
        message = refusal(teach("http://127.0.0.1:1/v1", api_key_env="TEST_KEY"))
        assert "TEST_KEY is not set" in message and "export TEST_KEY=..." in message
    monkeypatch.setenv("TEST_KEY", f"{KEY}\nsecond line")
    assert "the key in TEST_KEY" in refusal(teach("http://127.0.0.1:1/v1", api_key_env="TEST_KEY"))


def test_check_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    url = closed_port()
    message = refusal(teach(url))
    assert f"{url} cannot be reached" in message and "refused" in message
    assert "expected e.g. http://host:8080/v1" in refusal(teach("localhost:8080/v1"))


def test_offline_is_about_the_hub_and_forbids_no_other_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compute nodes are offline by habit, and their servers run beside them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with ChatServer(models=["m"]) as server:
        endpoint.check(teach(server))
        assert answers(ask(teach(server), "hi"))[0]["error"] == ""
    ours = teach("https://router.huggingface.co/v1")
    assert "HF_HUB_OFFLINE" in refusal(ours)
    assert "HF_HUB_OFFLINE" in answers(ask(ours, "hi"))[0]["error"]


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:9/", "socks5://me:pass@127.0.0.1:9", "x:y"])
def test_a_proxy_that_cannot_be_used_is_one_sentence(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("all_proxy", proxy)
    close_session()
    with ChatServer(models=["m"]) as server:
        for work in (
            lambda: endpoint.check(teach(server)),
            lambda: answers(ask(teach(server), "hi")),
        ):
            with pytest.raises(InputError, match="all_proxy") as error:
                work()
            assert "me:pass" not in str(error.value)


@pytest.mark.parametrize("status", [401, 403])
def test_check_refused_key(status: int) -> None:
    with ChatServer(models_reply=(status, {}, {"error": f"bad key {KEY}"})) as server:
        assert "refused the key (bad key ***); check the key in TEST_KEY" in refusal(
            teach(server, api_key_env="TEST_KEY")
        )
    with ChatServer(models_reply=(status, {}, {"error": "who are you"})) as server:
        assert "refused a missing key (who are you); name its variable in api_key_env" in refusal(
            teach(server)
        )


def test_check_broken_or_foreign_server() -> None:
    with ChatServer(models_reply=(503, {}, {"error": "loading"})) as server:
        assert "answers HTTP 503: loading" in refusal(teach(server))
    with ChatServer(models_reply=(200, {}, "<html>")) as server:
        assert "not JSON" in refusal(teach(server))


def test_check_unknown_model_names_the_nearest() -> None:
    names = [
        "gpt-large",
        "whisper",
        "Qwen/Qwen2.5-7B",
        "tts",
        "embed",
        "Qwen/Qwen2.5-72B",
        "rerank",
    ]
    with ChatServer(models=names) as server:
        message = refusal(teach(server, model="Qwen/Qwen2.5-72b"))
        assert (
            "has no model 'Qwen/Qwen2.5-72b'; it has Qwen/Qwen2.5-72B, Qwen/Qwen2.5-7B, " in message
        )
        assert message.endswith(" and 2 more.")


@pytest.mark.slow
def test_under_fire() -> None:
    with FaultServer() as server:
        teacher = teach(server.url, timeout=2, concurrency=64)
        kinds = ["refused", "broken", *["prompt"] * 98]
        prompts = [f"{kinds[i % 100]} {i}" for i in range(3000)]
        account = Account()
        responses = respond(ask(teacher, *prompts), "Test", account)
        assert set(server.kinds) == {*KINDS, "400"}
        for prompt, response in zip(prompts, responses, strict=True):
            if server.answers[prompt]:
                assert (server.answers[prompt], response["text"], response["error"]) == (
                    1,
                    f"answer to {prompt}",
                    "",
                )
            else:
                assert response["finish_reason"] == "error" and response["error"]
        assert sum(server.answers.values()) > 2900
        assert [server.requests[prompt] for prompt in prompts[:2]] == [
            2,
            12,
        ]  # `respond` asks again at the end
        [tally] = account.tallies
        assert tally.answers == sum(server.answers.values())
        assert tally.failed == 3000 - tally.answers >= 60
        assert tally.retries == sum(server.requests.values()) - 3000
        assert sum(r["finish_reason"] == "length" for r in responses) == server.kinds["length"]


def test_a_closed_account_ends_the_work_soon() -> None:
    account, closed_at = Account(), []

    def slow(request: dict[str, Any], nth: int) -> Any:
        if nth == 8:  # as many as a teacher gets before its first answer
            account.closed.set()
            closed_at.append(time.monotonic())
        time.sleep(4)
        return echo(request, nth)

    with ChatServer(slow) as server:
        assert list(endpoint.generate(ask(teach(server), *words(100)), account)) == []
        assert time.monotonic() - closed_at[0] < 3
        assert server.count == 8


def test_a_teacher_that_has_not_answered_gets_few_requests_at_once() -> None:
    """One that only says nothing is found before all of its concurrency is paid for."""
    active: list[int] = []

    def empty_at_first(request: dict[str, Any], nth: int) -> Any:
        active.append(server.active)
        time.sleep(0.1)
        return completion("") if nth <= 20 else echo(request, nth)

    with ChatServer(empty_at_first) as server:
        found = list(endpoint.generate(ask(teach(server), *words(200)), Account()))
    assert len(found) == 200
    assert max(active[:20]) == 8 and max(active[30:]) > 8


def test_works_in_the_processes_of_a_map() -> None:
    with ChatServer() as server:
        prompts = Dataset.from_dict({"prompt": words(12)})
        rows = prompts.map(Generate([teach(server)]), batched=True, batch_size=3, num_proc=2)
        assert [r["text"][:-11] for [r] in rows["responses"]] == [
            f"m on {word}" for word in words(12)
        ]
        assert server.count == 12


@pytest.mark.parametrize("user", ["me:secret", "secret", ":secret"])
def test_a_password_in_the_address_is_refused(user: str) -> None:
    with pytest.raises(InputError, match="base_url.*api_key_env") as info:
        teach(f"http://{user}@127.0.0.1:1/v1")
    assert "secret" not in str(info.value)


def test_check_asks_every_server() -> None:
    with ChatServer(models=["m"]) as good, ChatServer(models=["n"]) as other:
        endpoint.check(teach((good.url, good.url)))
        message = refusal(teach((good.url, other.url)))
        assert other.url in message and "has no model 'm'" in message
