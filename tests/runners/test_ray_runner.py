"""A real Ray cluster of two nodes, on this machine."""

import os
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from chat_server import ChatServer, echo
from datasets import ClassLabel, Dataset, Features, Json, List, Value, load_dataset
from pool import make_recipe
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster

from persyn_datasets import (
    BuildError,
    InputError,
    PersynBuilder,
    Price,
    Rank,
    Recipe,
    Sampling,
    Score,
    Synthesize,
    Teacher,
)
from persyn_datasets.data import schema
from persyn_datasets.data.prompts import messages_of
from persyn_datasets.engines import Request, answered
from persyn_datasets.engines.account import Account, highest_price
from persyn_datasets.runners import local as runner
from persyn_datasets.runners import ray as ray_runner

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A head that takes no work, and two nodes that do."""
    environment = {"RAY_DATA_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, sys.path)
    )  # the actors import this file, too
    os.environ.update(environment)
    memory = {"object_store_memory": 80_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory}
    )
    cluster.two = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def assigned(n, teacher="m"):
    return Dataset.from_dict(
        {"prompt": [f"prompt {i}" for i in range(n)], "teacher": [teacher] * n}
    )


def teach(server, **more):
    return Teacher(
        "m", engine="endpoint", base_url=server.url, sampling=Sampling(max_tokens=9), **more
    )


def synthesize(rows, where="ray", **options):
    return runner.run(rows, Synthesize(**options), schema.SYNTHESIZED, where, batch_size=None)


def test_a_build_is_the_same_as_the_local_one(cluster, chat_model, tmp_path, monkeypatch):
    """Endpoint and local teachers, a local student and a router."""
    tables = []
    with ChatServer() as server:
        values = make_recipe(tmp_path, chat_model, engine="transformers")
        values["teachers"][0] |= {"engine": "endpoint", "base_url": server.url}
        values |= {
            "sampling": {"max_tokens": 6},
            "quality": "test_ray_runner.length",
            "max_failed": 0.5,  # an empty answer counts, and random weights may end at once
        }
        for where in ("local", "ray"):
            monkeypatch.setenv("PERSYN_JOURNAL", str(tmp_path / where / "journal"))
            builder = PersynBuilder(Recipe.from_dict(values), tmp_path / where, runner=where)
            builder.download_and_prepare()
            tables.append(
                {
                    c: load_dataset(str(builder.folder), c)
                    for c in ("default", "calibration", "routing")
                }
            )
            lines = [
                line
                for line in builder.stats["account"]
                if line["teacher"] == values["teachers"][0]["name"]
            ]
            assert server.count == sum(line["answers"] - line["reused"] for line in lines) > 16
            server.bodies.clear()
    local, on_ray = tables
    assert on_ray["default"]["train"].to_list() == local["default"]["train"].to_list()
    assert on_ray["default"]["train"].features == local["default"]["train"].features
    for split in ("train", "test"):
        for a, b in zip(on_ray["calibration"][split], local["calibration"][split], strict=True):
            for x, y in zip(a["responses"], b["responses"], strict=True):
                assert x | {"learnability": 0, "rsr": 0, "reward": 0} == y | {
                    "learnability": 0,
                    "rsr": 0,
                    "reward": 0,
                }
                assert x["learnability"] == pytest.approx(y["learnability"], abs=1e-4)
    assert on_ray["routing"]["train"]["prompt_id"] == local["routing"]["train"]["prompt_id"]


def length(prompts, completions):
    return [len(c[0]["content"]) / 100 for c in completions]


def test_a_killed_node_costs_what_it_had_in_flight(cluster, journal_root):
    def reply(request, nth):
        time.sleep(0.1)
        return echo(request, nth)

    with ChatServer(reply) as server:
        teacher = teach(server, concurrency=8)

        def kill():
            while server.count < 100:
                time.sleep(0.01)
            free = (
                available_resources_per_node()
            )  # Ray sometimes puts both actors on one node: it is that one
            cluster.two.sort(key=lambda node: -free[node.node_id]["CPU"])
            cluster.remove_node(cluster.two.pop(), allow_graceful=False)

        killer = threading.Thread(target=kill)
        killer.start()
        rows = synthesize(assigned(300), teachers=[teacher], max_failed=0)
        killer.join()
        cluster.two.append(cluster.add_node(num_cpus=1, object_store_memory=80_000_000))
        assert [row["completion"][0]["content"].split()[:4] for row in rows] == [
            ["m", "on", "prompt", str(i)] for i in range(300)
        ]
        assert server.max_active <= 8
        # 4 or 8 were in flight there; and an actor's process lives on for a moment beside the one
        # in its place.
        assert 300 < server.count <= 300 + 8 + 12
        records = sum(
            pq.read_metadata(part).num_rows for part in journal_root.glob("responses/*/*.parquet")
        )
        logs = sum(
            len(log.read_bytes().splitlines()) for log in journal_root.glob("responses/*/*.log")
        )
        assert records + logs <= 300  # no answer is there twice: the actors have written them


def test_what_an_actor_cannot_do_is_said_here(cluster):
    refuse = ChatServer(lambda request, nth: (401, {}, {"error": "who are you?"}))
    with (
        refuse as server,
        pytest.raises(BuildError, match="'m'.* 36 .*who are you"),
    ):
        synthesize(assigned(100), teachers=[teach(server)])


def test_max_cost_holds_for_the_cluster(cluster, chat_model, monkeypatch):
    """Endpoints are asked from here; local teachers get no more than what fits in the worst case,
    and then the rest.
    """
    price = Price(input=1e4, output=1e4)
    with ChatServer() as server:
        account = Account(max_cost=30.0)
        with pytest.raises(BuildError, match=r"max_cost \$30"):
            synthesize(assigned(400), teachers=[teach(server, price=price)], account=account)
        asked = server.bodies[0]["messages"]
        # One more, which might have cost so much, no longer fitted.
        highest = highest_price(Request(teach(server, price=price), "", asked))
        assert 30 - highest < account.spent <= 30

    sent = []

    def answers(requests, stage):
        sent.append(len(requests))
        for r in requests:
            yield r, answered(r.teacher, "x", "stop", 7, 5), False

    monkeypatch.setattr(ray_runner, "_answers", answers)
    account = Account(max_cost=30.0)
    local = Teacher(chat_model, name="m", sampling=Sampling(max_tokens=9), price=price)
    rows = assigned(400)
    with pytest.raises(BuildError, match=r"max_cost \$30"):
        synthesize(rows, teachers=[local], account=account)
    highest = [highest_price(Request(local, "", messages)) for messages in messages_of(rows[:])]
    fits = np.searchsorted(np.cumsum(highest), 30, side="right")
    assert sent[0] == fits > 1 and sum(sent) * 0.12 == pytest.approx(account.spent)
    assert 30 - max(highest) < account.spent <= 30


def test_a_journal_that_the_nodes_do_not_share(cluster, journal_root, monkeypatch):
    """Then the answers are put into the journal here, when their blocks come back; the actors keep
    them, too.
    """

    def records():
        return sum(
            pq.read_metadata(part).num_rows for part in journal_root.glob("responses/*/*.parquet")
        )

    with ChatServer() as server:
        monkeypatch.setattr(
            ray_runner,
            "NamedTemporaryFile",
            lambda **_: nullcontext(SimpleNamespace(name="nowhere")),
        )
        synthesize(assigned(60), teachers=[teach(server)])
        assert server.count == 60 and records() == 2 * 60


def test_more_gpus_than_a_node_has_are_refused(cluster):
    teacher = Teacher("x/70b", engine="vllm", engine_args={"tensor_parallel_size": 4})
    request = Request(teacher, "id", [{"role": "user", "content": "hi"}])
    with pytest.raises(InputError, match="'x/70b'.* 4 GPUs.* 0"):
        ray_runner.ask([request], Account(), None)
    half = replace(teacher, engine="transformers", engine_args={}, num_gpus=0.5)
    with pytest.raises(InputError, match=r"0\.5 GPUs"):
        ray_runner.ask([request._replace(teacher=half)], Account(), None)


def kinds(prompts, completions, meta, votes, **columns):
    """What the columns are worth as a quality function sees them."""
    seen = [repr((m, v, type(m).__name__)) for m, v in zip(meta, votes, strict=True)]
    return [
        None if "none" in c[0]["content"] else float(sum(map(ord, s)))
        for s, c in zip(seen, completions, strict=True)
    ]


def test_blocks_give_the_bytes_of_the_local_table(cluster, chat_model, monkeypatch):
    """With nothing for a score, NaN, failed rows, objects that are null, JSON and labels."""
    monkeypatch.setattr(ray_runner, "ROWS_PER_BLOCK", 2)
    found = {"sample": 0, "finish_reason": "stop", "prompt_tokens": None, "completion_tokens": 1}
    good, bad = found | {"text": "so", "error": ""}, found | {"text": "", "error": "it failed"}
    responses = [
        [good | {"teacher": "a"}, bad | {"teacher": "b"}],
        [good | {"teacher": "a", "text": "none"}],
        [],
        [bad | {"teacher": "a"}],
        [good | {"teacher": "b"}, good | {"teacher": "a"}],
        [good | {"teacher": "a"}],
    ]
    meta = [{"a": 1, "b": "x"}, None, {"a": None, "b": None}, None, {"a": 2, "b": None}, None]
    votes = [{"x": 1}, ["007", 7], None, "text", {"y": {"z": 1.5}}, 3e-12]
    features = Features(
        {
            **schema.PROMPT,
            "meta": {"a": Value("int64"), "b": Value("string")},
            "votes": Json(),
            "old": Value("float64"),
            "label": ClassLabel(names=["no", "yes"]),
            "responses": List(schema.RESPONSE),
        }
    )
    rows = [
        {
            "prompt_id": f"{i:032d}",
            "messages": [{"role": "user", "content": f"{i}?"}],
            "meta": meta[i],
            "votes": votes[i],
            "old": [None, float("nan"), 0.1][i % 3],
            "label": i % 2,
            "responses": responses[i],
        }
        for i in range(6)
    ]
    table = Dataset.from_list(rows, features=features)
    score = Score(chat_model, quality="test_ray_runner.kinds")
    here, there = (
        runner.run(table, score, schema.SCORED, where, batch_size=None)
        for where in ("local", "ray")
    )
    assert there.features == here.features
    assert there.data.table.schema.equals(here.data.table.schema)
    assert repr(there.to_list()) == repr(here.to_list())
    assert here["responses"][0][0]["quality"] is not None
    assert here["responses"][1][0]["quality"] is None
    here, there = (
        rows.with_format("arrow").map(Rank(), batched=True).with_format(None)
        for rows in (here, there)
    )
    assert repr(there.to_list()) == repr(here.to_list())
