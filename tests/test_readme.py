"""The README is run as it stands, from its first command to its last: on tiny models under the
names that it uses, and a Hub of this machine. What would train or ask 2,500 prompts is run with
`--dry-run`.
"""

import re
import shlex
from pathlib import Path

import pytest
from chat_server import ChatServer
from conftest import save_model
from datasets import Dataset
from huggingface_hub import HfApi
from pool import problems

from persyn_datasets import Recipe
from persyn_datasets.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON, YAML, COMMAND = "python", "yaml", "command"


def blocks():
    """(kind, text) of all that can be run, in its order."""
    found = []
    fenced = r"^```(python|yaml)\n(.*?)^```"
    indented = r"^    ((?:persyn|make|pip) [^\n]*?)(?: +#[^\n]*)?$"
    for kind, text, command in re.findall(f"{fenced}|{indented}", README, re.MULTILINE | re.DOTALL):
        found.append((kind or COMMAND, text or command))
    return found


def test_it_sells_in_one_screen_and_links_to_what_is_there():
    assert len(README.splitlines()) <= 150
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.fixture
def places(hub, tmp_path, monkeypatch):
    """A folder with the demo's inputs and a Hub with the README's models, all of them tiny."""
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m-instruct", "gemma-3-270m"):
        save_model(Path("outputs/quickstart-inputs") / name)
    api = HfApi()
    for name in ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-3B-Instruct"):
        folder = save_model(tmp_path / "models" / name, max_position_embeddings=96)
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=folder)
    monkeypatch.setenv("TGI_KEY", "sk-readme")


def push_prompts(count):
    rows = [
        {
            "messages": [{"role": "user", "content": f"{problems()[i % 24][0]} ({i})"}],
            "answer": str(problems()[i % 24][1]),
        }
        for i in range(count)
    ]
    Dataset.from_list(rows).push_to_hub("org/prompts")


def reply(request, nth):
    message = {"role": "assistant", "content": "The answer is 7."}
    return 200, {}, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@pytest.mark.slow
def test_every_block_runs_as_it_stands(places, monkeypatch, capsys):
    push_prompts(2600)
    kinds = [kind for kind, _ in blocks()]
    assert (kinds.count(PYTHON), kinds.count(YAML)) == (3, 1) and kinds.count(COMMAND) >= 9
    with ChatServer(reply) as server:
        for kind, text in blocks():
            if kind == YAML:
                Path("recipe.yaml").write_text(text.replace("http://localhost:8080/v1", server.url))
                assert len(Recipe.load("recipe.yaml").teachers) == 3
            elif kind == PYTHON:
                if "org/prompts" in text:
                    push_prompts(24)
                exec(compile(text, "README.md", "exec"), {})
            elif not text.startswith("pip "):
                program, *arguments = shlex.split(text)
                assert program == "persyn"
                dry = ["--dry-run"] if "recipe.yaml" in arguments else []
                code = main([*arguments, *dry])
                assert code == 0, (text, capsys.readouterr().err)
    assert Path("outputs/quickstart/report/index.html").exists()


def test_ci_calls_the_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
