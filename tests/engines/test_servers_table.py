"""The table of docs/teachers.md says of a server what it does: one that honours what it is asked,
and one that does not.
"""

import hashlib
import sys
from pathlib import Path

import pytest
from chat_server import ChatServer, completion

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "scripts"))
import servers

WORDS = "see the ship on its way over all seas and back".split()


def said(body, draw=""):
    """Ten words and an end token, begun and cut as the server was asked."""
    seed = f"{body.get('seed')}{body['messages']}{draw}" if body["temperature"] else ""
    begin = hashlib.sha256(seed.encode()).hexdigest()[:6]
    words = [begin, *WORDS][: body["max_tokens"]]
    whole = len(words) == 1 + len(WORDS) and body["max_tokens"] > len(words)
    return " ".join(words), "stop" if whole else "length", len(words) + whole


def tokens(messages):
    return sum(5 + len(m["content"].replace("<|im_end|>", "!").split(" ")) for m in messages)


def honours(body, nth):
    length = tokens(body["messages"])
    if length > 64 or body["messages"][-1]["role"] == "assistant":
        return 400, {}, {"error": {"message": "no"}}
    unseeded = "" if "seed" in body else nth
    answers = [said(body, f"{unseeded}{i or ''}") for i in range(body.get("n", 1))]
    text, reason, count = answers[0]
    if stop := body.get("stop"):
        text, reason = text.partition(stop[0])[0], "stop"
    if "response_format" in body:
        text = '{"age": 3}'
    out = completion(text, reason)
    out["choices"] = [out["choices"][0] | {"message": {"content": t}} for t, _, _ in answers]
    out["choices"][0]["message"]["content"] = text
    if "logprobs" in body:
        out["choices"][0]["logprobs"] = {"content": [{"top_logprobs": [{}, {}]}]}
    return 200, {}, out | {"usage": {"prompt_tokens": length, "completion_tokens": count}}


def ignores(body, nth):
    if "no_such_field" in body:
        return 422, {}, {"error": {"message": "no_such_field"}}
    text, reason, count = said(body | {"temperature": 0})
    length = sum(5 + len(m["content"]) for m in body["messages"])
    usage = {"prompt_tokens": length, "completion_tokens": count - (reason == "stop")}
    return 200, {}, completion(text, reason) | {"usage": usage}


@pytest.fixture
def column(monkeypatch, tmp_path):
    def made(reply):
        monkeypatch.setenv("PERSYN_JOURNAL", str(tmp_path))  # put back after the script's own
        with ChatServer(reply) as server:
            asked = servers.Server(server.url, "m", context=64, control="<|im_end|>")
            return {ask.__name__: ask(asked) for ask in servers.ROWS.values()}

    return made


def test_a_server_that_honours_what_it_is_asked(column):
    assert column(honours) == {
        "same_seed": "the same text",
        "same_seed_at_once": "8 of 8 texts as alone",
        "other_seeds": "8 different",
        "temperature": "8 different at 1, 1 at 0",
        "one_seed_for_all": "48 of 48",
        "own_seeds": "48 of 48",
        "stop": "ends before it",
        "several": "3, 3 different",
        "past_the_context": "answered",
        "more_than_the_context": "answered",
        "long_prompt": "refused (400)",
        "logprobs": "yes, and 2 others",
        "json_schema": "honoured",
        "end_token": "counted",
        "assistant_last": "refused (400)",
        "quoted_control_token": "read as the token",
        "unknown_field": "ignored",
    }


def test_a_server_that_does_not(column):
    found = column(ignores)
    assert (
        found
        | {
            "other_seeds": "1 different",
            "temperature": "1 different at 1, 1 at 0",
            "one_seed_for_all": "1 of 48",
            "own_seeds": "1 of 48",
            "stop": "ignored",
            "several": "ignored: 1 answer",
            "long_prompt": "answered all the same",
            "logprobs": "ignored",
            "json_schema": "ignored",
            "end_token": "not counted",
            "quoted_control_token": "read as text",
            "unknown_field": "refused (422)",
        }
        == found
    )


def test_a_column_takes_the_place_of_its_last_one():
    page = f"above\n{servers.BEGIN}{servers.END}below\n"
    first, second = (list(map(str, range(k, k + len(servers.ROWS)))) for k in (0, 100))
    page = servers.with_column(page, "a", first)
    page = servers.with_column(page, "b", second)
    assert servers.with_column(page, "b", second) == page
    assert servers.with_column(page, "a", second).count("| 100 ") == 2
    assert page.startswith("above\n") and page.endswith("below\n")
