"""One recipe, one model, three ways to ask it: `transformers serve`, vLLM's server and the vllm
engine.

The servers are started here, on loopback; about two minutes in all. `make test-vllm` brings what
they need.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import save_model
from datasets import load_dataset
from pool import make_recipe
from real_server import server
from thinker import ANSWER, THOUGHT, save_thinker

from persyn_datasets import Generate, Sampling, Teacher, cli

pytestmark = [
    pytest.mark.skipif(
        not find_spec("vllm"), reason="vllm is not installed: `make test-vllm` brings its own"
    ),
    pytest.mark.skipif(
        not find_spec("uvicorn"), reason="`transformers serve` needs transformers[serving]"
    ),
]
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def model(models_folder):
    heads = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    return save_model(models_folder / "served", **heads)


def build(folder, model, **teacher):
    """Builds the recipe by the command line; returns the answers of the calibration, by (prompt,
    teacher).
    """
    folder.mkdir()
    values = make_recipe(folder, model, engine=teacher["engine"])
    values["sampling"] = {"temperature": 0, "max_tokens": MAX_TOKENS}
    values["max_failed"] = 0.5  # an empty answer counts, and random weights may end at once
    for own in values["teachers"]:
        own |= teacher
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    code = cli.main(["build", str(recipe), "--output", str(folder / "out")])
    assert code == 0
    rows = [row for split in load_dataset(str(folder / "out/dataset")).values() for row in split]
    assert len(rows) == 24 and {row["error"] for row in rows} <= {"", "empty response"}
    calibration = load_dataset(str(folder / "out/dataset"), "calibration").values()
    return {
        (row["prompt_id"], r["teacher"]): r
        for split in calibration
        for row in split
        for r in row["responses"]
    }


def shown(answer):
    return answer["text"].strip(), *(
        answer[key] for key in ("finish_reason", "prompt_tokens", "completion_tokens")
    )


@pytest.fixture(scope="module")
def by_vllm(model, tmp_path_factory):
    arguments = {"dtype": "float32", "enforce_eager": True}
    os.environ["PERSYN_JOURNAL"] = str(tmp_path_factory.mktemp("journal"))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    return build(
        tmp_path_factory.mktemp("vllm") / "build", model, engine="vllm", engine_args=arguments
    )


def same(ours, theirs):
    """Greedy answers of the same weights: nearly all alike, as sums in another order may decide
    near-ties otherwise.
    """
    assert ours.keys() == theirs.keys() and len(ours) == 16 * 3
    different = [
        (shown(ours[key]), shown(theirs[key]))
        for key in ours
        if shown(ours[key]) != shown(theirs[key])
    ]
    assert len(different) <= 0.1 * len(ours), different


def test_vllms_server(model, by_vllm, tmp_path):
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--dtype",
        "float32",
    ]
    with server(
        tmp_path / "log", *command, "--enforce-eager", "--generation-config", "vllm"
    ) as base_url:
        same(by_vllm, build(tmp_path / "build", model, engine="endpoint", base_url=base_url))


def test_transformers_serve(model, by_vllm, tmp_path):
    program = str(Path(sys.executable).with_name("transformers"))
    command = [
        program,
        "serve",
        model,
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--continuous-batching",
    ]
    # Left to itself it takes 0.8 of the memory; and without a cache folder it answers /v1/models
    # with 500.
    command += ["--cb-num-blocks", "64", "--cb-block-size", "32", "--cb-max-batch-tokens", "512"]
    Path(os.environ["HF_HOME"], "hub").mkdir(exist_ok=True)
    with server(tmp_path / "log", *command) as base_url:
        same(by_vllm, build(tmp_path / "build", model, engine="endpoint", base_url=base_url))


def thinking(folder, model, **teacher):
    """The recipe with a teacher that thinks: types and rows of the dataset, and what was said."""
    folder.mkdir()
    values = make_recipe(folder, model, engine=teacher["engine"], keep_reasoning="column")
    # All say the same, so that there is nothing for a router to learn.
    values |= {"strategy": "best-single", "sampling": {"temperature": 0, "max_tokens": MAX_TOKENS}}
    for own in values["teachers"]:
        own |= teacher
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    assert cli.main(["build", str(recipe), "--output", str(folder / "out")]) == 0
    rows = load_dataset(str(folder / "out/dataset"), split="train").sort("prompt_id")
    answers = load_dataset(str(folder / "out/dataset"), "calibration", split="train")
    shown = ("teacher", "reasoning", "text", "finish_reason", "completion_tokens", "error")
    said = sorted(tuple(r[key] for key in shown) for row in answers["responses"] for r in row)
    return rows.features, answers.features, rows["completion"][:], rows["reasoning"][:], said


def cut_off(model, **teacher):
    asked = Teacher(model, sampling=Sampling(temperature=0, max_tokens=2), **teacher)
    [[response]] = Generate([asked])({"prompt": ["3 plus 4?"]})["responses"]
    return tuple(response[key] for key in ("reasoning", "text", "finish_reason", "error"))


def test_one_teacher_that_thinks_through_all_engines(models_folder, tmp_path):
    """The same columns and texts by both local engines and by vLLM's server with its parser."""
    model = save_thinker(models_folder / "thinker")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    local = {"engine": "vllm", "engine_args": {"dtype": "float32", "enforce_eager": True}}
    expected = thinking(tmp_path / "transformers", model, engine="transformers")
    assert {row[1:3] for row in expected[-1]} == {(THOUGHT, ANSWER)}
    assert cut_off(model) == cut_off(model, **local) == ("3+", "", "length", "")
    assert thinking(tmp_path / "vllm", model, **local) == expected

    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--dtype", "float32", "--enforce-eager", "--generation-config", "vllm"]
    with server(tmp_path / "log", *command, "--reasoning-parser", "deepseek_r1") as base_url:
        remote = {"engine": "endpoint", "base_url": base_url}
        assert cut_off(model, **remote) == ("3+", "", "length", "")
        assert thinking(tmp_path / "served", model, **remote) == expected
