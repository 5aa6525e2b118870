"""Constraints that hold every dependency of pyproject.toml, those of its extras `compare` and `ray`
too, at the lowest version it allows.

Without torch, whose version is in constraints.txt: older ones have no build for a CPU on an
ordinary index.
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for dependency in [*project["dependencies"], *extras["compare"], *extras["ray"]]:
    name, lowest = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", dependency).groups()
    if name != "torch":
        print(f"{name}=={lowest}")
