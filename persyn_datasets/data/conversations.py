"""Answered rows as one conversation each, for trainers that read one column `messages`."""

import json
from typing import Any

from datasets import Dataset, Features, Json, List, Value

from persyn_datasets.data.schema import MESSAGES, MESSAGES_WITH_CALLS
from persyn_datasets.data.tools import COLUMN as TOOLS

FEATURES = Features(
    {"messages": MESSAGES, "prompt_id": Value("string"), "teacher": Value("string")}
)
WITH_TOOLS = Features({**FEATURES, "messages": MESSAGES_WITH_CALLS, TOOLS: Value("string")})


def conversations(answered: Dataset) -> Dataset:
    """Rows of `Synthesize` as `messages`, prompt and completion in one list, with `prompt_id` and
    `teacher`; with `tools`, and `tool_calls` in their messages, where the rows have `tools`. Rows
    that failed are left out.

    What a teacher thought stays within the content of its message: LLaMA-Factory 0.9.5 and ms-swift
    4.6.0 drop a key for it.
    """
    rows = answered.filter(
        lambda error: error == "", input_columns="error", load_from_cache_file=False
    )
    with_tools = TOOLS in rows.column_names
    if with_tools:  # as the JSON that they are, which `datasets` would not write again as it was
        rows = rows.cast_column("completion", List(Json(decode=False)))
    features = WITH_TOOLS if with_tools else FEATURES
    kept = [key for key in features if key != "messages"]

    def joined(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        both = zip(batch["prompt"], batch["completion"], strict=True)
        messages = [
            [_message(message, with_tools) for message in (*prompt, *answer)]
            for prompt, answer in both
        ]
        return {"messages": messages} | {key: batch[key] for key in kept}

    return rows.map(
        joined,
        batched=True,
        remove_columns=rows.column_names,
        features=features,
        load_from_cache_file=False,
        desc="Conversations",
    )


def _message(message: Any, as_json: bool) -> Any:
    if isinstance(message, str):
        return message
    plain = {key: message[key] for key in ("role", "content")}
    return json.dumps(plain, ensure_ascii=False) if as_json else plain
