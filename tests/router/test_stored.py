"""A router is stored whole or not at all: its process may be killed after any of its files."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from conftest import save_model
from datasets import Dataset, Features
from huggingface_hub.constants import HF_HOME

from persyn_datasets import InputError, Router, train_router
from persyn_datasets.data import schema

PROMPTS = [[{"role": "user", "content": f"Tell me of {i} ants"}] for i in range(6)]
PAIRS = Dataset.from_list(
    [
        {"prompt_id": str(i), "messages": messages, "margin": 1.0, "label": i % 2}
        | {"teacher_a": "ant", "teacher_b": "bee"}
        for i, messages in enumerate(PROMPTS)
    ],
    features=Features(schema.PAIRS),
)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


class Killer:
    """Raises before the nth time that Python opens a file for writing, moves or removes one."""

    def __init__(self):
        self.left = 0
        sys.addaudithook(self)

    def __call__(self, event, args):
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if self.left and (writes or event in ("os.rename", "os.remove", "os.rmdir")):
            self.left -= 1
            if not self.left:
                raise Killed

    def lets_pass(self, n, work):
        """Whether the work comes to its end."""
        self.left = n + 1
        try:
            work()
            return True
        except Killed:
            return False
        finally:
            self.left = 0


@pytest.fixture(scope="module")
def killer():
    return Killer()  # an audit hook stays for good


def test_a_router_without_its_tokenizer_is_trained_again(chat_model, monkeypatch):
    """transformers writes tokenizer_config.json, and then tokenizer.json."""

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedTokenizerFast, "_save_pretrained", die)
        with pytest.raises(Killed):
            train_router(PAIRS, chat_model, freeze_backbone=True)
    router = train_router(PAIRS, chat_model, freeze_backbone=True)
    assert (Path(router.path) / "tokenizer.json").is_file()
    assert router.scores(PROMPTS).shape == (6, 2)


def test_a_training_that_is_killed_at_any_time_leaves_a_whole_router_or_none(base_model, killer):
    def work():
        return train_router(PAIRS, base_model, freeze_backbone=True)

    expected = work().scores(PROMPTS)
    for n in range(100):
        shutil.rmtree(Path(HF_HOME) / "persyn" / "routers")
        ended = killer.lets_pass(n, work)
        assert np.allclose(work().scores(PROMPTS), expected)
        if ended:
            break
    assert ended and n > 5


def test_a_router_that_is_replaced_is_the_old_one_or_the_new_one(tmp_path, base_model, killer):
    small = save_model(tmp_path / "backbone", hidden_size=16)
    old = train_router(PAIRS, base_model, freeze_backbone=True, output_dir=str(tmp_path / "old"))
    new = train_router(PAIRS, small, freeze_backbone=True, output_dir=str(tmp_path / "new"))
    either = [old.scores(PROMPTS), new.scores(PROMPTS)]
    place, seen = tmp_path / "place", set()
    for n in range(100):
        shutil.rmtree(place, ignore_errors=True)
        old.save_pretrained(str(place))
        ended = killer.lets_pass(n, lambda: new.save_pretrained(str(place)))
        try:
            scores = Router.from_pretrained(str(place)).scores(PROMPTS)
            seen.add([bool(np.allclose(scores, s)) for s in either].index(True))
        except InputError:
            seen.add("none")
        if ended:
            break
    assert ended and seen == {0, "none", 1}


def test_facts_are_recorded_or_they_are_not(tmp_path, base_model, monkeypatch):
    """A config that is half written opens no more."""
    path = str(tmp_path / "router")
    router = train_router(PAIRS, base_model, freeze_backbone=True, output_dir=path)

    def die(self, path, *args, **kwargs):
        Path(path).write_text('{"architectures":')
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedConfig, "to_json_file", die)
        with pytest.raises(Killed):
            router.record(typical=1)
    assert "typical" not in Router.from_pretrained(path).config.persyn
    assert router.record(typical=2).config.persyn["typical"] == 2
    assert Router.from_pretrained(path).config.persyn["typical"] == 2
