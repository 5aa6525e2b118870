"""One teacher of the endpoint engine at work: its limits, tries and counts. All times are in
seconds.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from heapq import heappop, heappush
from typing import Any

from huggingface_hub.errors import OfflineModeIsEnabled

from persyn_datasets.config.teacher import Sampling, Teacher
from persyn_datasets.data.reasoning import inline
from persyn_datasets.engines import Request, Response, failed
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.bound import template_switches
from persyn_datasets.engines.chat import Refused, read_response, request_body
from persyn_datasets.engines.rate import window
from persyn_datasets.engines.server import Fault, Server

TRIES = 6
BACKOFF = (
    2.0  # doubles with each try: about a minute in all, which outlasts a per-minute rate limit
)
IN_ALL = 3600.0  # a request is retried no later than this after its first attempt
PATIENCE = 600.0  # all servers of a teacher may be down so long; then its requests fail
NEVER = 60.0  # the same, for one that has not answered yet
POLL = 0.05
# Requests in flight to a teacher that has not answered yet. A teacher that only returns empty
# answers, or whose key or name is wrong, is then found before much is paid.
FIRST_IN_FLIGHT = 8

logger = logging.getLogger(__name__)


@dataclass(order=True)
class Row:
    """A request on its way. `due`: not before this time; `began`: its first try."""

    due: float
    index: int
    request: Request = field(compare=False)
    tries: int = field(default=0, compare=False)  # that were its failures
    sent: int = field(default=0, compare=False)
    began: float = field(default=0.0, compare=False)


class Lane:
    """A teacher's requests, its servers with their keys, and what was learnt from them."""

    def __init__(
        self,
        teacher: Teacher,
        rows: deque[Row],
        keys: dict[Server, str | None],
        account: Account,
        counter: ThreadPoolExecutor,
    ) -> None:
        self.rows, self.keys, self.servers, self.account, self.counter = (
            rows,
            keys,
            list(keys),
            account,
            counter,
        )
        self.later: list[Row] = []  # a heap: to be tried again
        limits = {"requests": teacher.requests_per_minute, "tokens": teacher.tokens_per_minute}
        self.limits = {
            unit: window(teacher.name, teacher.base_urls, unit, most)
            for unit, most in limits.items()
            if most
        }
        self.completion = float(
            (teacher.sampling or Sampling()).max_tokens
        )  # tokens to expect; later their mean
        self.gate = asyncio.Lock()  # places are given one after another
        self.in_flight, self.has_answered = 0, False
        self.refused = refused(teacher.model, teacher.base_urls)

    @property
    def places(self) -> int:
        """Requests in flight, at most: so many are to `work`."""
        return min(len(self.rows), sum(server.most for server in self.servers))

    async def work(
        self, put: Callable[[tuple[int, Response]], None], stop: Callable[[], None]
    ) -> None:
        """Take requests until there are none; `stop` empties `rows`, once `max_cost` is reached."""
        while self.rows or self.later:
            row = self._next()
            if (wait := row.due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            # Read before admission: if that is refused with nothing in flight, the budget is spent.
            reserved = self.account.reserved
            try:
                # One at a time: two requests that see the same free slot would both take it.
                async with self.gate:
                    await self._first_answer(row)
                    server = await self._server(row)
                    at = server.take()
                    if admitted := bool(row.sent) or self.account.admit(row.request):
                        tokens = self._spend(row.request)
                    else:
                        server.release(at)
                if admitted:
                    self.in_flight += 1
                    try:
                        response = await self._try(row, server, at, tokens)
                    finally:
                        self.in_flight -= 1
                    self.has_answered |= not response["error"]
                    put((row.index, response))
                elif (
                    reserved or self.account.reserved
                ):  # requests in flight may cost less than reserved
                    self.rows.appendleft(row)
                    await asyncio.sleep(POLL)
                else:
                    stop()
            except OfflineModeIsEnabled as error:
                put((row.index, failed(row.request.teacher, str(error))))
            except Fault as fault:
                if fault.again and row.tries < TRIES and time.monotonic() - row.began < IN_ALL:
                    heappush(self.later, row)
                else:
                    tried = f" (tried {row.sent} times)" if fault.again else ""
                    put((row.index, failed(row.request.teacher, f"{fault}{tried}")))

    def _next(self) -> Row:
        """What is due again comes first; what is not yet does not hold up others, unless they are
        too many.
        """
        many = len(self.later) > sum(server.most for server in self.servers)
        if self.later and (many or not self.rows or self.later[0].due <= time.monotonic()):
            return heappop(self.later)
        return self.rows.popleft()

    async def _first_answer(self, row: Row) -> None:
        """Wait until the teacher has answered once, or few of its requests are in flight."""
        while self.in_flight >= FIRST_IN_FLIGHT:
            if self.has_answered or self.account.answered(row.request.teacher):
                return
            await asyncio.sleep(POLL)

    async def _server(self, row: Row) -> Server:
        """Wait for the limits, then for a server with room."""
        amounts = self._amounts(row.request)
        while not all(window.fits(amounts[unit]) for unit, window in self.limits.items()):
            await asyncio.sleep(POLL)
        while not (free := [server for server in self.servers if server.room]):
            if all(server.dead for server in self.servers):
                last = max(self.servers, key=lambda server: server.died)
                patience = PATIENCE if any(server.answers for server in self.servers) else NEVER
                if time.monotonic() - last.died > patience:
                    raise Fault(
                        f"no server has answered for {patience:g} s: {last.why}", again=False
                    )
            turn = asyncio.get_running_loop().create_future()
            for server in self.servers:
                server.waiting[turn] = None
            try:
                await turn
            finally:
                for server in self.servers:
                    del server.waiting[turn]
        for server in free:  # this request may have been woken for a slot that it does not take
            server.wake()
        return min(free, key=lambda server: server.in_flight)

    async def _try(self, row: Row, server: Server, at: float, tokens: list[int]) -> Response:
        request, key = row.request, self.keys[server]
        body = request_body(request, self.refused)
        if row.sent:
            self.account.retried(request)
        row.began, row.sent = row.began or at, row.sent + 1
        try:
            output = await server.ask(at, body, key, request.teacher.timeout)
            response = read_response(request, output, key)
        except Fault as fault:
            # A failure generates nothing: its tokens are available again in this minute.
            tokens[0] = 0
            if self.refused.learn(request.teacher, body, fault):
                fault.again = True
            elif not (fault.down and server.dead and not all(s.dead for s in self.servers)):
                # Otherwise the server failed, not the request: another server takes it at once.
                row.due = time.monotonic() + BACKOFF * 2**row.tries * random.uniform(0.5, 1.5)
                row.tries += 1
            raise
        if None in (response["prompt_tokens"], response["completion_tokens"]):
            loop = asyncio.get_running_loop()
            prompt, completion = await loop.run_in_executor(
                self.counter,
                _count,
                request,
                inline(response["reasoning"], response["text"]) + response["tool_calls"],
            )
            response["prompt_tokens"] = (
                prompt if response["prompt_tokens"] is None else response["prompt_tokens"]
            )
            if response["completion_tokens"] is None:
                response["completion_tokens"] = completion
        if response["prompt_tokens"] is not None and response["completion_tokens"] is not None:
            tokens[0] = response["prompt_tokens"] + response["completion_tokens"]
            # A running mean: tokens_per_minute is kept by the expected length of the next answers.
            self.completion += 0.1 * (response["completion_tokens"] - self.completion)
        return response

    def _amounts(self, request: Request) -> dict[str, int]:
        written = sum(len(message["content"]) for message in request.messages)
        prompt = (written + len(request.tools)) // 4
        return {"requests": 1, "tokens": prompt + int(self.completion)}

    def _spend(self, request: Request) -> list[int]:
        """The tokens that are expected, to be put right when the answer tells."""
        amounts = self._amounts(request)
        spent = {unit: window.spend(amounts[unit]) for unit, window in self.limits.items()}
        return spent.get("tokens", [0])


@cache
def refused(model: str, urls: tuple[str, ...]) -> Refused:
    """One for all calls in this process: stages ask batch by batch."""
    return Refused()


@cache
def _tokenizer(model: str, revision: str | None, trust_remote_code: bool) -> Any:
    """None if there is none by this name; said once."""
    from persyn_datasets.store.models import (
        load_tokenizer,  # slow to import, and most servers report their own counts
    )

    try:
        return load_tokenizer(model, revision, trust_remote_code)
    except Exception as error:  # its files may hold anything
        reason = " ".join(str(error).split())[:200]
        logger.warning(
            "The tokens of %s are not counted: neither by its server nor by a tokenizer (%s).",
            model,
            reason,
        )
        return None


def _count(request: Request, text: str) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the completion."""
    from jinja2 import TemplateError

    from persyn_datasets.store.models import prompt_ids

    teacher = request.teacher
    tokenizer = _tokenizer(
        teacher.model.partition(":")[0], teacher.revision, teacher.trust_remote_code
    )
    if tokenizer is None:
        return None, None
    completion = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    try:
        switches = template_switches(teacher, request.tools)
        return len(prompt_ids(tokenizer, request.messages, switches)), completion
    except TemplateError:  # the server's template takes this conversation, the Hub's does not
        return None, completion
