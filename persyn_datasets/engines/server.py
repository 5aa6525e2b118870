"""One base_url of the endpoint engine: its connections, its limit of concurrent requests, and
whether it is up. Times are in seconds.
"""

import asyncio
import json
import logging
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from copy import copy
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

from huggingface_hub import get_async_session
from huggingface_hub.utils import get_session, httpx

from persyn_datasets.config.errors import InputError

GROW_AFTER = 8  # answers
DEAD_AFTER = 5  # faults with no answer between them
PAUSE = 2.0  # before a server that is down is tried; doubles with each failed probe
MAX_PAUSE = 60.0
MAX_RETRY_AFTER = 120.0
CONNECT_TIMEOUT = 20.0
PER_SESSION = (
    32  # an httpx pool slows with its requests, and huggingface_hub's opens at most 100 connections
)

Client = TypeVar("Client", httpx.Client, httpx.AsyncClient)
logger = logging.getLogger(__name__)


class Fault(Exception):
    """Why an attempt failed.

    Attributes:
        again: another attempt may succeed.
        busy: the server asks for fewer requests, for `wait` seconds.
        down: the server may be down.
        status, body, words: of its answer, unredacted: never show them, they may hold the key.
    """

    def __init__(
        self,
        why: str,
        again: bool = True,
        busy: bool = False,
        down: bool = False,
        wait: float = 0.0,
        reply: httpx.Response | None = None,
    ) -> None:
        super().__init__(why)
        self.again, self.busy, self.down, self.wait = again, busy, down, wait
        self.status = 0 if reply is None else reply.status_code
        body, words = (None, why) if reply is None else _read(reply)
        self.body: Any = body
        self.words = words


class Server:
    """Its limit of requests in flight is halved when it asks for fewer, and grows by one with
    every `GROW_AFTER` answers.

    After `DEAD_AFTER` faults in a row the server counts as down. It then gets one request at a time
    until it answers.
    """

    def __init__(self, url: str, most: int, stack: AsyncExitStack) -> None:
        self.url, self.most, self.limit = url, most, most
        self.in_flight = self.answers = self.faults = self.pauses = 0
        self.dead = self.probing = False
        self.why = ""
        self.died = self.closed = self.cut = (
            0.0  # when it first and last went down; when its limit was halved
        )
        self.waiting: dict[asyncio.Future[None], None] = {}  # in order of arrival
        self._opening: asyncio.TimerHandle | None = None
        self._stack = stack
        self._idle: list[httpx.AsyncClient] = []  # sessions, as often as they may take a request

    @property
    def room(self) -> int:
        """Requests that may be sent now."""
        if self._opening:
            return 0
        # Requests that were in flight when the server went down may block until they time out.
        return int(not self.probing) if self.dead else max(0, self.limit - self.in_flight)

    def take(self) -> float:
        """Reserve a slot for one request; pass the time that it returns to `ask` or `release`."""
        self.in_flight += 1
        self.probing = self.dead
        return time.monotonic()

    def release(self, sent: float) -> None:
        self.in_flight -= 1
        if sent >= self.closed:
            self.probing = False
        self.wake()

    def wake(self) -> None:
        """Wake as many waiters as there are free slots; each wakes the next once it has one."""
        for turn in list(self.waiting)[: self.room]:
            if not turn.done():
                turn.set_result(None)

    async def ask(self, sent: float, body: dict[str, Any], key: str | None, timeout: float) -> Any:
        """The JSON that it answers; gives its place back.

        Raises:
            Fault: it does not answer with JSON.
        """
        try:
            output = await self._post(body, key, timeout)
        except Fault as fault:
            if not fault.again:
                self._answered()
            if fault.busy:
                self._pushed_back(sent, fault.wait)
            if fault.down:
                self._failed(sent, str(fault))
            raise
        else:
            self._answered()
            return output
        finally:
            self.release(sent)

    async def _post(self, body: dict[str, Any], key: str | None, timeout: float) -> Any:
        session = self._idle.pop() if self._idle else await self._connect()
        try:
            async with asyncio.timeout(timeout):  # httpx's own is for each read
                reply = await session.post(
                    self.url,
                    json=body,
                    headers=headers(key),
                    timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
                    # a redirect would take the prompt, and perhaps the key, elsewhere
                    follow_redirects=False,
                )
        except (TimeoutError, httpx.TimeoutException):
            raise Fault(f"timed out after {timeout:g} s", busy=True, down=True) from None
        except httpx.HTTPError as error:
            raise Fault(
                f"connection failed: {short(str(error) or type(error).__name__, key)}", down=True
            ) from None
        finally:
            self._idle.append(session)
        if reply.status_code >= 300:
            raise fault_of(reply, key)
        try:
            return reply.json()
        except ValueError as error:
            raise Fault(f"not a chat completion: {short(str(error), key)}") from None

    async def _connect(self) -> httpx.AsyncClient:
        """A session of huggingface_hub, with its hooks and what the user has set for it."""
        session = await self._stack.enter_async_context(async_session(self.url))
        self._idle += [session] * (PER_SESSION - 1)
        return session

    def _answered(self) -> None:
        self.dead, self.faults, self.pauses = False, 0, 0
        self.answers += 1
        if self.answers % GROW_AFTER == 0 and self.limit < self.most:
            self.limit += 1

    def _pushed_back(self, sent: float, wait: float) -> None:
        if sent > self.cut:  # requests sent together are refused together: halve only once
            self.cut = time.monotonic()
            self.limit = max(1, self.limit // 2)
        if wait:
            self._close(wait)

    def _failed(self, sent: float, why: str) -> None:
        self.faults, self.why = self.faults + 1, why
        if self.faults < DEAD_AFTER or sent < self.closed:
            return
        self.closed, self.probing = time.monotonic(), False
        if not self.dead:
            self.dead, self.died = True, self.closed
            logger.warning("%s is put aside, and tried again from time to time: %s", self.url, why)
        self._close(min(MAX_PAUSE, PAUSE * 2**self.pauses) * random.uniform(0.5, 1.0))
        self.pauses += 1

    def _close(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._opening:
            seconds = max(seconds, self._opening.when() - loop.time())
            self._opening.cancel()
        self._opening = loop.call_later(seconds, self._open)

    def _open(self) -> None:
        self._opening = None
        self.wake()


def fault_of(reply: httpx.Response, key: str | None) -> Fault:
    """What an answer that is none says."""
    status, wait = reply.status_code, _retry_after(reply)
    return Fault(
        f"HTTP {status}: {says(reply, key)}",
        again=status in (408, 409, 425, 429) or status >= 500,
        busy=status in (408, 429, 503, 504),
        down=status in (502, 503) and not wait,
        wait=wait,
        reply=reply,
    )


def async_session(url: str) -> httpx.AsyncClient:
    """A session of huggingface_hub, with what the user has set for it.

    `HF_HUB_OFFLINE` is about the Hub: it forbids no other server.

    Raises:
        InputError: a proxy of the environment cannot be used.
    """
    with proxies():
        return _without_hub(get_async_session(), url)


def session(url: str) -> httpx.Client:
    """The same, not asynchronous: not to be closed, since its connections are shared."""
    with proxies():
        return _without_hub(copy(get_session()), url)


def _without_hub(client: Client, url: str) -> Client:
    """The client without the Hub's own hooks, one of which keeps it from all servers offline."""
    if not of_hugging_face(url):
        client.event_hooks = {
            when: [hook for hook in hooks if not hook.__module__.startswith("huggingface_hub")]
            for when, hooks in client.event_hooks.items()
        }
    return client


def of_hugging_face(url: str) -> bool:
    """Hugging Face's own servers: the user's token is for them alone, and only over TLS."""
    return f".{httpx.URL(url).host}".endswith(".huggingface.co")


@contextmanager
def proxies() -> Iterator[None]:
    """Raises `InputError` if a proxy of the environment cannot be used by a session made here."""
    try:
        yield
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        name, value = _proxy()
        if not value:
            raise
        raise InputError(
            f"The proxy {name}={value} cannot be used ({short(str(error), None)}): write it as "
            "http://… or, after `pip install socksio`, as socks5://…; or unset the variable."
        ) from None


def _proxy() -> tuple[str, str]:
    """The variable of the environment that names a proxy, of several the likeliest to be wrong;
    without its password.
    """
    found = {
        name: value
        for name, value in os.environ.items()
        if name.lower() in ("all_proxy", "http_proxy", "https_proxy") and value
    }
    name = next((n for n, v in found.items() if not v.startswith("http")), next(iter(found), ""))
    return name, re.sub("//[^/@]*@", "//***@", found.get(name, ""))


def headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def says(response: httpx.Response, key: str | None) -> str:
    """The server's own error message, without the key."""
    if to := response.headers.get("location"):
        return short(
            f"it redirects to {to}, which is not followed. If that is right, make it the base_url",
            key,
        )
    return short(_read(response)[1] or response.reason_phrase, key)


def _read(response: httpx.Response) -> tuple[Any, str]:
    """The JSON of an error, if it is JSON, and its message."""
    try:
        body = response.json()
        return body, message(body)
    except ValueError:
        return None, "" if response.text.lstrip().startswith("<") else response.text


def message(body: Any) -> str:
    body = body[0] if isinstance(body, list) and body else body
    for field in ("error", "message", "detail"):
        body = body.get(field) or body if isinstance(body, dict) else body
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def short(text: str, key: str | None) -> str:
    """One line of at most 300 characters, without the key in any notation that echoes it."""
    for form in {key, quote(key, safe=""), json.dumps(key)[1:-1]} if key else ():
        text = text.replace(form, "***")
    return " ".join(storable(text).split())[:300]


def storable(text: str) -> str:
    """JSON can hold half a surrogate pair, Arrow cannot."""
    return text.encode(errors="replace").decode()


def _retry_after(response: httpx.Response) -> float:
    """Seconds; the header holds a number of them or a date."""
    value = response.headers.get("retry-after", "0")
    with suppress(ValueError):
        wait = (
            float(value)
            if value[:1].isdigit()
            else parsedate_to_datetime(value).timestamp() - time.time()
        )
        return min(max(0.0, wait), MAX_RETRY_AFTER)
    return 0.0
