"""Answered rows as one conversation each, for trainers that read one column `messages`."""

from typing import Any

from datasets import Dataset, Features, Value

from persyn_datasets.data.schema import MESSAGES

FEATURES = Features(
    {"messages": MESSAGES, "prompt_id": Value("string"), "teacher": Value("string")}
)


def conversations(answered: Dataset) -> Dataset:
    """Rows of `Synthesize` as `messages`, prompt and completion in one list, with `prompt_id` and
    `teacher`. Rows that failed are left out.

    What a teacher thought stays within the content of its message: LLaMA-Factory 0.9.5 and ms-swift
    4.6.0 drop a key for it.
    """
    rows = answered.filter(
        lambda error: error == "", input_columns="error", load_from_cache_file=False
    )

    def joined(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        both = zip(batch["prompt"], batch["completion"], strict=True)
        messages = [
            [{key: m[key] for key in ("role", "content")} for m in [*prompt, *completion]]
            for prompt, completion in both
        ]
        return {"messages": messages} | {key: batch[key] for key in ("prompt_id", "teacher")}

    return rows.map(
        joined,
        batched=True,
        remove_columns=rows.column_names,
        features=FEATURES,
        load_from_cache_file=False,
        desc="Conversations",
    )
