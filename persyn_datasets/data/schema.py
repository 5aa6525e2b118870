"""The schema is the contract: the columns that each stage adds, as Arrow features.

A stage returns only the columns that it adds or replaces; every other column passes through. Pass
`features=Features({**dataset.features, **schema.GENERATED})` to `map` to fix the types beforehand.
`error` is an empty string where there is none, so that a column's type never depends on its first
rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Json, List, Value

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.data.tools import COLUMN as TOOLS

PROMPT_ID = {"prompt_id": Value("string")}
MESSAGES = List({"role": Value("string"), "content": Value("string")})
MESSAGES_WITH_CALLS = List(Json())  # an object each, with `tool_calls` or without
PROMPT = PROMPT_ID | {"messages": MESSAGES}

COUNTS = {key: Value("int64") for key in ("prompt_tokens", "completion_tokens", "reasoning_tokens")}
RESPONSE = {
    "teacher": Value("string"),
    "sample": Value("int64"),
    "text": Value("string"),
    "reasoning": Value("string"),
    "tool_calls": Value("string"),
    "finish_reason": Value("string"),
    **COUNTS,
    "error": Value("string"),
}
SCORED_RESPONSE = RESPONSE | {key: Value("float64") for key in ("quality", "learnability", "rsr")}
TARGET = {"target": Value("float64")}  # of each response, where there is a target
RANKED_RESPONSE = SCORED_RESPONSE | {"reward": Value("float64"), "rank": Value("int64")}

GENERATED = PROMPT | {"responses": List(RESPONSE)}
SCORED = {"responses": List(SCORED_RESPONSE)}
RANKED = {"responses": List(RANKED_RESPONSE), "best_teacher": Value("string")}
PAIRS = PROMPT | {
    "teacher_a": Value("string"),
    "teacher_b": Value("string"),
    "label": Value("int64"),
    "margin": Value("float64"),
}
ROUTED = PROMPT | {"teacher": Value("string"), "router_scores": List(Value("float32"))}
SYNTHESIZED = PROMPT_ID | {
    "prompt": MESSAGES,
    "completion": MESSAGES,
    "reasoning": Value("string"),
    "teacher": Value("string"),
    "finish_reason": Value("string"),
    **COUNTS,
    "error": Value("string"),
}


def synthesized(columns: Iterable[str]) -> dict[str, Any]:
    """What `Synthesize` adds to rows with these columns."""
    if TOOLS not in columns:
        return SYNTHESIZED
    return SYNTHESIZED | {"completion": MESSAGES_WITH_CALLS, TOOLS: Value("string")}


def with_target(stage: dict[str, Any]) -> dict[str, Any]:
    """`SCORED` or `RANKED` of a `Score` that has a target."""
    return stage | {"responses": List(stage["responses"].feature | TARGET)}


# Columns that trainers take for something of their own, beside `prompt` and `completion` (TRL 1.16:
# `text` and `messages` are trained instead or change the end token, `chosen` and `rejected` make
# pairs of it, `input_ids` and its like are taken for tokens, `seq_lengths` for a packed row's, the
# others change the template). Not `tools`: they are what the teachers were offered. Nor what only
# ms-swift takes (`system`, `history`, `query`, `response`): it reads the config `messages`, without
# the user's columns; and LLaMA-Factory reads the columns that its dataset_info.json names.
STEERING = (
    *("messages", "conversations", "text", "chosen", "rejected"),
    *("chat_template_kwargs", "image", "images"),
    *("input_ids", "attention_mask", "labels", "completion_mask", "assistant_masks"),
    "seq_lengths",
)


def steering(columns: Iterable[str]) -> list[str]:
    """Those of the columns that would change what a trainer trains on."""
    return [column for column in columns if column in STEERING]


_ADDED_BY = {"messages": "load_prompts", "prompt_id": "Generate", "responses": "Generate"}
_ADDED_BY |= {"teacher": "Route", "router_scores": "Route"}
_ADDED_BY |= {key: "Score" for key in ("quality", "learnability", "rsr", "target")}
_ADDED_BY |= {key: "Rank" for key in ("reward", "rank", "best_teacher")}


def require(found: Iterable[str], needed: str, stage: str, where: str = "column") -> None:
    """Raises `InputError` if what a stage needs is not there, with the stage that adds it."""
    if needed not in (found := list(found)):
        raise InputError(
            f"{stage} needs the {where} {needed!r}, which {_ADDED_BY[needed]} adds; found "
            f"{', '.join(found) or 'none'}. Map {_ADDED_BY[needed]} over the rows first."
        )


MOST_BYTES = 2**31 - 1  # of the texts in one column of a batch


def check_size(texts: Sequence[str], stage: str) -> None:
    """Raises `BuildError` if Arrow cannot hold the answers of one batch."""
    characters = sum(map(len, texts))
    if 4 * characters <= MOST_BYTES or sum(len(text.encode()) for text in texts) <= MOST_BYTES:
        return
    raise BuildError(
        f"{stage}: the answers of this batch have {characters / 2**30:.1f} GiB, and a batch holds "
        "2. They are kept: give map a batch_size, e.g. 1000, and run it again."
    )
