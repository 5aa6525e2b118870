"""A server on loopback that speaks OpenAI's files and batches and Anthropic's Message Batches as
they are documented: `with BatchServer() as server`.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from chat_server import completion
from loopback import Handler, Loopback

OPENAI = {
    "expired": ("batch_expired", "This request could not be executed in time."),
    "cancelled": ("batch_cancelled", "This request was cancelled."),
}
ANTHROPIC = {"expired": "expired", "cancelled": "canceled"}


@dataclass
class Batch:
    """`rows`: custom_id → body. `outcomes`: custom_id → `ok`, `missing`, `expired`, `cancelled`, or
    a status and a message."""

    id: str
    rows: dict[str, dict[str, Any]]
    file: str = ""
    outcomes: dict[str, Any] = field(default_factory=dict)
    status: str = "completed"  # in which it ends
    errors: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0
    cancelled: bool = False

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.rows.values()]


class BatchServer(Loopback):
    """Counts what was bought.

    Args:
        behave: changes a batch (its `outcomes`, `status`, `errors`) as it is made; n counts from 1.
        looks: as many times a batch is looked at before it has ended.

    Attributes:
        bought: answers by prompt; at: what happens when a step is reached, by its name: `upload`,
            `create` (made, not yet said), `look`, `results` (half of the lines are sent); ends: the
            word by which answers end, if not each dialect's own for a whole one; completed: what
            the dialect's own API answers to each row, if not a text.
    """

    def __init__(self, behave: Callable[[Batch, int], None] = lambda *_: None, looks: int = 1):
        self.behave, self.looks = behave, looks
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Batch] = {}
        self.bought: Counter[str] = Counter()
        self.at: dict[str, Callable[[], Any]] = {}
        self.ends = ""
        self.completed: dict[str, Any] | None = None
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        super().__init__(_Handler)

    def url(self, dialect: str) -> str:
        return f"{self.host}/{dialect}/v1"

    def make(self, rows: dict[str, dict[str, Any]], file: str = "") -> Batch:
        batch = Batch(f"batch_{len(self.batches) + 1}", rows, file)
        batch.outcomes = dict.fromkeys(rows, "ok")
        self.batches[batch.id] = batch
        self.behave(batch, len(self.batches))
        if batch.status != "failed":
            for custom_id, outcome in batch.outcomes.items():
                if outcome == "ok":
                    self.bought[rows[custom_id]["messages"][-1]["content"]] += 1
        return batch

    def reach(self, step: str) -> Any:
        return self.at.get(step, lambda: None)()


class _Handler(Handler):
    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.read())

    def _serve(self, data: bytes) -> None:
        parts = urlsplit(self.path)
        _, dialect, _, *path = parts.path.split("/")
        self.of.requests.append(f"{self.command} /{'/'.join(path)}")
        self.of.headers.append({k.lower(): v for k, v in self.headers.items()})
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        handle = self._openai if dialect == "openai" else self._anthropic
        reply = handle(path, query, data)
        if reply == "hang up":
            self.close_connection = True
            self.connection.close()
        elif isinstance(reply, list):
            self._send_lines(reply)
        elif reply is not None:
            self.send(*reply)

    def _openai(self, path: list[str], query: dict[str, str], data: bytes) -> Any:
        match self.command, *path:
            case "GET", "models":
                return 200, {"data": [{"id": "m"}]}
            case "POST", "files":
                content = data.split(b'filename="')[1].split(b"\r\n\r\n", 1)[1]
                name = f"file-{len(self.of.files)}"
                self.of.files[name] = content.split(b"\r\n--")[0]
                return self.of.reach("upload") or (200, {"id": name, "object": "file"})
            case "POST", "batches":
                asked = json.loads(data)
                rows = map(json.loads, self.of.files[asked["input_file_id"]].splitlines())
                batch = self.of.make(
                    {r["custom_id"]: r["body"] for r in rows}, asked["input_file_id"]
                )
                return self.of.reach("create") or (200, self._as_openai(batch))
            case "POST", "batches", key, "cancel":
                self.of.batches[key].cancelled = True
                return 200, self._as_openai(self.of.batches[key])
            case "GET", "batches":
                return 200, self._page(query, "after", self._as_openai)
            case "GET", "batches", key:
                return self._looked_at(key, self._as_openai)
            case "GET", "files", name, "content":
                batch = self.of.batches[name.split("-")[0]]
                return [
                    self._openai_line(batch, custom_id, outcome)
                    for custom_id, outcome in reversed(batch.outcomes.items())
                    if outcome != "missing" and (outcome == "ok") == name.endswith("output")
                ]
        return 404, {"error": {"message": f"no {self.path}"}}

    def _as_openai(self, batch: Batch) -> dict[str, Any]:
        ended = batch.looks > self.of.looks or batch.status == "failed"
        outcomes = list(batch.outcomes.values())
        files = {}
        if ended and batch.status != "failed":
            files["output_file_id"] = f"{batch.id}-output" if "ok" in outcomes else None
            failures = any(o not in ("ok", "missing") for o in outcomes)
            files["error_file_id"] = f"{batch.id}-errors" if failures else None
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": batch.file,
            "status": batch.status if ended else "in_progress",
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
            "created_at": int(time.time()),
            "request_counts": {
                "total": len(outcomes),
                "completed": outcomes.count("ok") if ended else 0,
                "failed": len(outcomes) - outcomes.count("ok") if ended else 0,
            },
            **files,
        }

    def _openai_line(self, batch: Batch, custom_id: str, outcome: Any) -> dict[str, Any]:
        row = {"id": f"r-{custom_id}", "custom_id": custom_id, "response": None, "error": None}
        if outcome == "ok":
            text = _answer(batch.rows[custom_id])
            body = self.of.completed or completion(text, self.of.ends or "stop")
            return row | {"response": {"status_code": 200, "body": body}}
        if isinstance(outcome, str):
            code, message = OPENAI[outcome]
            return row | {"error": {"code": code, "message": message}}
        status, message = outcome
        body = {"error": {"message": message, "type": "invalid_request_error"}}
        return row | {"response": {"status_code": status, "body": body}}

    def _anthropic(self, path: list[str], query: dict[str, str], data: bytes) -> Any:
        if "x-api-key" not in self.of.headers[-1]:
            error = {"type": "authentication_error", "message": "x-api-key header is required"}
            return 401, {"type": "error", "error": error}
        match self.command, *path:
            case "POST", "messages", "batches":
                rows = {r["custom_id"]: r["params"] for r in json.loads(data)["requests"]}
                assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", custom_id) for custom_id in rows)
                batch = self.of.make(rows)
                return self.of.reach("create") or (200, self._as_anthropic(batch))
            case "GET", "messages", "batches":
                return 200, self._page(query, "after_id", self._as_anthropic)
            case "POST", "messages", "batches", key, "cancel":
                self.of.batches[key].cancelled = True
                return 200, self._as_anthropic(self.of.batches[key])
            case "GET", "messages", "batches", key:
                return self._looked_at(key, self._as_anthropic)
            case "GET", "messages", "batches", key, "results":
                batch = self.of.batches[key]
                return [
                    self._anthropic_line(batch, custom_id, outcome)
                    for custom_id, outcome in reversed(batch.outcomes.items())
                    if outcome != "missing"
                ]
        error = {"type": "not_found_error", "message": f"no {self.path}"}
        return 404, {"type": "error", "error": error}

    def _as_anthropic(self, batch: Batch) -> dict[str, Any]:
        ended = batch.looks > self.of.looks
        kinds = ["succeeded", "errored", "expired", "canceled"]
        counts = dict.fromkeys(["processing", *kinds], 0)
        for outcome in batch.outcomes.values():
            name = {"ok": "succeeded"} | ANTHROPIC
            kind = name.get(outcome, "errored") if isinstance(outcome, str) else "errored"
            counts[kind if ended else "processing"] += 1
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "cancel_initiated_at": "2026-01-01T00:00:00Z" if batch.cancelled else None,
            "results_url": "https://elsewhere.example/never-asked" if ended else None,
        }

    def _anthropic_line(self, batch: Batch, custom_id: str, outcome: Any) -> dict[str, Any]:
        if outcome == "ok":
            text = _answer(batch.rows[custom_id])
            message = {
                "role": "assistant",
                "content": [{"type": "text", "text": text}],
                "stop_reason": self.of.ends or "end_turn",
                "usage": {"input_tokens": 7, "output_tokens": len(text.split())},
            }
            message = self.of.completed or message
            result: dict[str, Any] = {"type": "succeeded", "message": message}
        elif isinstance(outcome, str):
            result = {"type": ANTHROPIC[outcome]}
        else:
            kind = "api_error" if outcome[0] >= 500 else "invalid_request_error"
            error = {"type": "error", "error": {"type": kind, "message": outcome[1]}}
            result = {"type": "errored", "error": error}
        return {"custom_id": custom_id, "result": result}

    def _looked_at(self, key: str, show: Callable[[Batch], Any]) -> Any:
        if key not in self.of.batches:
            return 404, {"error": {"message": f"No batch {key}"}}
        self.of.batches[key].looks += 1
        return self.of.reach("look") or (200, show(self.of.batches[key]))

    def _page(
        self, query: dict[str, str], cursor: str, show: Callable[[Batch], Any]
    ) -> dict[str, Any]:
        """Two at a time, the newest first; a list, too, sees batches go on."""
        newest = list(self.of.batches)[::-1]
        start = newest.index(query[cursor]) + 1 if cursor in query else 0
        keys = newest[start : start + 2]
        for key in keys:
            self.of.batches[key].looks += 1
        more = len(newest) > start + 2
        data = [show(self.of.batches[key]) for key in keys]
        return {"data": data, "has_more": more, "last_id": keys[-1] if keys else None}

    def _send_lines(self, lines: list[dict[str, Any]]) -> None:
        rows = [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines]
        self.send_response(200)
        self.send_header("Content-Length", str(sum(map(len, rows))))
        self.end_headers()
        half = len(rows) // 2
        try:
            self.wfile.write(b"".join(rows[:half]))
            self.wfile.flush()
            if self.of.reach("results") == "hang up":
                self.close_connection = True
                return
            self.wfile.write(b"".join(rows[half:]))
            self.wfile.flush()
        except OSError:  # the client has gone
            self.close_connection = True


def _answer(body: dict[str, Any]) -> str:
    """With a separator that ends lines for Python, and none in JSONL."""
    return f"answer to\u2028{body['messages'][-1]['content']}"
