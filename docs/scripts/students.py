"""Makes docs/students.md: what the templates in TRL's wheel do to an answer that is trained.

    python docs/scripts/students.py

Each template gets a tokenizer of its own: byte-level BPE with the pre-tokenizer of Qwen's models,
and each control string of the template as one token. What is trained is asked of `SFTTrainer`
itself, with a tiny random model; where we score, of `ChatFormat`.
"""

import json
import re
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = re.compile(r"<[|｜][^<>\s]{1,40}[|｜]>|</?(?:think|s|bos|eos|image)>|<[a-z]+_of_turn>")


def names() -> list[str]:
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Merges from the templates themselves, so that words are tokens."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train([str(TEMPLATES / f"{name}.jinja") for name in names()], trainer)
    state = json.loads(backend.to_str())["model"]
    return state["vocab"], [tuple(pair) for pair in state["merges"]]


def _pre_tokenizer() -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    vocabulary, merges = _vocabulary()
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer, backend.decoder = _pre_tokenizer(), decoders.ByteLevel()
    controls = sorted({*CONTROL.findall(template), "<|bos|>", "<|eos|>", "<|pad|>"})
    backend.add_special_tokens([AddedToken(c, normalized=False) for c in controls])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
    )


def save_student(name: str, folder: Path) -> str:
    """A tiny random student that speaks by this template."""
    tokenizer = tokenizer_for((TEMPLATES / f"{name}.jinja").read_text())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trained_by_trl(
    student: str, tokenizer: Any, rows: list[tuple[list[dict[str, str]], str]], **options: Any
) -> list[tuple[list[int], int]]:
    """The ids of each row and how many of them carry no loss, as `SFTTrainer` prepares them."""
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [
            {"prompt": messages, "completion": [{"role": "assistant", "content": answer}]}
            | ({"chat_template_kwargs": options} if options else {})
            for messages, answer in rows
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_length=None,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        trainer = SFTTrainer(student, config, train_dataset=data, processing_class=tokenizer)
        prepared = trainer.train_dataset
        return [
            (row["input_ids"], sum(label == -100 for label in row["labels"])) for row in prepared
        ]
