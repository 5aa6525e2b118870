"""A build leaves no key behind: not in the journal, the outputs, the caches, what it prints, nor in
its objects.
"""

import json
import os
import subprocess

import pyarrow.parquet as pq
import pytest
from chat_server import ChatServer, completion
from pool import COMMAND, answer, make_recipe, save

from persyn_datasets import Recipe
from persyn_datasets.engines import endpoint
from persyn_datasets.store.identity import teacher_identity

KEY, TOKEN = "sk-planted-4f1d8a", "hf_planted_9c2b7e"


def telltale(request, nth):
    """Answers, and complains loudly about the key that it was given."""
    prompt = request["messages"][-1]["content"]
    if nth == 7:
        return 503, {"x-key": KEY}, {"error": {"message": f"Bearer {KEY} is overloaded ({TOKEN})"}}
    if prompt == "4 plus 11?":
        return 400, {}, f"Authorization: Bearer {KEY}"
    return 200, {}, completion(answer(request["model"], prompt))


def unpacked(file):
    """All bytes of a file, and of a parquet file also its compressed ones."""
    table = (
        json.dumps(pq.read_table(file).to_pylist()).encode() if file.suffix == ".parquet" else b""
    )
    return file.read_bytes() + table


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--set", "max_cost=0.0001"]])
def test_no_key_is_left_behind(flags, chat_model, tmp_path):
    with ChatServer(telltale) as server:
        values = make_recipe(
            tmp_path, chat_model, sampling={"temperature": 0, "max_tokens": 8}, max_failed=0.5
        )
        shared = {
            "engine": "endpoint",
            "base_url": server.url,
            "api_key_env": "PLANTED_KEY",
            "concurrency": 4,
        }
        shared["price"] = {"input": 1, "output": 1}
        values["teachers"] = [{"name": n, "model": n, **shared} for n in ("adder", "multiplier")]
        recipe, home = save(tmp_path, values), tmp_path / "home"
        environment = os.environ | {
            "PLANTED_KEY": KEY,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "PERSYN_JOURNAL": str(tmp_path / "journal"),
            "HF_DEBUG": "1",
            "HF_HUB_VERBOSITY": "debug",
            "DATASETS_VERBOSITY": "debug",
            "HTTPX_LOG_LEVEL": "trace",
            "TMPDIR": str(tmp_path),
            "HF_ENDPOINT": server.url[:-3],
        }
        command = [*COMMAND, "build", recipe, "--output", str(tmp_path / "out")]
        done = subprocess.run(
            command + flags, env=environment, capture_output=True, timeout=120, cwd=tmp_path
        )
        sent = [h.get("authorization") for h in server.headers]
    assert f"Bearer {KEY}" in sent and f"Bearer {TOKEN}" not in sent
    assert done.returncode == ("max_cost=0.0001" in flags), done.stderr.decode()[-2000:]
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert "--dry-run" in flags or any(f.is_relative_to(tmp_path / "journal") for f in files)
    assert flags or b"Authorization: Bearer ***" in b"".join(
        map(unpacked, files)
    )  # so the server's words would show
    for place, content in [
        ("output", done.stdout + done.stderr),
        *((f, unpacked(f)) for f in files),
    ]:
        assert KEY.encode() not in content and TOKEN.encode() not in content, place


def test_no_key_is_in_a_repr_or_an_exception(tmp_path, chat_model, monkeypatch):
    monkeypatch.setenv("PLANTED_KEY", KEY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    values = make_recipe(tmp_path, chat_model)
    shared = {
        "engine": "endpoint",
        "base_url": "http://127.0.0.1:9/v1",
        "api_key_env": "PLANTED_KEY",
    }
    values["teachers"] = [{"name": n, "model": n, **shared} for n in "ab"]
    recipe = Recipe.from_dict(values)
    with pytest.raises(Exception, match="base_url|http") as caught:
        endpoint.check(recipe.teachers[0])
    seen = [
        repr(recipe),
        repr(recipe.to_dict()),
        str(teacher_identity(recipe.teachers[0])),
        repr(caught.value),
    ]
    error = caught.value
    while error := error.__cause__ or error.__context__:
        seen.append(repr(error) + str(vars(error)))
    assert not any(KEY in text for text in seen)
