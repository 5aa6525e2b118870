"""The recipes that come with the package: the paper's settings for the paper's students."""

import re
import shlex
from pathlib import Path

import pytest
from datasets import Dataset
from pool import problems

from persyn_datasets import InputError, Recipe, plan
from persyn_datasets.cli import main
from persyn_datasets.config.strategy import STRATEGIES
from persyn_datasets.options import parser
from persyn_datasets.strategies.baselines import teachers_of

BUILDERS = Path(__file__).parents[2] / "builders"
STUDENTS = {
    "Qwen/Qwen2.5-0.5B": "Qwen/Qwen2.5-{}72B-Instruct",
    "Qwen/Qwen2.5-1.5B": "Qwen/Qwen2.5-{}72B-Instruct",
    "Qwen/Qwen2.5-3B": "Qwen/Qwen2.5-{}72B-Instruct",
    "google/gemma-2-2b": "google/gemma-2-27b-it",
    "meta-llama/Llama-3.2-3B": "meta-llama/Llama-3.1-405B-Instruct",
}
COMMANDS = {
    setting: [
        shlex.split(line[1:])
        for line in (BUILDERS / f"paper-{setting}.yaml").read_text().splitlines()
        if re.match(r"#   persyn build", line) and "dry-run" not in line
    ]
    for setting in ("instruction", "math")
}
RECIPES = [(setting, command) for setting, commands in COMMANDS.items() for command in commands]


@pytest.mark.parametrize(
    ("setting", "command"), RECIPES, ids=lambda value: value[-1] if len(value) < 12 else ""
)
def test_each_student_in_each_setting(setting, command):
    options = parser().parse_args(command[1:])
    recipe = Recipe.load(options.recipe, options.set)
    n, m = 50_000, {"instruction": 19, "math": 15}[setting]
    counts = plan.plan(recipe, n)
    assert len({t.model for t in recipe.teachers}) == m and recipe.student.model in STUDENTS
    assert recipe.student.model.partition("/")[2].lower() in recipe.name and recipe.name.endswith(
        setting
    )
    assert (counts["generations"], counts["generate_then_select"]) == (2500 * m + 47_500, n * m)
    assert all(t.size and t.family for t in recipe.teachers)
    assert [t.engine == "endpoint" for t in recipe.teachers] == [
        t.size > 40 for t in recipe.teachers
    ]
    assert all(
        t.price and t.api_key_env == "HF_TOKEN" for t in recipe.teachers if t.engine == "endpoint"
    )
    family = Recipe.load(options.recipe, [*options.set, "strategy=family-strong"])
    assert [t.model for t in teachers_of(family)] == [
        STUDENTS[recipe.student.model].format("Math-" if setting == "math" else "")
    ]
    strong = Recipe.load(options.recipe, [*options.set, "strategy=strong"])
    assert [t.model for t in teachers_of(strong)] == ["meta-llama/Llama-3.1-405B-Instruct"]


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
    expected = {
        "math": "math-verify",
        "instruction": {"reward_model": "Skywork/Skywork-Reward-Llama-3.1-8B"},
    }
    assert recipe.quality == expected[setting]


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
    monkeypatch.setattr(plan, "contamination", lambda recipe: (prompts, None))
    text = " ".join(plan.describe(recipe, prompts.select([i % 24 for i in range(50_000)])).split())
    m = len(recipe.teachers)
    assert (
        f"{2500 * m + 47_500:,} generations in all; generate-then-select needs {50_000 * m:,}"
        in text
    )
    assert "at most $" in text and text.count("not priced") == sum(
        not t.price for t in recipe.teachers
    )


def test_all_strategies_find_their_teachers():
    for setting in COMMANDS:
        for strategy in STRATEGIES:
            assert teachers_of(Recipe.load(f"paper-{setting}", [f"strategy={strategy}"]))
    with pytest.raises(InputError, match="paper-instruction, paper-math, quickstart"):
        Recipe.load("paper-code")
