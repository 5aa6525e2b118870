"""TRL, unmodified, on a published dataset. Needs the extra `train`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import save_model
from datasets import load_dataset

from persyn_datasets.hub.publish import publish

pytestmark = pytest.mark.slow

pytest.importorskip("trl", reason='needs TRL: pip install "persyn-datasets[train]"')
ORG = "org/tiny"


@pytest.fixture
def published(hub, done):
    publish(done.output, ORG)
    return ORG


def test_trl_sft_runs_on_it(published, chat_model, tmp_path):
    """The card's command, with what a student of a few weights on a CPU needs besides."""
    command = ["sft", "--model_name_or_path", chat_model, "--dataset_name", ORG]
    command += ["--output_dir", str(tmp_path / "student")]
    command += [
        "--max_steps",
        "4",
        "--per_device_train_batch_size",
        "4",
        "--learning_rate",
        "1e-2",
        "--bf16",
        "false",
    ]
    command += [
        "--use_cpu",
        "true",
        "--report_to",
        "none",
        "--logging_steps",
        "1",
        "--save_strategy",
        "no",
    ]
    trl = Path(sys.executable).with_name("trl")
    run = subprocess.run(
        [trl, *command], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ)
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "'loss'" in run.stdout and (tmp_path / "student/model.safetensors").exists()


def test_it_trains_on_completions_only(published, tmp_path):
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    student = save_model(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(student)
    data = load_dataset(ORG, split="train")
    config = SFTConfig(
        str(tmp_path / "out"),
        bf16=False,
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=8,
    )
    trainer = SFTTrainer(student, config, train_dataset=data)
    seen = set()
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained = labels != -100
            assert (labels[trained] == ids[trained]).all()
            whole, learned = tokenizer.decode(ids), tokenizer.decode(ids[trained])
            assert whole.split("<|assistant|>\n")[1].startswith(learned.removesuffix("\n"))
            seen.add(learned.replace("</s>", "").strip())
    assert seen == {row["completion"][0]["content"] for row in data}
