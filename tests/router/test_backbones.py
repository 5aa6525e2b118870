"""Routers on backbones of many kinds, opened by other libraries: everybody chooses the same."""

import json

import numpy as np
import pytest
import torch
import transformers
from conftest import make_tokenizer
from datasets import Dataset
from sentence_transformers import CrossEncoder
from tokenizers.processors import TemplateProcessing
from torch import nn

from persyn_datasets import Router, Teacher, train_router

NAMES = ["ant", "mole", "zebra", "wasp", "bee"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 130,
    "initializer_range": 0.4,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# (its config's name, what it wants besides SIZES)
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4}
LINEAR |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
KINDS = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Qwen3_5Text": LINEAR,
    "Gemma3Text": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 130},
    "Bert": {},
    "Roberta": {},
    "XLMRoberta": {},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "ModernBert": {"cls_token_id": 1, "sep_token_id": 2},
    "DistilBert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
}


def save_backbone(folder, kind, more=None, composite=None, tokenizer=None):
    """A random model of this architecture without a head, as pretrained encoders come."""
    tokenizer = tokenizer or make_tokenizer("{{ messages }}")
    more = KINDS[kind] if more is None else more
    values = SIZES | {"vocab_size": len(tokenizer)} | TOKENS | more
    torch.manual_seed(0)
    if composite:
        text = getattr(transformers, f"{kind}TextConfig")(**values)
        config = getattr(transformers, f"{kind}Config")(text_config=text.to_dict(), **composite)
    else:
        config = getattr(transformers, f"{kind}Config")(**values)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def user(text):
    return [{"role": "user", "content": text}]


def pairs(n=12):
    rows = []
    for i in range(n):
        best = NAMES[i % 5]
        for other in NAMES:
            if other != best:
                row = {"teacher_a": other, "teacher_b": best, "label": 1, "margin": 1.0}
                rows.append({"prompt_id": str(i), "messages": user(f"Tell me of {best} {i}")} | row)
    return Dataset.from_list(rows)


# The last is cut: all of them read 128 tokens at most.
TEXTS = ["What is 7 times 8?", "Name a bird.", "x", "Tell me of bee 99", "of the other " * 40]
TEACHERS = [Teacher("org/m", name=name) for name in NAMES]


def train(backbone, output, **options):
    options = {"freeze_backbone": True} | options
    return train_router(pairs(), backbone, teachers=TEACHERS, output_dir=str(output), **options)


def by_pipeline(path, batch_size, side):
    pipe = transformers.pipeline("text-classification", path, top_k=None, function_to_apply="none")
    pipe.tokenizer.padding_side = side
    found = pipe(TEXTS, truncation=True, batch_size=batch_size)
    scores = [{row["label"]: row["score"] for row in rows} for rows in found]
    return np.array([[row[name] for name in NAMES] for row in scores])


def check(router, sentence_transformers=True):
    """Ours, pipelines one by one and in batches of either padding, and sentence-transformers."""
    ours = router.scores([user(text) for text in TEXTS])
    assert ours.shape == (5, 5) and np.isfinite(ours).all() and ours.std() > 0
    spread = ours.std()
    one_by_one = np.concatenate([router.scores([user(text)]) for text in TEXTS])
    assert np.allclose(one_by_one, ours, atol=1e-3 * spread)
    assert np.allclose(by_pipeline(router.path, 1, "right"), ours, atol=1e-3 * spread)
    assert np.allclose(by_pipeline(router.path, 5, "right"), ours, atol=1e-3 * spread)
    if sentence_transformers:  # takes single texts one by one: a list of them would be one pair
        encoder = CrossEncoder(router.path, device="cpu")
        encoder.activation_fn = nn.Identity()
        theirs = np.stack([encoder.predict({"text": text}) for text in TEXTS])
        assert np.allclose(theirs, ours, atol=1e-3 * spread)


@pytest.mark.parametrize("kind", KINDS)
def test_everybody_chooses_the_same(kind, tmp_path):
    router = train(save_backbone(tmp_path / "b", kind), tmp_path / "r")
    check(router)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Gemma3Text", "Qwen3"])
def test_decoders_may_be_padded_on_the_left(kind, tmp_path):
    """Their head reads the last token that is not padding, on whichever side that is. (GPT-2 has
    absolute positions, which pipelines count from the padding.)
    """
    router = train(save_backbone(tmp_path / "b", kind), tmp_path / "r")
    ours = router.scores([user(text) for text in TEXTS])
    left = by_pipeline(router.path, 5, "left")
    assert np.allclose(left, ours, atol=1e-3 * ours.std())


@pytest.mark.parametrize(
    "kind, more",
    [("Qwen3_5", LINEAR), ("Gemma3", KINDS["Gemma3Text"])],
    ids=lambda value: str(value)[:8],
)
def test_models_of_several_parts(kind, more, tmp_path):
    """A composite config: the padding token and the number of labels are its text part's too."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "depth": 1}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    vision |= {"out_hidden_size": 32}
    backbone = save_backbone(tmp_path / "b", kind, more, composite={"vision_config": vision})
    router = train(backbone, tmp_path / "r")
    check(router, sentence_transformers=False)  # asks for the image processor


@pytest.mark.parametrize("kind", ["XLMRoberta", "Roberta", "Llama"])
def test_full_fine_tuning_and_temperature_touch_the_head_they_should(kind, tmp_path):
    options = {"freeze_backbone": False, "epochs": 1, "learning_rate": 1e-4, "batch_size": 4}
    check(train(save_backbone(tmp_path / "b", kind), tmp_path / "r", **options))


@pytest.mark.parametrize("labels", [1, 3, 5])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_backbone_that_is_a_classifier_already(labels, frozen, tmp_path):
    """A router of three teachers, or a reward model: its body counts, its head goes."""
    tokenizer = make_tokenizer(None)
    values = SIZES | TOKENS | {"vocab_size": len(tokenizer), "num_labels": labels}
    values |= {"problem_type": "regression"}
    torch.manual_seed(0)
    old = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**values))
    old.save_pretrained(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    options = {"freeze_backbone": frozen, "epochs": 1, "learning_rate": 1e-9, "batch_size": 4}
    router = train(str(tmp_path / "b"), tmp_path / "r", **options)
    check(router)
    assert router.names == NAMES and router.config.problem_type is None
    new = transformers.AutoModelForSequenceClassification.from_pretrained(router.path)
    if labels == 5:
        assert not torch.allclose(new.score.weight, old.score.weight, atol=1e-3)
    before, after = old.model.state_dict(), new.model.state_dict()
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_a_tokenizer_that_ends_texts_with_its_padding_token(tmp_path):
    """transformers reads the last token that is not padding, vLLM the last one, so another pads."""
    tokenizer = make_tokenizer(None)
    tokenizer.pad_token = "</s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    backbone = save_backbone(tmp_path / "b", "Llama", tokenizer=tokenizer)
    router = train(backbone, tmp_path / "r")
    check(router)
    stored = transformers.AutoTokenizer.from_pretrained(router.path)
    ids = stored("a text")["input_ids"]
    assert ids[-1] == 2 and stored.pad_token_id != 2
    assert router.config.pad_token_id == stored.pad_token_id
    model = transformers.AutoModelForSequenceClassification.from_pretrained(router.path)
    last = model.model(torch.tensor([ids]))[0][:, -1]  # as vLLM pools
    assert np.allclose(model.score(last).detach(), router.scores([user("a text")]), atol=1e-3)


def test_what_other_programs_read_of_a_router(tmp_path):
    """No chat template: vLLM would apply it."""
    router = train(save_backbone(tmp_path / "b", "Qwen2"), tmp_path / "r")
    assert transformers.AutoTokenizer.from_pretrained(router.path).chat_template is None
    assert Router.from_pretrained(router.path).names == NAMES


def test_what_transformers_4_reads_of_a_tokenizer(tmp_path):
    """A class that it knows, and special tokens where it looks for them; 5 makes the same of it."""
    tokenizer = make_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]})
    router = train(save_backbone(tmp_path / "b", "Llama", tokenizer=tokenizer), tmp_path / "r")
    router.save_pretrained(str(tmp_path / "copy"))
    for folder in ("r", "copy"):
        config = json.loads((tmp_path / folder / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert config["additional_special_tokens"] == ["<a>", "<b>"]
        assert "extra_special_tokens" not in config
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        assert again("x<a>y <b>")["input_ids"] == tokenizer("x<a>y <b>")["input_ids"]
        assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
LINEAR_SCALE = {"rope_type": "linear", "factor": 8.0}
NEAR = {"rope_type": "default", "rope_theta": 300.0}
BY_LAYER = {"layer_types": ["full_attention", "sliding_attention"]}
# What transformers 5 writes of RoPE, and what 4.57's configs of that architecture read.
ROPES = {
    "Qwen2": ({"rope_type": "default", "rope_theta": 1234.0}, {"rope_theta": 1234.0}, {}),
    "Llama": (LLAMA3 | {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}, {}),
    "Phi3": (
        {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
        {},
    ),
    "ModernBert": (
        {
            "full_attention": {"rope_type": "default", "rope_theta": 7e4},
            "sliding_attention": NEAR,
        },
        {"global_rope_theta": 7e4, "local_rope_theta": 300.0},
        KINDS["ModernBert"] | {"local_attention": 8} | BY_LAYER,
    ),
    "Gemma3Text": (
        {"full_attention": LINEAR_SCALE | {"rope_theta": 7e5}, "sliding_attention": NEAR},
        {"rope_theta": 7e5, "rope_local_base_freq": 300.0, "rope_scaling": LINEAR_SCALE},
        {"sliding_window": 8} | BY_LAYER,
    ),
}


@pytest.mark.parametrize("kind", ROPES)
def test_what_transformers_4_reads_of_rope(kind, tmp_path):
    """Also once facts are recorded, as every build does; and version 5 makes the same of it.

    `docs/scripts/older_transformers.py` opens such routers in 4.57 itself.
    """
    rope, read_by_4, more = ROPES[kind]
    backbone = save_backbone(tmp_path / "b", kind, {"rope_parameters": rope} | more)
    router = train(backbone, tmp_path / "r")
    before = router.scores([user(text) for text in TEXTS])
    router = router.record(note=1).record(note=2)
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert read_by_4.items() <= config.items()
    assert transformers.AutoConfig.from_pretrained(router.path).rope_parameters == rope
    assert np.array_equal(router.scores([user(text) for text in TEXTS]), before)
    router.save_pretrained(str(tmp_path / "copy"))
    assert read_by_4.items() <= json.loads((tmp_path / "copy/config.json").read_text()).items()
