"""Anthropic's Message Batches: one call with all requests, one file of results.

https://platform.claude.com/docs/en/build-with-claude/batch-processing
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from huggingface_hub.utils import httpx

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Sampling, Teacher
from persyn_datasets.engines import Request
from persyn_datasets.engines.batch_client import Client
from persyn_datasets.engines.batch_orders import Order
from persyn_datasets.engines.batch_state import State
from persyn_datasets.engines.chat import Refused
from persyn_datasets.engines.server import Fault, fault_of, message, short

PATH = "/messages/batches"
VERSION = "2023-06-01"
PAGE = 1000
CLOCK_SECONDS = 600.0  # by which their clock and ours may differ
NOT_TAKEN = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
NOT_READ = ("chat_template_kwargs", "reasoning_effort", "response_format")
STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def headers(key: str | None) -> dict[str, str]:
    return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})


def check(teacher: Teacher) -> None:
    """Raises `InputError`: what the Messages API has no word for."""
    sampling = teacher.sampling or Sampling()
    stated = [f"sampling.{key}" for key in NOT_TAKEN if getattr(sampling, key) is not None]
    stated += [key for key in NOT_READ if getattr(teacher, key)]
    if stated:
        raise InputError(
            f"Teacher {teacher.name!r}: Anthropic's batches do not take {stated[0]}; remove it, or "
            "use that API's own parameter in extra_body."
        )
    if sampling.temperature > 1:
        raise InputError(
            f"Teacher {teacher.name!r}: sampling.temperature is {sampling.temperature}; expected 0 "
            "to 1, which is what Anthropic's batches take."
        )


def body(request: Request, refused: Refused) -> dict[str, Any]:
    """What `/v1/messages` takes. It knows no seed; a top_p of 1 is what it does without."""
    sampling, messages = request.sampling, request.messages
    params = {
        "model": request.teacher.model,
        "max_tokens": sampling.max_tokens,
        "system": "\n\n".join(m["content"] for m in messages if m["role"] == "system"),
        "messages": [m for m in messages if m["role"] != "system"],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.top_p < 1 else None,
        "top_k": sampling.top_k,
        "stop_sequences": list(sampling.stop),
        "tools": [_tool(tool["function"]) for tool in json.loads(request.tools or "[]")],
        **request.teacher.extra_body,
    }
    left_out: tuple[Any, ...] = (None, "", [])
    return {k: v for k, v in params.items() if k not in refused.without and v not in left_out}


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    kept = {key: function[key] for key in ("name", "description") if function.get(key)}
    return kept | {"input_schema": schema}


def line(custom_id: str, body: dict[str, Any]) -> bytes:
    return json.dumps({"custom_id": custom_id, "params": body}).encode()


def create(client: Client, order: Order, lines: list[bytes]) -> None:
    """Raises `Fault`: if `order.since` is set by then, the batch may exist nevertheless."""
    order.begin()
    rows = b'{"requests":[' + b",".join(lines) + b"]}"
    order.batch = str(client.post(PATH, content=rows)["id"])
    order.save()


def find(client: Client, order: Order) -> tuple[str, bool]:
    """The id of the order's batch, or nothing; and whether one that works may still be it.

    The API shows neither names nor requests, so only results tell whose a batch is: those of as
    many rows, made since, are looked at, and waited for.
    """
    undecided = False
    for batch in _since(client, order.since - CLOCK_SECONDS):
        if sum((batch.get("request_counts") or {}).values()) != len(order.rows):
            continue
        if batch.get("processing_status") != "ended":
            undecided = True
            continue
        lines = client.lines(f"{PATH}/{batch['id']}/results")
        if order.row_of(next(lines, {}).get("custom_id")) is not None:
            return str(batch["id"]), False
    return "", undecided


def _since(client: Client, seconds: float) -> Iterator[dict[str, Any]]:
    """The newest come first."""
    page: dict[str, Any] = {"limit": PAGE}
    while True:
        found = client.get(PATH, **page)
        for batch in found.get("data") or []:
            if datetime.fromisoformat(batch["created_at"]).timestamp() < seconds:
                return
            yield batch
        if not found.get("has_more"):
            return
        page["after_id"] = found["last_id"]


def state(client: Client, order: Order) -> State:
    batch = client.get(f"{PATH}/{order.batch}")
    status, counts = str(batch.get("processing_status")), batch.get("request_counts") or {}
    return State(
        status=status,
        ended=status == "ended",
        done=int(counts.get("succeeded") or 0),
        cancelled=bool(batch.get("cancel_initiated_at")),
    )


def results(client: Client, order: Order, of: State) -> Iterator[tuple[Any, Any]]:
    """Of each row its custom_id, and a chat completion or a `Fault`; in any order."""
    for found in client.lines(f"{PATH}/{order.batch}/results"):
        yield found.get("custom_id"), _outcome(found.get("result") or {}, client.key)


def _outcome(result: dict[str, Any], key: str | None) -> Any:
    kind = result.get("type")
    if kind == "succeeded":
        return completion(result.get("message") or {})
    if kind == "errored":
        error = result.get("error") or {}
        error = error.get("error") or error
        status = STATUS.get(str(error.get("type")), 500)
        return fault_of(httpx.Response(status, json={"error": error}), key)
    why = {"expired": "its batch expired", "canceled": "its batch was cancelled"}
    return Fault(why.get(str(kind)) or short(message(result), key), again=kind == "expired")


def completion(said: dict[str, Any]) -> dict[str, Any]:
    """A message as the chat completion that it would be."""
    content = said.get("content")
    parts = content if isinstance(content, list) else []
    calls = [
        {"type": "function", "function": {"name": part.get("name"), "arguments": part.get("input")}}
        for part in parts
        if isinstance(part, dict) and part.get("type") == "tool_use"
    ]
    choice = {
        "message": {"role": "assistant", "content": content, "tool_calls": calls},
        "finish_reason": said.get("stop_reason"),
    }
    return {"choices": [choice], "usage": said.get("usage")}


def cancel(client: Client, order: Order) -> None:
    """What is answered by then is still given back, and billed."""
    client.post(f"{PATH}/{order.batch}/cancel")
