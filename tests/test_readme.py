"""What the README shows is what there is: its commands parse, its recipe loads, its scripts import
and compile.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import persyn_datasets
from persyn_datasets import Recipe, cli
from persyn_datasets.options import parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for line in README.splitlines()
    if re.match(r"    (persyn|make) ", line)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    program, *arguments = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert parser().parse_args(arguments).command in cli.COMMANDS


def test_the_recipe_is_valid():
    text, *more = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    recipe = Recipe.from_dict(yaml.safe_load(text))
    for section in more:
        recipe = Recipe.from_dict(yaml.safe_load(text) | yaml.safe_load(section))
    assert [t.engine for t in recipe.teachers] == ["transformers", "transformers", "endpoint"]


def test_the_scripts_compile_and_their_names_exist():
    scripts = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(scripts) == 4
    for script in scripts:
        compile(script, "README.md", "exec")
        for names in re.findall(r"from persyn_datasets import (.*)", script):
            for name in names.split(", "):
                assert name in persyn_datasets.__all__


def test_ci_calls_the_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
