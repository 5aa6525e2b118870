"""The target: reference answers of the kind that the student is to become good at."""

from dataclasses import dataclass

from persyn_datasets.config.errors import InputError


@dataclass(frozen=True)
class Target:
    """Prompts with reference answers, none of them among those that teachers answer or that
    students are measured on; some 100 to 200 are enough. See `signals.target`.

    `column` has the prompts (default: `messages`, else `prompt`), `response_column` the answers.
    θ⁺ is the student after `steps` steps of 8 of them at `learning_rate`; lower the rate for
    a student of billions of parameters.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    path: str
    response_column: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    column: str | None = None
    steps: int = 20
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"target.steps is {self.steps}; expected 1 or more, e.g. 20.")
        if self.learning_rate <= 0:
            raise InputError(
                f"target.learning_rate is {self.learning_rate}; expected more than 0, e.g. 1e-4."
            )
