"""The config `messages` in other trainers, each in an environment of its own (docs/trainers.md).

PERSYN_LLAMAFACTORY, PERSYN_MS_SWIFT and PERSYN_AXOLOTL name the Python of an environment that has
the tool. Without torchvision and torchaudio of the same build as torch, LLaMA-Factory cannot be
imported; no text needs them. Of axolotl, which wants Python 3.12 and a GPU, only what reads and
encodes rows is used: its unpacked wheel on PYTHONPATH is enough.
"""

import json
import os
import subprocess

import pytest
from datasets import Dataset

from persyn_datasets.data.conversations import conversations

THOUGHT = "<think>\nOne more.\n</think>\n\n"
LLAMAFACTORY = """
import importlib.machinery, json, sys, types
stub = types.ModuleType("torchaudio")
stub.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
sys.modules.setdefault("torchaudio", stub)
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
folder, model = sys.argv[1:]
options = dict(model_name_or_path=model, stage="sft", do_train=True, finetuning_type="full")
options |= dict(dataset="persyn", dataset_dir=folder, template="qwen3", output_dir=folder + "/out")
options |= dict(overwrite_cache=True, report_to="none", bf16=False, preprocessing_num_workers=1)
m, d, t, _, _ = get_train_args(options)
tokenizer = load_tokenizer(m)["tokenizer"]
template = get_template_and_fix_tokenizer(tokenizer, d)
rows = get_dataset(template, m, d, t, stage="sft", tokenizer=tokenizer, processor=None)
labels = [[x for x in row["labels"] if x >= 0] for row in rows["train_dataset"]]
print(json.dumps([tokenizer.decode(row) for row in labels]))
"""
MS_SWIFT = """
import json, sys
from swift.dataset import load_dataset
from swift.model import get_processor
from swift.template import get_template
folder, model = sys.argv[1:]
rows, _ = load_dataset([folder + "/train.parquet"], num_proc=1, split_dataset_ratio=0.0)
processor = get_processor(model, model_type="qwen3")
template = get_template(processor, template_type="qwen3")
template.set_mode("train")
labels = [[x for x in template.encode(row)["labels"] if x >= 0] for row in rows]
print(json.dumps([processor.decode(row) for row in labels]))
"""
AXOLOTL = """
import json, sys
from datasets import load_dataset
from transformers import AutoTokenizer
from axolotl.prompt_strategies.chat_template import load
from axolotl.utils.dict import DictDefault
folder, model = sys.argv[1:]
rows = load_dataset("parquet", data_files=folder + "/train.parquet", split="train")
tokenizer = AutoTokenizer.from_pretrained(model)
options = {"sequence_len": 4096, "train_on_inputs": False, "chat_template": "tokenizer_default"}
entry = {"path": "x", "type": "chat_template", "field_messages": "messages"}
strategy = load(tokenizer, DictDefault(options), ds_cfg=DictDefault(entry))
labels = [[x for x in strategy.tokenize_prompt(row)["labels"] if x >= 0] for row in rows]
print(json.dumps([tokenizer.decode(row) for row in labels]))
"""
INFO = {
    "file_name": "train.parquet",
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def answered():
    system = {"role": "system", "content": "Be short."}
    rows = [
        ([user("1 + 1?")], [assistant("It is 2.")], ""),
        ([system, user("2 + 1?")], [assistant(f"{THOUGHT}It is 3.")], ""),
        ([user("Hi"), assistant("Yes?"), user("3 + 1?")], [assistant("It is 4.")], ""),
        ([user("4 + 1?")], [], "the server is on fire"),
    ]
    return Dataset.from_list(
        [
            {
                "prompt_id": str(i),
                "prompt": p,
                "completion": c,
                "teacher": "a",
                "error": e,
                "text": "x",
            }
            for i, (p, c, e) in enumerate(rows)
        ]
    )


def test_a_conversation_is_prompt_and_answer_and_failed_rows_have_none(answered):
    chats = conversations(answered)
    assert chats.column_names == ["messages", "prompt_id", "teacher"] and len(chats) == 3
    for row, chat in zip(answered, chats, strict=False):
        assert chat["messages"] == row["prompt"] + row["completion"]
        assert chat["messages"][-1]["role"] == "assistant"
    assert len(conversations(answered.select([3]))) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "script", "end"),
    [
        ("LLAMAFACTORY", LLAMAFACTORY, "<|im_end|>"),
        ("MS_SWIFT", MS_SWIFT, "<|im_end|>"),
        ("AXOLOTL", AXOLOTL, "</s>"),
    ],
)
def test_the_tool_trains_every_answer(answered, chat_model, tmp_path, tool, script, end):
    python = os.environ.get(f"PERSYN_{tool}")
    if not python:
        pytest.skip(f"PERSYN_{tool} names no Python")
    conversations(answered).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"persyn": INFO}))
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    run = subprocess.run(
        [python, "-c", script, str(tmp_path), chat_model],
        env=offline,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    first, second, third = json.loads(run.stdout.splitlines()[-1])
    assert f"It is 2.{end}" in first
    assert f"{THOUGHT}It is 3.{end}" in second
    assert f"It is 4.{end}" in third
