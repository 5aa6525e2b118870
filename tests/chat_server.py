"""A small real OpenAI-compatible server on loopback: `with ChatServer() as server: ...
server.url`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from loopback import Handler, Loopback

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


class ChatServer(Loopback):
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
        # Of every request, /models too; names in lower case.
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.active = self.max_active = 0  # chat requests in progress
        self._lock = Lock()
        super().__init__(_Handler)

    @property
    def url(self) -> str:
        return f"{self.host}/v1"

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


class _Handler(Handler):
    def do_GET(self) -> None:
        self._note()
        listed = self.path.split("?")[0] == "/v1/models"
        self._answer(self.of.models_reply if listed else None)

    def do_POST(self) -> None:
        self._note()
        body = json.loads(self.read())
        found = self.path.split("?")[0] == self.of.route
        self._answer(self.of.chat(body) if found else None)

    def _note(self) -> None:
        self.of.paths.append(self.path)
        self.of.headers.append({name.lower(): value for name, value in self.headers.items()})

    def _answer(self, reply: Reply | None) -> None:
        status, headers, body = reply or (404, {}, {"error": f"no {self.path}"})
        self.send(status, body, headers)
