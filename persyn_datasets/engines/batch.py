"""Batch APIs: the same requests as an endpoint's, at half the price, within a day.

All requests of a stage go out at once, split by what providers take in one batch. The batches are
looked at from time to time, and what has ended is taken: answers go to the journal under the
endpoint engine's name, rows that expired or failed by no fault of theirs are sent again. A file
beside the journal knows each batch from before it is made (`batch_orders`), so that a build may be
stopped at any moment and takes later what it has bought.

An address with `anthropic` in it speaks Message Batches, any other one OpenAI's batches.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from huggingface_hub.errors import OfflineModeIsEnabled

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.engines import (
    OF_BODY,
    Facts,
    Request,
    Response,
    batch_anthropic,
    batch_openai,
    endpoint,
    failed,
)
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.batch_client import Client
from persyn_datasets.engines.batch_orders import Order, sent_for
from persyn_datasets.engines.batch_state import State
from persyn_datasets.engines.chat import Refused, read_response
from persyn_datasets.engines.lane import refused
from persyn_datasets.engines.server import Fault
from persyn_datasets.store.progress import say

FACTS = Facts(
    remote=True,
    whole=True,
    share_of_price=0.5,
    answers_as="endpoint",
    tools=True,
    keys=("base_url", *OF_BODY),
    needs=("base_url",),
)
# What every provider takes in one batch: OpenAI and Groq 50,000 rows of 200 MB, Anthropic 100,000
# of 256 MB.
MOST_ROWS = 50_000
MOST_BYTES = 100_000_000
TRIES = 3  # batches that a row is sent in
# Seconds.
FIRST_LOOK, LAST_LOOK = 2.0, 60.0  # between two looks at a batch; from one to the next 1.5 times
PATIENCE = 3600.0  # with a provider that cannot be asked
SETTLE = 30.0  # until a batch that was made is surely listed
FULL_PAUSE, LAST_PAUSE = 60.0, 600.0  # while the provider's queue is full
STEP = 0.05


def generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """Yield (index, response) as batches end. Closing the iterator leaves them to the next run."""
    lanes: dict[Any, _Lane] = {}
    for index, request in enumerate(requests):
        teacher = request.teacher
        key = teacher.name, teacher.base_urls, teacher.api_key_env
        lanes.setdefault(key, _Lane(teacher, account)).pending.append(_Row(index, request))
    for lane in lanes.values():
        yield from lane.open()
    while any(lane.is_busy for lane in lanes.values()) and not account.closed.is_set():
        for lane in lanes.values():
            yield from lane.turn()
        time.sleep(STEP)


def check(teacher: Teacher) -> None:
    """Raise `InputError` if there is not one base_url, it cannot be reached, refuses the key, or
    offers no batches.
    """
    if len(teacher.base_urls) != 1:
        raise InputError(
            f"Teacher {teacher.name!r}: a batch is sent to one base_url, and it has "
            f"{len(teacher.base_urls)}; name one."
        )
    dialect, client = dialect_of(teacher), client_of(teacher)
    dialect.check(teacher)
    try:
        client.get(dialect.PATH, limit=1)
    except (Fault, OfflineModeIsEnabled) as fault:
        raise InputError(
            f"Teacher {teacher.name!r}: {teacher.base_urls[0]} does not list its batches "
            f"({fault}). Is its key right, and does it offer batches? If not, use engine: endpoint."
        ) from None


def standing(order: Order, cancel: bool = False) -> str:
    """How far a batch is, in the provider's words, or why that is unknown. A cancelled batch gives
    the next build what is answered by then.
    """
    teacher = Teacher.from_dict(order.teacher)
    dialect = dialect_of(teacher)
    try:
        client = client_of(teacher)
        if not order.batch:
            order.batch, _ = dialect.find(client, order)
        if not order.batch:
            return "not found: it was never made, or cannot be identified yet"
        if cancel:
            dialect.cancel(client, order)
        state: State = dialect.state(client, order)
    except (Fault, InputError, OfflineModeIsEnabled) as error:
        return f"{error}"
    return f"{state.status}, {state.done:,} answered"


def dialect_of(teacher: Teacher) -> ModuleType:
    return batch_anthropic if "anthropic" in teacher.base_urls[0] else batch_openai


def client_of(teacher: Teacher) -> Client:
    """Raises `InputError`: its key or its address cannot be used."""
    key = endpoint.api_key(teacher, teacher.base_urls[0])
    url = endpoint.url_of(teacher, teacher.base_urls[0], "")
    return Client(url, dialect_of(teacher).headers(key), key, teacher.timeout)


@dataclass
class _Row:
    """A request on its way; `sent`: in so many batches."""

    index: int
    request: Request
    admitted: bool = False
    sent: int = 0


@dataclass
class _Batch:
    """An order at work. Times are those of `time.monotonic`.

    Attributes:
        rows: those that are waited for, by their place in the order.
        due: the next look; `wait`: the time until the one after that.
        trouble: since when its provider cannot be asked.
    """

    order: Order
    rows: dict[int, _Row]
    due: float = 0.0
    wait: float = 0.0
    trouble: float | None = None

    def __post_init__(self) -> None:
        self.places = list(self.rows)

    def later(self, least: float = 0.0) -> None:
        self.wait = min(LAST_LOOK, max(FIRST_LOOK, 1.5 * self.wait))
        self.due = time.monotonic() + max(least, self.wait)


class _Lane:
    """One teacher's requests and batches."""

    def __init__(self, teacher: Teacher, account: Account) -> None:
        self.teacher, self.account = teacher, account
        self.dialect = dialect_of(teacher)
        self.refused = refused(teacher.model, teacher.base_urls)
        self.pending: deque[_Row] = deque()
        self.batches: list[_Batch] = []
        self.most, self.pause, self.not_before = MOST_ROWS, FULL_PAUSE, 0.0

    @property
    def is_busy(self) -> bool:
        return bool(self.pending or self.batches)

    def open(self) -> Iterator[tuple[int, Response]]:
        """Find what earlier runs have sent."""
        try:
            self.client = client_of(self.teacher)
        except InputError as error:
            for row in self.pending:
                yield row.index, failed(self.teacher, str(error))
            self.pending.clear()
            return
        wanted = {(row.request.prompt_id, row.request.sample): row for row in self.pending}
        for order in sent_for(self.teacher):
            found = {i: wanted.pop(key) for i, key in enumerate(order.rows) if key in wanted}
            if found:
                self.batches.append(_Batch(order, found))
            for row in found.values():
                self.account.carry(row.request)
                row.admitted, row.sent = True, 1
        self.pending = deque(row for row in self.pending if not row.sent)

    def turn(self) -> Iterator[tuple[int, Response]]:
        """Do what is due."""
        if time.monotonic() >= self.not_before:
            self._make_batches()
        for batch in [b for b in self.batches if b.due <= time.monotonic()]:
            try:
                yield from self._look(batch)
                batch.trouble = None
            except (Fault, OfflineModeIsEnabled) as fault:
                yield from self._in_trouble(batch, fault)

    def _make_batches(self) -> None:
        """Of all pending rows that the account admits; they are sent when they are looked at."""
        rows, size = list[_Row](), 0
        while self.pending:
            row = self.pending[0]
            row.admitted = row.admitted or self.account.admit(row.request)
            if not row.admitted:
                if not self.account.reserved:  # nothing is in flight that could make room
                    self.pending.clear()
                break
            line = len(self._line("", row))
            if rows and (len(rows) >= self.most or size + line > MOST_BYTES):
                self._make_batch(rows)
                rows, size = [], 0
            rows.append(self.pending.popleft())
            size += line
        if rows:
            self._make_batch(rows)

    def _make_batch(self, rows: list[_Row]) -> None:
        order = Order.of(row.request for row in rows)
        self.batches.append(_Batch(order, dict(enumerate(rows))))

    def _line(self, custom_id: str, row: _Row) -> bytes:
        line = self.dialect.line(custom_id, self.dialect.body(row.request, self.refused))
        assert isinstance(line, bytes)
        return line

    def _look(self, batch: _Batch) -> Iterator[tuple[int, Response]]:
        """Send it, or find it, or see how far it is, or take what it gives."""
        order = batch.order
        if order.since and not order.batch and not self._find(batch):
            return
        if not order.batch:
            self._create(batch)
        state: State = self.dialect.state(self.client, order)
        if state.ended:
            yield from self._take(batch, state)
        else:
            batch.later()

    def _create(self, batch: _Batch) -> None:
        order = batch.order
        lines = [self._line(order.custom_id(i), row) for i, row in batch.rows.items()]
        try:
            self.dialect.create(self.client, order, lines)
        except Fault as fault:
            # Refused, so it was not made. After any other fault it may have been.
            if 400 <= fault.status < 500:
                order.since = 0.0
                order.path.unlink(missing_ok=True)
            raise
        for row in batch.rows.values():
            row.sent += 1
        self._say(
            f"batch {order.batch} with {len(lines):,} requests was sent. Stop whenever you like: "
            "the same command finds it again"
        )

    def _find(self, batch: _Batch) -> bool:
        """Whether a batch exists whose id was never recorded. If not, its rows are sent again."""
        order = batch.order
        order.batch, undecided = self.dialect.find(self.client, order)
        if order.batch:
            order.save()
            return True
        if undecided or time.time() < order.since + SETTLE:
            batch.later()
        else:
            self._close(batch)
            self.pending.extend(batch.rows.values())
        return False

    def _take(self, batch: _Batch, state: State) -> Iterator[tuple[int, Response]]:
        """Answers come before failures, so that a teacher that answers is not taken for dead."""
        order, faults = batch.order, dict[int, Fault]()
        if not state.full:
            self.pause = FULL_PAUSE
        if state.status == "failed":
            faults = self._of_refusal(batch, state)
        for custom_id, outcome in self.dialect.results(self.client, order, state):
            place = order.row_of(custom_id)
            if place is None or place not in batch.rows:
                continue
            try:
                if isinstance(outcome, Fault):
                    raise outcome
                request = batch.rows[place].request
                response = read_response(request, outcome, self.client.key)
            except Fault as fault:
                faults[place] = fault
            else:
                yield batch.rows.pop(place).index, response
        missing = Fault(
            f"batch {order.batch} has no answer to it ({state.status})", again=not state.cancelled
        )
        self._say(
            f"batch {order.batch} has ended ({state.status}): {len(batch.rows):,} of "
            f"{len(batch.places):,} requests without an answer"
        )
        self._close(batch)  # before failures end the build: they are not to be found again
        for place, row in batch.rows.items():
            yield from self._again(row, faults.get(place, missing))

    def _of_refusal(self, batch: _Batch, state: State) -> dict[int, Fault]:
        """Of a batch that was refused as a whole: why, by place; its rows are sent again where that
        may help, in smaller batches where they were too many.
        """
        count = len(batch.order.rows)
        if state.full:
            self.most = max(1, count // 2)
            self.not_before = time.monotonic() + self.pause
            self.pause = min(LAST_PAUSE, 2 * self.pause)
        innocent = state.full or bool(state.of_rows)
        for place, row in batch.rows.items():
            if innocent and place not in state.of_rows and count > 1:
                row.sent -= 1
        return {
            place: Fault(
                state.of_rows.get(place, state.why), place not in state.of_rows and innocent
            )
            for place in batch.rows
        }

    def _again(self, row: _Row, fault: Fault) -> Iterator[tuple[int, Response]]:
        learnt = self.refused.learn(self.teacher, self.dialect.body(row.request, Refused()), fault)
        if (learnt or fault.again) and row.sent < TRIES:
            self.account.retried(row.request)
            self.pending.append(row)
        else:
            sent = f" (sent in {row.sent} batches)" if row.sent > 1 else ""
            yield row.index, failed(self.teacher, f"{fault}{sent}")

    def _in_trouble(self, batch: _Batch, fault: Exception) -> Iterator[tuple[int, Response]]:
        """Its provider cannot be asked: later, unless it has been so for long."""
        now, order = time.monotonic(), batch.order
        batch.trouble = now if batch.trouble is None else batch.trouble
        if isinstance(fault, Fault) and fault.again and now - batch.trouble < PATIENCE:
            batch.later(fault.wait)
            return
        self.batches.remove(batch)
        why = f"{fault}"
        if order.since:
            why += (
                f"; batch {order.batch} is kept, and the same command finds it again. If its "
                f"provider has it no more, remove {order.path}"
            )
        for row in batch.rows.values():
            yield row.index, failed(self.teacher, why)

    def _close(self, batch: _Batch) -> None:
        batch.order.take(batch.places)
        self.batches.remove(batch)

    def _say(self, words: str) -> None:
        say(f"Teacher {self.teacher.name!r}: {words}.")
