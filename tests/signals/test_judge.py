"""A judge behind a server; `ChatServer` answers as OpenAI's chat completions do."""

import re

import pytest
from chat_server import ChatServer, completion
from datasets import Dataset
from pool import make_recipe

from persyn_datasets import BuildError, InputError, PersynBuilder, Recipe, Score, signals
from persyn_datasets.engines.account import Account
from persyn_datasets.report.text import judge_words
from persyn_datasets.signals import judge

ASKED = [{"role": "user", "content": "2 + 2?"}]
OTHER = [{"role": "user", "content": "3 + 3?"}]
CHAT = [{"role": "system", "content": "Be brief."}, *ASKED]
GOOD = {"bad": 2, "fair": 5, "good": 9}  # what the judges below think of these answers


def texts_of(body):
    return body["messages"][-1]["content"]


def of_answer(text):
    return re.search(r"<answer>\n(.*)\n</answer>", text, re.S)[1]


def of_pair(text):
    return [re.search(rf"<answer {x}>\n(.*)\n</answer {x}>", text, re.S)[1] for x in "AB"]


def grades(body, nth):
    said = f"From [[1]] to [[10]] this is:\n[[{GOOD[of_answer(texts_of(body))]}]]"
    return 200, {}, completion(said)


def compares(body, nth):
    a, b = (GOOD[answer] for answer in of_pair(texts_of(body)))
    return 200, {}, completion(f"I say [[{'A' if a > b else 'b' if b > a else 'TIE'}]].")


def says(text):
    return lambda body, nth: (200, {}, completion(text))


def score(reply, rows, columns=None, account=None, **spec):
    with ChatServer(reply) as server:
        stated = {"model": "m", "base_url": server.url, **spec.pop("judge", {})}
        given = judge.score(rows, columns or {}, judge=stated, account=account, **spec)
    return given, server.bodies


def test_a_score_on_the_scale():
    rows = [(ASKED, "bad"), (ASKED, "good"), (OTHER, "fair"), (ASKED, "good")]
    account = Account()
    values, bodies = score(grades, rows, account=account)
    assert values == [2, 9, 5, 9]
    assert len(bodies) == 3  # the same answer is judged once
    assert {body["temperature"] for body in bodies} == {0}
    assert account.notes["judge"].items() >= {"asked": 4, "failed": 0, "unread": 0}.items()


@pytest.mark.parametrize(
    ("said", "scale", "value"),
    [
        ("[[7]]", (1, 10), 7),
        ("[[7/10]]", (1, 10), 7),
        ("[[ 0.5 ]]", (0, 1), 0.5),
        ("[[-1]]", (-1, 1), -1),
        ("Perhaps [[3]]; no: [[4]]", (1, 10), 4),
        ("[[11]]", (1, 10), None),
        ("7", (1, 10), None),
        ("[7]", (1, 10), None),
    ],
)
def test_what_counts_as_a_score(said, scale, value):
    account = Account()
    [found], _ = score(says(said), [(ASKED, "good")], account=account, scale=scale)
    assert found == value
    assert account.notes["judge"]["unread"] == (value is None)


def test_several_samples_are_averaged():
    """Each is drawn with a seed of its own, and they differ by 1 from their mean."""

    def reply(body, nth):
        return 200, {}, completion(f"[[{7 + (1 if nth % 2 else -1)}]]")

    account = Account()
    values, bodies = score(reply, [(ASKED, "good")], account=account, samples=2)
    assert values == [7] and {body["temperature"] for body in bodies} == {1}
    assert len({body["seed"] for body in bodies}) == 2
    notes = account.notes["judge"]
    assert (notes["asked"], notes["repeated"], notes["spread"]) == (2, 1, 1)
    assert "differ by 1.00" in judge_words(notes)


def test_the_prompt_has_the_conversation_and_the_columns():
    prompt = 'Known: {answer}. {prompt} / {response} as {"score": {scale}}'
    _, [body] = score(
        says("[[1]]"), [(CHAT, "a {answer} {x}")], {"answer": ["4"]}, prompt=prompt, scale=(0, 3)
    )
    sent = texts_of(body)
    assert sent.startswith(
        'Known: 4. system: Be brief.\n\nuser: 2 + 2? / a {answer} {x} as {"score": {scale}}'
    )
    assert "from 0 to 3" in sent


def test_a_judge_that_fails_gives_no_score():
    def reply(body, nth):
        if of_answer(texts_of(body)) == "bad":
            return 400, {}, {"error": "no"}
        return grades(body, nth)

    account = Account()
    rows = [(ASKED, "good"), (ASKED, "bad")]
    values, _ = score(reply, rows, account=account)
    assert values == [9, None]
    assert (account.notes["judge"]["failed"], account.notes["judge"]["unread"]) == (1, 0)


def test_pairs_are_compared_in_both_orders():
    account = Account()
    rows = [(ASKED, "bad"), (ASKED, "good"), (OTHER, "fair"), (ASKED, "fair"), (ASKED, "fair")]
    values, bodies = score(compares, rows, account=account, pairwise=True)
    # Of "bad", "good", "fair" and "fair" again, which is not compared with itself; OTHER has one.
    assert values == [0, 1, None, 0.5, 0.5]
    orders = [tuple(of_pair(texts_of(body))) for body in bodies]
    assert sorted(orders) == sorted({(b, a) for a, b in orders})
    notes = account.notes["judge"]
    assert (notes["pairs"], notes["agreed"]) == (5, 5)


def test_a_judge_that_prefers_a_position_decides_nothing():
    account = Account()
    rows = [(ASKED, "bad"), (ASKED, "good")]
    values, _ = score(says("[[A]]"), rows, account=account, pairwise=True)
    assert values == [0.5, 0.5]
    assert (account.notes["judge"]["pairs"], account.notes["judge"]["agreed"]) == (1, 0)
    assert "0% got the same verdict in both orders" in judge_words(account.notes["judge"])


PRICE = {"price": {"input": 1.0, "output": 1e6}}  # a dollar for each word of an answer


def test_it_is_journalled_priced_and_within_max_cost():
    batch = {
        "messages": [ASKED, OTHER],
        "responses": [[{"text": "good", "finish_reason": "stop", "error": ""}]] * 2,
    }
    with ChatServer(grades) as server:
        stated = {"model": "m", "base_url": server.url, "sampling": {"max_tokens": 8}} | PRICE
        little = Score(None, {"judge": stated}, account=Account(max_cost=12))
        with pytest.raises(BuildError, match="max_cost"):
            little(batch)
        assert server.count == 1  # 7 dollars; the next may cost 8
        enough = Score(None, {"judge": stated}, account=Account(max_cost=100))
        scored = enough(batch)["responses"]
        assert [row[0]["quality"] for row in scored] == [9, 9] and server.count == 2
        [line] = enough.account.tallies
        assert (line.stage, line.answers, line.reused) == ("Judge", 2, 1)
        assert 14 < enough.account.spent < 14.1
        Score(None, {"judge": stated | {"price": None}})(batch)
        assert server.count == 2


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"judge": "gpt"}, "quality.judge: found 'gpt'; expected"),
        ({"judge": {"model": "m"}}, "engine 'endpoint' needs the key 'base_url'"),
        ({"judge": {"model": "m", "base_ulr": "x"}}, "quality.judge.base_ulr.*'base_url'"),
        ({"judge": {"model": "m", "engine": "transformers"}}, "a judge runs behind a server"),
        ({"prompt": "Rate {prompt}."}, r"it has no \{response\}"),
        ({"pairwise": True, "prompt": "{response}"}, r"it has no \{response_a\}"),
        ({"prompt": "{response} {rubric}"}, r"\{rubric\} is neither .* known are answer, "),
        ({"samples": 0}, "quality.samples is 0"),
        ({"scale": [3, 1]}, r"quality.scale is \[3, 1\]"),
        ({"scale": 10}, "quality.scale is 10"),
        (
            {"samples": 2, "judge": {"model": "m", "sampling": {"temperature": 0}}},
            "the judge is greedy",
        ),
        ({"judge": {"model": "other"}}, "has no model 'other'; it has m"),
        ({"scores": 2}, "judge has no key 'scores'"),
    ],
)
def test_what_would_not_work_is_refused_at_the_start(spec, said):
    prompts = Dataset.from_list([{"prompt_id": "0", "messages": ASKED, "answer": "4"}])
    with ChatServer(grades, models=["m"]) as server:
        spec = {"judge": {"model": "m"}} | spec
        places = spec["judge"]
        wants_url = isinstance(places, dict) and "needs the key" not in said and "ulr" not in said
        if wants_url and "engine" not in places:
            spec["judge"] = places | {"base_url": server.url}
        with pytest.raises(InputError, match=said):
            signals.check(spec, prompts)
        assert server.count == 0


def right(text):
    """Whether the answer to a problem of `pool` is right."""
    a, how, b = re.search(r"(\d+) (plus|times) (\d+)\?", text).groups()
    value = int(a) + int(b) if how == "plus" else int(a) * int(b)
    return lambda answer: answer == f"The answer is {value}."


@pytest.mark.parametrize("pairwise", [False, True])
def test_a_build_with_a_judge(pairwise, tmp_path, chat_model):
    def reply(body, nth):
        text = texts_of(body)
        is_right = right(text)
        if not pairwise:
            return 200, {}, completion(f"[[{10 if is_right(of_answer(text)) else 1}]]")
        a, b = map(is_right, of_pair(text))
        return 200, {}, completion("[[tie]]" if a == b else f"[[{'A' if a else 'B'}]]")

    with ChatServer(reply, models=["m"]) as server:
        stated = {"model": "m", "base_url": server.url, "price": {"input": 1, "output": 1}}
        quality = {"judge": stated, "pairwise": pairwise}
        recipe = Recipe.from_dict(make_recipe(tmp_path, chat_model, quality=quality, max_cost=50))
        builder = PersynBuilder(recipe, tmp_path / "out")
        builder.download_and_prepare()
        stats = builder.stats
        asked = 16 * (6 if pairwise else 3)
        assert stats["judge"]["asked"] == asked >= server.count > 0
        assert stats["judge"].get("agreed") == (asked / 2 if pairwise else None)
        [line] = [line for line in stats["account"] if line["stage"] == "Judge"]
        assert line["usd"] > 0
        of = stats["per_teacher"]
        assert of["guesser"]["quality"] == (0.25 if pairwise else 1)
        assert of["adder"]["quality"] > of["guesser"]["quality"]
        assert "judge m" in (tmp_path / "out" / "dataset" / "README.md").read_text()
        before = server.count
        builder.download_and_prepare(download_mode="force_redownload")
        assert server.count == before
