"""The recipes that come with the package: the paper's settings for the paper's students."""

import io
import re
import shlex
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from pool import problems

from persyn_datasets import InputError, Recipe
from persyn_datasets.cli import main
from persyn_datasets.config.strategy import STRATEGIES
from persyn_datasets.options import parser
from persyn_datasets.plan import cost
from persyn_datasets.strategies.baselines import teachers_of

BUILDERS = Path(__file__).parents[2] / "builders"
QWEN, GEMMA, LLAMA = "Qwen2.5-{}72B-Instruct", "gemma-2-27b-it", "Llama-3.1-405B-Instruct"
STUDENTS = {
    "Qwen/Qwen2.5-0.5B": QWEN,
    "Qwen/Qwen2.5-1.5B": QWEN,
    "Qwen/Qwen2.5-3B": QWEN,
    "google/gemma-2-2b": GEMMA,
    "meta-llama/Llama-3.2-3B": LLAMA,
}
SETTINGS = ("instruction", "math", "instruction-anew", "math-anew")
RECORDED = SETTINGS[:2]
COMMANDS = {
    setting: [
        shlex.split(line[1:])
        for line in (BUILDERS / f"paper-{setting}.yaml").read_text().splitlines()
        if re.match(r"#   persyn build", line) and "dry-run" not in line
    ]
    for setting in SETTINGS
}
RECIPES = [(setting, command) for setting, commands in COMMANDS.items() for command in commands]


def short(teacher):
    """Its name without the organisation, and as Llama 3.1's newer names have it."""
    return teacher.name.rpartition("/")[2].removeprefix("Meta-")


@pytest.mark.parametrize(
    ("setting", "command"), RECIPES, ids=lambda value: value[-1] if len(value) < 12 else ""
)
def test_each_student_in_each_setting(setting, command):
    options = parser().parse_args(command[1:])
    recipe = Recipe.load(options.recipe, options.set)
    math, recorded = "math" in setting, setting in RECORDED
    n, m = 10_000 if setting == "math" else 50_000, 15 if math else 19
    counts = cost.plan(recipe, n)
    assert len({t.name for t in recipe.teachers}) == m and recipe.student.model in STUDENTS
    assert recipe.student.model.partition("/")[2].lower() in recipe.name
    assert recipe.name.endswith(setting)
    assert (counts["generations"], counts["generate_then_select"]) == (2500 * m + n - 2500, n * m)
    assert all(t.size and t.family for t in recipe.teachers)
    for teacher in recipe.teachers:
        expected = "endpoint" if teacher.size > 40 else "vllm"
        assert teacher.engine == ("recorded" if recorded else expected)
        assert bool(teacher.columns) == recorded
        if teacher.engine == "endpoint":
            assert teacher.price and teacher.api_key_env == "HF_TOKEN"
    family = Recipe.load(options.recipe, [*options.set, "strategy=family-strong"])
    of_family = STUDENTS[recipe.student.model].format("Math-" if math else "")
    assert [short(t) for t in teachers_of(family)] == [of_family]
    strong = Recipe.load(options.recipe, [*options.set, "strategy=strong"])
    assert [short(t) for t in teachers_of(strong)] == [LLAMA]


def test_no_teacher_of_the_instruction_pool_thinks():
    for setting in ("instruction", "instruction-anew"):
        families = {t.family for t in Recipe.load(f"paper-{setting}").teachers}
        assert families == {"gemma2", "llama3", "phi3", "qwen2", "qwen2.5"}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_first_line_says_what_is_known_and_what_is_guessed(setting):
    first = (BUILDERS / f"paper-{setting}.yaml").read_text().splitlines()[0]
    assert first.startswith("# Known: ") and " Guessed: " in first


def test_every_student_of_the_paper_is_there():
    for commands in COMMANDS.values():
        found = [Recipe.load(c[2], parser().parse_args(c[1:]).set) for c in commands]
        assert sorted(r.student.model for r in found) == sorted(STUDENTS)
        assert len({r.name for r in found}) == 5


@pytest.mark.parametrize("setting", COMMANDS)
def test_the_settings_share_what_the_paper_says(setting):
    recipe = Recipe.load(f"paper-{setting}")
    assert (recipe.calibration.size, recipe.reward.alpha, recipe.router.backbone) == (
        2500,
        0.4,
        "Qwen/Qwen2.5-1.5B",
    )
    skywork = {"reward_model": "Skywork/Skywork-Reward-Llama-3.1-8B"}
    assert recipe.quality == ("math-verify" if "math" in setting else skywork)


@pytest.mark.parametrize("setting", COMMANDS)
def test_the_plan_without_the_hub(setting, hub, capsys, monkeypatch):
    """What lies on the Hub is missed in plain words; with prompts at hand the plan says counts and
    cost.
    """
    assert main(["build", f"paper-{setting}", "--dry-run"]) == 1
    assert (
        "no such dataset on the Hub" in (made := capsys.readouterr().err)
        and "Traceback" not in made
    )
    recipe = Recipe.load(f"paper-{setting}")
    prompts = Dataset.from_list(
        [
            {"prompt_id": str(i), "messages": [{"role": "user", "content": p}]}
            for i, (p, _) in enumerate(problems())
        ]
    )
    monkeypatch.setattr(cost, "contamination", lambda recipe: (prompts, None))
    text = " ".join(cost.describe(recipe, prompts.select([i % 24 for i in range(50_000)])).split())
    m = len(recipe.teachers)
    assert (
        f"{2500 * m + 47_500:,} generations in all; generate-then-select needs {50_000 * m:,}"
        in text
    )
    assert ("at most $" in text) == (setting not in RECORDED)
    assert text.count("not priced") == sum(not t.price for t in recipe.teachers)


def test_all_strategies_find_their_teachers():
    for setting in COMMANDS:
        for strategy in STRATEGIES:
            assert teachers_of(Recipe.load(f"paper-{setting}", [f"strategy={strategy}"]))
    with pytest.raises(
        InputError, match="paper-instruction-anew, paper-math, paper-math-anew, quickstart"
    ):
        Recipe.load("paper-code")


def parquet(rows):
    written = io.BytesIO()
    Dataset.from_list(rows).to_parquet(written)
    return {"data/train-00000-of-00001.parquet": written.getvalue()}


def on_the_hub(hub, recipe):
    """The datasets that a recorded recipe names, as it says that they are, with 24 prompts."""
    columns = [t.columns["response"] for t in recipe.teachers]
    rows = []
    for prompt, answer in problems():
        text = f"It is {answer}."
        record = {"content": text, "score": 0.5}
        answers = {
            name.removesuffix(".content"): record if name.endswith(".content") else text
            for name in columns
        }
        rows.append({recipe.prompts.column: prompt, "answer": str(answer)} | answers)
    hub.put(recipe.prompts.path, parquet(rows))
    for benchmark in recipe.prompts.decontaminate.against:
        path = benchmark if isinstance(benchmark, str) else benchmark.path
        split = "train" if "IFEval" in path else "test"
        files = [{"split": split, "path": "data/*"}]
        config = {"config_name": "main" if "gsm8k" in path else "default", "data_files": files}
        card = f"---\n{yaml.safe_dump({'configs': [config]})}---\n"
        table = parquet([{"prompt": "Another text.", "question": "Another text."}])
        hub.put(path, table | {"README.md": card})


@pytest.mark.parametrize("setting", RECORDED)
def test_a_dry_run_reads_the_recorded_answers(setting, hub, capsys, chat_model, reward_model):
    """The datasets lie on a Hub of ours; student, router and reward model are small ones."""
    recipe = Recipe.load(f"paper-{setting}")
    on_the_hub(hub, recipe)
    smaller = ["prompts.split=train", "calibration.size=16", f"student.model={chat_model}"]
    smaller += [f"router.backbone={chat_model}", "prompts.decontaminate.drop=false"]
    if setting == "instruction":
        smaller.append(f"quality.reward_model={reward_model}")
    command = ["build", f"paper-{setting}", "--dry-run"]
    for value in smaller:
        command += ["--set", value]
    code = main(command)
    out = capsys.readouterr()
    assert code == 0, out.err
    m = len(recipe.teachers)
    assert f"{16 * m + 8:,} generations in all" in " ".join(out.out.split())

    first = recipe.teachers[0].name
    column = "teachers.0.columns.response=gone.content"
    assert main([*command, "--set", column]) == 1
    error = capsys.readouterr().err
    assert first in error and "gone.content" in error and recipe.prompts.path in error
    assert recipe.teachers[1].name in error  # a column that there is
