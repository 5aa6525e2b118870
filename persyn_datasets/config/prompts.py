"""Where prompts come from, and what they are compared with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A benchmark on the Hub, or in a folder or file (where `split` does not count)."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    path: str
    name: str | None = None
    split: str = "test"
    revision: str | None = None


@dataclass(frozen=True)
class Decontaminate:
    """What the prompts are compared `against`, as paths or `Benchmark`s; and whether to `drop`
    those that overlap.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    against: tuple[str | Benchmark, ...]
    drop: bool = False


@dataclass(frozen=True)
class Prompts:
    """Where the prompts come from; see `sources.load`.

    `decontaminate` compares them with benchmarks: see `contamination`. `license` and `language`
    (Hub ids, e.g. apache-2.0 and en) are for the card. Default: what the prompts' own card on the
    Hub says.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    column: str | None = None
    answer_column: str | None = None
    license: str | None = None
    language: str | tuple[str, ...] | None = None
    decontaminate: Decontaminate | None = None
