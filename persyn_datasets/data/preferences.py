"""The calibration as preferences: each prompt's best answer against its worst, for DPO."""

from typing import Any

from datasets import Dataset, Features, Value

from persyn_datasets.config.reasoning import KeepReasoning, as_trained
from persyn_datasets.data.reasoning import read
from persyn_datasets.data.schema import MESSAGES

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


def preferences(ranked: Dataset, keep: KeepReasoning = "inline") -> Dataset:
    """Rows of `Rank` as TRL's explicit-prompt preferences (conversational), best against worst.

    - `margin` is the difference of their rewards; a prompt on which it is 0, or both answers are
      the same text, gives no row: such a pair teaches nothing and moves weights all the same.
    - An answer that `max_tokens` cut off may be rejected, not chosen. A thought that was cut off
      has no answer, and is neither.
    - The texts are those on which the student is trained: see `keep_reasoning` of `Synthesize`.
    """

    def compared(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = zip(batch["prompt_id"], batch["messages"], batch["responses"], strict=True)
        found = (_compared(key, messages, row, keep) for key, messages, row in columns)
        rows = [row for row in found if row]
        return {key: [row[key] for row in rows] for key in FEATURES}

    return ranked.map(
        compared,
        batched=True,
        remove_columns=ranked.column_names,
        features=FEATURES,
        load_from_cache_file=False,
        desc="Preferences",
    )


def _compared(
    prompt_id: str, messages: list[Any], responses: list[dict[str, Any]], keep: KeepReasoning
) -> dict[str, Any] | None:
    """One row; None if the prompt gives none."""
    answers = [r for r in responses if r["reward"] is not None and r["text"]]
    whole = [r for r in answers if r["finish_reason"] != "length"]
    if not whole:
        return None
    best = max(whole, key=lambda r: r["reward"])
    worst = min(answers, key=lambda r: r["reward"])
    chosen, rejected = (read(r, as_trained(keep)) for r in (best, worst))
    margin = best["reward"] - worst["reward"]
    if margin <= 0 or chosen == rejected:
        return None
    return {
        "prompt_id": prompt_id,
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_teacher": best["teacher"],
        "rejected_teacher": worst["teacher"],
        "margin": margin,
    }
