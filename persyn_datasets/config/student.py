"""The student: the model that is to learn, and how it is trained."""

from dataclasses import dataclass
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import OF_TEMPLATES


@dataclass(frozen=True)
class Student:
    """The model that is to learn; a Hub id or local folder. `family` groups it with teachers of its
    own kind. `chat_template_kwargs` are switches of its chat template, e.g. `{"enable_thinking":
    false}`: it is scored, trained and measured with them.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    model: str
    revision: str | None = None
    family: str | None = None
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in OF_TEMPLATES & set(self.chat_template_kwargs or {}):
            raise InputError(
                f"student.chat_template_kwargs has {name!r}, which persyn or the prompt sets; "
                "remove it."
            )


@dataclass(frozen=True)
class Lora:
    """Train adapters of rank `r`, scaled by `alpha`/`r`, on all linear layers; they are merged when
    training ends.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    r: int = 16
    alpha: int = 32


@dataclass(frozen=True)
class Training:
    """How a student is trained. The keys are those of TRL's `SFTConfig`, and `lora` (default: all
    weights).

    `warmup_steps` below 1 is a share of all steps. `max_steps` overrides `num_train_epochs`.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    learning_rate: float = 1e-5
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    weight_decay: float = 0.0
    num_train_epochs: float = 2
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 4
    max_length: int = 2048
    packing: bool = False
    lora: Lora | None = None

    def __post_init__(self) -> None:
        if self.packing and self.max_steps < 1:
            raise InputError(
                "training.packing puts as many examples into a step as fit, so the number of steps "
                "depends on the length of the answers, and strategies are not comparable; set "
                "training.max_steps, or drop packing."
            )
