"""The shapes of a chat completion, of a refusal, and of an engine."""

from typing import Any

import pytest
from asking import answers, ask, one, teach
from chat_server import ChatServer, Reply, completion

from persyn_datasets import Generate, InputError, Sampling, Teacher, engines
from persyn_datasets.engines import Request
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.chat import reasoning_tokens, text_of, usage
from persyn_datasets.engines.dispatch import respond

pytestmark = pytest.mark.usefixtures("impatient")
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "3 and 4"}]}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ("It is 7.", "It is 7."),
        ([text("It is 7.")], "It is 7."),
        ([THINKING, text("It is "), text("7.")], "It is 7."),
        (["It is ", "7."], "It is 7."),
        ([{"type": "output_text", "text": "It is 7.", "annotations": []}], "It is 7."),
        ([{"type": "text", "text": {"value": "It is 7."}}], "It is 7."),
        ([], ""),
        (None, ""),
        ([THINKING], ""),
        ({"text": "It is 7."}, None),
        (7, None),
        ([{"type": "text", "text": 7}], None),
    ],
)
def test_texts_of_a_message(content: Any, read: str | None) -> None:
    assert text_of(content) == read


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}, (9, 4)),
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 0}, (9, 4)),
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 500}, (9, 491)),
        ({"prompt_tokens": 9, "total_tokens": 20}, (9, 11)),
        ({"input_tokens": 9, "output_tokens": 4}, (9, 4)),
        ({"prompt_tokens": 9.0, "completion_tokens": 4.0}, (9, 4)),
        ({"prompt_tokens": None, "completion_tokens": "4"}, (None, None)),
        ({"prompt_tokens": True, "completion_tokens": -1}, (None, None)),
        ({"completion_tokens": float("inf")}, (None, None)),
        ([], (None, None)),
        (None, (None, None)),
    ],
)
def test_usage_in_any_shape(given: Any, read: tuple[int | None, int | None]) -> None:
    assert usage({"usage": given}) == read


def without_content() -> dict[str, Any]:
    body = completion("x", "length", usage={"prompt_tokens": 10, "completion_tokens": 500})
    del body["choices"][0]["message"]["content"]
    return body


def with_content(content: Any) -> dict[str, Any]:
    body = completion("x", usage={"input_tokens": 10, "output_tokens": 500})
    body["choices"][0]["message"]["content"] = content
    return body


@pytest.mark.parametrize(
    ("body", "finish_reason"),
    [
        (without_content(), "length"),
        (completion(None, "stop", usage={"prompt_tokens": 10, "completion_tokens": 500}), "stop"),
        (with_content({"a": 1}), "stop"),
        ({"choices": [{}], "usage": {"prompt_tokens": 10, "completion_tokens": 500}}, "stop"),
        ({"choices": "?", "usage": {"prompt_tokens": 10, "total_tokens": 510}}, "stop"),
    ],
)
def test_what_was_billed_is_counted_and_not_bought_again(body: Any, finish_reason: str) -> None:
    reply = lambda request, nth: (200, {}, body)  # noqa: E731
    with ChatServer(reply) as server:
        requests = ask(teach(server), "hi")
        for _ in range(2):
            [response] = respond(requests, "Test", Account())
            assert response["error"] and response["finish_reason"] == finish_reason
            assert (response["prompt_tokens"], response["completion_tokens"]) == (10, 500)
        assert server.count == 1


def test_stop_strings_hold_where_the_server_ignores_them() -> None:
    sampling = Sampling(stop=("END", "\n\n"))
    body = completion("first\n\nsecond END", "length")
    response, _ = one(lambda request, nth: (200, {}, body), sampling=sampling)
    assert (response["text"], response["finish_reason"]) == ("first", "stop")


REFUSALS = {
    "max_tokens": {
        "error": {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "param": "max_tokens",
        }
    },
    "temperature": {"error": {"message": "Unsupported value: temperature", "param": "temperature"}},
    "seed": {
        "detail": [
            {
                "type": "extra_forbidden",
                "loc": ["body", "seed"],
                "msg": "Extra inputs are not permitted",
                "input": {"temperature": 0.7, "stop": ["x"]},
            }
        ]
    },
    "stop": {"error": "Argument not supported on this model: stop"},
    "top_p": {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0"},
}


@pytest.mark.parametrize("names", [*[[name] for name in REFUSALS], list(REFUSALS)])
def test_what_a_model_refuses_is_learnt_once(
    names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def picky(request: dict[str, Any], nth: int) -> Reply:
        for name in names:
            if name in request:
                return 400, {}, REFUSALS[name]
        return 200, {}, completion("7 END")

    sampling = Sampling(stop=("END",), max_tokens=9)
    with ChatServer(picky) as server:
        teacher = teach(server, sampling=sampling, concurrency=1)
        for _ in range(2):  # batch after batch
            found = answers(ask(teacher, "a", "b", "c"))
            assert [(r["text"], r["error"]) for r in found] == [("7", "")] * 3
        assert server.count == len(names) + 6
        last = server.bodies[-1]
        assert not set(names) & set(last)
        assert last.get("max_tokens", last.get("max_completion_tokens")) == 9
    said = [r.getMessage() for r in caplog.records if "asked without" in r.getMessage()]
    assert len(said) == len(set(names) - {"max_tokens", "top_p"})


@pytest.mark.parametrize(
    "words",
    [
        "System role not supported",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Only user and assistant roles are supported!",
        "Template error: syntax error: System message not supported",
    ],
)
def test_a_server_that_refuses_system_messages_gets_them_in_the_first_user_turn(
    words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Words of Gemma's, Mistral's and others' templates, as vLLM and TGI pass them on."""

    def picky(request: dict[str, Any], nth: int) -> Reply:
        if request["messages"][0]["role"] == "system":
            return 400, {}, {"error": {"message": words}}
        return 200, {}, completion("fine")

    with ChatServer(picky) as server:
        teacher = teach(server, concurrency=1, system_prompt="Be brief.")
        asked = [
            Request(teacher, text, teacher.conversation([{"role": "user", "content": text}]))
            for text in ("a", "b")
        ]
        for _ in range(2):
            assert [r["text"] for r in answers(asked)] == ["fine", "fine"]
        assert server.count == 5
        assert server.bodies[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\nb"}]
    said = [r for r in caplog.records if "does not accept system messages" in r.getMessage()]
    assert len(said) == 1


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 9. This model's context length is 4 tokens",
        "temperature must be at most 0.5",
        "the prompt is too long",
    ],
)
def test_a_refusal_of_a_value_fails_the_row(words: str) -> None:
    response, server = one(lambda request, nth: (400, {}, {"error": {"message": words}}))
    assert words in response["error"] and server.count == 1


DUMMY = """
from persyn_datasets.engines import Facts, answered

FACTS = Facts(journalled=True)


def generate(requests, account):
    for i, request in enumerate(requests):
        if account.admit(request):
            yield i, answered(request.teacher, " " + request.messages[-1]["content"][::-1], "stop")


def check(teacher):
    pass
"""


def test_an_engine_is_one_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backwards.py").write_text(DUMMY)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    assert "backwards" in engines.names() and "account" not in engines.names()
    teacher = Teacher("m", engine="backwards")
    rows = Generate([teacher])({"prompt": ["abc"]})["responses"]
    assert [r["text"] for r in rows[0]] == ["cba"]


@pytest.mark.parametrize(
    ("teacher", "key"),
    [
        (Teacher("m", engine="endpiont"), "endpoint"),
        (Teacher("m", engine="account"), "account"),
        (Teacher("m", engine="os.path"), "os.path"),
        (Teacher("m", engine="endpoint"), "base_url"),
        (Teacher("m", base_url="http://h/v1"), "base_url"),
        (Teacher("m", engine_args={"seed": 1}), "engine_args"),
    ],
)
def test_a_teacher_that_no_engine_can_ask_is_refused_at_once(teacher: Teacher, key: str) -> None:
    with pytest.raises(InputError, match=key):
        Generate([teacher])


def thoughtful(**message: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": 9}
    usage |= {"completion_tokens_details": {"reasoning_tokens": 5}}
    body = completion("It is 7.", message.pop("finish_reason", "stop"), usage=usage)
    body["choices"][0]["message"] |= message
    return body


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning_content": "3 and 4"},
        {"reasoning": " 3 and 4\n", "reasoning_content": None},
        {"reasoning": "3 and 4", "reasoning_details": [{"type": "reasoning.text"}]},
        {"content": [THINKING, text("It is 7.")]},
        {"content": [{"type": "thinking", "thinking": "3 and 4"}, text("It is 7.")]},
        {"content": "<think>\n3 and 4\n</think>\n\nIt is 7."},
        {"content": "3 and 4\n</think>\n\nIt is 7."},
    ],
)
def test_thoughts_in_any_shape(message: dict[str, Any]) -> None:
    """vLLM, OpenRouter, Mistral (https://docs.mistral.ai/capabilities/reasoning), and servers that
    do not parse them.
    """
    response, _ = one(lambda request, nth: (200, {}, thoughtful(**message)))
    assert (response["reasoning"], response["text"]) == ("3 and 4", "It is 7.")
    assert (response["reasoning_tokens"], response["completion_tokens"]) == (5, 9)
    assert response["error"] == ""


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": "3 and"},
        {"content": "", "reasoning": "3 and"},
        {"content": [THINKING | {"thinking": [text("3 and")]}]},
        {"content": "<think>\n3 and"},
    ],
)
def test_a_thought_that_was_cut_off_is_kept(message: dict[str, Any]) -> None:
    body = thoughtful(finish_reason="length", **message)
    with ChatServer(lambda request, nth: (200, {}, body)) as server:
        requests = ask(teach(server), "hi")
        for _ in range(2):
            [response] = respond(requests, "Test", Account())
            assert (response["reasoning"], response["text"]) == ("3 and", "")
            assert (response["finish_reason"], response["error"]) == ("length", "")
        assert server.count == 1


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_a_teacher_that_does_not_think_has_no_thought(key: str) -> None:
    """vLLM 0.32's `deepseek_r1` puts an answer without tags into the reasoning."""
    body = completion(None)
    body["choices"][0]["message"][key] = "It is 7."
    response, _ = one(
        lambda request, nth: (200, {}, body), chat_template_kwargs={"enable_thinking": False}
    )
    assert (response["text"], response["reasoning"], response["error"]) == ("It is 7.", "", "")


def test_a_thought_without_an_answer_that_was_not_cut_off_is_an_error() -> None:
    body = thoughtful(content=None, reasoning="3 and 4")
    response, _ = one(lambda request, nth: (200, {}, body))
    assert response["error"] and response["reasoning"] == "3 and 4"


def test_tokens_of_thoughts_where_servers_count_them() -> None:
    details = {"reasoning_tokens": 5}
    assert reasoning_tokens({"usage": {"completion_tokens_details": details}}) == 5
    assert reasoning_tokens({"usage": {"output_tokens_details": details}}) == 5
    assert reasoning_tokens({"usage": details}) == 5  # SGLang
    assert reasoning_tokens({"usage": {"completion_tokens_details": None}}) is None
    assert reasoning_tokens({}) is None


ASKED: dict[str, Any] = {
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
}
DRAWN: dict[str, Any] = {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}
DRAWN |= {"presence_penalty": 0.5, "frequency_penalty": -0.5}


def test_how_a_teacher_is_asked_is_in_the_body() -> None:
    """Names as in https://platform.openai.com/docs/api-reference/chat and, beside it, vLLM's
    https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html.
    """
    more = ASKED | {"extra_body": {"provider": {"order": ["a"]}}, "sampling": Sampling(**DRAWN)}
    _, server = one(lambda request, nth: (200, {}, completion("fine")), **more)
    [body] = server.bodies
    assert body.items() >= (ASKED | DRAWN | {"provider": {"order": ["a"]}}).items()
    assert "extra_body" not in body
    _, server = one(lambda request, nth: (200, {}, completion("fine")))
    assert not set(server.bodies[0]) & {*ASKED, *DRAWN, "extra_body"}


def test_what_is_stated_and_refused_fails_the_row() -> None:
    """Only what has a default of ours is left out."""
    words = {"error": {"message": "Unsupported parameter: 'top_k'", "param": "top_k"}}
    response, server = one(lambda request, nth: (400, {}, words), sampling=Sampling(top_k=3))
    assert "top_k" in response["error"] and server.count == 1


@pytest.mark.parametrize("engine", ["transformers", "vllm", "recorded"])
@pytest.mark.parametrize("key", ["reasoning_effort", "response_format"])
def test_what_an_engine_cannot_do_is_refused_by_name(engine: str, key: str) -> None:
    with pytest.raises(InputError, match=key):
        Generate([Teacher("m", engine=engine, **{key: ASKED[key]})])
    with pytest.raises(InputError, match="extra_body"):
        Generate([Teacher("m", engine=engine, extra_body={"a": 1})])
