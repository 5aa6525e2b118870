"""Requests to endpoint teachers, and replies of `ChatServer`."""

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from chat_server import ChatServer, Reply, completion

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.engines import Request, Response, endpoint
from persyn_datasets.engines.account import Account

KEY = "sk-very-secret"
OK: Reply = (200, {}, completion("fine"))


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


def after(seconds: float) -> Callable[[dict[str, Any], int], Reply]:
    def reply(request: dict[str, Any], nth: int) -> Reply:
        time.sleep(seconds)
        return OK

    return reply


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def refusal(teacher: Teacher) -> str:
    with pytest.raises(InputError) as info:
        endpoint.check(teacher)
    assert teacher.name in str(info.value) and KEY not in str(info.value)
    return str(info.value)
