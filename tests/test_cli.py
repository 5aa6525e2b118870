import os
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from chat_server import ChatServer
from datasets import load_dataset
from pool import CountingEngine, answer, built, make_recipe, problems, save, write_lines

import persyn_datasets
from persyn_datasets import Router
from persyn_datasets.cli import main

ENGINES = [
    import_module(f"persyn_datasets.engines.{name}")
    for name in ("transformers", "endpoint", "recorded")
]


@pytest.fixture
def asked(monkeypatch):
    """All that any engine is asked to generate."""
    counter = CountingEngine()
    for engine in ENGINES:
        monkeypatch.setattr(engine, "generate", counter)
    return counter.asked


@pytest.fixture(scope="module")
def done(chat_model, models_folder):
    return built(models_folder / "cli", chat_model)


def test_build_and_build_again(chat_model, tmp_path, capsys):
    recipe, output = save(tmp_path, make_recipe(tmp_path, chat_model)), str(tmp_path / "out")
    assert (
        main(
            [
                "build",
                recipe,
                "--output",
                output,
                "--set",
                "calibration.size=12",
                "--set",
                "reward.alpha=0.3",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "48 generations" in printed and all(f"  {t}" in printed for t in ("adder", "multiplier"))
    assert f"load_dataset('{output}/dataset')" in printed
    assert len(load_dataset(f"{output}/dataset", split="train")) == 24
    assert Router.from_pretrained(f"{output}/router").metrics["prompts"] == 12
    assert (
        main(
            [
                "build",
                recipe,
                "--output",
                output,
                "--set",
                "calibration.size=12",
                "--set",
                "reward.alpha=0.3",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == printed


def test_a_dry_run_prints_the_plan_and_spends_nothing(chat_model, tmp_path, capsys, asked):
    recipe, output = save(tmp_path, make_recipe(tmp_path, chat_model)), tmp_path / "out"
    assert (
        main(
            ["build", recipe, "--dry-run", "--output", str(output), "--set", "calibration.size=10"]
        )
        == 0
    )
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
    monkeypatch.setattr(ENGINES[0], "generate", CountingEngine(stop_after=30))
    assert main(["build", recipe, "--output", str(tmp_path / "out")]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    rest = CountingEngine()
    monkeypatch.setattr(ENGINES[0], "generate", rest)
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
    monkeypatch.setattr(ENGINES[0], "generate", CountingEngine(fails=lambda *_: True))
    recipe = save(tmp_path, make_recipe(tmp_path, chat_model, engine="transformers"))
    assert main(["build", recipe, "--output", str(tmp_path / "out")]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("persyn: ") and "16 × 'adder': the server is on fire" in last


def test_route_only_assigns(done, tmp_path, capsys, asked):
    prompts = write_lines(
        tmp_path / "new.jsonl", [{"prompt": p, "id": i} for i, (p, _) in enumerate(problems(9))]
    )
    assert (
        main(["route", str(done.output / "router"), prompts, "--output", str(tmp_path / "routed")])
        == 0
    )
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
    monkeypatch.setattr(
        ENGINES[2], "generate", CountingEngine(fails=lambda _, prompt: prompt == lost)
    )
    prompts = write_lines(tmp_path / "new.jsonl", [{"prompt": p} for p, _ in problems(9)])
    assert (
        main(
            ["synthesize", str(done.output / "router"), prompts, "--output", str(tmp_path / "out")]
        )
        == 0
    )
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


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def endpoint(values, **more):
    url = f"http://127.0.0.1:{free_port()}/v1"
    values["teachers"][1] |= {"engine": "endpoint", "model": "big", "base_url": url} | more


def rewrite(values, content):
    Path(values["prompts"]["path"]).write_bytes(content)


def cells(values, **columns):
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    values["prompts"] = {"path": write_lines(Path(values["prompts"]["path"]), rows)}
    if "a" in columns:
        values["prompts"]["answer_column"] = "a"


# What is wrong: (how the recipe is spoilt, what the message must name).
WRONG = {
    "unknown key": (
        lambda v: v["reward"].update(alhpa=1),
        ["unknown key 'reward.alhpa'", "did you mean 'alpha'"],
    ),
    "unknown top key": (
        lambda v: v.update(teacher=[]),
        ["unknown key 'teacher'", "did you mean 'teachers'"],
    ),
    "unknown teacher key": (
        lambda v: v["teachers"][0].update(prise=1),
        ["'teachers.0.prise'", "did you mean 'price'"],
    ),
    "wrong type": (
        lambda v: v["calibration"].update(size="many"),
        ["calibration.size", "'many'", "integer"],
    ),
    "missing column": (
        lambda v: v["prompts"].update(column="text"),
        ["prompts.column", "no column 'text'", "prompt, answer"],
    ),
    "not messages": (
        lambda v: cells(
            v, messages=[[{"role": "user", "content": "1?"}], [{"role": "user"}]], a=["1", "2"]
        ),
        ["row 1, column 'messages'", "message 0", "'role'", "'content'"],
    ),
    "numbers for prompts": (
        lambda v: cells(v, prompt=[1, 2], a=["1", "2"]),
        ["row 0, column 'prompt'", "int 1", "expected a"],
    ),
    "unknown role": (
        lambda v: cells(v, messages=[[{"role": "robot", "content": "1?"}]], a=["1"]),
        ["row 0", "role 'robot'", "system, user"],
    ),
    "empty prompt": (
        lambda v: cells(v, prompt=["1?", " "], a=["1", "2"]),
        ["row 1", "empty", "Remove the row or fill it"],
    ),
    "no prompts": (lambda v: rewrite(v, b""), ["prompts.jsonl", "empty"]),
    "the same name twice": (
        lambda v: v["teachers"][1].update(name="adder"),
        ["'adder' is used twice", "`name`"],
    ),
    "one teacher": (
        lambda v: v.update(teachers=v["teachers"][:1]),
        ["teachers: found 1", "at least two"],
    ),
    "large calibration": (
        lambda v: v["calibration"].update(size=25),
        ["calibration.size is 25", "24 prompts", "Lower it"],
    ),
    "no answer column": (
        lambda v: cells(v, prompt=["1?"] * 24),
        ["math-verify", "prompts.answer_column"],
    ),
    "wrong answer column": (
        lambda v: v["prompts"].update(answer_column="gold"),
        ["prompts.answer_column", "'gold'"],
    ),
    "an answer that is none": (
        lambda v: cells(v, prompt=["1?"] * 16, a=[""] * 16),
        ["The answer ''"],
    ),
    "unreachable endpoint": (
        lambda v: endpoint(v),
        ["'multiplier'", "cannot be reached", "Is the server up?"],
    ),
    "no key": (
        lambda v: endpoint(v, api_key_env="NO_SUCH_KEY"),
        ["'multiplier'", "NO_SUCH_KEY is not set", "export"],
    ),
    "endpoint without address": (
        lambda v: v["teachers"][1].update(engine="endpoint"),
        ["'multiplier'", "base_url"],
    ),
    "model not found": (
        lambda v: v["teachers"][2].update(engine="transformers", model="/no/model"),
        ["'guesser'", "'/no/model'"],
    ),
    "student not found": (
        lambda v: v["student"].update(model="/no/student"),
        ["student.model", "'/no/student'"],
    ),
    "a teacher without records": (
        lambda v: v["teachers"][2].update(name="nobody"),
        ["'nobody'", "it has adder, guesser"],
    ),
    "alpha": (lambda v: v["reward"].update(alpha=1.5), ["reward", "1.5", "[0, 1]"]),
    "negative alpha": (lambda v: v["reward"].update(alpha=-0.1), ["reward", "-0.1", "[0, 1]"]),
    "not UTF-8": (
        lambda v: rewrite(v, b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n'),
        ["line 2 is not UTF-8", "iconv"],
    ),
    "binary": (
        lambda v: rewrite(v, b'{"prompt"\0: 1}'),
        ["prompts.jsonl: line 1 holds binary data", "UTF-8"],
    ),
    "not JSON": (
        lambda v: rewrite(v, b"prompt\nWhat?\n"),
        ["prompts.jsonl", "line 1 cannot be read"],
    ),
    "unknown format": (
        lambda v: v["prompts"].update(path=__file__),
        ["unknown format '.py'", ".jsonl"],
    ),
    "no prompt file": (
        lambda v: v["prompts"].update(path="/no/prompts.csv"),
        ["/no/prompts.csv: no such file"],
    ),
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["build", "dry"])
@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_refused_before_any_work(
    what, dry, chat_model, tmp_path, capsys, asked, monkeypatch
):
    """Item 6: exit code 1, and a message that names the place and the fix, before a model is
    asked.
    """
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    values = make_recipe(tmp_path, chat_model) | {"reward": {}}
    spoil, fragments = WRONG[what]
    spoil(values)
    assert main(["build", save(tmp_path, values), "--output", str(tmp_path / "out"), *dry]) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for fragment in fragments:
        assert fragment in message, fragment
    assert (
        asked == []
        and not (tmp_path / "journal" / "responses").exists()
        and not (tmp_path / "out/dataset").exists()
    )


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (
            ["{recipe}", "--output", "{done}"],
            ["holds a build of the recipe 'tiny'", "'other'", "--output"],
        ),
        (["{recipe}", "--output", "{recipe}"], ["is a file", "--output"]),
        (["no.yaml"], ["no.yaml: no such file"]),
        (["quikstart"], ["No recipe 'quikstart'", "quickstart"]),
        (["{recipe}", "--set", "reward.alpha"], ["--set reward.alpha: expected key=value"]),
        (["{recipe}", "--set", "teachers.9.name=x"], ["--set teachers.9.name=x", "a list of 3"]),
        (["{recipe}", "--set", "reward.alpha={"], ["--set reward.alpha={"]),
        (
            ["{recipe}", "--set", "calibration.sise=3"],
            ["'calibration.sise'", "did you mean 'size'"],
        ),
    ],
)
def test_bad_arguments_are_refused(
    arguments, fragments, done, chat_model, tmp_path, capsys, asked, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {
        "recipe": save(tmp_path, make_recipe(tmp_path, chat_model, name="other")),
        "done": done.output,
    }
    assert main(["build", *(a if "={" in a else a.format(**places) for a in arguments)]) == 1
    message = capsys.readouterr().err
    assert all(f in message for f in fragments), message
    assert asked == []


def test_a_real_endpoint_builds_and_its_key_is_nowhere(chat_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "sk-0123456789")

    def reply(request, nth):
        system, prompt = request["messages"][0]["content"], request["messages"][-1]["content"]
        message = {"role": "assistant", "content": answer(system, prompt)}
        return 200, {}, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

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


@pytest.mark.parametrize("users", [None, "ACTIVE"])
def test_openmp_waits_without_spinning_unless_the_user_says_so(users):
    code = (
        "import os\nfrom persyn_datasets.cli import main\nmain(['build', 'no.yaml'])\n"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": users} if users else {}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert run.stdout.strip() == (users or "PASSIVE")


def test_the_module_is_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "persyn_datasets", "--version"], capture_output=True, text=True
    )
    assert run.stdout == f"persyn {persyn_datasets.__version__}\n"


@pytest.mark.parametrize("command", ["build", "route", "synthesize", None])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as leave:
        main([command, "--help"] if command else ["--help"])
    printed = capsys.readouterr().out
    assert leave.value.code == 0
    expected = {"build": ["--set", "--dry-run", "--output"], None: ["build", "route", "synthesize"]}
    words = expected.get(command, ["--output", "--column", "prompts"])
    assert all(word in printed for word in words)


@pytest.mark.parametrize(
    "code",
    [
        "import persyn_datasets; dir(persyn_datasets)",
        "from persyn_datasets.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from persyn_datasets.cli import main\nassert main(['build', 'no.yaml']) == 1",
        "from persyn_datasets.cli import main\n"
        "assert main(['build', 'paper-math', '--set', 'reward.alhpa=1']) == 1",
        "from persyn_datasets.cli import main\n"
        "assert main(['compare', 'paper-math', '--strategies', 'persyn', '--set', 'x=1']) == 1",
        "from persyn_datasets import Recipe; Recipe.load('paper-math')",
    ],
)
def test_nothing_heavy_is_imported_too_early(code):
    heavy = ["torch", "datasets", "transformers", "numpy", "pyarrow"]
    check = f"import sys\n{code}\nprint('heavy:', sorted(set({heavy}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "heavy: []"


def without_torch(code, *arguments):
    """Run code in a process of its own; whether it executed anything of torch."""
    check = (
        f"import sys\n{code}\nprint('torch', any(m.split('.')[0] == 'torch' for m in sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", check, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1] == "torch False"


def test_engines_say_what_they_are_without_torch():
    assert without_torch(
        "from persyn_datasets import Teacher\n"
        "from persyn_datasets.engines import facts_of, names\n"
        "for name in names():\n"
        "    facts_of(Teacher('m', engine=name, base_url='http://h/v1'))"
    )


@pytest.mark.parametrize("quality", ["math-verify", "reward model"])
def test_a_plan_and_a_finished_build_need_no_torch(quality, chat_model, reward_model, tmp_path):
    quality = {"reward_model": reward_model} if quality == "reward model" else quality
    values = make_recipe(tmp_path, chat_model, sampling={"max_tokens": 4}, quality=quality)
    values["teachers"].append({"name": "local", "model": chat_model})
    recipe, output = save(tmp_path, values), str(tmp_path / "out")
    assert main(["build", recipe, "--output", output]) == 0
    command = "from persyn_datasets.cli import main\nassert main() == 0"
    assert without_torch(command, "build", recipe, "--output", output)
    if quality == "math-verify":  # a plan looks into a reward model
        assert without_torch(command, "build", recipe, "--output", output, "--dry-run")


def test_a_plan_in_a_process_that_goes_on_leaves_torch_to_it(chat_model, tmp_path):
    recipe = save(tmp_path, make_recipe(tmp_path, chat_model))
    code = (
        "from persyn_datasets.cli import main\n"
        "assert main(['build', *sys.argv[1:], '--dry-run']) == 0\n"
        "from transformers import AutoModelForCausalLM\n"
        f"AutoModelForCausalLM.from_pretrained({chat_model!r})"
    )
    assert not without_torch(code, recipe)


def test_a_refused_change_leaves_the_finished_build_as_it_is(chat_model, tmp_path, asked):
    recipe, output = save(tmp_path, make_recipe(tmp_path, chat_model)), tmp_path / "out"
    assert main(["build", recipe, "--output", str(output)]) == 0
    before = {f: f.read_bytes() for f in output.rglob("*") if f.is_file()}
    assert (
        main(["build", recipe, "--output", str(output), "--set", "student.model=/no/student"]) == 1
    )
    assert {f: f.read_bytes() for f in output.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("answers", [[0, 5] * 12, [0.5, 2.0] * 12])
def test_a_column_of_numbers_named_answer_needs_no_naming(answers, chat_model, tmp_path, capsys):
    values = make_recipe(tmp_path, chat_model)
    cells(values, prompt=[p for p, _ in problems()], answer=answers)
    code = main(["build", save(tmp_path, values), "--output", str(tmp_path / "out"), "--dry-run"])
    assert code == 0, capsys.readouterr().err
