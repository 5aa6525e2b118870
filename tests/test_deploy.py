"""The files in deploy/, as far as they can be checked without the machines that they are for."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from persyn_datasets.config.strategy import STRATEGIES
from persyn_datasets.options import parse

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
# As PEP 723 has it.
HEADER = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_a_job_carries_its_requirements():
    [header] = re.finditer(HEADER, (DEPLOY / "hf_job.py").read_text())
    lines = header["content"].splitlines()
    values = tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))
    assert header["type"] == "script" and values["requires-python"] == project()["requires-python"]
    [needed] = map(Requirement, values["dependencies"])
    assert needed.name == project()["name"]
    assert needed.extras <= set(project()["optional-dependencies"])


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse_and_call_what_there_is(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    [command] = re.findall(r"^ *\.venv/bin/persyn (.*)$", script.read_text(), re.MULTILINE)
    command = command.replace('"$@"', "recipe.yaml").replace(
        '"${strategies[$SLURM_ARRAY_TASK_ID]}"', "random"
    )
    assert parse(command.split()).recipe == "recipe.yaml"


def test_an_array_has_a_task_for_each_strategy():
    text = (DEPLOY / "slurm_array.sh").read_text()
    names = re.search(r"strategies=\((.*)\)", text)[1].split()
    assert set(names) <= set(STRATEGIES) and names[0] == "persyn"
    assert f"--array=1-{len(names) - 1} " in text


def test_a_cloud_builds_a_recipe_that_there_is():
    task = yaml.safe_load((DEPLOY / "sky.yaml").read_text())
    assert (ROOT / task["envs"]["RECIPE"]).exists()
    assert all(place in task["file_mounts"] for place in re.findall(r"/kept\b", task["run"]))
    command = re.search(r"persyn (build .*)", task["run"])[1].replace('"$RECIPE"', "x.yaml")
    assert parse(command.split()).output == "/kept/outputs"


def test_the_image_copies_what_the_wheel_needs():
    text = (DEPLOY / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*)$", text, re.M) for word in line.split()[:-1]}
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    wheel = hatch["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project()["readme"], *project()["license-files"]}
    assert needed | {*wheel["packages"], *wheel["force-include"]} <= copied
    assert all((ROOT / name).exists() for name in copied)
    [extras] = re.findall(r'"\.\[(.*)\]"', text)
    assert set(extras.split(",")) <= set(project()["optional-dependencies"])
