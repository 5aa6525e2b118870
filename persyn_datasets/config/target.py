"""The target: reference answers of the kind that the student shall become good at."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from persyn_datasets.config.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


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

    def load(self) -> "Dataset":
        """Rows of `prompt_id`, `messages` and the response column.

        Raises:
            InputError: the column is not there, or a cell of it is empty or no text.
        """
        from persyn_datasets.data.prompts import load_prompts

        source = {k: getattr(self, k) for k in ("path", "name", "split", "revision", "column")}
        rows = load_prompts(**source)
        if self.response_column not in rows.column_names:
            raise InputError(
                f"target.response_column: {self.path} has no column {self.response_column!r}; it "
                f"has {', '.join(rows.column_names)}."
            )
        for i, cell in enumerate(rows[self.response_column]):
            if not isinstance(cell, str) or not cell.strip():
                raise InputError(
                    f"{self.path}, row {i}: its {self.response_column!r} is {cell!r}; fill it or "
                    "remove the row."
                )
        return rows

    def check(self, prompts: "Dataset", where: str = "prompts") -> None:
        """Raises `InputError` if a target's prompt is among those: θ⁺ has seen its answer."""
        seen = set(prompts["prompt_id"])
        if both := sum(key in seen for key in self.load()["prompt_id"]):
            raise InputError(
                f"{self.path}: {both} of the target's prompts are among the {where}; the signal "
                "needs others. Remove them from one."
            )
