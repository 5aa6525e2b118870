"""The calibration as preferences: each prompt's best answer against its worst, for DPO."""

from typing import Any

from datasets import Dataset, Features, Value

from persyn_datasets.config.reasoning import KeepReasoning, as_trained
from persyn_datasets.data.reasoning import read
from persyn_datasets.data.schema import MESSAGES, MESSAGES_WITH_CALLS
from persyn_datasets.data.tools import COLUMN as TOOLS
from persyn_datasets.data.tools import message

FEATURES = Features(
    {
        "prompt_id": Value("string"),
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "chosen_teacher": Value("string"),
        "rejected_teacher": Value("string"),
        "margin": Value("float64"),
    }
)
WITH_TOOLS = Features(
    FEATURES
    | {"chosen": MESSAGES_WITH_CALLS, "rejected": MESSAGES_WITH_CALLS, TOOLS: Value("string")}
)


def preferences(ranked: Dataset, keep: KeepReasoning = "inline") -> Dataset:
    """Rows of `Rank` as TRL's explicit-prompt preferences (conversational), best against worst.

    - `margin` is the difference of their rewards; a prompt on which it is 0, or both answers are
      the same text, gives no row: such a pair teaches nothing and moves weights all the same.
    - An answer that `max_tokens` cut off may be rejected, not chosen. A thought that was cut off
      has no answer, and is neither.
    - The texts are those on which the student is trained: see `keep_reasoning` of `Synthesize`.
    - `tools` are the prompts', where they have that column, and answers hold their `tool_calls`.
    """
    features = WITH_TOOLS if TOOLS in ranked.column_names else FEATURES

    def compared(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        tools = batch.get(TOOLS) or [None] * len(batch["prompt_id"])
        columns = zip(batch["prompt_id"], batch["messages"], batch["responses"], tools, strict=True)
        found = (
            (_compared(key, messages, row, keep, features is WITH_TOOLS), offered)
            for key, messages, row, offered in columns
        )
        rows = [row | {TOOLS: offered} for row, offered in found if row]
        return {key: [row[key] for row in rows] for key in features}

    return ranked.map(
        compared,
        batched=True,
        remove_columns=ranked.column_names,
        features=features,
        load_from_cache_file=False,
        desc="Preferences",
    )


def _compared(
    prompt_id: str,
    messages: list[Any],
    responses: list[dict[str, Any]],
    keep: KeepReasoning,
    with_tools: bool,
) -> dict[str, Any] | None:
    """One row; None if the prompt gives none."""
    answers = [
        r for r in responses if r["reward"] is not None and (r["text"] or r.get("tool_calls"))
    ]
    whole = [r for r in answers if r["finish_reason"] != "length"]
    if not whole:
        return None
    best = max(whole, key=lambda r: r["reward"])
    worst = min(answers, key=lambda r: r["reward"])
    chosen, rejected = (_said(r, keep, with_tools) for r in (best, worst))
    margin = best["reward"] - worst["reward"]
    if margin <= 0 or chosen == rejected:
        return None
    return {
        "prompt_id": prompt_id,
        "prompt": messages,
        "chosen": [chosen],
        "rejected": [rejected],
        "chosen_teacher": best["teacher"],
        "rejected_teacher": worst["teacher"],
        "margin": margin,
    }


def _said(response: dict[str, Any], keep: KeepReasoning, with_tools: bool) -> Any:
    """An answer as a message; as JSON where it may have calls."""
    text = read(response, as_trained(keep))
    if with_tools:
        return message(text, response["tool_calls"])
    return {"role": "assistant", "content": text}
