"""Functions that a prompt offers: sent, and called in the answer.

The server speaks as https://platform.openai.com/docs/api-reference/chat has it: `arguments` are
JSON text, `content` is null beside calls.
"""

import json
from typing import Any

import pytest
from asking import KEY, ask, teach
from batch_server import BatchServer
from chat_server import ChatServer, completion
from datasets import Dataset

from persyn_datasets import InputError, Price, Sampling, Synthesize, Teacher
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.data.tools import to_tools
from persyn_datasets.engines import Request, Response, recorded
from persyn_datasets.engines.account import Account, highest_price
from persyn_datasets.engines.dispatch import respond

pytestmark = pytest.mark.usefixtures("impatient", "hasty")
USER = [{"role": "user", "content": "Is it warm in Rome?"}]
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Of a city.", "parameters": PLACE},
    },
    {"type": "function", "function": {"name": "clock"}},
]
OFFERED = to_tools(TOOLS, "here")
CALLS = [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
    {"type": "function", "function": {"name": "clock", "arguments": {}}},
]


def offering(teacher: Teacher) -> list[Request]:
    return [Request(teacher, prompt_id(USER, OFFERED), USER, tools=OFFERED)]


def called(*arguments: str, text: str | None = None, reason: str = "tool_calls") -> dict[str, Any]:
    """A completion that calls `weather` and then `clock`."""
    body = completion(text, reason, usage={"prompt_tokens": 90, "completion_tokens": 20})
    names = ("weather", "clock")
    body["choices"][0]["message"]["tool_calls"] = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": written}}
        for i, (name, written) in enumerate(zip(names, arguments, strict=False))
    ]
    return body


def asked(body: dict[str, Any], **more: Any) -> tuple[Response, ChatServer]:
    with ChatServer(lambda request, nth: (200, {}, body)) as server:
        [first], [again] = (
            respond(offering(teach(server, **more)), "Test", Account()) for _ in "12"
        )
        assert first == again
        return first, server


def test_calls_are_an_answer_and_are_not_bought_again() -> None:
    response, server = asked(called('{"city": "Rome"}', "{}"))
    assert (response["text"], response["error"]) == ("", "")
    assert response["finish_reason"] == "stop"
    assert json.loads(response["tool_calls"]) == CALLS
    assert (response["prompt_tokens"], response["completion_tokens"]) == (90, 20)
    [sent] = server.bodies
    assert sent["tools"] == TOOLS


def test_a_text_beside_calls_and_a_text_alone() -> None:
    both, _ = asked(called('{"city": "Rome"}', text="I look it up."))
    assert (both["text"], json.loads(both["tool_calls"])) == ("I look it up.", CALLS[:1])
    alone, _ = asked(completion("It is."))
    assert (alone["text"], alone["tool_calls"], alone["error"]) == ("It is.", "", "")


def test_a_thought_before_calls() -> None:
    body = called('{"city": "Rome"}')
    body["choices"][0]["message"]["reasoning_content"] = "Where is Rome?"
    response, _ = asked(body)
    assert (response["reasoning"], response["text"], response["error"]) == (
        "Where is Rome?",
        "",
        "",
    )
    assert json.loads(response["tool_calls"]) == CALLS[:1]


@pytest.mark.parametrize(("reason", "kept"), [("tool_calls", "tool_calls"), ("length", "length")])
def test_arguments_that_are_not_json_fail_their_row_which_was_paid_for(
    reason: str, kept: str
) -> None:
    response, server = asked(called('{"city": "Ro', reason=reason))
    assert response["error"] and "weather" in response["error"]
    assert (response["finish_reason"], response["completion_tokens"]) == (kept, 20)
    assert server.count == 1


def test_a_second_call_where_one_was_allowed_fails_its_row() -> None:
    one_call = {"extra_body": {"parallel_tool_calls": False}}
    response, server = asked(called('{"city": "Rome"}', "{}"), **one_call)
    assert "parallel_tool_calls" in response["error"] and not response["tool_calls"]
    assert server.bodies[0]["parallel_tool_calls"] is False
    alone, _ = asked(called('{"city": "Rome"}'), **one_call)
    assert (json.loads(alone["tool_calls"]), alone["error"]) == (CALLS[:1], "")


def test_a_prompt_without_tools_is_sent_and_read_as_ever() -> None:
    with ChatServer(lambda request, nth: (200, {}, called("{}"))) as server:
        [response] = respond(ask(teach(server), "hi"), "Test", Account())
        assert "empty response" in response["error"] and response["tool_calls"] == ""
        assert "tools" not in server.bodies[0]


def test_tools_are_paid_for() -> None:
    priced = Teacher("m", engine="endpoint", base_url="http://x/v1", price=Price(1e6, 0.0))
    with_tools, without = offering(priced), ask(priced, USER[0]["content"])
    more = highest_price(with_tools[0]) - highest_price(without[0])
    assert more >= len(json.dumps(TOOLS, indent=4))


def test_equal_texts_of_several_samples_are_told_from_equal_calls(caplog: Any) -> None:
    def reply(request: dict[str, Any], nth: int) -> Any:
        return 200, {}, called(json.dumps({"city": f"Rome {nth}"}))

    with ChatServer(reply) as server:
        teacher = teach(server, sampling=Sampling(temperature=1.0))
        requests = [
            Request(teacher, f"{prompt}", USER, sample, OFFERED)
            for prompt in range(3)
            for sample in range(2)
        ]
        respond(requests, "Test", Account())
    assert "identical" not in caplog.text


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_batches(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview"""
    parts = [
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "toolu_2", "name": "clock", "input": {}},
    ]
    said = {"role": "assistant", "content": parts, "stop_reason": "tool_use"}
    said |= {"usage": {"input_tokens": 90, "output_tokens": 20}}
    with BatchServer() as server:
        server.completed = called('{"city": "Rome"}', "{}") if dialect == "openai" else said
        more = {"api_key_env": "TEST_KEY", "base_url": server.url(dialect)}
        [response] = respond(offering(Teacher("m", engine="batch", **more)), "Test", Account())
        [sent] = server.batches["batch_1"].rows.values()
    assert json.loads(response["tool_calls"]) == CALLS
    assert (response["finish_reason"], response["completion_tokens"]) == ("stop", 20)
    if dialect == "openai":
        assert sent["tools"] == TOOLS
    else:
        weather = {"name": "weather", "description": "Of a city.", "input_schema": PLACE}
        nothing = {"type": "object", "properties": {}}
        assert sent["tools"] == [weather, {"name": "clock", "input_schema": nothing}]
    assert KEY not in json.dumps(sent)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_engines_that_read_no_calls_refuse_by_name(engine: str, asked: list[Any]) -> None:
    rows = Dataset.from_list([{"messages": USER, "tools": OFFERED, "teacher": "zeta"}])
    stage = Synthesize([Teacher("m", name="zeta", engine=engine)])
    with pytest.raises(InputError, match=f"'zeta'.*{engine}.*endpoint"):
        rows.map(stage, batched=True)
    assert asked == []


def test_recorded_calls(tmp_path: Any) -> None:
    said = {"role": "assistant", "content": "", "tool_calls": CALLS}
    broken = said | {"tool_calls": [{"type": "function", "function": {"name": ""}}]}
    rows = [
        {"prompt": USER, "tools": TOOLS, "response": [said], "teacher": "a"},
        {
            "prompt": USER,
            "tools": None,
            "response": [{"role": "assistant", "content": "It is."}],
            "teacher": "a",
        },
        {"prompt": USER, "tools": TOOLS, "response": [broken], "teacher": "b"},
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    columns = {key: key for key in ("prompt", "response", "teacher")}

    def answer(name: str, tools: str) -> Response:
        teacher = Teacher(str(file), name=name, engine="recorded", columns=columns)
        request = Request(teacher, prompt_id(USER, tools), USER, tools=tools)
        [(_, response)] = recorded.generate([request], Account())
        return response

    found = answer("a", OFFERED)
    assert (found["text"], found["error"]) == ("", "")
    assert json.loads(found["tool_calls"]) == CALLS
    assert (answer("a", "")["text"], answer("a", "")["tool_calls"]) == ("It is.", "")
    assert "calls" in answer("b", OFFERED)["error"]
