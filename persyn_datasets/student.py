"""The student: the model that is to learn."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Student:
    """The model that is to learn; a Hub id or local folder. `family` groups it with teachers of its own kind."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    model: str
    revision: str | None = None
    family: str | None = None
    trust_remote_code: bool = False
