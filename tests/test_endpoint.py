"""The endpoint engine against a real server on loopback."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, completion, echo
from datasets import Dataset
from fault_server import KINDS, FaultServer
from huggingface_hub import set_async_client_factory
from huggingface_hub.utils import httpx
from huggingface_hub.utils._http import default_async_client_factory

from persyn_datasets import Generate, models
from persyn_datasets.account import Account
from persyn_datasets.engines import Request, Response, endpoint, lane, rate
from persyn_datasets.engines import server as engine_server
from persyn_datasets.errors import BuildError, InputError
from persyn_datasets.models import load_tokenizer, prompt_ids
from persyn_datasets.respond import respond
from persyn_datasets.teacher import Price, Sampling, Teacher

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


def teach(server: ChatServer | str | tuple[str, ...], **more: Any) -> Teacher:
    url = server.url if isinstance(server, ChatServer) else server
    return Teacher(more.pop("model", "m"), engine="endpoint", base_url=url, **more)


def ask(teacher: Teacher, *prompts: str) -> list[Request]:
    return [Request(teacher, f"id-{text}", [{"role": "user", "content": text}]) for text in prompts]


def answers(requests: list[Request]) -> list[Response]:
    found = dict(endpoint.generate(requests, Account()))
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


def words(count: int) -> list[str]:
    return [f"word {i}" for i in range(count)]


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
        answers([request._replace(sample=2) for request in ask(teach(server, sampling=Sampling(seed=3)), "a")])
        assert server.bodies[3]["seed"] == 5


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
                assert (server.answers[prompt], response["text"], response["error"]) == (1, f"answer to {prompt}", "")
            else:
                assert response["finish_reason"] == "error" and response["error"]
        assert sum(server.answers.values()) > 2900
        assert [server.requests[prompt] for prompt in prompts[:2]] == [2, 12]  # `respond` asks again at the end
        [tally] = account.tallies
        assert tally.answers == sum(server.answers.values())
        assert tally.failed == 3000 - tally.answers >= 60
        assert tally.retries == sum(server.requests.values()) - 3000
        assert sum(r["finish_reason"] == "length" for r in responses) == server.kinds["length"]


def test_several_servers_share_the_work() -> None:
    with ChatServer(after(0.01)) as a, ChatServer(after(0.01)) as b, ChatServer(after(0.2)) as slow:
        assert not any(r["error"] for r in answers(ask(teach((a.url, b.url, slow.url), concurrency=4), *words(200))))
        assert min(a.count, b.count) > 3 * slow.count > 0
        assert max(server.max_active for server in (a, b, slow)) <= 4


def test_few_requests_go_to_the_idle_server() -> None:
    with ChatServer(after(0.1)) as a, ChatServer(after(0.1)) as b:
        answers(ask(teach((a.url, b.url)), *words(8)))
        assert (a.count, b.count) == (4, 4)


def test_teachers_share_the_concurrency_of_a_server() -> None:
    with ChatServer(after(0.01)) as server:
        teachers = [teach(server, name=name, concurrency=3) for name in "abc"]
        requests = [request for teacher in teachers for request in ask(teacher, *words(20))]
        assert not any(r["error"] for r in answers(requests))
        assert server.max_active == 3


@pytest.mark.parametrize("status", [None, 502])
def test_a_dead_server_is_put_aside_and_its_requests_go_to_the_others(
    status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_server, "PAUSE", 60.0)
    monkeypatch.setattr(lane, "TRIES", 2)
    with ChatServer(after(0.005)) as alive, ChatServer(in_turn((status or 0, {}, {}))) as broken:
        teacher = teach((broken.url if status else closed_port(), alive.url), concurrency=8)
        account = Account()
        assert not any(r["error"] for _, r in endpoint.generate(ask(teacher, *words(300)), account))
        assert alive.count == 300
        assert 5 <= account.tallies[0].retries <= 12  # the eight that are in flight with the fourth
        assert broken.count == (account.tallies[0].retries if status else 0)


def test_a_server_comes_back_after_one_request() -> None:
    down, together = threading.Event(), []

    def reply(request: dict[str, Any], nth: int) -> Reply:
        together.append((down.is_set(), server.active))
        if nth == 40:
            down.set()
            threading.Timer(0.3, down.clear).start()
        if down.is_set():
            return 503, {}, {"error": "starting"}
        time.sleep(0.005)
        return OK

    with ChatServer(reply) as server:
        account = Account()
        responses = dict(endpoint.generate(ask(teach(server, concurrency=8), *words(400)), account))
        assert len(responses) == 400 and not any(r["error"] for r in responses.values())
        while_down = [active for is_down, active in together if is_down]
        assert 12 < len(while_down) < 30 and set(while_down[-3:]) == {1}  # probes
        assert [active for is_down, active in together if not is_down][-20:] != [1] * 20


def test_servers_that_stay_down_fail_their_requests_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_server, "PAUSE", 0.1)
    monkeypatch.setattr(lane, "NEVER", 0.2)
    began = time.monotonic()
    teacher = teach((closed_port(), closed_port()), concurrency=4)
    errors = [r["error"] for r in answers(ask(teacher, *words(2000)))]
    assert time.monotonic() - began < 5
    assert all("connection failed" in error for error in errors)
    assert sum("no server has answered for 0.2 s" in error for error in errors) > 1900


def test_tries_end_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "IN_ALL", 0.1)
    monkeypatch.setattr(lane, "TRIES", 1000)
    response, server = one(lambda request, nth: (time.sleep(0.03), (500, {}, {"error": "again"}))[1])
    assert 2 <= server.count < 10
    assert response["error"] == f"HTTP 500: again (tried {server.count} times)"


@pytest.mark.parametrize(("unit", "limit"), [("requests_per_minute", 10), ("tokens_per_minute", 80)])
def test_limits_per_minute(unit: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MINUTE", 0.5)
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
        assert times[i + 11] - times[i] > 0.25


def test_limits_do_not_hold_up_other_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    rate.window.cache_clear()
    with ChatServer() as server:
        slow, free = teach(server, name="slow", requests_per_minute=1), teach(server, name="free")
        results = endpoint.generate(ask(slow, *words(3)) + ask(free, *words(50)), Account())
        first = [next(results)[1]["teacher"] for _ in range(51)]
        results.close()  # type: ignore[attr-defined]
        assert first.count("free") == 50


def test_concurrency_follows_what_the_server_bears() -> None:
    active: list[int] = []

    def bears_four(request: dict[str, Any], nth: int) -> Reply:
        active.append(server.active)
        busy = server.active > 4
        time.sleep(0.002 if busy else 0.01)
        return (429, {}, {"error": "too many"}) if busy else OK

    with ChatServer(bears_four) as server:
        account = Account()
        found = dict(endpoint.generate(ask(teach(server, concurrency=32), *words(600)), account))
        assert len(found) == 600 and not any(r["error"] for r in found.values())
        late = active[len(active) // 2 :]
        assert max(active) > 6 > sum(late) / len(late) > 2  # lower, and it grows again
        assert account.tallies[0].retries == server.count - 600 < 300


def test_requests_in_flight_together_halve_the_limit_once() -> None:
    barrier = threading.Barrier(16)

    def reply(request: dict[str, Any], nth: int) -> Reply:
        if nth <= 16:
            barrier.wait(5)
            return 429, {}, {}
        time.sleep(0.05)
        return OK

    with ChatServer(reply) as server:
        found: list[int] = []
        original = reply

        def watch(request: dict[str, Any], nth: int) -> Reply:
            if nth > 16:
                found.append(server.active)
            return original(request, nth)

        server.reply = watch
        answers(ask(teach(server, concurrency=16), *words(40)))
        assert max(found[:16]) == 8


def test_max_cost_ends_cleanly() -> None:
    price = Price(0, 1e6)  # a dollar for a token
    with ChatServer(after(0.01)) as server:
        teacher = teach(server, price=price, sampling=Sampling(max_tokens=4), concurrency=4)
        account = Account(max_cost=20)
        with pytest.raises(BuildError, match=r"max_cost \$20 is reached: \$17.0000 spent.*; 83 of 100 are left"):
            respond(ask(teacher, *words(100)), "Test", account)
        assert server.count == account.tallies[0].answers == 17  # 16 and 4 at most stay within 20, 17 and 4 do not
        assert account.reserved == 0


def test_max_cost_waits_for_what_is_tried_again() -> None:
    """A request that waits for another try holds money back; it must not be held up by those that wait for it."""
    tries: Counter[str] = Counter()

    def reply(request: dict[str, Any], nth: int) -> Reply:
        prompt = request["messages"][0]["content"]
        tries[prompt] += 1
        return (500, {}, {}) if tries[prompt] == 1 else OK

    with ChatServer(reply) as server:
        teacher = teach(server, price=Price(0, 1e6), sampling=Sampling(max_tokens=4), concurrency=4)
        responses = respond(ask(teacher, *words(10)), "Test", Account(max_cost=13))
        assert [r["error"] for r in responses] == [""] * 10 and server.count == 20


def test_a_closed_account_ends_the_work_soon() -> None:
    with ChatServer(after(1)) as server:
        account = Account()
        threading.Timer(0.3, account.closed.set).start()
        began = time.monotonic()
        assert list(endpoint.generate(ask(teach(server), *words(100)), account)) == []
        assert 0.25 < time.monotonic() - began < 0.9
        assert server.count == 32


def test_works_in_the_processes_of_a_map() -> None:
    with ChatServer() as server:
        prompts = Dataset.from_dict({"prompt": words(12)})
        rows = prompts.map(Generate([teach(server)]), batched=True, batch_size=3, num_proc=2)
        assert [r["text"][:-11] for [r] in rows["responses"]] == [f"m on {word}" for word in words(12)]
        assert server.count == 12


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with ChatServer(models=["m"]) as other:
        for host in ("127.0.0.1", "localhost"):
            to = other.url.replace("127.0.0.1", host) + "/chat/completions"
            response, server = one(in_turn((status, {"Location": to}, {})), api_key_env="TEST_KEY")
            assert response["error"].startswith(f"HTTP {status}: it redirects to {to}, which is not followed")
            assert server.count == 1
        with ChatServer(models_reply=(status, {"Location": f"{other.url}/models"}, {})) as server:
            assert f"redirects to {other.url}/models" in refusal(teach(server, api_key_env="TEST_KEY"))
        assert other.headers == []


def test_certificates_are_verified(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("makes a certificate with openssl")
    names = [str(tmp_path / name) for name in ("key.pem", "certificate.pem")]
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout {} -out {}"
    subprocess.run(command.format(*names).split(), check=True, capture_output=True)
    with ChatServer(models=["m"]) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(names[1], names[0])
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        [response] = answers(ask(teach(url, api_key_env="TEST_KEY"), "hi"))
        assert "CERTIFICATE_VERIFY_FAILED" in response["error"]
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(teach(url))
        assert server.headers == []


@pytest.mark.parametrize("user", ["me:secret", "secret", ":secret"])
def test_a_password_in_the_address_is_refused(user: str) -> None:
    with pytest.raises(InputError, match="holds a user or a key") as info:
        teach(f"http://{user}@127.0.0.1:1/v1")
    assert "secret" not in str(info.value)


def test_check_asks_every_server() -> None:
    with ChatServer(models=["m"]) as good, ChatServer(models=["n"]) as other:
        endpoint.check(teach((good.url, good.url)))
        message = refusal(teach((good.url, other.url)))
        assert other.url in message and "has no model 'm'" in message


def test_what_the_server_does_not_count_is_counted(chat_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(model: str, *more: Any) -> Any:
        loads.append(model)
        return load_tokenizer(model, *more)

    monkeypatch.setattr(models, "load_tokenizer", load)
    partial = completion("the answer", usage={"completion_tokens": 9})
    with ChatServer(in_turn((200, {}, completion("the answer", usage=None)), (200, {}, partial))) as server:
        teacher = teach(server, model=chat_model)
        first, second = (answers(ask(teacher, text))[0] for text in ("hi", "hi you"))
    tokenizer = load_tokenizer(chat_model)
    assert first["prompt_tokens"] == len(prompt_ids(tokenizer, [{"role": "user", "content": "hi"}])) > 10
    assert first["completion_tokens"] == len(tokenizer("the answer", add_special_tokens=False)["input_ids"]) > 2
    assert second["prompt_tokens"] == first["prompt_tokens"] + 4 and second["completion_tokens"] == 9
    assert loads == [chat_model]


def test_a_missing_tokenizer_is_looked_for_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        response, _ = one(in_turn((200, {}, completion("words", usage=None))))
        assert (response["prompt_tokens"], response["completion_tokens"], response["error"]) == (None, None, "")
    assert [r.getMessage() for r in caplog.records if "not counted" in r.getMessage()] == [
        "The tokens of m are not counted: neither by its server nor by a tokenizer (no such model)."
    ]
