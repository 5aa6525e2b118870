"""The scripts in `examples/`, run as they stand on tiny models."""

import importlib.util
import json
from pathlib import Path

from datasets import load_dataset
from pool import TEACHERS, make_recipe, problems, write_lines

from persyn_datasets import PersynBuilder, Recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_they_are_short():
    assert len(SCRIPTS) >= 2
    assert all(len(path.read_text().splitlines()) < 40 for path in SCRIPTS)


def test_they_run(tmp_path, chat_model, capsys):
    """With the router of a small build, and prompts that its recorded teachers know."""
    recipe = Recipe.from_dict(make_recipe(tmp_path, chat_model))
    PersynBuilder(recipe, tmp_path / "out").download_and_prepare()
    (tmp_path / "prompts").mkdir()
    lines = [{"prompt": prompt} for prompt, _ in problems()]
    write_lines(tmp_path / "prompts" / "train.jsonl", lines)
    given = str(tmp_path / "out" / "router"), str(tmp_path / "prompts")

    output = tmp_path / "answers.parquet"
    script("route_and_synthesize").main(*given, str(output))
    rows = load_dataset("parquet", data_files=str(output), split="train")
    assert len(rows) == 24 and set(rows["teacher"]) <= set(TEACHERS)
    assert all(said[0]["content"].startswith("The answer") for said in rows["completion"])
    assert "Counter" in capsys.readouterr().out

    student = tmp_path / "student"
    script("train_with_trl").main(*given, chat_model, str(student), steps=1)
    assert json.loads((student / "config.json").read_text())["model_type"] == "llama"
