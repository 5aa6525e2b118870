"""What the HTTP servers of the tests have in common."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self


class Loopback:
    """A server on loopback: `with … as server`, it answers at `host`."""

    def __init__(self, handler: type["Handler"]) -> None:
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.of = self
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    of: Any


class Handler(BaseHTTPRequestHandler):
    """One request; `of` is the `Loopback` that it came to."""

    protocol_version = "HTTP/1.1"
    # One packet for head and body: else Nagle's algorithm holds back each answer by 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True

    @property
    def of(self) -> Any:
        return self.server.of

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """A str or bytes body as it is, anything else as JSON."""
        body = body if isinstance(body, str | bytes) else json.dumps(body)
        data = body.encode() if isinstance(body, str) else body
        head = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        try:
            self.send_response(status)
            for name, value in (head | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
            self.wfile.flush()
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass
