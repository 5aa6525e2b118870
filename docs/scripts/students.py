"""Makes docs/students.md: what the templates in TRL's wheel do to an answer that is trained.

    python docs/scripts/students.py

Each template gets a tokenizer of its own: byte-level BPE with the pre-tokenizer of Qwen's models,
and each control string of the template as one token. What is trained is asked of `SFTTrainer`
itself, with a tiny random model; where we score, of `ChatFormat`.
"""

import json
import re
import tempfile
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset, Features, Value, disable_progress_bars
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from persyn_datasets import InputError
from persyn_datasets.config.student import Student
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data import schema
from persyn_datasets.data.tools import message
from persyn_datasets.report.tables import table
from persyn_datasets.signals import trained_calls
from persyn_datasets.signals.trained_text import ChatFormat, Row, Rows, check

PAGE = Path(__file__).parents[1] / "students.md"
BEGIN = "## Every template in TRL's wheel"

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


def _published(rows: Rows, options: dict[str, Any]) -> Dataset:
    """Rows as they are published: with `tools` where there are some, their messages as JSON."""
    found = [Row(*row) for row in rows]
    columns: dict[str, list[Any]] = {"prompt": [row.messages for row in found]}
    if not any(row.tools for row in found):
        said = [[{"role": "assistant", "content": row.answer}] for row in found]
        columns |= {"completion": said}
        columns |= {"chat_template_kwargs": [options] * len(found)} if options else {}
        return Dataset.from_dict(columns)
    columns["completion"] = [[message(row.answer, row.calls)] for row in found]
    columns["tools"] = [row.tools or None for row in found]
    features = {"prompt": schema.MESSAGES, "completion": schema.MESSAGES_WITH_CALLS}
    return Dataset.from_dict(columns, features=Features({**features, "tools": Value("string")}))


def trained_by_trl(
    student: str, tokenizer: Any, rows: Rows, **options: Any
) -> list[tuple[list[int], int]]:
    """The ids of each row and how many of them carry no loss, as `SFTTrainer` prepares them."""
    from trl import SFTConfig, SFTTrainer

    data = _published(rows, options)
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


USER = [{"role": "user", "content": "What is 2+3?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *USER]
PLAIN, SPACED = "It is 5.", "  It is 5. \n"
CALL = Row(USER, "", trained_calls.TOOLS, trained_calls.calls("5"))
OFFER = Dataset.from_list([{"messages": USER, "tools": trained_calls.TOOLS}])
THINKING = "<think>\nTwo and three are five.\n</think>\n\nThe answer is 5."


def row_of(name: str, folder: Path) -> list[str]:
    """What one template does, and that what we score is what TRL trains."""
    student = Student(save_student(name, folder))
    try:
        check(student, [USER])
    except InputError as error:
        why = "leaves the answer out" if "leaves the answer out" in str(error) else "refuses texts"
        return [name, f"refused: {why} (for images)", "–", "–", "–", "–", "–"]
    form = ChatFormat(student)
    rows = [(USER, answer) for answer in (PLAIN, THINKING, SPACED)]
    plain, thinking, spaced = found = list(form.render(rows))
    trained = trained_by_trl(student.model, form.tokenizer, rows)
    same = [(text.ids, text.loss_from) for text in found] == trained
    same = same and all(text.loss_from <= text.start for text in found)
    asked = form.tokenizer.apply_chat_template(USER, add_generation_prompt=True)["input_ids"]
    left_out = form.tokenizer.decode(asked[plain.loss_from :])
    if plain.added or left_out:
        before = f"{plain.added!r}" + (f" for {left_out!r}" if left_out else "")
    else:
        before = "as asked"
    reasoning = "left out" if thinking.dropped else "kept"
    ends = form.tokenizer.decode(spaced.answer)
    calls = _calls(student, form)
    try:
        check(student, [SYSTEM])
        system = "yes"
    except InputError as error:
        system = "left out: refused" if "leaves out" in str(error) else "refused"
    return [
        name,
        f"`{before}`" if before != "as asked" else before,
        reasoning,
        "kept" if ends == SPACED else f"`{ends!r}`",
        system,
        calls,
        "yes" if same and calls != "NO" else "NO",
    ]


def _calls(student: Student, form: ChatFormat) -> str:
    """What becomes of calls of functions; NO: something else is scored than what is trained."""
    for several, found in ((True, "yes"), (False, "one")):
        teacher = Teacher("m", extra_body={} if several else {"parallel_tool_calls": False})
        try:
            trained_calls.check(student, OFFER, [teacher])
        except InputError as error:
            why = str(error)
            continue
        [ours] = form.render([CALL])
        return (
            found
            if [(ours.ids, ours.loss_from)] == trained_by_trl(student.model, form.tokenizer, [CALL])
            else "NO"
        )
    return "ends otherwise: refused" if "ends a call" in why else "left out: refused"


def main() -> None:
    head = [
        "template",
        "before a plain answer, trained",
        "reasoning in `<think>`",
        "white space at the ends",
        "system message",
        "calls",
        "scored = trained",
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = [row_of(name, Path(folder) / name) for name in names()]
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers"))
    text = PAGE.read_text().partition(BEGIN)[0] if PAGE.exists() else ""
    PAGE.write_text(
        f"{text}{BEGIN}\n\nMade by `python docs/scripts/students.py` with {versions}, "
        f"{datetime.now(UTC):%d %B %Y}: {len(rows)} templates.\n\n{table(head, rows)}\n"
    )


if __name__ == "__main__":
    disable_progress_bars()
    main()
