import json
import logging
import shutil

import pytest
import torch
from conftest import save_model
from datasets import Dataset
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
)

from persyn_datasets import InputError
from persyn_datasets.signals import reward_model as signal
from persyn_datasets.store import memory


def conversation(i):
    return [{"role": "user", "content": "the " * i}], "er" * (7 * i % 30) + str(i)


ROWS = [conversation(i) for i in range(12)]


def scores(path, rows=ROWS):
    return signal.score(rows, {}, reward_model=str(path))


def one_at_a_time(path):
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    whole = [[*messages, {"role": "assistant", "content": text}] for messages, text in ROWS]
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in whole]
    with torch.inference_mode():
        return [
            model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item()
            for text in texts
        ]


@pytest.mark.parametrize("tokens_per_batch", [1, 300, 10_000])
@pytest.mark.parametrize("kind", ["Llama", "Bert"])
def test_scores_do_not_depend_on_the_batch(kind, tmp_path, monkeypatch, tokens_per_batch):
    monkeypatch.setattr(memory, "CPU_TOKENS", tokens_per_batch)
    model = save_model(tmp_path, kind, head="SequenceClassification", num_labels=1)
    alone = one_at_a_time(model)
    assert scores(model) == pytest.approx(alone, abs=1e-4)
    assert max(alone) - min(alone) > 0.1


@pytest.mark.parametrize(
    ("config_pad", "tokenizer_pad"), [(None, "<pad>"), (None, "</s>"), (1, "<pad>"), (0, None)]
)
def test_a_model_whose_config_and_tokenizer_differ_in_padding(
    reward_model, tmp_path, config_pad, tokenizer_pad
):
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    model.config.pad_token_id = config_pad
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    tokenizer.pad_token = tokenizer_pad
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("pad_token_id") == config_pad
    assert scores(tmp_path) == pytest.approx(one_at_a_time(tmp_path), abs=1e-4)


PROMPTS = Dataset.from_dict({"messages": [ROWS[2][0], ROWS[3][0]]})


def test_what_is_no_reward_model_is_refused_before_anything_is_paid_for(models_folder):
    two = save_model(models_folder / "two-labels", head="SequenceClassification", num_labels=2)
    bare = save_model(
        models_folder / "bare", head="SequenceClassification", num_labels=1, chat=False
    )
    for path, reason in ((two, "2 labels"), (bare, "no chat template"), ("/nowhere", "not found")):
        with pytest.raises(InputError, match=reason):
            signal.check({"reward_model": path}, PROMPTS)
    for path, reason in ((two, "2 labels"), (bare, "no chat template")):
        with pytest.raises(InputError, match=reason):
            scores(path)


def test_a_check_loads_no_weights(reward_model, tmp_path):
    """A plan costs nothing; the build tries them."""
    shutil.copytree(reward_model, tmp_path / "judge")
    (tmp_path / "judge" / "model.safetensors").unlink()
    signal.check({"reward_model": str(tmp_path / "judge")}, PROMPTS)
    with pytest.raises(InputError, match="quality.reward_model"):
        scores(tmp_path / "judge")


def test_a_conversation_longer_than_the_context_has_no_reward_and_is_counted(tmp_path, caplog):
    model = save_model(
        tmp_path, head="SequenceClassification", num_labels=1, max_position_embeddings=60
    )
    short, long = ROWS[1], (ROWS[1][0], "er " * 100)
    with caplog.at_level(logging.WARNING):
        found = scores(model, [long, short, long])
    assert found[0] is None and found[2] is None
    assert found[1] == pytest.approx(scores(model, [short])[0], abs=1e-5)
    assert "2 of 3 conversations" in caplog.text and "60 tokens" in caplog.text
    crowded = [ROWS[1][0], [{"role": "user", "content": "er " * 100}]]
    with pytest.raises(InputError, match=r"row 1.* 60"):
        signal.check({"reward_model": model}, Dataset.from_dict({"messages": crowded}))


REMOTE = """
import torch
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

class MyConfig(LlamaConfig):
    model_type = "mine"

class MyReward(PreTrainedModel):
    config_class = MyConfig

    def __init__(self, config):
        super().__init__(config)
        self.values = torch.nn.Embedding(config.vocab_size, 1)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        return SequenceClassifierOutput(logits=self.values(input_ids).mean(1))
"""


def test_remote_code_that_was_allowed_is_checked_too(tmp_path):
    folder = save_model(tmp_path / "m", head="SequenceClassification", num_labels=1)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "architectures": ["MyReward"],
        "auto_map": {
            "AutoConfig": "mine.MyConfig",
            "AutoModelForSequenceClassification": "mine.MyReward",
        },
    }
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "mine.py").write_text(REMOTE)
    values = {"values.weight": torch.ones(config["vocab_size"], 1)}
    save_file(values, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    allowed = {"reward_model": str(folder), "trust_remote_code": True}
    signal.check(allowed, PROMPTS)
    with pytest.raises(InputError, match=r"quality\.reward_model"):
        signal.check({"reward_model": str(folder)}, PROMPTS)
    assert len(signal.score(ROWS[:2], {}, **allowed)) == 2


def test_the_identity_follows_the_weights(reward_model, tmp_path):
    import shutil

    shutil.copytree(reward_model, tmp_path / "m")
    before = signal.identity({"reward_model": str(tmp_path / "m")})
    (tmp_path / "m" / "more.txt").write_text("x")
    after = signal.identity({"reward_model": str(tmp_path / "m")})
    assert before["weights"] != after["weights"]
    assert json.loads(json.dumps(after)) == after


def test_too_little_memory_halves_the_batches(reward_model, monkeypatch):
    monkeypatch.setattr(memory, "CPU_TOKENS", 10_000)
    spec = {"reward_model": reward_model}
    expected = signal.score(ROWS, {}, **spec)
    sizes, forward = [], LlamaForSequenceClassification.forward

    def small(self, input_ids=None, *args, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", small)
    assert signal.score(ROWS, {}, **spec) == pytest.approx(expected, abs=1e-4)
    assert max(sizes) == len(ROWS) and sizes.count(1) == len(ROWS)
