"""Teachers: a model *and* how it is asked. A specification only; engines load the model."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

from persyn_datasets.config.credentials import check_server
from persyn_datasets.config.errors import InputError

Message = dict[str, str]
# vLLM's arguments that do not change what a model answers.
WHERE_AND_HOW_FAST = {
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "distributed_executor_backend",
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "enforce_eager",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "cpu_offload_gb",
    "disable_log_stats",
    "block_size",
}
# Keys of a `Sampling` without a default of ours, and what they may be.
RANGES = {
    "top_k": (1, 10**9),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10**9),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}

# What our own keys say, or the conversation does; of `extra_body` and of `chat_template_kwargs`.
OF_BODIES = frozenset(
    "model messages stream n max_tokens max_completion_tokens temperature top_p seed stop top_k "
    "min_p repetition_penalty presence_penalty frequency_penalty chat_template_kwargs "
    "reasoning_effort response_format tools".split()
)
OF_TEMPLATES = frozenset(
    "conversation messages chat_template tokenize add_generation_prompt continue_final_message "
    "tools documents padding truncation max_length return_tensors return_dict".split()
)
OF_RECORDS = frozenset({"prompt", "teacher", "response", "reasoning"})


@dataclass(frozen=True)
class Sampling:
    """How a teacher samples its response. `temperature=0` is greedy decoding.

    Each prompt draws from its own random stream (`seed` and the prompt), so a response does not
    depend on which other prompts shared its batch.

    Attributes:
        top_k: of the likeliest tokens so many are drawn from.
        min_p: tokens are left out whose probability is less than this share of the likeliest one's.
        repetition_penalty: above 1, tokens of prompt and answer become less likely.
        presence_penalty, frequency_penalty: in logits, once and each time that a token is in the
            answer, from -2 to 2.
        own: of a teacher in a recipe, the keys that the teacher states itself; the others are the
            recipe's. It is no part of the value: two samplings that draw alike are equal.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    own: ClassVar[frozenset[str] | None] = None

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 2048
    seed: int = 0
    stop: tuple[str, ...] = ()
    # None: an engine's or server's own default, which is without.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise InputError(
                f"sampling.temperature is {self.temperature}; expected 0 (greedy) or more."
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling.top_p is {self.top_p}; expected a value in (0, 1].")
        if self.max_tokens < 1:
            raise InputError(f"sampling.max_tokens is {self.max_tokens}; expected at least 1.")
        for key, (low, high) in RANGES.items():
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise InputError(
                    f"sampling.{key} is {value}; expected "
                    + (f"{low:g} to {high:g}." if high < 10**9 else f"at least {low:g}.")
                )
        object.__setattr__(
            self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        )

    @property
    def stated(self) -> dict[str, Any]:
        """The keys that have no default of ours, where they are stated."""
        return {key: value for key in RANGES if (value := getattr(self, key)) is not None}

    def under(self, shared: "Sampling") -> "Sampling":
        """The recipe's `shared` sampling with the keys that are this teacher's own."""
        if self.own is None:  # made in Python, with a value for every key
            return self
        return shared.with_own(**{key: getattr(self, key) for key in self.own})

    def with_own(self, **values: Any) -> "Sampling":
        """This shared sampling, with other values for some keys of a teacher, which stay its own
        when the shared ones change."""
        sampling = replace(self, **values)
        object.__setattr__(sampling, "own", frozenset(values))
        return sampling

    def beside(self, shared: "Sampling") -> dict[str, Any]:
        """What a written recipe states of a teacher's sampling beside the `shared` one."""
        own = self.own if self.own is not None else frozenset()
        differs = {f.name for f in fields(self) if getattr(self, f.name) != getattr(shared, f.name)}
        return {key: value for key, value in asdict(self).items() if key in own | differs}


@dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    input: float
    output: float

    def of(self, prompt_tokens: Any, completion_tokens: Any) -> Any:
        """USD of one answer; of several, if the tokens are arrays."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Teacher:
    """A model and the way it is prompted; several teachers may share one model.

    Args:
        model: Hub id or local folder; for `endpoint` the model name that the server knows; for
            `recorded` a Hub dataset id, folder or file with its answers; see `columns`.
        name: the name in the data, unique among the teachers. Default: `model`.
        engine: `transformers` (in this process), `vllm` (in a separate process), `endpoint` (any
            OpenAI-compatible server), `batch` (a provider's batch API, at half the price) or
            `recorded`.
        revision: branch, tag or commit of `model` on the Hub.
        engine_args: of `vllm`, as `vllm.LLM` takes them, e.g. `{"tensor_parallel_size": 8}`.
        num_gpus: GPUs per copy of a local model on a Ray cluster; 0.5: two copies share one.
            Default: vLLM's `tensor_parallel_size` (times `pipeline_parallel_size`); of
            `transformers` 1.
        base_url: of an `endpoint` or a `batch`, up to and including `/v1`. An `endpoint` may have
            several that serve the same model. The first one identifies it in the journal; add and
            remove others as you like.
        api_key_env: name of the environment variable that holds the endpoint's key. Never the key
            itself.
        concurrency: requests in flight per base_url, at most; lowered while a server pushes back.
        requests_per_minute, tokens_per_minute: limits of the endpoint, over all its base_urls, in
            each process.
        timeout: seconds for one attempt of a request to an endpoint. A request is not retried later
            than an hour after its first attempt.
        system_prompt: put before the prompt's own system message, if it has one.
        examples: few-shot messages (alternating user and assistant) put between system prompt and
            prompt.
        sampling: see `Sampling`; `None` takes the recipe's, or `Sampling()`.
        chat_template_kwargs: switches of its chat template, e.g. `{"enable_thinking": false}`.
        reasoning_effort: of an `endpoint`, as its server knows it: `low`, `high` …
        response_format: of an `endpoint`: JSON mode or a schema, as OpenAI's API has them.
        extra_body: of an `endpoint`: parameters of its own server, added to each request's body.
        columns: of `recorded`, where its dataset has `prompt`, `response` and, if the answers of
            several teachers share these, `teacher`, and `reasoning` if thoughts lie apart: a
            column, or a field of one as `column.field`. Default: columns of these names. Without
            `teacher` every row is this teacher's.
        price: see `Price`; used in plans and accounts. Of a `batch` the usual price, half of which
            is counted.
        tokens_per_second: of its answers, with as many requests in flight as it is given; used in
            plans. Accounts measure it.
        size: billions of parameters; used to order teachers in reports.
        family, license: used in reports and cards.
        trust_remote_code: run the code that the model's repository ships. Off by default.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    model: str
    name: str = ""
    engine: str = "transformers"
    revision: str | None = None
    engine_args: dict[str, Any] = field(default_factory=dict)
    num_gpus: float | None = None
    base_url: str | tuple[str, ...] | None = None
    api_key_env: str | None = None
    concurrency: int = 32
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout: float = 1800.0
    system_prompt: str | None = None
    examples: tuple[Message, ...] = ()
    sampling: Sampling | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    reasoning_effort: str | None = None
    response_format: dict[str, Any] | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    price: Price | None = None
    tokens_per_second: float | None = None
    size: float | None = None
    family: str | None = None
    license: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.model)
        object.__setattr__(self, "examples", tuple(self.examples))
        if self.base_url and not isinstance(self.base_url, str):
            object.__setattr__(self, "base_url", tuple(self.base_url))
        check_server(f"Teacher {self.name!r}: ", vars(self))
        for key in (
            "num_gpus",
            "concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "timeout",
            "tokens_per_second",
        ):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise InputError(f"Teacher {self.name!r}: {key} is {value}; expected more than 0.")

        self._check_reserved("extra_body", OF_BODIES)
        self._check_reserved("chat_template_kwargs", OF_TEMPLATES)
        if self.columns and not {"prompt", "response"} <= set(self.columns) <= OF_RECORDS:
            raise InputError(
                f"Teacher {self.name!r}: columns has {', '.join(sorted(self.columns))}; expected "
                "prompt and response, and optionally teacher and reasoning."
            )

    def _check_reserved(self, key: str, reserved: frozenset[str]) -> None:
        for name in reserved & set(getattr(self, key)):
            raise InputError(
                f"Teacher {self.name!r}: {key} has {name!r}, which the recipe's own keys or the "
                "prompt set; remove it."
            )

    @property
    def base_urls(self) -> tuple[str, ...]:
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url or ()

    def conversation(self, messages: list[Message]) -> list[Message]:
        """The messages as this teacher sees them: its system prompt and examples, then the
        prompt.
        """
        system = [self.system_prompt] if self.system_prompt else []
        if messages[0]["role"] == "system":
            system, messages = [*system, messages[0]["content"]], messages[1:]
        head = [{"role": "system", "content": "\n\n".join(system)}] if system else []
        return [*head, *self.examples, *messages]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values. Holds no secret: keys are named by their variable only."""
        several = None if isinstance(self.base_url, str) else list(self.base_urls) or None
        return asdict(self) | {
            "base_url": several or self.base_url,
            "examples": list(self.examples),
            "sampling": asdict(self.sampling or Sampling()),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Teacher":
        nested = {"sampling": Sampling, "price": Price}
        return cls(
            **{k: nested[k](**v) if k in nested and v is not None else v for k, v in values.items()}
        )


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation without a system message: its text begins the first user turn."""
    system, *rest = messages
    first = next(i for i, message in enumerate(rest) if message["role"] == "user")
    text = f"{system['content']}\n\n{rest[first]['content']}"
    return [*rest[:first], rest[first] | {"content": text}, *rest[first + 1 :]]


def check_names(teachers: Sequence[Teacher]) -> None:
    names = [t.name for t in teachers]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(
            f"teachers: the name {twice[0]!r} is used twice; give each teacher a `name` of its own."
        )


def check_prices(teachers: Iterable[Teacher], max_cost: float | None) -> None:
    """Raises `InputError` if the limit cannot be kept: somebody else's server without a price."""
    if max_cost is None:
        return
    if max_cost <= 0:
        raise InputError(f"max_cost is {max_cost}; expected more than 0 USD.")
    for teacher in teachers:
        if teacher.base_urls and not teacher.price:
            raise InputError(
                f"max_cost is {max_cost}, but the teacher {teacher.name!r} has no price; add "
                "price: {input: …, output: …}, in USD per million tokens (0 if it is free)."
            )
