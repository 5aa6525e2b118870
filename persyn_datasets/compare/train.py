"""Train a student: supervised fine-tuning by TRL, with the loss on the completions only."""

import json
import shutil
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.student import Student, Training
from persyn_datasets.signals.trained_text import ChatFormat
from persyn_datasets.store import models
from persyn_datasets.store.identity import weights_of
from persyn_datasets.store.journal import digest, replace_file
from persyn_datasets.store.memory import in_passes


def check(student: Student, training: Training, prompts: Dataset) -> None:
    """Raises `InputError` where a prompt alone fills `max_length`: TRL would leave the
    example out.
    """
    rows = [(messages, "?") for messages in prompts["messages"]]
    for (messages, _), text in zip(rows, ChatFormat(student).render(rows), strict=True):
        if text.start >= training.max_length:
            raise InputError(
                f"training.max_length is {training.max_length}, and the prompt "
                f"{messages[-1]['content'][:60]!r} has "
                f"{text.start} tokens alone; raise it, or remove the prompt."
            )


def train(student: Student, data: Dataset, training: Training, seed: int, folder: Path) -> Path:
    """Fine-tune a student on the columns `prompt` and `completion`, or go on, or find the finished
    one again.

    Args:
        data: conversational, as a build's dataset is.
        seed: of the order of the examples (and of the adapters' first weights).
        folder: of all students; each has one of its own there, named by the content of everything
            it depends on.

    Returns:
        Its folder: `model/` (safetensors, and the tokenizer) and `student.json` (examples, steps,
        tokens, loss, seconds since it was begun or gone on with).
    """
    form = ChatFormat(student)
    facts = {k: v for k, v in asdict(student).items() if k != "family"} | form.identity()
    facts |= {"weights": weights_of(student.model, student.revision)}
    content = [facts, asdict(training), seed, data["prompt"][:], data["completion"][:]]
    place = folder / digest(content)[:16]
    if (place / "student.json").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    checkpoints = place / "checkpoints"

    def trained(rows: int, passes: int) -> tuple[Any, Any]:
        smaller = replace(
            training, per_device_train_batch_size=rows, gradient_accumulation_steps=passes
        )
        trainer = _trainer(student, data, smaller, seed, checkpoints)
        last = _last(checkpoints)
        return trainer, trainer.train(resume_from_checkpoint=str(last) if last else None)

    trainer, result = in_passes(
        trained,
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
        "Lower training.max_length, set training.lora, or take a smaller student.",
    )
    model = trainer.model.merge_and_unload() if training.lora else trainer.model
    model.to(models.dtype()).save_pretrained(place / "model")
    models.readable(place / "model")
    trainer.processing_class.chat_template = form.published_template
    trainer.processing_class.save_pretrained(place / "model")
    record = {
        "student": student.model,
        "training": asdict(training),
        "seed": seed,
        "examples": len(data),
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "loss": result.training_loss,
        "seconds": result.metrics["train_runtime"],
    }
    replace_file(place / "student.json", json.dumps(record, indent=2).encode())
    shutil.rmtree(checkpoints)
    return place


def _last(checkpoints: Path) -> Path | None:
    """The last whole checkpoint, if there is one."""
    done = [c for c in checkpoints.glob("checkpoint-*") if (c / "trainer_state.json").exists()]
    return max(done, key=lambda c: int(c.name.rpartition("-")[2]), default=None)


def _trainer(
    student: Student, data: Dataset, training: Training, seed: int, checkpoints: Path
) -> Any:
    from peft import LoraConfig
    from trl import SFTTrainer

    from persyn_datasets.compare.arguments import Arguments

    models.free()  # what scored or answered before: the student needs the memory
    on_gpu = torch.cuda.is_available()
    config = Arguments(
        output_dir=str(checkpoints),
        **{key: value for key, value in asdict(training).items() if key != "lora"},
        seed=seed,
        completion_only_loss=True,
        bf16=models.dtype() == torch.bfloat16,
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        model_init_kwargs={
            "dtype": "float32",
            "revision": student.revision,
            "use_safetensors": True,
        },
        trust_remote_code=student.trust_remote_code,
        include_num_input_tokens_seen="non_padding",
        save_strategy="steps",
        save_steps=0.25,
        save_total_limit=1,
        report_to="none",
    )
    form = ChatFormat(student)
    rows = data.select_columns(["prompt", "completion"])
    if form.options:
        rows = rows.add_column("chat_template_kwargs", [form.options] * len(rows))
    lora = None
    if training.lora:
        r, alpha = training.lora.r, training.lora.alpha
        lora = LoraConfig(r=r, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        student.model,
        config,
        train_dataset=rows,
        processing_class=deepcopy(form.tokenizer),
        peft_config=lora,
    )
