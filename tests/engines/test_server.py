"""What the endpoint engine makes of a server on loopback: its faults, what it bears, whether it is
up.
"""

import shutil
import ssl
import subprocess
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from asking import OK, after, answers, ask, closed_port, in_turn, one, refusal, teach, words
from chat_server import ChatServer, Reply

from persyn_datasets.engines import endpoint, lane
from persyn_datasets.engines import server as engine_server
from persyn_datasets.engines.account import Account

pytestmark = pytest.mark.usefixtures("impatient")


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
    assert 0.9 < time.monotonic() - began < 20


def test_retry_after_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_server, "MAX_RETRY_AFTER", 0.05)
    began = time.monotonic()
    for value in ("86400", "inf", "nonsense", "-3", formatdate(time.time() + 86400)):
        assert one(in_turn((503, {"Retry-After": value}, {}), OK))[0]["text"] == "fine"
    assert time.monotonic() - began < 20


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


def test_connection_refused_fails_the_rows() -> None:
    with ChatServer() as server:
        dead, alive = teach(closed_port(), name="dead"), teach(server, name="alive")
        began = time.monotonic()
        responses = answers(ask(dead, "a", "b") + ask(alive, "c"))
    assert time.monotonic() - began < 20
    assert [bool(r["error"]) for r in responses] == [True, True, False]
    assert (
        responses[0]["error"].startswith("connection failed: ")
        and responses[0]["finish_reason"] == "error"
    )


def test_time_out_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "TRIES", 2)
    with ChatServer(after(1.5)) as server:
        response = answers(ask(teach(server, timeout=0.5), "hi"))[0]
        assert "timed out" in response["error"] and server.count == 2


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
        assert 9 < len(while_down) < 30 and set(while_down[-3:]) == {1}  # probes
        assert [active for is_down, active in together if not is_down][-20:] != [1] * 20


def test_concurrency_follows_what_the_server_bears() -> None:
    active: list[int] = []

    def bears_four(request: dict[str, Any], nth: int) -> Reply:
        active.append(server.active)
        busy = server.active > 4
        time.sleep(0.005 if busy else 0.025)  # longer than a busy machine takes to ask
        return (429, {}, {"error": "too many"}) if busy else OK

    with ChatServer(bears_four) as server:
        account = Account()
        found = dict(endpoint.generate(ask(teach(server, concurrency=32), *words(600)), account))
        assert len(found) == 600 and not any(r["error"] for r in found.values())
        late = active[len(active) // 2 :]
        assert max(active) > 4 and 6 > sum(late) / len(late) > 2  # lower, and it grows again
        assert account.tallies[0].retries == server.count - 600 < 300


def test_requests_in_flight_together_halve_the_limit_once() -> None:
    barrier = threading.Barrier(16)

    def reply(request: dict[str, Any], nth: int) -> Reply:
        if 1 < nth <= 17:  # after a first answer all 16 are in flight
            barrier.wait(20)
            return 429, {}, {}
        time.sleep(0.05)
        return OK

    with ChatServer(reply) as server:
        found: list[int] = []
        original = reply

        def watch(request: dict[str, Any], nth: int) -> Reply:
            if nth > 17:
                found.append(server.active)
            return original(request, nth)

        server.reply = watch
        answers(ask(teach(server, concurrency=16), *words(40)))
        assert max(found[:16]) == 8


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with ChatServer(models=["m"]) as other:
        for host in ("127.0.0.1", "localhost"):
            to = other.url.replace("127.0.0.1", host) + "/chat/completions"
            response, server = one(in_turn((status, {"Location": to}, {})), api_key_env="TEST_KEY")
            assert response["error"].startswith(
                f"HTTP {status}: it redirects to {to}, which is not followed"
            )
            assert server.count == 1
        with ChatServer(models_reply=(status, {"Location": f"{other.url}/models"}, {})) as server:
            assert f"redirects to {other.url}/models" in refusal(
                teach(server, api_key_env="TEST_KEY")
            )
        assert other.headers == []


def test_certificates_are_verified(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("makes a certificate with openssl")
    names = [str(tmp_path / name) for name in ("key.pem", "certificate.pem")]
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "
        "/CN=127.0.0.1"
    )
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
