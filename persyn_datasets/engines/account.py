"""The account: what each stage spends on each teacher, and the limit that it keeps to."""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from persyn_datasets.config.teacher import Sampling, Teacher
from persyn_datasets.engines import Request, Response
from persyn_datasets.report.tables import table

TEMPLATE_TOKENS = (
    64  # of a chat template, at most: its own system prompt; and of each message's frame
)


@dataclass
class Tally:
    """One line of the account. Tokens and USD are those of answers; `reused` ones came from the
    journal.

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
    spend `max_cost` again. An answer whose tokens neither the server nor a tokenizer counts costs
    its highest price.

    Args:
        max_cost: USD. A request is sent only if everything asked so far and it, at its highest
            price (`max_tokens` in full), stay within. Teachers without a `price` cost nothing.
        before: USD of it that is spent already, as other accounts say.
    """

    def __init__(self, max_cost: float | None = None, before: float = 0.0):
        self.max_cost, self.before = max_cost, before
        self.closed = threading.Event()  # set: engines stop asking, and drop what is in flight
        self.stage = ""
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._reserved: dict[tuple[str, str, int], float] = {}
        self._counted: set[tuple[str, str, int]] = set()
        self._since: dict[str, float] = {}  # a teacher's last answer, before that its first request
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """The limit only: what was spent belongs to this process, and no cache may hang on it."""
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
        highest = highest_price(request)
        with self._lock:
            if self.closed.is_set():
                return False
            if (
                self.max_cost is not None
                and highest
                and self.spent + self.reserved + highest > self.max_cost
            ):
                return False
            self._reserved[_key(request)] = highest
            self._since.setdefault(request.teacher.name, time.monotonic())
            return True

    def retried(self, request: Request) -> None:
        with self._lock:
            self._tally(request.teacher).retries += 1

    def settle(self, request: Request, response: Response, reused: bool = False) -> None:
        """Count what came of a request."""
        with self._lock:
            reserved = self._reserved.pop(_key(request), 0.0)
            tally = self._tally(request.teacher)
            if response["finish_reason"] == "error":
                tally.failed += 1
                return
            tally.answers += 1
            tally.reused += reused
            if not reused and (since := self._since.get(request.teacher.name)) is not None:
                now = self._since[request.teacher.name] = time.monotonic()
                tally.seconds += now - since
                tally.new_tokens += response["completion_tokens"] or 0
            if _key(request) in self._counted:
                return
            self._counted.add(_key(request))
            prompt, completion, price = (
                response["prompt_tokens"],
                response["completion_tokens"],
                request.teacher.price,
            )
            tally.prompt_tokens += prompt or 0
            tally.completion_tokens += completion or 0
            usd = reserved
            if price and prompt is not None and completion is not None:
                usd = price.of(prompt, completion)
            if reused:
                tally.reused_usd += usd
            else:
                tally.usd += usd

    def answered(self, teacher: Teacher) -> int:
        """Answers of a teacher in this stage so far."""
        return self._tally(teacher).answers

    def again(self, request: Request) -> None:
        """A failed request gets another chance: its failure is taken back."""
        with self._lock:
            self._tally(request.teacher).failed -= 1
            self._tally(request.teacher).retries += 1

    def to_list(self) -> list[dict[str, Any]]:
        """The lines as plain JSON values."""
        return [asdict(tally) for tally in self.tallies]

    def __str__(self) -> str:
        return account_table(self.to_list())

    def _tally(self, teacher: Teacher) -> Tally:
        return self._tallies.setdefault((self.stage, teacher.name), Tally(self.stage, teacher.name))


def highest_price(request: Request) -> float:
    """USD that an answer can cost at most: a prompt token has at least one byte; the answer fills
    `max_tokens`.
    """
    if not (price := request.teacher.price):
        return 0.0
    prompt = (
        sum(len(m["content"].encode()) + TEMPLATE_TOKENS for m in request.messages)
        + TEMPLATE_TOKENS
    )
    return price.of(prompt, (request.teacher.sampling or Sampling()).max_tokens)


def merge(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each stage and teacher, of several accounts' lines."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        whole = merged.setdefault(
            (line["stage"], line["teacher"]),
            line | {k: 0 for k in line.keys() - {"stage", "teacher"}},
        )
        for key in line.keys() - {"stage", "teacher"}:
            whole[key] += line[key]
    return list(merged.values())


def wall(teachers: Sequence[Teacher], seconds: Mapping[str, float | None]) -> float | None:
    """Seconds until all are done: local teachers work one after another, meanwhile all endpoints
    do.

    A teacher without seconds has nothing to do; None: it is not known how long.
    """
    if None in seconds.values():
        return None
    local = sum(seconds.get(t.name) or 0.0 for t in teachers if t.engine != "endpoint")
    return max([local, *(seconds.get(t.name) or 0.0 for t in teachers if t.engine == "endpoint")])


def account_table(lines: list[dict[str, Any]]) -> str:
    """The account as a Markdown table, with a last line of sums."""
    head = [
        "stage · teacher",
        "answers",
        "reused",
        "failed",
        "retries",
        "prompt tokens",
        "completion tokens",
        "USD",
        "tokens/s",
    ]
    keys = ["answers", "reused", "failed", "retries", "prompt_tokens", "completion_tokens"]
    total = {key: sum(line[key] for line in lines) for key in [*keys, "usd", "reused_usd"]} | {
        "new_tokens": 0
    }
    rows = [
        [
            name,
            *(f"{line[key]:,}" for key in keys),
            f"{line['usd'] + line['reused_usd']:,.4f}",
            f"{line['new_tokens'] / line['seconds']:,.0f}"
            if line["new_tokens"] and line["seconds"]
            else "–",
        ]
        for name, line in [(f"{line['stage']} · {line['teacher']}", line) for line in lines]
        + [("all", total)]
    ]
    return table(head, rows)


def _key(request: Request) -> tuple[str, str, int]:
    return request.teacher.name, request.prompt_id, request.sample
