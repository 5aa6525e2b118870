"""What a build knows of itself: the one record that the builder writes, as `stats.json`, and that
report, cards, page and commands read.

A key that is not required came after version 0.1.0, whose files still open.
"""

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from persyn_datasets.store.files import Files
from persyn_datasets.store.meter import Work
from persyn_datasets.store.statistics import Interval

STATS = "stats.json"


class Line(TypedDict):
    """A line of the account: see `engines.account.Tally`."""

    stage: str
    teacher: str
    answers: int
    reused: int
    failed: int
    retries: int
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: NotRequired[int]
    usd: float
    reused_usd: float
    seconds: float
    new_tokens: int


class Ceiling(TypedDict):
    """See `ceiling.ceiling`."""

    prompts: int
    samples: int
    apparent: Interval
    predictable: Interval
    router: Interval
    left: Interval


# See `metrics.compare`. The keys of the measures are lines: `router`, `best single`, `oracle` …
Metrics = TypedDict(
    "Metrics",
    {
        "prompts": int,
        "best_single_teacher": str,
        "reward": dict[str, float],
        "regret": dict[str, float],
        "hit@1": dict[str, float],
        "hit@3": dict[str, float],
        "advantage": Interval,
        "advantage_over_random": Interval,
        "routed": NotRequired[dict[str, int]],
        "against": NotRequired[dict[str, Interval]],
        "ceiling": NotRequired[Ceiling],
        "cross_fitted": NotRequired[bool],
        "held_out": NotRequired["Metrics"],
    },
)


class Temperature(TypedDict):
    """What the router's outputs were divided by, and its calibration error before and after."""

    temperature: float
    before: float | None
    after: float | None


class Reliability(TypedDict):
    """See `metrics.reliability`."""

    predicted: float
    observed: float
    comparisons: int


class Routing(TypedDict):
    """See `measure.measure_routing`."""

    confidence: list[int]
    mean_confidence: float
    reliability: list[Reliability]
    calibration_error: float | None
    temperature: Temperature


class Analysis(TypedDict):
    """See `ablations.analyse`."""

    names: list[str]
    difficulty: list[dict[str, Any]]
    length: list[dict[str, Any]]
    confusion: list[list[int]]
    by_size: list[dict[str, float]]
    by_alpha: list[dict[str, float]]


class Luck(TypedDict):
    """See `luck.luck`."""

    oracle: float
    shuffled: float
    with_length: float | None
    best_single: dict[str, str]
    with_bold: NotRequired[float | None]
    bold: NotRequired[dict[str, float]]
    largest_mean: NotRequired[str]
    most_wins: NotRequired[str]
    without_question: NotRequired[float | None]


class Spend(TypedDict):
    """What a budget is expected to buy: see `budget.within_budget`."""

    unit: str
    spend: float
    reward: float
    multiplier: float
    gap: float


class Tradeoff(TypedDict):
    """See `budget.tradeoff`."""

    unit: str
    curve: list[dict[str, float]]
    teachers: dict[str, dict[str, float]]
    budget: NotRequired[Spend]


class Learned(TypedDict):
    """What is known of the router; None for a strategy without one."""

    router: Metrics | None
    routing: Routing | None
    analysis: Analysis | None
    tradeoff: Tradeoff | None
    luck: NotRequired[Luck]


class OfTeacher(TypedDict):
    """See `measure.measure`."""

    quality: float | None
    learnability: float | None
    target: float | None
    reward: float | None
    completion_tokens: float | None
    characters: list[float] | None
    routed_characters: list[float] | None
    calibration_failed: int
    best: int
    routed: int


class Thoughts(TypedDict):
    """Of a teacher: see `thinking.measure`."""

    answers: int
    thoughts: int
    cut_off: int
    tokens: float | None
    reasoning_tokens: float | None


class OfThird(TypedDict):
    """Of a third of the prompts: see `thinking.measure`."""

    prompts: int
    thinking: float | None
    others: float | None


class Thinking(TypedDict):
    """See `thinking.measure`."""

    teachers: dict[str, Thoughts]
    by_difficulty: list[OfThird]


class Measured(TypedDict):
    """What came out: see `measure.measure`."""

    rows: int
    failed: int
    errors: dict[str, int]
    per_teacher: dict[str, OfTeacher]
    thinking: NotRequired[Thinking | None]


class Planned(TypedDict):
    """How many answers are asked for: see `plan.plan`."""

    prompts: int
    teachers: int
    calibration: int
    samples: int
    asked_twice: int
    generations: int
    generate_then_select: int


class Use(TypedDict):
    """What an answer, or all answers of a stage, use: tokens, USD at most, and seconds.

    `prompt_tokens` are expected; as many as `prompt_tokens_at_most` where the teacher's tokenizer
    is not here. `seconds` is None where a teacher's speed is not known.
    """

    prompt_tokens: float
    prompt_tokens_at_most: float
    completion_tokens: float
    usd: float
    seconds: float | None


class Dearest(TypedDict):
    """The teacher of the highest price, and USD of all prompts' answers by it."""

    name: str
    usd: float


class Estimate(TypedDict):
    """What a build will use at most: see `plan.estimate`.

    `answer`: by teacher, one answer; `Generate` and `Synthesize`: all of the stage, where a
    synthesis spreads its prompts evenly over the teachers; USD of `generate_then_select`.
    """

    answer: dict[str, Use]
    Generate: Use
    Synthesize: Use
    generate_then_select: float
    dearest: Dearest


class License(TypedDict):
    """Of one source: `of` is prompts, teacher or router."""

    of: str
    name: str
    family: str | None
    license: str | None


class Sources(TypedDict):
    """Where it comes from: see `licenses.sources`."""

    licenses: list[License]
    language: list[str]
    models: list[str]
    local: list[str]


class Cost(TypedDict):
    """USD of all answers in use, and of generate-then-select."""

    usd: float
    generate_then_select_usd: float


class SecondOpinions(TypedDict):
    """How many prompts two teachers answered, and how often the second was the better."""

    asked: int
    better: int


class Judged(TypedDict):
    """What is known of the judge of the calibration.

    It was `asked` so many times; `failed` requests had no answer, `unread` ones no verdict. Of
    `pairs` of answers it said the same of `agreed` in both orders. `spread` is the sum of the
    standard deviations of its scores of an answer, over the `repeated` ones.
    """

    name: str
    asked: int
    failed: int
    unread: int
    pairs: NotRequired[int]
    agreed: NotRequired[int]
    repeated: NotRequired[int]
    spread: NotRequired[float]


class Added(TypedDict):
    """Rows of a later `persyn synthesize` that were published with a build."""

    content: str
    rows: int
    failed: int
    router: str
    prompts: str


class Build(Learned, Measured, Planned, Sources, Files):
    """A finished build. `build` is its id: see `inputs.build_id`."""

    build: str
    version: str
    name: str
    strategy: str
    student: str
    contamination: dict[str, Any] | None
    second_opinions: SecondOpinions | None
    estimate: Estimate
    account: list[Line]
    versions: dict[str, str]
    cost: Cost | None
    compute: NotRequired[dict[str, Work]]
    max_length: NotRequired[int | None]
    judge: NotRequired[Judged]
    preferences: NotRequired[bool]
    added: NotRequired[list[Added]]


class Answered(Sources):
    """What `persyn synthesize` notes of its answers."""

    name: str
    prompts: str
    rows: int
    failed: int
    errors: dict[str, int]
    per_teacher: dict[str, dict[str, int]]
    router: str
    warnings: list[str]
    account: list[Line]
    versions: dict[str, str]
    max_length: None


def read(folder: Path) -> Build | None:
    """The record of the finished build in a folder; None if there is none."""
    path = folder / STATS
    return json.loads(path.read_text()) if path.exists() else None
