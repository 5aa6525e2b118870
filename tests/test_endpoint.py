"""The endpoint engine against a real server on loopback."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from chat_server import ChatServer, Reply, completion, echo
from huggingface_hub import set_async_client_factory
from huggingface_hub.utils import httpx
from huggingface_hub.utils._http import default_async_client_factory

from persyn_datasets import models
from persyn_datasets.account import Account
from persyn_datasets.engines import Request, Response, endpoint, lane
from persyn_datasets.engines import server as engine_server
from persyn_datasets.errors import InputError
from persyn_datasets.teacher import Sampling, Teacher

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "BACKOFF", 0.002)
    monkeypatch.setattr(engine_server, "PAUSE", 0.002)
    monkeypatch.setattr(models, "load_tokenizer", no_tokenizer)
    lane._tokenizer.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it blocks loopback too
    monkeypatch.setenv("HF_TOKEN", "hf_must_not_leave")
    monkeypatch.setenv("TEST_KEY", KEY)


def no_tokenizer(*_: Any) -> None:
    raise OSError("no such model")


def teach(server: ChatServer | str, **more: Any) -> Teacher:
    url = server if isinstance(server, str) else server.url
    return Teacher(more.pop("model", "m"), engine="endpoint", base_url=url, **more)


def ask(teacher: Teacher, *prompts: str) -> list[Request]:
    return [Request(teacher, f"id-{text}", [{"role": "user", "content": text}]) for text in prompts]


def answers(requests: list[Request]) -> list[Response]:
    found = dict(endpoint.generate(requests, Account()))
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


def one(reply: Any, **more: Any) -> tuple[Response, ChatServer]:
    with ChatServer(reply) as server:
        return answers(ask(teach(server, **more), "hi"))[0], server


def in_turn(*replies: tuple[int, dict[str, str], Any]) -> Any:
    """Each reply once, then the last one forever."""
    return lambda request, nth: replies[min(nth, len(replies)) - 1]


OK: Reply = (200, {}, completion("fine"))


def after(seconds: float) -> Callable[[dict[str, Any], int], Reply]:
    def reply(request: dict[str, Any], nth: int) -> Reply:
        time.sleep(seconds)
        return OK

    return reply


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def test_answers_land_in_their_rows_and_overlap() -> None:
    def slow_start(request: dict[str, Any], nth: int) -> Any:
        time.sleep(0.3 if nth <= 8 else 0.02)
        return echo(request, nth)

    with ChatServer(slow_start) as first, ChatServer(slow_start) as second:
        teachers = [teach(first, name="a"), teach(second, name="b"), teach(first, model="n", name="c")]
        requests = [ask(teachers[i % 3], f"prompt {i}")[0] for i in range(240)]
        began = time.monotonic()
        order = [index for index, _ in endpoint.generate(requests, Account())]
        assert time.monotonic() - began < 4.5  # one after the other: 9 s
        assert order != sorted(order) == list(range(240))
        assert 8 < first.max_active <= 32 and 8 < second.max_active <= 32
        for request, response in zip(requests, answers(requests), strict=True):
            assert response["teacher"] == request.teacher.name
            assert response["text"].startswith(f"{request.teacher.model} on {request.messages[0]['content']} [")
            assert (response["finish_reason"], response["error"]) == ("stop", "")


def test_no_requests() -> None:
    assert list(endpoint.generate([], Account())) == []


def test_works_inside_a_running_event_loop() -> None:
    async def notebook(server: ChatServer) -> list[Response]:
        return answers(ask(teach(server), "a", "b"))

    with ChatServer() as server:
        assert [r["text"][:6] for r in asyncio.run(notebook(server))] == ["m on a", "m on b"]


def test_sampling_reaches_the_server() -> None:
    sampling = Sampling(temperature=0, top_p=0.9, max_tokens=5, seed=11, stop=("END",))
    _, server = one(echo, sampling=sampling)
    body = server.bodies[0]
    assert body == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "top_p": 0.9,
                    "max_tokens": 5, "seed": 11, "stop": ["END"], "stream": False}  # fmt: skip
    _, server = one(echo)
    assert server.bodies[0]["temperature"] == 0.7 and "stop" not in server.bodies[0]


def test_seed_is_the_same_for_every_prompt() -> None:
    with ChatServer() as server:
        answers(ask(teach(server, sampling=Sampling(seed=3)), "a", "b", "c"))
        assert [body["seed"] for body in server.bodies] == [3, 3, 3]


def test_top_p_of_one_is_left_out_where_it_is_refused() -> None:
    def tgi(request: dict[str, Any], nth: int) -> Any:
        if request.get("top_p", 0.5) >= 1:
            return 422, {}, {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0"}
        return echo(request, nth)

    response, server = one(tgi)
    assert response["error"] == "" and server.count == 2


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503])
def test_passing_faults_are_retried(status: int) -> None:
    response, server = one(in_turn((status, {}, {"error": "later"}), OK))
    assert (response["text"], response["error"], server.count) == ("fine", "", 2)


@pytest.mark.parametrize("wait", ["seconds", "date"])
def test_retry_after_is_honoured(wait: str) -> None:
    date = {"Retry-After": "1" if wait == "seconds" else formatdate(time.time() + 2, usegmt=True)}
    began = time.monotonic()
    response, server = one(in_turn((429, date, {"error": "slow down"}), OK))
    assert response["text"] == "fine" and server.count == 2
    assert 0.9 < time.monotonic() - began < 3


def test_retry_after_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_server, "MAX_RETRY_AFTER", 0.05)
    began = time.monotonic()
    for value in ("86400", "inf", "nonsense", "-3", formatdate(time.time() + 86400)):
        assert one(in_turn((503, {"Retry-After": value}, {}), OK))[0]["text"] == "fine"
    assert time.monotonic() - began < 2


def test_lasting_fault_fails_the_row() -> None:
    response, server = one(in_turn((503, {}, {"error": {"message": "no capacity " + "x" * 900}})))
    assert server.count == lane.TRIES == 6
    assert response["error"].startswith("HTTP 503: no capacity xx") and len(response["error"]) < 350
    assert response["error"].endswith("(tried 6 times)")
    assert (response["text"], response["finish_reason"], response["prompt_tokens"]) == ("", "error", None)


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
    ("body", "says"),
    [
        ([{"error": {"message": "as a list"}}], "as a list"),
        ({"detail": "as detail"}, "as detail"),
        ("plain words", "plain words"),
        ("<html><body>proxy</body></html>", "Not Found"),
        ("", "Not Found"),
        (b"\xff\xfe{", "\ufffd"),
        ("null", "null"),
        ({"errors": [1]}, "1"),
    ],
)
def test_every_shape_of_error_body_is_a_row_error(body: Any, says: str) -> None:
    response, server = one(in_turn((404, {}, body)))
    assert response["error"].startswith("HTTP 404: ") and says in response["error"]
    assert server.count == 1


@pytest.mark.parametrize(
    "body",
    ["no json", "", "[]", "3", b"\xff", {}, {"choices": []}, {"choices": None}, {"choices": "abc"}, {"choices": [{}]},
     {"choices": [{"message": "abc", "finish_reason": "stop"}]}, {"choices": {"a": 1}}, completion(None, None),
     {"error": {"message": "upstream is down"}}],
)  # fmt: skip
def test_malformed_answers_are_retried_then_errors(body: Any) -> None:
    response, server = one(in_turn((200, {}, body)))
    assert response["error"].startswith("not a chat completion: ") and server.count == 6
    if isinstance(body, dict) and "error" in body:
        assert "upstream is down" in response["error"]
    assert one(in_turn((200, {}, body), OK))[0]["text"] == "fine"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("stop", "stop"), ("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length"), (None, "stop"),
     ("content_filter", "content_filter")],
)  # fmt: skip
def test_finish_reasons(given: str | None, kept: str) -> None:
    response, server = one(in_turn((200, {}, completion("some text", given))))
    assert (response["text"], response["finish_reason"], response["error"]) == ("some text", kept, "")
    assert server.count == 1


@pytest.mark.parametrize("text", ["", None])
def test_empty_answer_is_kept_but_marked(text: str | None) -> None:
    response, server = one(in_turn((200, {}, completion(text, "length"))))
    assert (response["text"], response["finish_reason"], response["error"]) == ("", "length", "empty response")
    assert server.count == 1


def test_text_can_be_stored() -> None:
    response, _ = one(in_turn((200, {}, completion("half \ud83d"))))
    assert response["text"] == "half ?"


def test_usage() -> None:
    response, _ = one(in_turn((200, {}, completion("three small words"))))
    assert (response["prompt_tokens"], response["completion_tokens"]) == (7, 3)
    response, _ = one(in_turn((200, {}, completion("words", usage=None))))
    assert (response["prompt_tokens"], response["completion_tokens"]) == (None, None)


def test_connection_refused_fails_the_rows() -> None:
    with ChatServer() as server:
        dead, alive = teach(closed_port(), name="dead"), teach(server, name="alive")
        began = time.monotonic()
        responses = answers(ask(dead, "a", "b") + ask(alive, "c"))
    assert time.monotonic() - began < 3
    assert [bool(r["error"]) for r in responses] == [True, True, False]
    assert responses[0]["error"].startswith("connection failed: ") and responses[0]["finish_reason"] == "error"


def test_time_out_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "TRIES", 2)
    with ChatServer(after(0.3)) as server:
        response = answers(ask(teach(server, timeout=0.05), "hi"))[0]
        assert "timed out" in response["error"] and server.count == 2


def test_key_is_sent_and_never_shown() -> None:
    def parrot(request: dict[str, Any], nth: int) -> Any:
        return 401, {"X-Error-Message": KEY}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}

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
        teachers = [teach(server, name=str(key), api_key_env=key) for key in ("TEST_KEY", "OTHER_KEY", None)]
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
        ("https://router.huggingface.co/v1", "https://router.huggingface.co/v1/chat/completions", True),
        ("http://router.huggingface.co/v1", "http://router.huggingface.co/v1/chat/completions", False),
        ("https://huggingface.co.evil.com/v1", "https://huggingface.co.evil.com/v1/chat/completions", False),
        ("https://evilhuggingface.co/v1/", "https://evilhuggingface.co/v1/chat/completions", False),
        ("http://host:8080", "http://host:8080/v1/chat/completions", False),
        ("https://host/v1beta/openai?a=1", "https://host/v1beta/openai/chat/completions?a=1", False),
    ],
)
def test_addresses_and_whom_the_token_is_for(outside: list[httpx.Request], url: str, asked: str, token: bool) -> None:
    assert answers(ask(teach(url), "hi"))[0]["text"] == "fine"
    assert str(outside[0].url) == asked
    assert outside[0].headers.get("authorization") == ("Bearer hf_must_not_leave" if token else None)


def test_faulty_teacher_fails_its_rows_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with ChatServer() as server:
        good, keyless = teach(server, name="good"), teach(server, name="keyless", api_key_env="TEST_KEY")
        responses = answers(ask(good, "a") + ask(keyless, "b") + ask(replace(good, base_url="localhost:80/v1"), "c"))
        assert [bool(r["error"]) for r in responses] == [False, True, True] and server.count == 1
        assert "TEST_KEY is not set" in responses[1]["error"] and "http://host:8080/v1" in responses[2]["error"]


def test_closing_stops_the_work() -> None:
    with ChatServer(after(0.05)) as server:
        results = endpoint.generate(ask(teach(server), *map(str, range(5000))), Account())
        next(results)
        began = time.monotonic()
        results.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 1
        assert not [thread for thread in threading.enumerate() if thread.name == "persyn-endpoint"]
        time.sleep(0.2)
        count = server.count
        time.sleep(0.2)
        assert server.count == count < 200


def test_a_bug_is_raised_after_what_was_answered() -> None:
    with ChatServer() as server:
        bad = Request(teach(server), "bad", [{"role": "user", "content": {"a set"}}])  # type: ignore[dict-item]
        with pytest.raises(TypeError, match="not JSON serializable"):
            list(endpoint.generate([*ask(teach(server), "a"), bad], Account()))
        assert not [thread for thread in threading.enumerate() if thread.name == "persyn-endpoint"]


def test_check_accepts() -> None:
    listings = [{"data": [{"id": name}]} for name in ("m", "m:latest", "models/m")]
    replies = [(200, body) for body in (*listings, {"data": []}, {"data": None}, [{"id": "m"}], 3)]
    for status, body in [*replies, (404, {}), (405, {}), (429, {})]:
        with ChatServer(models_reply=(status, {}, body)) as server:
            endpoint.check(teach(server))
            endpoint.check(teach(server, api_key_env="TEST_KEY"))
            assert [headers.get("authorization") for headers in server.headers] == [None, f"Bearer {KEY}"]
    with ChatServer(models=["org/m"]) as server:
        endpoint.check(teach(server, model="org/m:fastest"))


def refusal(teacher: Teacher) -> str:
    with pytest.raises(InputError) as info:
        endpoint.check(teacher)
    assert teacher.name in str(info.value) and KEY not in str(info.value)
    return str(info.value)


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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(teach(url))
    assert "HF_HUB_OFFLINE" in answers(ask(teach(url), "hi"))[0]["error"]


@pytest.mark.parametrize("status", [401, 403])
def test_check_refused_key(status: int) -> None:
    with ChatServer(models_reply=(status, {}, {"error": f"bad key {KEY}"})) as server:
        assert "refused the key (bad key ***); check the key in TEST_KEY" in refusal(
            teach(server, api_key_env="TEST_KEY")
        )
    with ChatServer(models_reply=(status, {}, {"error": "who are you"})) as server:
        assert "refused a missing key (who are you); name its variable in api_key_env" in refusal(teach(server))


def test_check_broken_or_foreign_server() -> None:
    with ChatServer(models_reply=(503, {}, {"error": "loading"})) as server:
        assert "answers HTTP 503: loading" in refusal(teach(server))
    with ChatServer(models_reply=(200, {}, "<html>")) as server:
        assert "not JSON" in refusal(teach(server))


def test_check_unknown_model_names_the_nearest() -> None:
    names = ["gpt-large", "whisper", "Qwen/Qwen2.5-7B", "tts", "embed", "Qwen/Qwen2.5-72B", "rerank"]
    with ChatServer(models=names) as server:
        message = refusal(teach(server, model="Qwen/Qwen2.5-72b"))
        assert "has no model 'Qwen/Qwen2.5-72b'; it has Qwen/Qwen2.5-72B, Qwen/Qwen2.5-7B, " in message
        assert message.endswith(" and 2 more.")
