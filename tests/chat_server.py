"""A small real OpenAI-compatible server on loopback: `with ChatServer() as server: ...
server.url`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self

Reply = tuple[int, dict[str, str], Any]


def completion(text: str | None, finish_reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    """The body of a chat completion; words are counted as tokens."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    usage = {"prompt_tokens": 7, "completion_tokens": len((text or "").split()), "total_tokens": 0}
    return {"id": "chat-1", "object": "chat.completion", "choices": choices, "usage": usage} | more


def echo(request: dict[str, Any], nth: int) -> Reply:
    """A deterministic answer: the model, the last message and a hash of the whole conversation."""
    digest = hashlib.sha256(json.dumps(request["messages"]).encode()).hexdigest()[:8]
    return (
        200,
        {},
        completion(f"{request['model']} on {request['messages'][-1]['content']} [{digest}]"),
    )


class ChatServer:
    """Answers POST /v1/chat/completions with `reply(request, n)`, n counting from 1, and GET
    /v1/models.

    Args:
        reply: gives (status, headers, body); a str or bytes body is sent as it is, anything else as
            JSON.
        models: the names that GET /v1/models lists.
        models_reply: what it answers instead.
        route: to which POST requests go.
    """

    def __init__(
        self,
        reply: Callable[[dict[str, Any], int], Reply] = echo,
        models: Sequence[str] = (),
        models_reply: Reply | None = None,
        route: str = "/v1/chat/completions",
    ) -> None:
        listing = {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}
        self.route = route
        self.reply, self.models_reply = reply, models_reply or (200, {}, listing)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[
            dict[str, str]
        ] = []  # of every request, /models too; names in lower case
        self.paths: list[str] = []
        self.active = self.max_active = 0  # chat requests in progress
        self._lock = Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.chat = self
        self._thread = Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def count(self) -> int:
        """Chat requests so far."""
        return len(self.bodies)

    def chat(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            self.bodies.append(body)
            nth = len(self.bodies)
            self.active += 1
            self.max_active = max(self.max_active, self.active)
        try:
            return self.reply(body, nth)
        finally:
            with self._lock:
                self.active -= 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    chat: ChatServer


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = (
        -1
    )  # one packet for head and body: else Nagle's algorithm holds back each answer by 40 ms
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._note()
        found = self.path.split("?")[0] == "/v1/models"
        self._send(
            *(self.server.chat.models_reply if found else (404, {}, {"error": f"no {self.path}"}))
        )

    def do_POST(self) -> None:
        self._note()
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        found = self.path.split("?")[0] == self.server.chat.route
        self._send(
            *(self.server.chat.chat(body) if found else (404, {}, {"error": f"no {self.path}"}))
        )

    def _note(self) -> None:
        self.server.chat.paths.append(self.path)
        self.server.chat.headers.append(
            {name.lower(): value for name, value in self.headers.items()}
        )

    def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
        body = body if isinstance(body, str | bytes) else json.dumps(body)
        data = body.encode() if isinstance(body, str) else body
        try:
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass
