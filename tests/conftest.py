# ruff: noqa: E402
"""Tiny real models, made here, so that no test needs the network. Settings come before any Hugging
Face import.
"""

import os
import tempfile

from hub_server import HubServer

_hub = HubServer()
os.environ["HF_ENDPOINT"] = _hub.url
os.environ["HF_TOKEN"] = "hf_writer"
os.environ["HF_HUB_DISABLE_XET"] = "1"
_home = tempfile.TemporaryDirectory(prefix="persyn-tests-")
os.environ["HF_HOME"] = _home.name
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("HF_HUB_OFFLINE", None)  # it would block 127.0.0.1 too
os.environ.pop("PERSYN_JOURNAL", None)

import string
from pathlib import Path

import pytest
import torch
import transformers
from datasets.utils import disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

disable_progress_bars()
torch.set_num_threads(1)  # quickest for models this small

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if 'refuse me' in m['content'] %}{{ raise_exception('no system messages') }}{% endif %}"
    "<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture
def hub():
    """The Hub of all tests, empty. Everything of Hugging Face that is imported here talks to it."""
    _hub.reset()
    return _hub


@pytest.fixture(autouse=True)
def journal_root(tmp_path, monkeypatch):
    """Every test has a journal of its own."""
    monkeypatch.setenv("PERSYN_JOURNAL", str(tmp_path / "journal"))
    return tmp_path / "journal"


def make_tokenizer(chat_template: str | None) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE over printable ASCII with three merges; adds a BOS itself, like Llama's."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted({byte_level.pre_tokenize_str(c)[0][0] for c in string.printable})
    tokens = ["<pad>", "<s>", "</s>", *letters, "th", "the", "er"]
    merges = [("t", "h"), ("th", "e"), ("e", "r")]
    backend = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    backend.pre_tokenizer, backend.decoder = byte_level, decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=chat_template, **special
    )


def save_model(
    folder: Path, kind: str = "Llama", head: str = "CausalLM", chat: bool = True, **config
) -> str:
    """A tiny random model of any architecture with the tokenizer above; wide weights, so that its
    choices are clear.
    """
    tokenizer = make_tokenizer(CHAT_TEMPLATE if chat else None)
    tiny = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    tiny |= {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
    }
    tiny |= {"initializer_range": 0.4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}For{head}"
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**(tiny | config)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def chat_model(models_folder):
    return save_model(models_folder / "chat")


@pytest.fixture(scope="session")
def base_model(models_folder):
    return save_model(models_folder / "base", chat=False)


@pytest.fixture(scope="session")
def reward_model(models_folder):
    return save_model(models_folder / "reward", head="SequenceClassification", num_labels=1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What any engine is asked to generate, as (teacher, prompt)."""
    from pool import CountingEngine

    counter = CountingEngine()
    for engine in ("transformers", "endpoint", "recorded"):
        monkeypatch.setattr(f"persyn_datasets.engines.{engine}.generate", counter)
    return counter.asked


@pytest.fixture(scope="session")
def done(chat_model, models_folder):
    """One finished build, for many tests to look at and none to change."""
    from pool import build, make_recipe

    folder = models_folder / "done"
    folder.mkdir()
    return build(make_recipe(folder, chat_model), folder / "out")


@pytest.fixture
def published(hub, chat_model, models_folder):
    """The folder of a build that is on the Hub, with its recorded answers and new prompts."""
    from reusing import publish_answers

    return publish_answers(hub, chat_model, models_folder)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint engine waits for milliseconds only, finds no tokenizer, and has a key and a
    token to send.
    """
    from asking import KEY

    from persyn_datasets.engines import lane, server
    from persyn_datasets.store import models as our_models

    def no_tokenizer(*_: object) -> None:
        raise OSError("no such model")

    monkeypatch.setattr(lane, "BACKOFF", 0.002)
    monkeypatch.setattr(server, "PAUSE", 0.002)
    monkeypatch.setattr(our_models, "load_tokenizer", no_tokenizer)
    lane._tokenizer.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it blocks loopback too
    monkeypatch.setenv("HF_TOKEN", "hf_must_not_leave")
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are looked at again within milliseconds."""
    from persyn_datasets.engines import batch
    from persyn_datasets.engines.lane import refused

    for name in ("FIRST_LOOK", "LAST_LOOK", "FULL_PAUSE", "LAST_PAUSE", "STEP"):
        monkeypatch.setattr(batch, name, 0.005)
    monkeypatch.setattr(batch, "SETTLE", 0.05)
    refused.cache_clear()
