"""The policy around engines, against real servers on loopback and a real journal."""

import threading
import time
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
from chat_server import ChatServer, completion, echo

from persyn_datasets import BuildError, Generate, Price, Sampling, Teacher
from persyn_datasets.engines import Request, answered, lane, transformers
from persyn_datasets.engines.account import Account, highest_price
from persyn_datasets.engines.bound import by_bytes, tokens_at_most, tokens_counted
from persyn_datasets.engines.dispatch import FIRST_FAILURES
from persyn_datasets.report.tables import account_table
from persyn_datasets.store.models import load_tokenizer, prompt_ids

PRICE = Price(input=1.0, output=10.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lane, "BACKOFF", 0.002)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def teach(server, name="m", **more):
    return Teacher(
        name, engine="endpoint", base_url=server.url, sampling=Sampling(max_tokens=100), **more
    )


def prompts(n):
    return {"prompt": [f"prompt {i}" for i in range(n)]}


def flat(batch):
    return [r for row in batch["responses"] for r in row]


def test_a_failed_row_is_tried_again_once_at_the_end():
    """The server refuses every third prompt until it has answered all the others."""
    tries = Counter()

    def reply(request, nth):
        text = request["messages"][-1]["content"]
        tries[text] += 1
        return (
            (404, {}, {"error": "not yet"})
            if int(text[7:]) % 3 == 0 and tries[text] == 1
            else echo(request, nth)
        )

    with ChatServer(reply) as server:
        account = Account()
        rows = flat(Generate([teach(server)], max_failed=0, account=account)(prompts(30)))
    assert all(not r["error"] and f"prompt {i} " in r["text"] for i, r in enumerate(rows))
    assert sorted(tries.values()) == [1] * 20 + [2] * 10
    [line] = account.to_list()
    assert (line["answers"], line["failed"], line["retries"]) == (30, 0, 10)


def test_a_share_of_failures_above_max_failed_ends_it_with_the_reasons_and_keeps_the_answers():
    def reply(request, nth):
        n = int(request["messages"][-1]["content"][7:])
        return (400, {}, {"error": f"reason {n % 2}"}) if n < 6 else echo(request, nth)

    with ChatServer(reply) as server:
        teacher = teach(server)
        assert (
            sum(r["error"] != "" for r in flat(Generate([teacher], max_failed=0.06)(prompts(100))))
            == 6
        )
        with pytest.raises(
            BuildError,
            match="6 of 100 .*max_failed .*5%.*3 × 'm': HTTP 400: reason",
        ):
            Generate([teacher], max_failed=0.05)(prompts(100))
        server.bodies.clear()
        server.reply = echo
        assert not any(r["error"] for r in flat(Generate([teacher])(prompts(100))))
        assert server.count == 6


def test_a_teacher_that_never_answers_is_named_at_once():
    def reply(request, nth):
        return (
            (401, {}, {"error": "who are you?"})
            if request["model"] == "locked"
            else echo(request, nth)
        )

    with ChatServer(reply) as server:
        teachers = [teach(server, "open"), teach(server, "locked")]
        with pytest.raises(BuildError, match=f"'locked'.* {FIRST_FAILURES} .*who are you"):
            Generate(teachers)(prompts(2000))
        locked = sum(body["model"] == "locked" for body in server.bodies)
        assert FIRST_FAILURES <= locked < FIRST_FAILURES + 100
        kept = server.count - locked
        server.bodies.clear()
        Generate(teachers[:1])(prompts(2000))
        assert (
            2000 - kept <= server.count <= 2000 - kept + 64
        )  # what was in flight is lost, no more


def test_a_teacher_that_dies_on_the_way_is_named_once_it_costs_the_build():
    def reply(request, nth):
        return echo(request, nth) if nth <= 100 else (404, {}, {"error": "gone"})

    with ChatServer(reply) as server:
        with pytest.raises(BuildError, match="'m'.* 51 .*HTTP 404: gone"):
            Generate([teach(server)], max_failed=0.05)(prompts(1000))
        assert server.count < 300


def test_endpoints_work_while_a_local_teacher_does(monkeypatch):
    """The local teacher waits for the endpoints' last answer: one after the other would
    never end.
    """
    last = threading.Event()

    def generate(requests, account):
        assert last.wait(20)
        for i, (teacher, *_) in enumerate(requests):
            yield (
                i,
                answered(teacher, "local", "stop", 1, 1),
            )

    def reply(request, nth):
        if nth == 20:
            last.set()
        return echo(request, nth)

    monkeypatch.setattr(transformers, "generate", generate)
    with ChatServer(reply) as one, ChatServer(echo) as other:
        rows = Generate([teach(one), Teacher("local"), teach(other, "n")])(prompts(20))["responses"]
    assert [[r["text"].split()[0] for r in row] for row in rows] == [["m", "local", "n"]] * 20


def test_an_error_of_a_local_teacher_ends_the_endpoints_at_once_and_keeps_their_answers(
    monkeypatch,
):
    def generate(requests, account):
        while server.count < 40:
            time.sleep(0.01)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(transformers, "generate", generate)
    with ChatServer(lambda request, nth: (time.sleep(0.1), echo(request, nth))[1]) as server:
        remote = teach(server)
        with pytest.raises(KeyboardInterrupt):
            Generate([Teacher("local"), remote])(prompts(500))
        asked = server.count
        assert asked < 500 and not [t for t in threading.enumerate() if t.name == "persyn-endpoint"]
        time.sleep(0.3)
        assert server.count == asked
        Generate([remote])(prompts(500))
        assert server.count <= 500 + remote.concurrency


def test_an_error_of_an_endpoint_ends_the_local_teachers_soon(monkeypatch):
    done = []

    def generate(requests, account):
        for i, request in enumerate(requests):
            if not account.admit(request):
                return
            time.sleep(0.02)
            done.append(i)
            yield (
                i,
                answered(request.teacher, "x", "stop", 1, 1),
            )

    monkeypatch.setattr(transformers, "generate", generate)
    refuse = ChatServer(lambda request, nth: (401, {}, {"error": "no"}))
    with refuse as server, pytest.raises(BuildError, match="'m' fails"):
        Generate([Teacher("local"), teach(server)])(prompts(3000))
    assert len(done) < 1500


def test_max_cost_is_never_passed_and_goes_on_with_more():
    with ChatServer(lambda request, nth: (200, {}, completion("word " * (nth % 90)))) as server:
        teacher = teach(server, price=PRICE)
        one = highest_price(Request(teacher, "id", [{"role": "user", "content": "prompt 100"}]))
        limit = 60 * one
        account = Account(max_cost=limit)
        with pytest.raises(BuildError, match=r"Generate: max_cost \$[\d.]+"):
            Generate([teacher], account=account)(prompts(1000))
        paid = sum(PRICE.of(7, n % 90) for n in range(1, server.count + 1))
        assert limit - 2 * one < paid <= limit
        assert account.spent == pytest.approx(paid)
        # The same again spends nothing: what is in the journal counts too.
        before = server.count
        with pytest.raises(BuildError, match="max_cost"):
            Generate([teacher], account=Account(max_cost=account.spent))(prompts(1000))
        assert server.count == before
        more = Account(max_cost=1.0)
        assert len(flat(Generate([teacher], account=more)(prompts(1000)))) == 1000
        assert server.count == 1000
        assert more.spent == pytest.approx(sum(PRICE.of(7, n % 90) for n in range(1, 1001)))


def test_unknown_token_counts_cost_their_highest_price():
    body = completion("one two")
    del body["usage"]
    with ChatServer(lambda request, nth: (200, {}, body)) as server:
        teacher, account = teach(server, price=PRICE), Account()
        Generate([teacher], account=account)({"prompt": ["hi"]})
    request = Request(teacher, "id", [{"role": "user", "content": "hi"}])
    assert account.spent == pytest.approx(highest_price(request))
    assert highest_price(request) > PRICE.of(7, 100)


def test_one_account_for_two_stages_counts_each_answer_once():
    with ChatServer(echo) as server:
        dear, free = teach(server, price=PRICE), replace(teach(server, "free"), price=None)
        account = Account()
        first = Generate([dear, free], account=account)
        first(prompts(10))
        spent = account.spent
        Generate([dear], account=account)(prompts(10))
        assert account.spent == spent > 0
        lines = {line["teacher"]: line for line in account.to_list()}
    assert (
        lines["m"]["answers"] == 20
        and lines["m"]["reused"] == 10
        and lines["m"]["prompt_tokens"] == 70
    )
    assert lines["free"]["usd"] == 0 and lines["free"]["completion_tokens"] > 0
    assert str(account).splitlines()[0].startswith("Generate · m: 20 answers (10 reused, 0 failed)")
    table = account_table(account.to_list()).splitlines()
    assert "Generate · m" in table[2] and table[-1].startswith("| all")


def says(reply, n=60, **more):
    """n prompts for one teacher; the account, the server, and what was raised."""
    with ChatServer(reply) as server:
        account = Account()
        teacher = teach(server, price=PRICE, **more)
        try:
            rows, error = flat(Generate([teacher], account=account)(prompts(n))), ""
        except BuildError as raised:
            rows, error = [], str(raised)
        return rows, error, account, server


def test_a_teacher_that_says_nothing_is_stopped_like_one_that_fails_and_asked_again_once_fixed():
    thoughts = completion(None)
    thoughts["choices"][0]["message"]["reasoning_content"] = "Hmm, let me see."
    with ChatServer(lambda request, nth: (200, {}, thoughts)) as server:
        with pytest.raises(BuildError, match="'m' fails: 36 .*reasoning_content"):
            Generate([teach(server)])(prompts(500))
        assert server.count < FIRST_FAILURES + 64
        server.reply = echo  # somebody has fixed its server
        assert not any(r["error"] for r in flat(Generate([teach(server)])(prompts(500))))


def test_an_empty_answer_among_others_is_kept_and_not_bought_again():
    def reply(request, nth):
        empty = request["messages"][-1]["content"].endswith("7")
        return (200, {}, completion("" if empty else "words"))

    with ChatServer(reply) as server:
        for _ in range(2):
            rows = flat(Generate([teach(server)])(prompts(40)))
            assert sum(bool(r["error"]) for r in rows) == 4
        assert server.count == 40
        with pytest.raises(BuildError, match="4 of 40 "):
            Generate([teach(server)], max_failed=0.09)(prompts(40))
        assert server.count == 40


def test_half_an_answer_is_an_error_that_was_paid_for_and_may_be_asked_again():
    half = completion("The sum foll", "error")
    half["choices"][0]["error"] = {"code": 502, "message": "Provider disconnected"}

    def reply(request, nth):
        return (200, {}, half if nth <= 10 else completion("one two"))

    rows, error, account, server = says(reply, 10)
    assert not error and [r["text"] for r in rows] == ["one two"] * 10 and server.count == 20
    assert account.spent == pytest.approx(10 * PRICE.of(7, 3) + 10 * PRICE.of(7, 2))
    rows, error, account, server = says(lambda request, nth: (200, {}, half), 3)
    assert {(r["text"], r["finish_reason"]) for r in rows} == {("", "error")}
    assert all("Provider disconnected" in r["error"] for r in rows)
    [line] = account.to_list()
    assert (line["answers"], line["failed"], server.count) == (0, 3, 6)
    assert account.spent == pytest.approx(6 * PRICE.of(7, 3))


@pytest.mark.parametrize(("temperature", "warned"), [(0.7, 1), (0.7, 0)])
def test_samples_that_are_all_equal_are_remarked_once(temperature, warned, caplog):
    def reply(request, nth):
        return (200, {}, completion("same" if warned else f"text {request['seed'] % 5}"))

    with ChatServer(reply) as server:
        account = Account()
        for part in (10, 20):
            Generate([teach(server)], account=account, samples=3)(prompts(part))
    found = [r for r in caplog.records if "are identical on all" in r.getMessage()]
    assert len(found) == warned


def test_max_cost_holds_where_the_server_counts_more_than_it_was_sent(caplog):
    """The first answer shows it; until then only one request is in flight."""
    dear = completion("word") | {"usage": {"prompt_tokens": 90_000, "completion_tokens": 1}}
    with ChatServer(lambda request, nth: (time.sleep(0.01), (200, {}, dear))[1]) as server:
        account = Account(max_cost=1.0)  # 11 answers of 0.09001 USD
        with pytest.raises(BuildError, match="max_cost"):
            Generate([teach(server, price=PRICE)], account=account)(prompts(100))
        assert server.count == 11
        assert account.spent == pytest.approx(11 * PRICE.of(90_000, 1))
    assert len([r for r in caplog.records if "billed" in r.getMessage()]) == 1


TEXTS = [
    "什么是光合作用？",
    "ﷺ" * 9,
    "㍿",
    "é" * 5,
    "𝒜b",
    "\ufdfa",
    "Hi",
    "the er " * 60,
    "</s><s>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_no_prompt_has_more_tokens_than_its_bound(text, chat_model):
    """Each byte in its longest normal form is a token, at most, and so are frames and templates."""
    messages = [{"role": "user", "content": text}] * 3
    server = Teacher("m", name="far", engine="endpoint", base_url="http://127.0.0.1:1/v1")
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        written = 3 * len(unicodedata.normalize(form, text).encode())
        assert tokens_at_most(server, messages) > written + 900
    tokenizer = load_tokenizer(chat_model)
    assert tokens_at_most(server, messages) > len(prompt_ids(tokenizer, messages))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("model", ["chat_model", "base_model"])
def test_a_local_teachers_prompts_are_counted(model, text, request):
    """What is set aside for a prompt is what the engine then says it read; `max_cost` is used up to
    the last answer.
    """
    teacher = Teacher(
        request.getfixturevalue(model),
        name="near",
        price=PRICE,
        system_prompt="the",
        sampling=Sampling(max_tokens=2),
    )
    messages = teacher.conversation([{"role": "user", "content": text}])
    account = Account()
    [(_, response)] = transformers.generate([Request(teacher, "id", messages)], account)
    assert tokens_at_most(teacher, messages) == response["prompt_tokens"]
    assert account.reserved == pytest.approx(PRICE.of(response["prompt_tokens"], 2))


def test_an_endpoints_prompts_are_bounded_even_where_its_tokenizer_is_here(chat_model):
    """Its server may render them by another template."""
    messages = [{"role": "user", "content": "the"}]
    far = Teacher(chat_model, name="far", engine="endpoint", base_url="http://127.0.0.1:1/v1")
    assert tokens_counted(far, messages) == len(prompt_ids(load_tokenizer(chat_model), messages))
    assert tokens_at_most(far, messages) == by_bytes(messages) > tokens_counted(far, messages)
    unknown = Teacher("org/m", name="far", engine="endpoint", base_url="http://127.0.0.1:1/v1")
    assert tokens_counted(unknown, messages) is None
