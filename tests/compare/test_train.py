"""Students trained by TRL. Needs the extra `compare`."""

import json

import pytest
import torch
from conftest import make_tokenizer, save_model
from datasets import Dataset
from pool import answer, problems
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaModel,
    TrainingArguments,
)

from persyn_datasets import InputError, Student
from persyn_datasets.compare.train import _trainer, train
from persyn_datasets.config.student import Lora, Training
from persyn_datasets.signals.learnability import signals
from persyn_datasets.signals.trained_text import ChatFormat
from persyn_datasets.store.models import load_tokenizer, prompt_ids

pytestmark = pytest.mark.slow

pytest.importorskip("trl", reason='needs TRL: pip install "persyn-datasets[compare]"')
QUICK = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


@pytest.fixture
def data():
    user = [[{"role": "user", "content": p}] for p, _ in problems()]
    said = [[{"role": "assistant", "content": answer("adder", p)}] for p, _ in problems()]
    return Dataset.from_dict({"prompt": user, "completion": said})


def learned(model, data):
    rows = [(p, c[0]["content"]) for p, c in zip(data["prompt"], data["completion"], strict=True)]
    return sum(found["learnability"] for _, found in signals(Student(str(model)), rows)) / len(rows)


@pytest.mark.parametrize(
    ("fixture", "more"),
    [
        ("chat_model", {}),
        ("chat_model", {"lora": Lora(4, 8)}),
        ("base_model", {"packing": True, "max_steps": 8, "max_length": 256}),
    ],
)
def test_a_student_learns_its_data_and_is_found_again(fixture, more, data, tmp_path, request):
    student = Student(request.getfixturevalue(fixture))
    training = Training(**({"num_train_epochs": 1} | QUICK | more))
    place = train(student, data, training, 0, tmp_path)
    assert learned(place / "model", data) > learned(student.model, data) + 0.5
    found = json.loads((place / "student.json").read_text())
    assert (found["examples"], found["steps"]) == (24, 8 if training.packing else 6)
    assert sorted(p.name for p in place.iterdir()) == ["model", "student.json"]
    assert not [p for p in place.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    AutoModelForCausalLM.from_pretrained(place / "model")  # merged: plain transformers opens it
    written = (place / "student.json").stat().st_mtime_ns
    assert train(student, data, training, 0, tmp_path) == place
    assert (place / "student.json").stat().st_mtime_ns == written


def test_other_data_or_another_seed_make_another_student(chat_model, data, tmp_path):
    student, training = Student(chat_model), Training(**QUICK, max_steps=1)
    given = [(data, 0), (data.select(range(8)), 0), (data, 1)]
    assert len({train(student, rows, training, seed, tmp_path) for rows, seed in given}) == 3


def test_an_interrupted_training_goes_on(chat_model, data, tmp_path, monkeypatch):
    from trl import SFTTrainer

    whole = train(Student(chat_model), data, Training(**QUICK), 0, tmp_path / "whole")
    step, steps = SFTTrainer.training_step, []

    def stop_at_eight(self, *args, **options):
        steps.append(self.state.global_step)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    monkeypatch.setattr(SFTTrainer, "training_step", stop_at_eight)
    with pytest.raises(KeyboardInterrupt):
        train(Student(chat_model), data, Training(**QUICK), 0, tmp_path / "two")
    place = train(Student(chat_model), data, Training(**QUICK), 0, tmp_path / "two")
    assert steps[8:] == [6, 7, 8, 9, 10, 11]  # a checkpoint every quarter of the 12 steps
    one, two = (
        AutoModelForCausalLM.from_pretrained(p / "model").state_dict() for p in (whole, place)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_only_completions_are_learned_and_packed_ones_do_not_see_each_other(data, tmp_path):
    """The loss of a packed batch is the loss of its examples one by one, over completion tokens
    only.
    """
    student = save_model(tmp_path / "student", chat=False)
    training = Training(**QUICK, packing=True, max_steps=1, max_length=400)
    trainer = _trainer(Student(student), data, training, 0, tmp_path / "checkpoints")
    model, tokenizer = trainer.model.eval(), load_tokenizer(student)
    total, tokens, learned = 0.0, 0, []
    for batch in trainer.get_train_dataloader():
        labels = batch["labels"][0]
        learned += [t for t in labels.tolist() if t != -100]
        with torch.no_grad():
            logits = model(batch["input_ids"], position_ids=batch["position_ids"]).logits[0]
        total += torch.nn.functional.cross_entropy(
            logits[:-1], labels[1:], ignore_index=-100, reduction="sum"
        ).item()
    single = 0.0
    for prompt, completion in zip(data["prompt"], data["completion"], strict=True):
        x = prompt_ids(tokenizer, prompt)
        y = tokenizer(completion[0]["content"] + "</s>\n\n", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([x + y])).logits[0, len(x) - 1 : -1]
        single += torch.nn.functional.cross_entropy(logits, torch.tensor(y), reduction="sum").item()
        tokens += len(y)
    assert len(learned) == tokens and learned.count(tokenizer.eos_token_id) == len(data)
    assert total == pytest.approx(single, rel=1e-4)


def test_a_base_student_is_published_with_the_format_it_was_scored_in(base_model, data, tmp_path):
    place = train(Student(base_model), data, Training(**QUICK, max_steps=1), 0, tmp_path)
    before, after = load_tokenizer(base_model), AutoTokenizer.from_pretrained(place / "model")
    assert before.chat_template is None
    messages = [{"role": "system", "content": "Be brief."}, *data["prompt"][0]]
    assert prompt_ids(after, messages) == prompt_ids(before, messages)
    [scored] = ChatFormat(Student(base_model)).render([(messages, "So.")])
    assert scored.context == prompt_ids(after, messages)


def test_packing_without_steps_is_refused():
    with pytest.raises(
        InputError,
        match=r"training\.packing .*training\.max_steps",
    ):
        Training(packing=True)


def test_switches_of_the_template_reach_the_trainer_and_the_trained_student(tmp_path, data):
    folder = save_model(tmp_path / "student")
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}"
        "{% endfor %}{{ ' loud' if loud }}"
    )
    make_tokenizer(template).save_pretrained(folder)
    student = Student(folder, chat_template_kwargs={"loud": True})
    training = Training(**QUICK, max_steps=1)
    trainer = _trainer(student, data, training, 0, tmp_path / "checkpoints")
    ids = next(iter(trainer.train_dataset))["input_ids"]
    assert trainer.processing_class.decode(ids).endswith(" loud")
    place = train(student, data, training, 0, tmp_path)
    own = AutoTokenizer.from_pretrained(place / "model")
    assert own.apply_chat_template(data["prompt"][0], tokenize=False).endswith(" loud")
    assert place != train(Student(folder), data, training, 0, tmp_path)


def test_two_gpus_train_the_student_that_one_trains(chat_model, data, tmp_path, monkeypatch):
    """A plain Trainer takes a batch for each of them."""
    student, training = Student(chat_model), Training(**QUICK, num_train_epochs=1)
    one = train(student, data, training, 0, tmp_path / "one")
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    two = train(student, data, training, 0, tmp_path / "two")
    steps = [json.loads((place / "student.json").read_text())["steps"] for place in (one, two)]
    assert steps == [6, 6]
    assert_same_weights(one, two)


def test_a_training_that_is_out_of_memory_takes_the_same_steps_in_smaller_passes(
    chat_model, data, tmp_path, monkeypatch
):
    student, training = Student(chat_model), Training(**QUICK, num_train_epochs=1)
    whole = train(student, data, training, 0, tmp_path / "whole")
    forward, sizes = LlamaModel.forward, []

    def small(self, input_ids=None, *args, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", small)
    parts = train(student, data, training, 0, tmp_path / "parts")
    assert sizes == [4, 2] + [1] * 24
    facts = [json.loads((place / "student.json").read_text()) for place in (whole, parts)]
    assert [f["steps"] for f in facts] == [6, 6] and facts[0]["training"] == facts[1]["training"]
    assert_same_weights(whole, parts)


def assert_same_weights(one, two):
    a, b = (AutoModelForCausalLM.from_pretrained(p / "model").state_dict() for p in (one, two))
    assert all(torch.allclose(a[k], b[k], atol=1e-3) for k in a)
