from pathlib import Path

import pytest
from asking import closed_port
from pool import make_recipe, problems, save, write_lines

from persyn_datasets.cli import main


def endpoint(values, **more):
    unreachable = {"engine": "endpoint", "model": "big", "base_url": closed_port()}
    values["teachers"][1] |= unreachable | more


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
        ["'nobody'", "adder, guesser"],
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
