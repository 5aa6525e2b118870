"""Code that is run: what passes, and that the limits hold. All programs here are harmless."""

import os
import socket
import subprocess
import sys
import time

import pytest
from datasets import Dataset

from persyn_datasets import InputError, Recipe, Score, signals
from persyn_datasets.signals import code_tests

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or subprocess.run(["unshare", "-Un", "true"]).returncode != 0,
    reason="namespaces need Linux and the right to make them",
)
ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]


def fenced(code, language="python"):
    return f"Here it is:\n\n```{language}\n{code}```\n\nIt adds."


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (fenced(ADD), 1),
        (fenced(ADD, "py"), 1),
        (fenced(ADD, ""), 1),
        (ADD, 1),
        (fenced(ADD.replace("+", "-")), 0),
        (fenced(ADD.replace("return", "retrun")), 0),
        (fenced("import sys\nsys.exit(0)\n" + ADD), 0),  # it has not come to the tests
        (fenced("import os\nos._exit(0)\n"), 0),
        (fenced(ADD + "if __name__ == '__main__':\n    print(add(int(input()), 1))\n"), 1),
        (fenced(ADD) + fenced("pip install add\n", "bash"), 1),
        (fenced(ADD) + fenced("print(add(1, 2))\n"), 1),
        ("I cannot.", 0),
        ("", 0),
    ],
)
def test_what_passes(response, value):
    rows = [([{"role": "user", "content": "Write add."}], response)]
    for tests in (TESTS, "\n".join(TESTS)):
        assert code_tests.score(rows, {"tests": [tests]}) == [value]


def test_time_memory_and_files_are_limited(monkeypatch, tmp_path):
    monkeypatch.setattr(code_tests, "CPU_SECONDS", 1)
    monkeypatch.setattr(code_tests, "WALL_SECONDS", 20)
    began = time.monotonic()
    assert not code_tests.passes("while True: pass")
    assert time.monotonic() - began < 20  # ended by its CPU time
    monkeypatch.setattr(code_tests, "MEMORY_BYTES", 256 * 2**20)
    assert code_tests.passes("x = bytearray(2**20)")
    assert not code_tests.passes("x = bytearray(512 * 2**20)")
    assert not code_tests.passes("open('large', 'wb').write(bytes(32 * 2**20))")


def test_a_program_that_waits_is_ended(monkeypatch):
    monkeypatch.setattr(code_tests, "WALL_SECONDS", 1)
    began = time.monotonic()
    assert not code_tests.passes("import time\ntime.sleep(600)")
    assert time.monotonic() - began < 60


def test_it_has_no_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not code_tests.passes(
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=5)"
        )
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_what_it_starts_ends_with_it(tmp_path):
    beat = tmp_path / "beat"
    started = f"import time\nwhile True:\n open({str(beat)!r}, 'w').close()\n time.sleep(0.05)\n"
    program = "import subprocess, sys, time, pathlib\n"
    program += f"subprocess.Popen([sys.executable, '-c', {started!r}], start_new_session=True)\n"
    program += f"while not pathlib.Path({str(beat)!r}).exists(): time.sleep(0.05)\n"
    assert code_tests.passes(program)
    time.sleep(0.5)
    beat.unlink()
    time.sleep(1)
    assert not beat.exists()


def test_it_does_not_see_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert code_tests.passes("import os\nassert 'HF_TOKEN' not in os.environ")
    assert "HF_TOKEN" in os.environ


def test_score_and_check(chat_model):
    batch = {
        "messages": [[{"role": "user", "content": "Write add."}]],
        "tests": [TESTS],
        "responses": [
            [
                {"text": text, "finish_reason": reason, "error": ""}
                for text, reason in ((fenced(ADD), "stop"), ("no", "stop"), (ADD, "length"))
            ]
        ],
    }
    [scored] = Score(None, "code-tests")(batch)["responses"]
    assert [r["quality"] for r in scored] == [1, 0, 0]
    prompts = Dataset.from_list([{"messages": batch["messages"][0], "tests": "assert add"}])
    signals.check("code-tests", prompts)
    with pytest.raises(InputError, match="the column 'tests' .* they have messages"):
        signals.check("code-tests", prompts.remove_columns("tests"))
    with pytest.raises(InputError, match="'tests' of row 1 are None"):
        signals.check("code-tests", Dataset.from_dict({"tests": ["assert add", None]}))


def test_a_recipe_of_others_does_not_run_code_here(hub, tmp_path, chat_model):
    import yaml
    from pool import make_recipe

    recipe = make_recipe(tmp_path, chat_model, quality="code-tests")
    recipe["prompts"]["path"] = "org/prompts"
    hub.put("org/theirs", {"recipe.yaml": yaml.safe_dump(recipe)})
    with pytest.raises(InputError, match="quality to 'code-tests'.* runs code here"):
        Recipe.load("org/theirs", ["student.model=org/s", "router.backbone=org/s"])
