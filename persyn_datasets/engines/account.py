"""The account: what each stage spends on each teacher, and the limit that it keeps to."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, cast

from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.build import Line
from persyn_datasets.engines import Request, Response, facts_of, price_of
from persyn_datasets.engines.bound import tokens_at_most

Key: TypeAlias = tuple[str, str, int]  # of a request: teacher, prompt, sample

logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """One line of the account. Tokens and USD are those of answers; `reused` ones came from the
    journal.

    `reasoning_tokens` are those of the completions that were counted as thoughts.

    `seconds` from the first request to the last answer, and the `new_tokens` of the completions
    that came meanwhile; both 0 of records, which nobody is asked for.
    """

    stage: str
    teacher: str
    answers: int = 0
    reused: int = 0
    failed: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    usd: float = 0.0
    reused_usd: float = 0.0
    seconds: float = 0.0
    new_tokens: int = 0


class Account:
    """What is spent, by stage and teacher; give one to several stages and `max_cost` holds for them
    together.

        account = Account(max_cost=200)
        prompts.map(Generate(teachers, account=account), batched=True, batch_size=None)
        print(account)

    Every answer in use counts once, also one from the journal: the same command run again can never
    spend `max_cost` again. What a server billed for a request that failed counts too. An answer
    whose tokens neither the server nor a tokenizer counts costs its highest price.

    Requests are admitted by the highest price that they can have and settled by the tokens that
    were used. So `max_cost` can be passed only by a server that bills more tokens than it was
    allowed to write, or than it was sent bytes: then this is said, later requests of the teacher
    are admitted at a price as much higher, and until its first answer only one is in flight. A
    request that times out may be billed, too, and no client can know.

    Args:
        max_cost: USD. A request is sent only if everything asked so far and it, at its highest
            price (`max_tokens` in full), stay within. Teachers without a `price` cost nothing.
        before: USD of it that is spent already, as other accounts say.

    Attributes:
        said: the teachers of which something was said that is to be said once.
        notes: what a stage found out beside its rows, e.g. of its `judge`.
    """

    def __init__(self, max_cost: float | None = None, before: float = 0.0):
        self.max_cost, self.before = max_cost, before
        self.closed = threading.Event()  # set: engines stop asking, and drop what is in flight
        self.stage = ""
        self.said: set[str] = set()
        self.notes: dict[str, Any] = {}
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._reserved: dict[Key, float] = {}
        self._counted: set[Key] = set()
        self._since: dict[str, float] = {}  # a teacher's last answer, before that its first request
        self._known: set[str] = set()  # teachers that have answered, or failed
        # By teacher, what an answer cost in terms of its highest price, at most; never below 1.
        self._factor: defaultdict[str, float] = defaultdict(lambda: 1.0)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """The limit only: what was spent belongs to this process, and no cache may depend on it."""
        return {"max_cost": self.max_cost, "before": self.before}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def spent(self) -> float:
        """USD of all answers in use."""
        return self.before + sum(t.usd + t.reused_usd for t in self.tallies)

    @property
    def reserved(self) -> float:
        """USD of what is in flight, at most."""
        return sum(self._reserved.values())

    @property
    def tallies(self) -> list[Tally]:
        return list(self._tallies.values())

    def open(self, stage: str) -> None:
        """What follows is spent by this stage."""
        self.stage = stage
        self._reserved.clear()
        self._since.clear()
        self.closed.clear()

    def admit(self, request: Request) -> bool:
        """May this request be sent? If so its highest price is set aside until `settle`."""
        name = request.teacher.name
        with self._lock:
            if self.closed.is_set():
                return False
            highest = self._factor[name] * highest_price(request)
            limited = self.max_cost is not None and highest > 0
            if limited and (self._is_unknown(request.teacher) or self._passes(highest)):
                return False
            self._reserved[key_of(request)] = highest
            self._since.setdefault(name, time.monotonic())
            return True

    def carry(self, request: Request) -> None:
        """It was sent by an earlier run: its highest price is set aside, whatever the limit."""
        name = request.teacher.name
        with self._lock:
            self._reserved[key_of(request)] = self._factor[name] * highest_price(request)
            self._since.setdefault(name, time.monotonic())

    def _passes(self, usd: float) -> bool:
        return self.max_cost is not None and self.spent + self.reserved + usd > self.max_cost

    def _is_unknown(self, teacher: Teacher) -> bool:
        """A request is in flight to a server that has not said yet how it counts."""
        return (
            teacher.name not in self._known
            and facts_of(teacher).remote
            and any(name == teacher.name for name, _, _ in self._reserved)
        )

    def retried(self, request: Request) -> None:
        with self._lock:
            self._tally(request.teacher).retries += 1

    def settle(self, request: Request, response: Response, reused: bool = False) -> None:
        """Count what came of a request."""
        key = key_of(request)
        with self._lock:
            reserved = self._reserved.pop(key, 0.0)
            self._known.add(request.teacher.name)
            tally = self._tally(request.teacher)
            if response["error"]:
                tally.failed += 1
            else:
                tally.answers += 1
                tally.reused += reused
            again = response["finish_reason"] == "error"
            if not (reused or again):
                self._time(request.teacher, tally, response)
            if key in self._counted:
                return
            if not again:
                self._counted.add(key)
            self._pay(request, tally, response, reserved, reused)

    def _time(self, teacher: Teacher, tally: Tally, response: Response) -> None:
        if (since := self._since.get(teacher.name)) is not None:
            now = self._since[teacher.name] = time.monotonic()
            tally.seconds += now - since
            tally.new_tokens += response["completion_tokens"] or 0

    def _pay(
        self, request: Request, tally: Tally, response: Response, reserved: float, reused: bool
    ) -> None:
        prompt, completion = response["prompt_tokens"], response["completion_tokens"]
        tally.prompt_tokens += prompt or 0
        tally.completion_tokens += completion or 0
        tally.reasoning_tokens += response["reasoning_tokens"] or 0
        if not (price := price_of(request.teacher)):
            return
        if prompt is not None and completion is not None:
            usd = price.of(prompt, completion)
            if usd > (highest := highest_price(request)) > 0:
                self._dearer(request.teacher, usd, highest)
        else:  # an answer costs as much as it may; a failure was not billed, as far as we know
            usd = 0.0 if response["finish_reason"] == "error" else reserved
        if reused:
            tally.reused_usd += usd
        else:
            tally.usd += usd

    def _dearer(self, teacher: Teacher, usd: float, highest: float) -> None:
        """An answer cost more than it could: so may the next ones."""
        name = teacher.name
        self._factor[name] = max(self._factor[name], usd / highest)
        if self.max_cost is not None and name not in self.said:
            self.said.add(name)
            logger.warning(
                "Teacher %r billed $%.6f for an answer that should cost at most $%.6f: it counts "
                "tokens differently, or ignores max_tokens. From now on its answers are expected "
                "to cost that much more.",
                name,
                usd,
                highest,
            )

    def answered(self, teacher: Teacher) -> int:
        """Answers of a teacher in this stage so far."""
        return self._tally(teacher).answers

    def again(self, request: Request) -> None:
        """A failed request gets another chance: its failure is taken back."""
        with self._lock:
            self._tally(request.teacher).failed -= 1
            self._tally(request.teacher).retries += 1

    def to_list(self) -> list[Line]:
        """The lines as plain JSON values."""
        return cast(list[Line], [asdict(tally) for tally in self.tallies])

    def __str__(self) -> str:
        lines = [
            f"{t.stage} · {t.teacher}: {t.answers:,} answers ({t.reused:,} reused, {t.failed:,} "
            f"failed), {t.prompt_tokens:,} + {t.completion_tokens:,} tokens, "
            f"${t.usd + t.reused_usd:,.4f}"
            for t in self.tallies
        ]
        return "\n".join([*lines, f"all: ${self.spent:,.4f}"])

    def _tally(self, teacher: Teacher) -> Tally:
        return self._tallies.setdefault((self.stage, teacher.name), Tally(self.stage, teacher.name))


def highest_price(request: Request) -> float:
    """USD that an answer can cost at most; see `tokens_at_most`."""
    if not (price := price_of(request.teacher)):
        return 0.0
    return float(
        price.of(
            tokens_at_most(request.teacher, request.messages, request.tools),
            request.sampling.max_tokens,
        )
    )


def merge(lines: Iterable[Any]) -> list[Line]:
    """One line for each stage and teacher, of several accounts' lines."""
    merged: dict[tuple[str, str], Any] = {}
    for line in lines:
        whole = merged.setdefault(
            (line["stage"], line["teacher"]),
            line | {k: 0 for k in line.keys() - {"stage", "teacher"}},
        )
        for key in line.keys() - {"stage", "teacher"}:
            whole[key] = whole.get(key, 0) + line[key]
    return list(merged.values())


def wall(teachers: Sequence[Teacher], seconds: Mapping[str, float | None]) -> float | None:
    """Seconds until all are done: local teachers work one after another, meanwhile all endpoints
    do.

    A teacher without seconds has nothing to do; None: it is not known how long.
    """
    if None in seconds.values():
        return None
    remote = [t for t in teachers if facts_of(t).remote]
    local = sum(seconds.get(t.name) or 0.0 for t in teachers if t not in remote)
    return max([local, *(seconds.get(t.name) or 0.0 for t in remote)])


def key_of(request: Request) -> Key:
    return request.teacher.name, request.prompt_id, request.sample
