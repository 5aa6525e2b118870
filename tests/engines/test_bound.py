"""What a request can cost at most, of everything that its server is sent."""

import json
from typing import Any

import pytest
from chat_server import ChatServer, completion

from persyn_datasets import BuildError, Generate, Price, Sampling, Teacher
from persyn_datasets.engines import lane
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.bound import beside, by_bytes, tokens_at_most

PRICE = Price(input=1.0, output=10.0)
MESSAGES = [{"role": "user", "content": "Hi"}]
FIELDS = {f"field_{i}": {"type": "string", "description": "它的名字 " * 9} for i in range(100)}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": FIELDS}}}


def far(**more: Any) -> Teacher:
    at = {"engine": "endpoint", "base_url": "http://127.0.0.1:1/v1"}
    return Teacher("m", **(at | more))


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": SCHEMA},
        {"extra_body": {"guided_json": SCHEMA}},
        {"chat_template_kwargs": {"instructions": json.dumps(FIELDS, ensure_ascii=False)}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_is_sent_beside_the_messages_counts(more: dict[str, Any]) -> None:
    """A server that writes a schema into its prompt escapes and indents it as it likes."""
    teacher = far(**more)
    [value] = more.values()
    written = [
        json.dumps(value, ensure_ascii=a, indent=i) for a in (True, False) for i in (None, 2)
    ]
    longest = max(len(text.encode()) for text in written)
    assert tokens_at_most(teacher, MESSAGES) - by_bytes(MESSAGES) == beside(teacher) >= longest
    assert tokens_at_most(far(), MESSAGES) == by_bytes(MESSAGES)


def test_max_cost_holds_for_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that bills every byte of it. One request is in flight until it has answered; then
    none that could pass the limit.
    """
    monkeypatch.setattr(lane, "BACKOFF", 0.002)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def reply(request: dict[str, Any], nth: int) -> Any:
        read = json.dumps(request["messages"]) + json.dumps(request["response_format"], indent=2)
        usage = {"prompt_tokens": len(read), "completion_tokens": 1}
        return 200, {}, completion("{}", usage=usage)

    with ChatServer(reply) as server:
        more = {"base_url": server.url, "price": PRICE, "sampling": Sampling(max_tokens=1)}
        teacher = far(**more, response_format=SCHEMA)
        account = Account(max_cost=PRICE.of(len(json.dumps(SCHEMA, indent=2)), 1) / 2)
        with pytest.raises(BuildError, match="max_cost"):
            Generate([teacher], account=account)({"prompt": ["Hi"]})
        assert server.count == 0 and account.spent == 0
