"""How answers end, in the words of every server: what was broken off is no whole answer."""

from dataclasses import replace
from typing import Any

import pytest
from asking import ask, in_turn, one, teach
from batch_server import BatchServer
from chat_server import ChatServer, completion

from persyn_datasets import BuildError, Generate, Price, Synthesize, Teacher
from persyn_datasets.engines import vllm_child
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.dispatch import identity_of, respond
from persyn_datasets.store.journal import Journal

pytestmark = pytest.mark.usefixtures("impatient")

HALF = "The sum foll"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        *((word, "stop") for word in ("stop", "STOP", "eos", "eos_token", "stop_sequence")),
        *((word, "stop") for word in ("end_turn", None, "")),
        *((word, "length") for word in ("length", "max_tokens", "MAX_TOKENS", "model_length")),
    ],
)
def test_whole_answers_and_those_of_full_length(given: str | None, kept: str) -> None:
    response, server = one(in_turn((200, {}, completion("some text", given))))
    assert (response["text"], response["error"]) == ("some text", "")
    assert response["finish_reason"] == kept
    assert server.count == 1


@pytest.mark.parametrize("word", ["content_filter", "sensitive", "tool_calls", "a new word"])
def test_an_answer_that_was_ended_by_something_else_has_failed(word: str) -> None:
    """It is kept with its text, and another try would only cost again."""
    with ChatServer(in_turn((200, {}, completion(HALF, word)))) as server:
        requests = ask(teach(server, price=Price(1, 10)), "hi")
        for _ in range(2):
            account = Account()
            [response] = respond(requests, "Test", account)
            assert (response["text"], response["finish_reason"]) == (HALF, word)
            assert word in response["error"]
            [line] = account.to_list()
            assert (line["answers"], line["failed"], line["completion_tokens"]) == (0, 1, 3)
            assert account.spent == pytest.approx(Price(1, 10).of(7, 3))
    assert server.count == 1


@pytest.mark.parametrize(
    "word", ["error", "abort", "network_error", "insufficient_system_resource"]
)
def test_an_answer_that_its_server_broke_off_is_asked_again(word: str) -> None:
    replies = in_turn((200, {}, completion(HALF, word)), (200, {}, completion("whole")))
    with ChatServer(replies) as server:
        [response] = respond(ask(teach(server), "hi"), "Test", Account())
        assert (response["text"], response["error"], server.count) == ("whole", "", 2)
    with ChatServer(in_turn((200, {}, completion(HALF, word)))) as server:
        [response] = respond(ask(teach(server), "ho"), "Test", Account())
        assert (response["finish_reason"], server.count) == ("error", 2)
        assert word in response["error"]


def filtered(request: dict[str, Any], nth: int) -> Any:
    text = request["messages"][-1]["content"]
    odd = text.endswith(("1", "3"))
    return 200, {}, completion(HALF if odd else "one two", "content_filter" if odd else "stop")


def test_a_filtered_answer_is_a_failed_row_of_every_stage() -> None:
    rows = {"prompt": [f"prompt {i}" for i in range(4)], "teacher": ["m"] * 4}
    with ChatServer(filtered) as server:
        teacher = teach(server, name="m")
        generated = [r for (r,) in Generate([teacher])(rows)["responses"]]
        assert [bool(r["error"]) for r in generated] == [False, True, False, True]
        answered = Synthesize([teacher])(rows)
        assert [len(c) for c in answered["completion"]] == [1, 0, 1, 0]
        assert answered["finish_reason"] == ["stop", "content_filter"] * 2
        assert [bool(error) for error in answered["error"]] == [False, True, False, True]
        with pytest.raises(BuildError, match="2 of 4 .*content_filter"):
            Synthesize([teacher], max_failed=0.4)(rows)
    assert server.count == 4


def test_answers_of_older_journals_are_judged_alike() -> None:
    """Up to version 0.1.0 they were kept as whole."""
    teacher = Teacher("m", engine="endpoint", base_url="http://127.0.0.1:1/v1")
    requests = ask(teacher, "a", "b")
    old: dict[str, Any] = {"teacher": "m", "text": HALF, "prompt_tokens": 7, "completion_tokens": 3}
    asked = replace(teacher, sampling=requests[0].sampling)
    with Journal("responses", "m", identity_of(asked)) as journal:
        journal.put("id-a", old | {"finish_reason": "content_filter", "error": ""})
        journal.put("id-b", old | {"finish_reason": "end_turn", "error": ""})
    filtered, whole = respond(requests, "Test", Account())
    assert (filtered["text"], filtered["finish_reason"]) == (HALF, "content_filter")
    assert "content_filter" in filtered["error"]
    assert (whole["text"], whole["finish_reason"], whole["error"]) == (HALF, "stop", "")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("dialect", "word"), [("openai", "content_filter"), ("anthropic", "refusal")]
)
def test_answers_of_batches_are_judged_alike(dialect: str, word: str) -> None:
    with BatchServer() as server:
        server.ends = word
        base_url = server.url(dialect)
        teacher = Teacher("m", engine="batch", base_url=base_url, api_key_env="TEST_KEY")
        found = respond(ask(teacher, "a", "b"), "Test", Account())
        assert {r["finish_reason"] for r in found} == {word}
        assert all(r["text"] and word in r["error"] for r in found)
        assert server.bought.total() == 2


class Completion:
    """What vLLM says of one answer."""

    text, token_ids = HALF, [1, 2, 3]

    def __init__(self, finish_reason: str) -> None:
        self.finish_reason = finish_reason


def test_what_vllm_aborts_has_no_answer() -> None:
    whole = vllm_child._answer(5, Completion("stop"))
    assert isinstance(whole, dict) and whole["text"] == HALF
    for word in ("abort", "error", "a new word"):
        why = vllm_child._answer(5, Completion(word))
        assert isinstance(why, str) and word in why
