"""What a build says in a log: a line for each finished stage, nothing of the libraries within."""

import os
import re
import subprocess

from conftest import save_model
from pool import COMMAND, make_recipe, save


def test_a_log_has_a_line_for_each_stage_and_no_internals(tmp_path):
    """A backbone without a head, whose missing weights transformers reports."""
    model = save_model(tmp_path / "model")
    values = make_recipe(tmp_path, model, engine="transformers", max_failed=1.0)
    values |= {"sampling": {"max_tokens": 4}, "quality": "own_quality.length"}
    (tmp_path / "own_quality.py").write_text(
        "def length(prompts, completions, **columns):\n"
        "    return [float(len(completion[0]['content'])) for completion in completions]\n"
    )
    command = [*COMMAND, "build", save(tmp_path, values), "--output", str(tmp_path / "out")]
    env = os.environ | {"PERSYN_JOURNAL": str(tmp_path / "journal")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    stages = re.findall(r"^\d/6 (\w+)", done.stderr, re.MULTILINE)
    assert stages == ["Generate", "Score", "Router", "Synthesize"]  # the others take no time
    internals = "Flattening|FutureWarning|DeprecationWarning|LOAD REPORT|MISSING|Map:|it/s"
    assert not re.search(internals, done.stdout + done.stderr)
