"""A router from the Hub on new prompts: over real HTTP, also in a process that has none of the
first one's files.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from chat_server import ChatServer, echo
from datasets import Dataset, load_dataset
from pool import COMMAND, problems, write_lines
from reusing import NEW, NOWHERE, ORG, PROMPTS, ROUTER, foreign, right, synthesize

from persyn_datasets import BuildError, InputError, Route, Router, load_prompts, reuse
from persyn_datasets.cli import main
from persyn_datasets.config.prompts import Prompts
from persyn_datasets.engines import recorded
from persyn_datasets.hub.publish import publish


def test_a_process_without_any_of_the_first_ones_files(hub, published, tmp_path):
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "PERSYN_JOURNAL": str(tmp_path / "own"),
    }
    run = subprocess.run(
        [*COMMAND, "synthesize", ROUTER, "org/new", "--revision", "v1.0.0", "--output", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert right(rows)
    local = Router.from_pretrained(str(published / "router"))
    assert rows["teacher"] == Route(local)({"prompt": NEW})["teacher"]


@pytest.mark.parametrize("write", ["to_json", "to_csv", "to_parquet"])
def test_prompts_from_local_files(write, published, tmp_path):
    source = str(tmp_path / f"new.{write.removeprefix('to_').replace('json', 'jsonl')}")
    getattr(Dataset.from_list([{"prompt": p} for p in NEW]), write)(source)
    assert main(["synthesize", ROUTER, source, "--output", str(tmp_path / write)]) == 0
    assert right(load_dataset(str(tmp_path / write), split="train"))


def test_streams_give_the_same(published, tmp_path, monkeypatch):
    monkeypatch.setattr(reuse, "ROWS_PER_SHARD", 2)
    for name, source, more in (("a", "org/new", []), ("b", "org/new", ["--streaming"])):
        for command in ("route", "synthesize"):
            output = str(tmp_path / name / command)
            assert main([command, ROUTER, source, "--output", output, *more]) == 0
    for command in ("route", "synthesize"):
        a, b = (load_dataset(str(tmp_path / name / command), split="train") for name in "ab")
        assert (a.features, a.remove_columns("router_scores").to_list()) == (
            b.features,
            b.remove_columns("router_scores").to_list(),
        )
        assert np.allclose(a["router_scores"], b["router_scores"], atol=1e-5)


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
@pytest.mark.parametrize("old", ["of another router", "of the user"])
def test_columns_of_an_older_routing_do_not_count(published, tmp_path, streaming, old):
    """Nor do a user's own of these names crash."""
    router = Router.from_pretrained(str(published / "router"))
    routed = Dataset.from_dict({"prompt": NEW}).map(Route(router), batched=True).to_list()
    for row in routed:
        shifted = row["router_scores"][1:] + row["router_scores"][:1]
        row |= {"router_scores": shifted if old == "of another router" else "none", "prompt_id": 1}
        row["teacher"] = router.names[router.names.index(row["teacher"]) - 1]
    source = tmp_path / "old.jsonl"
    source.write_text(
        "".join(json.dumps(row | {"rank": 1, "reward": "?"}) + "\n" for row in routed)
    )
    for command in ("route", "synthesize"):
        output = str(tmp_path / command)
        assert main([command, ROUTER, str(source), "--output", output, *streaming]) == 0
        rows = load_dataset(output, split="train")
        assert rows["teacher"][:] == Route(router)({"prompt": NEW})["teacher"]


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_an_interrupted_run_goes_on_at_its_first_unfinished_shard(
    hub, published, tmp_path, monkeypatch, streaming
):
    monkeypatch.setattr(reuse, "ROWS_PER_SHARD", 2)
    asked, real = [], recorded.generate

    def generate(requests, account):
        asked.append([r.messages[-1]["content"] for r in requests])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(requests, account)

    monkeypatch.setattr(recorded, "generate", generate)
    arguments = [*synthesize(tmp_path / "out"), *streaming]
    assert main(arguments) == 130 and not (tmp_path / "out").exists()
    assert main(arguments) == 0
    assert asked == [NEW[:2], NEW[2:4], NEW[2:4], NEW[4:]]  # recorded answers are in no journal
    files = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    assert files == [f"persyn-train-0000{i}-of-00003.parquet" for i in range(3)]
    assert not (tmp_path / "out.unfinished").exists()
    assert right(load_dataset(str(tmp_path / "out"), split="train"))
    assert publish(tmp_path / "out", "org/shards") == "v1.0.0"
    assert right(load_dataset("org/shards", split="train"))
    before = load_dataset(ORG, split="train").num_rows
    assert main(["push", str(tmp_path / "out"), ORG, "--append"]) == 0
    assert load_dataset(ORG, split="train").num_rows == before + len(NEW)


def test_other_prompts_are_other_shards(hub, published, tmp_path, monkeypatch):
    """One prompt was changed since a run was interrupted: its shard is worked on again, the others
    are not.
    """
    monkeypatch.setattr(reuse, "ROWS_PER_SHARD", 1)
    asked, real = [], recorded.generate

    def generate(requests, account):
        asked.extend(r.messages[-1]["content"] for r in requests)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(requests, account)

    monkeypatch.setattr(recorded, "generate", generate)
    source, output = tmp_path / "new.jsonl", tmp_path / "out"
    source.write_text(PROMPTS)
    arguments = ["synthesize", ROUTER, str(source), "--output", str(output), "--streaming"]
    assert main(arguments) == 130
    source.write_text(PROMPTS.replace(NEW[1], "3 times 4?"))
    assert main(arguments) == 0
    assert asked == [*NEW[:4], "3 times 4?", *NEW[3:]]
    assert [r["prompt"][0]["content"] for r in load_dataset(str(output), split="train")] == [
        NEW[0],
        "3 times 4?",
        *NEW[2:],
    ]


def test_failed_rows_and_the_account_over_several_shards(hub, published, tmp_path, monkeypatch):
    monkeypatch.setattr(reuse, "ROWS_PER_SHARD", 2)

    def reply(request, nth):
        prompt = request["messages"][-1]["content"]
        return (400, {}, {"error": "no"}) if prompt in (NEW[1], NEW[4]) else echo(request, nth)

    with ChatServer(reply) as server:
        price = {"input": 1e5, "output": 0}
        foreign(hub, published, engine="endpoint", base_url=NOWHERE, price=price)
        arguments = synthesize(tmp_path / "out", "multiplier")
        arguments += ["--set", f"teachers.1.base_url={server.url}", "--max-cost"]
        # An answer costs 0.7 USD. A server that we do not know may bill 212: 2,122 tokens for a
        # prompt of 10 characters and a template as long as any.
        assert main([*arguments, "212.5"]) == 1 and server.count < 5
        assert main([*arguments, "230"]) == 0
    files = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    parts = {"train": 2, "failed": 2}
    assert files == [
        f"persyn-{s}-0000{i}-of-0000{n}.parquet" for s, n in sorted(parts.items()) for i in range(n)
    ]
    splits = load_dataset(str(tmp_path / "out"))
    assert [[r["prompt"][0]["content"] for r in splits[s]] for s in parts] == [
        [NEW[0], *NEW[2:4]],
        [NEW[1], NEW[4]],
    ]
    stats = json.loads((tmp_path / "out/stats.json").read_text())
    assert (stats["rows"], stats["failed"]) == (5, 2)
    [line] = stats["account"]
    assert (line["answers"], line["failed"]) == (3, 2)
    assert line["usd"] + line["reused_usd"] == pytest.approx(3 * 0.7)


def test_prompts_unlike_the_calibration_are_told_with_numbers(published, tmp_path, capsys):
    router = Router.from_pretrained(ROUTER)
    like = [[{"role": "user", "content": p}] for p, _ in problems()]
    assert router.unlike(like) == []
    long = [[{"role": "user", "content": "Write a poem about the sea. " * 12}]] * 8
    found = router.unlike(long)
    assert any("in their length: 336 characters" in t and "calibration 11" in t for t in found)
    assert any("cosine distance" in t for t in found)
    prompts = write_lines(tmp_path / "long.jsonl", [{"messages": m} for m in long])
    assert main(["route", ROUTER, prompts, "--output", str(tmp_path / "out")]) == 0
    assert found[0] in capsys.readouterr().err


def test_no_router_no_revision(hub, published, tmp_path, capsys):
    for arguments, words in (
        (["org/nothing", "org/new"], "No router at 'org/nothing'"),
        ([ROUTER, "org/new", "--revision", "v9.9.9"], "No router at"),
        ([ROUTER, "org/no-prompts"], "no such dataset on the Hub"),
    ):
        assert main(["route", *arguments, "--output", str(tmp_path / "o")]) == 1
        assert words in capsys.readouterr().err


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.mark.parametrize("there", [False, True])  # is the output a folder already?
@pytest.mark.parametrize("where", ["card", "stats", "end"])
def test_a_kill_while_it_is_finished_leaves_what_the_next_run_takes_up(
    hub, published, tmp_path, monkeypatch, where, there
):
    output = tmp_path / "out"
    if there:
        output.mkdir()

    def die(*_, **__):
        raise Killed

    place = {
        "card": (reuse.cards, "dataset_card"),
        "stats": (reuse.json, "dumps"),
        "end": (Path, "replace" if there else "rename"),
    }[where]
    arguments = synthesize(output)
    with monkeypatch.context() as m:
        if where == "stats":
            real = json.dumps
            m.setattr(*place, lambda v, **k: die() if "per_teacher" in v else real(v, **k))
        else:
            m.setattr(*place, die)
        with pytest.raises(Killed):
            main(arguments)
    assert main(["push", str(output), "org/half"]) == 1
    assert main(arguments) == 0
    assert right(load_dataset(str(output), split="train"))
    assert {f.name for f in output.iterdir()} == {"README.md", "stats.json", "data", "messages"}
    assert not output.with_name("out.unfinished").exists()
    assert publish(output, "org/half") == "v1.0.0"
    assert main(arguments) == 1  # it is whole, and stays as it is


def test_failed_rows_are_asked_again_and_only_they(hub, published, tmp_path):
    down = {NEW[1], NEW[4]}

    def reply(request, nth):
        prompt = request["messages"][-1]["content"]
        return (400, {}, {"error": "no"}) if prompt in down else echo(request, nth)

    with ChatServer(reply) as server:
        foreign(hub, published, engine="endpoint", base_url=NOWHERE)
        router, output = Router.from_pretrained(ROUTER), tmp_path / "out"
        prompts = load_prompts("org/new")
        options = {"names": ["multiplier"], "overrides": [f"teachers.1.base_url={server.url}"]}
        source = Prompts("org/new")
        with pytest.raises(BuildError, match="2 of 5 .*max_failed .*10%"):
            reuse.synthesize(router, prompts, output, source, max_failed=0.1, **options)
        assert not output.exists()
        down.clear()
        before = server.count
        counts = reuse.synthesize(router, prompts, output, source, max_failed=0.1, **options)
        assert counts.total() == 5 and server.count - before == 2
    assert list(load_dataset(str(output))) == ["train"]
    with pytest.raises(InputError, match="max_failed is 1.5"):
        reuse.synthesize(router, prompts, tmp_path / "b", source, max_failed=1.5, **options)


@pytest.mark.parametrize("command", ["route", "synthesize"])
@pytest.mark.parametrize("output", [".", "link", "new", "empty", "deep/er"])
def test_the_output_may_be_the_working_folder_or_a_link(
    hub, published, tmp_path, monkeypatch, command, output
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if output != ".":
        (tmp_path / "here" / "target").mkdir()
        (tmp_path / "here" / "empty").mkdir()
        os.symlink("target", "link")
    assert main([command, ROUTER, "org/new", "--output", output]) == 0
    assert len(load_dataset(str(Path(output).resolve()), split="train")) == len(NEW)
    assert Path.cwd() == tmp_path / "here" and os.path.samefile(".", tmp_path / "here")
    assert not list(Path().glob("**/*unfinished*"))
    if output == "link":
        assert Path("link").is_symlink()
