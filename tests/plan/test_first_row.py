"""One real row goes through every model before the first answer is paid for: what is broken is
refused while no server has been asked.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from chat_server import ChatServer
from conftest import make_tokenizer, save_model
from pool import answer, build, counting, make_recipe
from safetensors.torch import load_file, save_file

from persyn_datasets import InputError, PersynBuilder, Recipe
from persyn_datasets.plan import checks
from persyn_datasets.store import models

FILE = "model.safetensors"


def no_weights(folder: Path) -> None:
    (folder / FILE).unlink()


def only_bin(folder: Path) -> None:
    torch.save(load_file(folder / FILE), folder / "pytorch_model.bin")
    (folder / FILE).unlink()


def cut_off(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:5000])


def not_a_number(folder: Path) -> None:
    weights = {k: w * float("nan") for k, w in load_file(folder / FILE).items()}
    save_file(weights, folder / FILE, {"format": "pt"})


def a_layer_less(folder: Path) -> None:
    weights = {k: w for k, w in load_file(folder / FILE).items() if "layers.1." not in k}
    save_file(weights, folder / FILE, {"format": "pt"})


def other_shapes(folder: Path) -> None:
    cut = {k: w[:, 1:] if "down_proj" in k else w for k, w in load_file(folder / FILE).items()}
    save_file({k: w.contiguous() for k, w in cut.items()}, folder / FILE, {"format": "pt"})


FAULTS = [no_weights, only_bin, cut_off, not_a_number, a_layer_less, other_shapes]


@pytest.fixture
def broken(request, chat_model, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(chat_model, folder)
    request.param(folder)
    return str(folder)


@pytest.mark.parametrize("broken", FAULTS, indirect=True, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("key", ["student.model", "router.backbone"])
def test_broken_weights_are_refused_before_a_teacher_is_asked(
    key, broken, chat_model, tmp_path, monkeypatch
):
    counter = counting(monkeypatch)
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    part, name = key.split(".")
    values[part][name] = broken
    with pytest.raises(InputError, match=key):
        build(values, tmp_path / "out")
    assert counter.asked == []


@pytest.mark.parametrize("broken", [no_weights, only_bin], indirect=True)
@pytest.mark.parametrize("key", ["student.model", "router.backbone"])
def test_a_plan_sees_that_weights_are_missing(key, broken, chat_model, tmp_path):
    values = make_recipe(tmp_path, chat_model)
    part, name = key.split(".")
    values[part][name] = broken
    with pytest.raises(InputError, match=f"{key}.*safetensors"):
        checks.check(Recipe.from_dict(values))


def mamba(folder):
    return save_model(folder, "Mamba", state_size=4, num_hidden_layers=1)


def test_a_backbone_that_is_no_classifier_is_refused_by_the_plan(chat_model, tmp_path):
    values = make_recipe(tmp_path, chat_model)
    values["router"]["backbone"] = mamba(tmp_path / "mamba")
    with pytest.raises(InputError, match=r"router\.backbone.*mamba"):
        checks.check(Recipe.from_dict(values))
    values["router"]["backbone"] = chat_model
    checks.check(Recipe.from_dict(values))


def test_a_backbone_without_a_token_to_pad_with_is_refused_before_a_teacher_is_asked(
    chat_model, tmp_path, monkeypatch
):
    counter = counting(monkeypatch)
    bare = transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(None).backend_tokenizer
    )
    shutil.copytree(chat_model, tmp_path / "backbone")
    for file in (tmp_path / "backbone").glob("*token*"):
        file.unlink()
    bare.save_pretrained(tmp_path / "backbone")
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    values["router"]["backbone"] = str(tmp_path / "backbone")
    with pytest.raises(InputError, match=r"router\.backbone.*pad"):
        build(values, tmp_path / "out")
    assert counter.asked == []


@pytest.mark.parametrize("broken", [cut_off, a_layer_less], indirect=True)
def test_a_broken_local_teacher_is_refused_before_a_server_is_asked(broken, chat_model, tmp_path):
    values = make_recipe(tmp_path, chat_model, sampling={"max_tokens": 4})
    with ChatServer() as server:
        values["teachers"][1] |= {"engine": "endpoint", "base_url": server.url, "model": "m"}
        values["teachers"][2] |= {"engine": "transformers", "model": broken}
        with pytest.raises(InputError, match=r"'guesser'"):
            build(values, tmp_path / "out")
        assert server.count == 0


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class MyConfig(LlamaConfig):
    model_type = "mine"
class MyModel(LlamaForCausalLM):
    config_class = MyConfig
"""


@pytest.fixture
def own_code(chat_model, tmp_path):
    folder = tmp_path / "own-code"
    shutil.copytree(chat_model, folder)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    config |= {"model_type": "mine", "architectures": ["MyModel"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(CODE)
    return str(folder)


def test_a_student_with_code_of_its_own_passes_where_it_is_allowed(own_code, chat_model, tmp_path):
    values = make_recipe(tmp_path, chat_model, student={"model": own_code})
    with pytest.raises(InputError, match=r"student\.model"):
        checks.check(Recipe.from_dict(values))
    values["student"]["trust_remote_code"] = True
    ranked = PersynBuilder(Recipe.from_dict(values), tmp_path / "out").calibrate()
    assert all(r["learnability"] < 0 for row in ranked["responses"] for r in row)


def test_the_row_is_kept_and_no_model_stays_in_memory(chat_model, tmp_path, monkeypatch):
    """A second run of a calibration loads no student for it."""
    held, asked = [], counting(monkeypatch)

    def generate(requests, account):
        held.append(dict(models._models))
        yield from asked(requests, account)

    monkeypatch.setattr("persyn_datasets.engines.transformers.generate", generate)
    loads: list[str] = []
    load = models._load
    monkeypatch.setattr(models, "_load", lambda kind, *of: loads.append(of[0]) or load(kind, *of))
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    builder = PersynBuilder(Recipe.from_dict(values), tmp_path / "out")
    ranked = builder.calibrate()
    assert held == [{}] and len(loads) == 2  # once to try it, once to score
    texts = {r["text"] for row in ranked["responses"] for r in row}
    assert answer("adder", "3 plus 4?").split()[0] in " ".join(texts)
    builder.calibrate()
    assert len(loads) == 2
