"""How students are evaluated: tasks of lm-evaluation-harness, and the user's own held-out prompts.
See `evaluate`.
"""

from dataclasses import dataclass, field

from persyn_datasets.config.credentials import check_address
from persyn_datasets.config.errors import InputError


@dataclass(frozen=True)
class HeldOut:
    """Prompts that no student has seen; see `sources.load`.

    `answer_column`: exact match of the student's greedy answers (at most `max_tokens`) by
        math-verify.
    `response_column`: mean log-probability per token of these reference responses, in nats: it
    tells students apart that are too small for right answers.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    path: str
    name: str | None = None
    split: str = "test"
    revision: str | None = None
    column: str | None = None
    answer_column: str | None = None
    response_column: str | None = None
    max_tokens: int = 1024


@dataclass(frozen=True)
class Evaluation:
    """How students are evaluated.

    `tasks`: names of tasks or groups of lm-evaluation-harness; `include_path`: a folder with YAML
    files of your own ones, which may run code; a group there may only name tasks from there.
    `data`: of a task of ours, the file (JSON, JSON Lines, CSV or Parquet) that is read instead of
    its data set on the Hub, with the same columns. `limit`: prompts per task, at most.
    `max_gen_toks`: new tokens of an answer, at most, where a task states no limit of its own; half
    the student's context, if that is less. The other keys are those of `lm_eval.simple_evaluate`.

    Beside the harness's tasks there are `persyn_gsm8k`, `persyn_math` and `persyn_svamp`, graded by
    the verifier that scores teachers' answers; see `docs/verifiers.md`.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    tasks: tuple[str, ...] = ()
    include_path: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = True
    max_gen_toks: int = 1024
    batch_size: int | str = 8
    held_out: HeldOut | None = None

    def __post_init__(self) -> None:
        if self.max_gen_toks < 1:
            raise InputError(f"evaluation.max_gen_toks is {self.max_gen_toks}; expected 1 or more.")
        for task, file in self.data.items():
            fix = "Download the file, and give its path."
            check_address(f"evaluation.data.{task}", file, fix)
