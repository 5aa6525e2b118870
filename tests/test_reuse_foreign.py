from pathlib import Path

import numpy as np
import pytest
from chat_server import ChatServer, completion
from datasets import load_dataset
from pool import answer
from reusing import NEW, NOWHERE, ROUTER, foreign, right, synthesize

from persyn_datasets import InputError, Route, Router
from persyn_datasets.cli import main


def test_only_the_teachers_that_are_available(published, tmp_path, capsys):
    router = Router.from_pretrained(ROUTER)
    whole = np.array(Route(router)({"prompt": NEW})["router_scores"])
    without = Route(router, teachers=["guesser", "adder"])({"prompt": NEW})
    scores = np.array(without["router_scores"])
    at = {name: i for i, name in enumerate(router.names)}
    assert (scores[:, at["multiplier"]] == 0).all() and np.allclose(scores.sum(1), 1)
    kept = [at["adder"], at["guesser"]]
    assert np.allclose(
        scores[:, kept], whole[:, kept] / whole[:, kept].sum(1, keepdims=True), atol=1e-6
    )
    assert without["teacher"] == [router.names[i] for i in scores.argmax(1)]
    for form in ("guesser", "guesser,guesser"):
        assert main(synthesize(tmp_path / form, form)) == 0
        assert set(load_dataset(str(tmp_path / form), split="train")["teacher"]) == {"guesser"}
    command = ["route", ROUTER, "org/new", "--output", str(tmp_path / "x")]
    assert main([*command, "--teachers", "adder", "nobody"]) == 1
    assert "'nobody'; the router knows adder, multiplier, guesser" in capsys.readouterr().err
    with pytest.raises(InputError, match="teachers: none"):
        Route(router, teachers=[])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"engine": "endpoint", "base_url": NOWHERE}, "teachers.1.base_url"),
        ({"engine": "endpoint", "base_url": [NOWHERE]}, "teachers.1.base_url"),
        (
            {"engine": "endpoint", "base_url": NOWHERE, "api_key_env": "MY_KEY"},
            "teachers.1.api_key_env",
        ),
        ({"engine": "transformers", "trust_remote_code": True}, "teachers.1.trust_remote_code"),
        (
            {"engine": "vllm", "engine_args": {"worker_cls": "x.Y"}},
            "teachers.1.engine_args.worker_cls",
        ),
        ({"model": str(Path(__file__).parent)}, "teachers.1.model"),
        ({"model": "/*/*.jsonl"}, "teachers.1.model"),
    ],
)
def test_a_router_from_the_hub_names_no_server_key_code_or_file_for_us(
    hub, published, tmp_path, capsys, changes, key
):
    foreign(hub, published, **changes)
    assert main(synthesize(tmp_path / "out")) == 1
    message = capsys.readouterr().err
    assert f"{ROUTER} on the Hub sets " in message and key in message and "--set" in message
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="--set"):
        _ = Router.from_pretrained(ROUTER).teachers
    # A teacher that is not asked needs no word.
    assert main(synthesize(tmp_path / "out", "adder")) == 0


def test_what_the_user_names_counts(hub, published, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-mine")
    monkeypatch.setenv("OTHER_KEY", "sk-other")

    def reply(request, nth):
        return 200, {}, completion(answer("multiplier", request["messages"][-1]["content"]))

    with ChatServer(reply) as server:
        foreign(hub, published, engine="endpoint", base_url=NOWHERE, api_key_env="OTHER_KEY")
        arguments = synthesize(tmp_path / "out", "multiplier")
        settings = ["--set", f"teachers.1.base_url={server.url}"]
        settings += ["--set", "teachers.1.api_key_env=MY_KEY"]
        assert main([*arguments, *settings]) == 0
        assert server.count == len(NEW) and {h["authorization"] for h in server.headers} == {
            "Bearer sk-mine"
        }
    assert right(load_dataset(str(tmp_path / "out"), split="train"))
    misspelt = ["--set", "teachers.1.base_ulr=x"]
    assert main([*synthesize(tmp_path / "x"), *misspelt, *settings]) == 1


def test_max_cost_holds_for_synthesize_too(hub, published, tmp_path, monkeypatch, capsys):
    with ChatServer() as server:
        foreign(hub, published, engine="endpoint", base_url=NOWHERE)
        arguments = synthesize(tmp_path / "out", "multiplier")
        arguments += ["--set", f"teachers.1.base_url={server.url}", "--max-cost", "0.00001"]
        assert main(arguments) == 1
        assert "'multiplier' has no price" in capsys.readouterr().err
        assert main([*arguments, "--set", "teachers.1.price={input: 1, output: 1}"]) == 1
        assert server.count == 0 and not (tmp_path / "out").exists()
    assert "max_cost $1e-05 is reached" in capsys.readouterr().err
