"""A router as a column of real Data Designer, whose models are at `ChatServer`.
`make test-designer` brings what it needs."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from chat_server import ChatServer, completion
from pool import TEACHERS, answer, make_recipe, problems, write_lines

from persyn_datasets import PersynBuilder, Recipe, Route, Router

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not find_spec("data_designer"), reason="`make test-designer` brings its own data-designer"
    ),
]
EXAMPLE = Path(__file__).parents[1] / "examples" / "designer_column.py"


def answers(body, nth):
    """Each teacher is the model of its name; of one prompt all fail."""
    content = body["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else content[0]["text"]
    if prompt == problems()[3][0]:
        return 400, {}, {"error": {"message": "no such sum"}}
    known = dict(problems())
    said = completion(answer(body["model"], prompt) if prompt in known else "Hello.")
    said["choices"][0]["message"]["reasoning_content"] = "Let me see."
    return 200, {}, said


def test_each_row_is_answered_by_the_model_that_the_router_picks(tmp_path, chat_model, monkeypatch):
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DESIGNER_HOME", str(tmp_path / "designer"))
    recipe = Recipe.from_dict(make_recipe(tmp_path, chat_model))
    PersynBuilder(recipe, tmp_path / "out").download_and_prepare()
    router = str(tmp_path / "out" / "router")
    texts = [prompt for prompt, _ in problems()][:8]
    prompts = write_lines(tmp_path / "seed.jsonl", [{"prompt": text} for text in texts])

    output = tmp_path / "answers.parquet"
    with ChatServer(answers, models=TEACHERS) as server:
        command = [sys.executable, str(EXAMPLE), router, server.url, prompts, str(output)]
        run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]

    rows = {row["prompt"]: row for row in pd.read_parquet(output).to_dict("records")}
    expected = Route(Router.from_pretrained(router))({"prompt": texts})["teacher"]
    assert set(rows) == set(texts)
    for text, teacher in zip(texts, expected, strict=True):
        row = rows[text]
        assert row["answer__teacher"] == teacher
        if text == texts[3]:
            assert row["answer"] == "" and row["answer__error"]
            continue
        assert (row["answer"], row["answer__error"]) == (answer(teacher, text), "")
        assert row["answer__reasoning"] == "Let me see."
