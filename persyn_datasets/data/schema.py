"""The schema is the contract: the columns that each stage adds, as Arrow features.

A stage returns only the columns that it adds or replaces; every other column passes through. Pass
`features=Features({**dataset.features, **schema.GENERATED})` to `map` to fix the types beforehand.
`error` is an empty string where there is none, so that a column's type never hangs on its first
rows.
"""

from typing import Any

from datasets import List, Value

PROMPT_ID = {"prompt_id": Value("string")}
MESSAGES = List({"role": Value("string"), "content": Value("string")})
PROMPT = PROMPT_ID | {"messages": MESSAGES}

_COUNTS = {"prompt_tokens": Value("int64"), "completion_tokens": Value("int64")}
RESPONSE = {
    "teacher": Value("string"),
    "sample": Value("int64"),
    "text": Value("string"),
    "finish_reason": Value("string"),
    **_COUNTS,
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
    "teacher": Value("string"),
    "finish_reason": Value("string"),
    **_COUNTS,
    "error": Value("string"),
}


def with_target(stage: dict[str, Any]) -> dict[str, Any]:
    """`SCORED` or `RANKED` of a `Score` that has a target."""
    return stage | {"responses": List(stage["responses"].feature | TARGET)}
