import os
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import ChatServer, completion
from datasets import load_dataset
from pool import (
    CountingEngine,
    answer,
    counting,
    make_recipe,
    problems,
    save,
    write_lines,
)

from persyn_datasets import Router
from persyn_datasets.cli import main
from persyn_datasets.engines import recorded


def test_build_and_build_again(chat_model, tmp_path, capsys):
    recipe, output = save(tmp_path, make_recipe(tmp_path, chat_model)), str(tmp_path / "out")
    command = ["build", recipe, "--output", output]
    command += ["--set", "calibration.size=12", "--set", "reward.alpha=0.3"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "48 generations" in printed and all(f"  {t}" in printed for t in ("adder", "multiplier"))
    assert f"load_dataset('{output}/dataset')" in printed
    assert len(load_dataset(f"{output}/dataset", split="train")) == 24
    assert Router.from_pretrained(f"{output}/router").metrics["prompts"] == 12
    assert main(command) == 0
    assert capsys.readouterr().out == printed


def test_a_dry_run_prints_the_plan_and_spends_nothing(chat_model, tmp_path, capsys, asked):
    recipe, output = save(tmp_path, make_recipe(tmp_path, chat_model)), tmp_path / "out"
    command = ["build", recipe, "--dry-run", "--output", str(output)]
    assert main([*command, "--set", "calibration.size=10"]) == 0
    printed = capsys.readouterr().out
    assert "24 prompts, 3 teachers" in printed and "then 14 responses" in printed
    assert f"{10 * 3 + 24 - 10} generations in all; generate-then-select needs {24 * 3}" in printed
    assert asked == [] and not output.exists()


def test_the_default_output_is_named_by_the_recipe(chat_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["build", save(tmp_path, make_recipe(tmp_path, chat_model, name="mine"))]) == 0
    assert (tmp_path / "outputs/mine/dataset/README.md").exists()


def test_an_interruption_says_how_to_go_on(chat_model, tmp_path, capsys, monkeypatch):
    recipe = save(tmp_path, make_recipe(tmp_path, chat_model, engine="transformers"))
    counting(monkeypatch, stop_after=30)
    assert main(["build", recipe, "--output", str(tmp_path / "out")]) == 130
    assert "the same command resumes from here" in capsys.readouterr().err
    rest = counting(monkeypatch)
    assert main(["build", recipe, "--output", str(tmp_path / "out")]) == 0
    assert len(rest.asked) == 56 - 30


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_with_what_to_do(chat_model, tmp_path, capsys):
    """One of the files is a device that is always full."""
    recipe, out = save(tmp_path, make_recipe(tmp_path, chat_model)), tmp_path / "out"
    file = out / "dataset" / "pairs" / "train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    file.symlink_to("/dev/full")
    (out / "dataset" / "recipe.yaml").write_text("name: tiny")
    assert main(["build", recipe, "--output", str(out)]) == 1
    assert "No space left on device" in (last := capsys.readouterr().err.splitlines()[-1])
    assert "Free some space" in last and "same command" in last
    file.unlink()
    assert main(["build", recipe, "--output", str(out)]) == 0


def test_a_failed_build_has_the_reason_last(chat_model, tmp_path, capsys, monkeypatch):
    counting(monkeypatch, fails=lambda *_: True)
    recipe = save(tmp_path, make_recipe(tmp_path, chat_model, engine="transformers"))
    assert main(["build", recipe, "--output", str(tmp_path / "out")]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("persyn: ") and "16 × 'adder': the server is on fire" in last


def test_route_only_assigns(done, tmp_path, capsys, asked):
    prompts = write_lines(
        tmp_path / "new.jsonl", [{"prompt": p, "id": i} for i, (p, _) in enumerate(problems(9))]
    )
    router, output = str(done.output / "router"), str(tmp_path / "routed")
    assert main(["route", router, prompts, "--output", output]) == 0
    rows = load_dataset(str(tmp_path / "routed"), split="train")
    assert rows["id"] == list(range(9)) and [m[0]["content"] for m in rows["messages"]] == [
        p for p, _ in problems(9)
    ]
    built_rows = load_dataset(str(done.folder), "routing", split="train")[:9]
    assert (rows["teacher"], rows["prompt_id"]) == (built_rows["teacher"], built_rows["prompt_id"])
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in set(rows["teacher"])) and asked == []


def test_synthesize_asks_only_the_assigned_teacher(done, tmp_path, asked):
    prompts = write_lines(tmp_path / "new.jsonl", [{"question": p} for p, _ in problems(9)])
    arguments = [
        str(done.output / "router"),
        prompts,
        "--output",
        str(tmp_path / "out"),
        "--column",
        "question",
    ]
    assert main(["synthesize", *arguments]) == 0
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert sorted(asked) == sorted(
        (t, p[0]["content"]) for t, p in zip(rows["teacher"], rows["prompt"], strict=True)
    )
    assert [r["completion"][0]["content"] for r in rows] == [
        answer(t, p) for t, (p, _) in zip(rows["teacher"], problems(9), strict=True)
    ]


def test_synthesize_puts_failed_rows_apart(done, tmp_path, monkeypatch):
    lost = problems(9)[3][0]
    failing = CountingEngine(fails=lambda _, prompt: prompt == lost)
    monkeypatch.setattr(recorded, "generate", failing)
    prompts = write_lines(tmp_path / "new.jsonl", [{"prompt": p} for p, _ in problems(9)])
    router, output = str(done.output / "router"), str(tmp_path / "out")
    assert main(["synthesize", router, prompts, "--output", output]) == 0
    rows = load_dataset(str(tmp_path / "out"))
    assert ({k: len(v) for k, v in rows.items()}, rows["failed"][0]["error"]) == (
        {"train": 8, "failed": 1},
        "the server is on fire",
    )


@pytest.mark.parametrize("command", ["route", "synthesize"])
def test_what_route_and_synthesize_refuse(command, done, chat_model, tmp_path, capsys, asked):
    router, prompts = (
        str(done.output / "router"),
        write_lines(tmp_path / "p.jsonl", [{"prompt": "1 plus 1?"}]),
    )
    full, file = tmp_path / "full", tmp_path / "a-file"
    full.mkdir()
    for path in (full / "mine", file):
        path.write_text("")
    for arguments, message in (
        ([router, str(tmp_path / "no.jsonl"), "--output", str(tmp_path / "o")], "no such file"),
        (
            [router, prompts, "--output", str(tmp_path / "o"), "--column", "text"],
            "no column 'text'; it has prompt",
        ),
        ([router, prompts, "--output", str(full)], "is not an empty folder"),
        ([router, prompts, "--output", str(file)], "is not an empty folder"),
        ([str(tmp_path / "no-router"), prompts, "--output", str(tmp_path / "o")], "No router at"),
        ([chat_model, prompts, "--output", str(tmp_path / "o")], "no PerSyn router"),
    ):
        assert main([command, *arguments]) == 1, message
        assert message in capsys.readouterr().err
    assert asked == [] and not (tmp_path / "o").exists()


def test_a_real_endpoint_builds_and_its_key_is_nowhere(chat_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "sk-0123456789")

    def reply(request, nth):
        system, prompt = request["messages"][0]["content"], request["messages"][-1]["content"]
        return 200, {}, completion(answer(system, prompt))

    with ChatServer(reply) as server:
        values = make_recipe(tmp_path, chat_model)
        for t in values["teachers"]:
            t |= {
                "engine": "endpoint",
                "model": "m",
                "base_url": server.url,
                "api_key_env": "TINY_KEY",
            }
        assert main(["build", save(tmp_path, values), "--output", str(tmp_path / "out")]) == 0
        assert server.count == 56
        assert {h["authorization"] for h in server.headers} == {"Bearer sk-0123456789"}
    written = [
        f.read_bytes()
        for folder in ("out", "journal")
        for f in (tmp_path / folder).rglob("*")
        if f.is_file()
    ]
    assert written and not any(b"sk-0123456789" in content for content in written)
    printed = capsys.readouterr()
    assert "sk-0123456789" not in printed.out + printed.err


def test_a_function_of_the_working_folder_is_found(chat_model, tmp_path):
    """By the installed command, too, whose sys.path lacks it."""
    (tmp_path / "myq.py").write_text(
        "def f(prompts, completions, **columns):\n    return [1.0 for _ in completions]\n"
    )
    recipe = save(tmp_path, make_recipe(tmp_path, chat_model, quality="myq.f"))
    code = "import sys; from persyn_datasets.cli import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, "build", recipe, "--dry-run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("router", "more", "fragments"),
    [
        ("{done}", [], ["{done}/router"]),
        ("{done}/router", ["--column", "question"], ["--column", "'question'"]),
    ],
)
def test_what_was_meant_is_said(router, more, fragments, done, tmp_path, capsys):
    prompts = write_lines(tmp_path / "new.jsonl", [{"prompt": "1 plus 1"}])
    places = {"done": str(done.output)}
    arguments = [router.format(**places), prompts, "--output", str(tmp_path / "routed"), *more]
    assert main(["route", *arguments]) == 1
    message = capsys.readouterr().err
    assert all(f.format(**places) in message for f in fragments) and "prompts.column" not in message
