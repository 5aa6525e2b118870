"""Plain HTTP for batches: few calls, large bodies."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import httpx

from persyn_datasets.engines.server import Fault, fault_of, session, short

REPLY_SECONDS = 300.0


class Client:
    """A server's base_url, asked with a key.

    Args:
        base_url: up to and with `/v1`.
        headers: with the key in it.
        key: kept out of all messages.
        timeout: seconds until the next bytes of a reply, `REPLY_SECONDS` at most.
    """

    def __init__(
        self, base_url: str, headers: dict[str, str], key: str | None, timeout: float
    ) -> None:
        self.base_url, self.headers, self.key = base_url, headers, key
        self.timeout = min(timeout, REPLY_SECONDS)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._json("GET", path, params=params)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The arguments are httpx's: `json`, or `files` and `data`, or JSON as `content`."""
        return self._json("POST", path, **body)

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """The objects of a JSONL file, as they arrive.

        Raises:
            Fault: the file breaks off, or it is none.
        """
        with self._faults(), self._stream(path) as reply:
            rest = b""
            for part in reply.iter_bytes():
                *whole, rest = (rest + part).split(b"\n")  # U+2028 in a text ends no line
                yield from map(self._object, filter(bytes.strip, whole))
            if rest.strip():
                yield self._object(rest)

    @contextmanager
    def _stream(self, path: str) -> Iterator[httpx.Response]:
        url, options = self.base_url + path, self._options()
        with session(url).stream("GET", url, **options) as reply:
            if reply.status_code >= 300:
                reply.read()
                raise fault_of(reply, self.key)
            yield reply

    def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        url = self.base_url + path
        with self._faults():
            reply = session(url).request(method, url, **self._options("content" in more), **more)
        if reply.status_code >= 300:
            raise fault_of(reply, self.key)
        return self._object(reply.content)

    def _options(self, content: bool = False) -> dict[str, Any]:
        # A redirect would take the prompts, and maybe the key, elsewhere.
        kind = {"content-type": "application/json"} if content else {}
        return {"headers": self.headers | kind, "timeout": self.timeout, "follow_redirects": False}

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            raise Fault(f"timed out after {self.timeout:g} s", down=True) from None
        except httpx.HTTPError as error:
            why = short(str(error) or type(error).__name__, self.key)
            raise Fault(f"connection failed: {why}", down=True) from None

    def _object(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError as error:
            raise Fault(f"not JSON: {short(str(error), self.key)}") from None
        if not isinstance(found, dict):
            raise Fault(f"not a JSON object: {short(str(found), self.key)}")
        return found
