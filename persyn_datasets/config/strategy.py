"""Who answers a prompt: the strategies by name, what their baselines are, and a budget.

Specifications only; `strategies` works with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher

# Who answers a prompt.
STRATEGIES = {
    "persyn": "the teacher that the router picks",
    "quality-only": "the teacher that the router picks, trained on quality alone (α = 0)",
    "learnability-only": "the teacher that the router picks, trained on learnability alone (α = 1)",
    "shares-at-random": "the teacher that the router picks for another prompt, dealt at random",
    "best-per-group": "the best teacher of its group of prompts",
    "nearest-neighbours": "the best teacher of the calibration prompts nearest to it",
    "best-single": "the teacher of the largest mean reward",
    "strong": "the strongest teacher",
    "mix": "the strongest or the weakest teacher, drawn at a fixed ratio",
    "family-strong": "the strongest teacher of the student's own family",
    "car": "the teacher of the largest Compatibility-Adjusted Reward",
    "random": "a teacher drawn at random",
    "oracle": "the teacher whose answer to this very prompt was the best",
}
# These have a router beside them and assign without it: what it must be judged by.
REASSIGNED = {"shares-at-random", "best-per-group", "nearest-neighbours"}
ROUTED = {"persyn", "quality-only", "learnability-only", *REASSIGNED}
ALPHA = {"quality-only": 0.0, "learnability-only": 1.0}


@dataclass(frozen=True)
class Baselines:
    """What the strategies without a router depend on.

    Args:
        strong: name of the strongest teacher. Default: the largest `size`, of equals the one listed
            first.
        weak: name of the weakest, for `mix`. Default: the smallest `size`.
        strong_share: of the prompts that `mix` gives to the strongest, in expectation (1:4 in arXiv
            2502.12143).
        beta: β of `car` (3 in arXiv 2411.07133).
        seed: of the draws of `mix` and `random`, where each prompt draws for itself, and of
            `shares-at-random`.
        group: a column of the prompts, e.g. their subject: the best teacher of each group is what a
            router must beat. Default: clusters of what the router reads.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    strong: str | None = None
    weak: str | None = None
    strong_share: float = 0.2
    beta: float = 3.0
    seed: int = 0
    group: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strong_share <= 1:
            raise InputError(
                f"baselines.strong_share is {self.strong_share}; expected a share from 0 to 1."
            )
        if self.beta < 0:
            raise InputError(f"baselines.beta is {self.beta}; expected 0 or more.")


@dataclass(frozen=True)
class Budget:
    """What the answers of a synthesis may cost, at the prices and lengths that calibration
    measured.

    Args:
        usd: in all, by the teachers' `price`; a teacher without one is free.
        tokens: in all, of prompts and answers; instead of `usd`.
        max_share: teacher → the largest share of the prompts that it may get.

    Raises:
        InputError: a limit that is none, or two for the same.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    usd: float | None = None
    tokens: float | None = None
    max_share: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.usd is not None and self.tokens is not None:
            raise InputError("budget: found usd and tokens; give one of them.")
        if self.usd is None and self.tokens is None and not self.max_share:
            raise InputError("budget: expected usd, tokens or max_share, e.g. budget: 200 (USD).")
        for key, value in (("usd", self.usd), ("tokens", self.tokens), *self.max_share.items()):
            if value is not None and value < 0:
                raise InputError(f"budget.{key} is {value}; expected 0 or more.")

    def check(self, teachers: Sequence[Teacher]) -> None:
        """Raises `InputError` if it names a teacher that is not among these, or one has no price
        that needs one.
        """
        names = [t.name for t in teachers]
        for name in self.max_share:
            if name not in names:
                raise InputError(
                    f"budget.max_share: {name!r} is no teacher; they are {', '.join(names)}."
                )
        free = [
            t.name
            for t in teachers
            if not t.price and (t.base_urls or not any(t.price for t in teachers))
        ]
        if self.usd is not None and free:
            raise InputError(
                f"budget is {self.usd} USD, but the teacher {free[0]!r} has no price; add price: "
                "{input: …, output: …}, in USD per million tokens (0 if it is free)."
            )

    @property
    def unit(self) -> str:
        return "usd" if self.tokens is None else "tokens"

    @property
    def limit(self) -> float:
        limit = self.usd if self.tokens is None else self.tokens
        return inf if limit is None else limit
