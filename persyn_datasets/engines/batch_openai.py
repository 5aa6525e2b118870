"""OpenAI's batches: a file of requests is uploaded, and a batch made of it. Groq, Azure's `/v1` and
gateways speak it too.

https://platform.openai.com/docs/guides/batch
"""

import json
from collections.abc import Iterator
from typing import Any

from huggingface_hub.utils import httpx

from persyn_datasets.config.teacher import Teacher
from persyn_datasets.engines import Request, endpoint, server
from persyn_datasets.engines.batch_client import Client
from persyn_datasets.engines.batch_orders import Order
from persyn_datasets.engines.batch_state import FULL, State
from persyn_datasets.engines.chat import Refused, request_body
from persyn_datasets.engines.server import Fault, fault_of, message, short

PATH = "/batches"
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
PAGE = 100
AGAIN = ("batch_expired", "server_error", "rate_limit_exceeded")


def headers(key: str | None) -> dict[str, str]:
    return server.headers(key)


def check(teacher: Teacher) -> None:
    """As for the endpoint engine: the same address, key and models answer both."""
    endpoint.check(teacher)


def body(request: Request, refused: Refused) -> dict[str, Any]:
    return {k: v for k, v in request_body(request, refused).items() if k != "stream"}


def line(custom_id: str, body: dict[str, Any]) -> bytes:
    row = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(row).encode()


def create(client: Client, order: Order, lines: list[bytes]) -> None:
    """Uploads the rows, which costs nothing, then makes the batch of them.

    Raises:
        Fault: if `order.since` is set by then, the batch may exist nevertheless.
    """
    name, data = f"{order.mark}.jsonl", b"\n".join(lines) + b"\n"
    upload = {"file": (name, data, "application/jsonl")}
    order.file = str(client.post("/files", files=upload, data={"purpose": "batch"})["id"])
    order.begin()
    asked = {"input_file_id": order.file, "endpoint": ENDPOINT, "completion_window": "24h"}
    order.batch = str(client.post(PATH, json=asked)["id"])
    order.save()


def find(client: Client, order: Order) -> tuple[str, bool]:
    """The id of the batch that was made of the order's file, or nothing; never in doubt."""
    page: dict[str, Any] = {"limit": PAGE}
    while True:
        found = client.get(PATH, **page)
        batches = found.get("data") or []
        for batch in batches:
            if batch.get("input_file_id") == order.file:
                return str(batch["id"]), False
        if not found.get("has_more") or not batches:
            return "", False
        page["after"] = batches[-1]["id"]


def state(client: Client, order: Order) -> State:
    batch = client.get(f"{PATH}/{order.batch}")
    status = str(batch.get("status", "")).lower()
    errors = ((batch.get("errors") or {}).get("data") or []) if status == "failed" else []
    files = [batch[key] for key in ("output_file_id", "error_file_id") if batch.get(key)]
    return State(
        status=status,
        ended=status in ENDED,
        done=int((batch.get("request_counts") or {}).get("completed") or 0),
        cancelled=status == "cancelled",
        why="; ".join(dict.fromkeys(str(e.get("message")) for e in errors)),
        full=any(e.get("code") == FULL for e in errors),
        # The lines of the file count from 1.
        of_rows={e["line"] - 1: str(e.get("message")) for e in errors if e.get("line")},
        files=[str(file) for file in files],
    )


def results(client: Client, order: Order, of: State) -> Iterator[tuple[Any, Any]]:
    """Of each row its custom_id, and a chat completion or a `Fault`; in any order."""
    for file in of.files:
        for found in client.lines(f"/files/{file}/content"):
            yield found.get("custom_id"), _outcome(found, client.key)


def _outcome(found: dict[str, Any], key: str | None) -> Any:
    response, error = found.get("response"), found.get("error")
    if not isinstance(response, dict):
        code = error.get("code") if isinstance(error, dict) else None
        return Fault(short(message(error or found), key), again=code in AGAIN)
    status = int(response.get("status_code") or 0)
    if status >= 300:
        return fault_of(httpx.Response(status, json=response.get("body")), key)
    if response.get("body") is None:
        return Fault(short(message(error or found), key))
    return response["body"]


def cancel(client: Client, order: Order) -> None:
    """What is answered by then is still given back, and billed."""
    client.post(f"{PATH}/{order.batch}/cancel")
