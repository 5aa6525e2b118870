"""What becomes of a teacher's reasoning, as recipes and stages say it."""

from typing import Literal

# In the completion: within its text, in a column beside it, or nowhere.
KeepReasoning = Literal["inline", "column", "drop"]
# By the signals that the student gives: the answer alone, the thought alone, or both as one text.
Reads = Literal["answer", "reasoning", "both"]


def as_trained(keep: KeepReasoning) -> Reads:
    """What the student reads of a response when it is trained."""
    return "both" if keep == "inline" else "answer"
