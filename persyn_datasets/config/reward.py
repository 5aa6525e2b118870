"""The combined reward as a recipe states it: r = (1 − α)·r_q + α·r_l."""

from dataclasses import dataclass
from typing import Literal, get_args

from persyn_datasets.config.errors import InputError

Learnability = Literal["log-probability", "rsr", "target"]
Normalize = Literal["prompt", "corpus", "zscore", "rank", "none"]


@dataclass(frozen=True)
class Reward:
    """See `Rank`, which does what this says.

    Raises:
        InputError: α is outside of [0, 1], or a choice is none of those above.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    alpha: float = 0.4
    normalize: Normalize = "prompt"
    learnability: Learnability = "log-probability"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(
                f"reward.alpha is {self.alpha}; expected a value in [0, 1] (the paper's best is "
                "0.4)."
            )
        for key, kinds in (
            ("normalize", get_args(Normalize)),
            ("learnability", get_args(Learnability)),
        ):
            if getattr(self, key) not in kinds:
                raise InputError(
                    f"reward.{key} is {getattr(self, key)!r}; expected one of {', '.join(kinds)}."
                )
