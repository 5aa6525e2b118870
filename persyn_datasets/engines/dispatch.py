"""Answers to requests: from the journal, else from the engines, all at once; nothing lost, nothing
bought twice.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.shares import part_of
from persyn_datasets.config.teacher import Sampling, Teacher, check_names
from persyn_datasets.data.rows import rows_hash
from persyn_datasets.engines import (
    Request,
    Response,
    check_keys,
    check_tools,
    engine_of,
    facts_of,
    from_record,
)
from persyn_datasets.engines.account import Account, Key, key_of
from persyn_datasets.engines.recorded import read_columns
from persyn_datasets.store.identity import KnownByContent, commit_of, teacher_identity
from persyn_datasets.store.journal import Journal
from persyn_datasets.store.progress import Bar, usd

FIRST_FAILURES = 36  # of a teacher that has not answered once: it never will
# Has requests answered, by `keep(request, response)`; with True as a third argument the answer is
# in the journal.
Ask = Callable[[list[Request], Account, Callable[..., None]], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asking(KnownByContent):
    """A stage that asks teachers.

    Args:
        teachers: each with a `name` of its own.
        max_failed: the share of failed responses in one call above which it raises `BuildError`; 1
            keeps them all.
        account: counts what is spent, and keeps to its `max_cost`; give one to several stages.
        ask: has the requests answered. Default: in this process; `ray_runner.ask` on a Ray cluster.
    """

    teachers: Sequence[Teacher]
    max_failed: float = 1.0
    account: Account = field(default_factory=Account, repr=False, compare=False)
    ask: Ask | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "teachers", tuple(self.teachers))
        check_names(self.teachers)
        for teacher in self.teachers:
            check_keys(teacher)

    def content(self) -> list[Any]:
        """The journal's address of each teacher; of recorded ones their answers."""
        tables: dict[Any, str] = {}
        return [content_of(teacher, tables) for teacher in self.teachers]

    def _responses(self, requests: Sequence[Request], rank: int | None) -> list[Response]:
        """See `respond`; `rank` is the process's number where `map` has several."""
        for teacher in {r.teacher.name: r.teacher for r in requests if r.tools}.values():
            check_tools(teacher)
        if rank is not None:
            from persyn_datasets.store.models import use_device  # torch takes seconds to import

            use_device(rank)
        return respond(requests, type(self).__name__, self.account, self.max_failed, self.ask)


def respond(
    requests: Sequence[Request],
    stage: str,
    account: Account,
    max_failed: float = 1.0,
    ask: Ask | None = None,
) -> list[Response]:
    """The response to each request, in order.

    Endpoints are asked while local teachers work, one after another, in this thread. What failed is
    tried once more at the end if that may help, and then is a response with an `error`. `ask`
    (default: `ask_here`) has them answered.

    Raises:
        BuildError: every request to a teacher fails, more than the share `max_failed` of all
            failed, or `account.max_cost` is reached. What was answered is in the journal by then.
    """
    account.open(stage)
    with ExitStack() as stack:
        answers = _Answers(requests, stage, account, max_failed, stack)
        # Processes elsewhere call this function, too, and look for the commits themselves.
        ask = ask or partial(ask_here, commits=answers.commits)
        ask(answers.missing(), account, answers.keep)
        if again := answers.to_ask_again():
            ask(again, account, answers.keep)
        answers.check()
    return [answers.responses[key_of(r)] | {"teacher": r.teacher.name} for r in requests]


def identity_of(teacher: Teacher) -> dict[str, Any]:
    """A teacher's address in the journal; engines whose answers are the same share one."""
    return _identity(teacher, commit_now(teacher))


def _identity(teacher: Teacher, commit: str | None) -> dict[str, Any]:
    engine = facts_of(teacher).answers_as or teacher.engine
    return teacher_identity(replace(teacher, engine=engine), commit)


def commit_now(teacher: Teacher) -> str | None:
    """The commit of a model on the Hub that is loaded here; None of any other teacher."""
    facts = facts_of(teacher)
    if facts.remote or not facts.journalled or Path(teacher.model).is_dir():
        return None
    with suppress(InputError):  # the engine will say what is wrong with it
        return commit_of(teacher.model, teacher.revision)
    return None


@lru_cache
def _say_moved(model: str, commit: str) -> None:
    logger.warning(
        "%s on the Hub is now at commit %s. Its earlier answers are those of other weights: they "
        "stay in the journal, and are not used.",
        model,
        commit[:8],
    )


def content_of(teacher: Teacher, tables: dict[Any, str]) -> Any:
    """What a teacher's answers depend on: the hash of the recorded ones, else its identity.

    `tables` keeps the hashes: several teachers may share a table.
    """
    if facts_of(teacher).journalled:
        return identity_of(teacher)
    place = teacher.model, teacher.revision, *teacher.columns.values()
    if place not in tables:
        tables[place] = rows_hash(read_columns(teacher))
    return tables[place]


class _Answers:
    """The responses of one call of `respond` as they come, with their journals."""

    def __init__(
        self,
        requests: Sequence[Request],
        stage: str,
        account: Account,
        max_failed: float,
        stack: ExitStack,
    ) -> None:
        self.asked = {key_of(r): r for r in requests}
        self.stage, self.account, self.max_failed = stage, account, max_failed
        self.responses: dict[Key, Response] = {}
        self.journals: dict[tuple[str, int], Journal] = {}
        self.commits: dict[str, str | None] = {}  # by teacher, see `commit_now`
        self.in_a_row: Counter[str] = Counter()  # failures of a teacher
        # Answers that are not in the journal yet: empty ones of teachers that say nothing.
        self.silent: dict[str, list[tuple[Request, Response]]] = defaultdict(list)
        self.tokens, self.start, self.lock = 0, time.monotonic(), Lock()
        self._read_journals(stack)
        self.bar = stack.enter_context(
            Bar(stage, total=len(self.asked), initial=len(self.responses), unit="answers")
        )

    def _read_journals(self, stack: ExitStack) -> None:
        keys: dict[tuple[str, int], list[str]] = defaultdict(list)
        for (name, prompt_id, sample), request in self.asked.items():
            keys[name, sample].append(prompt_id)
            if (name, sample) not in self.journals and facts_of(request.teacher).journalled:
                if name not in self.commits:
                    self.commits[name] = commit_now(request.teacher)
                teacher, commit = request.teacher, self.commits[name]
                teacher = replace(teacher, sampling=request.sampling)
                identity = _identity(teacher, commit)
                if commit and identity["weights"] == commit:
                    _say_moved(teacher.model, commit)
                journal = Journal("responses", teacher.model, identity)
                self.journals[name, sample] = stack.enter_context(journal)
        for (name, sample), journal in self.journals.items():
            for prompt_id, record in journal.get(keys[name, sample]).items():
                response = from_record(record)
                key = name, prompt_id, sample
                self.responses[key] = response
                self.account.settle(self.asked[key], response, reused=True)

    def missing(self) -> list[Request]:
        return [request for key, request in self.asked.items() if key not in self.responses]

    def to_ask_again(self) -> list[Request]:
        """What failed and may succeed now; its failure is taken back."""
        again = [
            self.asked[key]
            for key, response in self.responses.items()
            if response["finish_reason"] == "error" and facts_of(self.asked[key].teacher).retried
        ]
        for request in again:
            self.account.again(request)
        self.bar.update(-len(again))
        self.in_a_row.clear()
        return again

    def keep(self, request: Request, response: Response, journalled: bool = False) -> None:
        """Take a response in; safe to be called by several threads.

        Raises:
            BuildError: its teacher fails, and so does the build with it.
        """
        with self.lock:
            self.responses[key_of(request)] = response
            self.account.settle(request, response)
            if response["finish_reason"] != "error" and not journalled:
                self._write(request, response)
            self._show(request, response)
            self._check_teacher(request, response)

    def _write(self, request: Request, response: Response) -> None:
        """Put it into its journal; empty answers only once the teacher has said something.

        An empty answer was paid for, and would be empty again. But of a teacher that says nothing
        at all it is a fault of its server that somebody will fix, and then it is to be asked again.
        """
        self.silent[request.teacher.name].append((request, response))
        if not response["error"] or self.account.answered(request.teacher):
            self._put(request.teacher.name)

    def _put(self, name: str) -> None:
        for request, response in self.silent.pop(name):
            if journal := self.journals.get((name, request.sample)):
                journal.put(request.prompt_id, response)

    def _show(self, request: Request, response: Response) -> None:
        self.tokens += response["completion_tokens"] or 0
        speed = f"{self.tokens / (time.monotonic() - self.start):.0f} tokens/s"
        spent = usd(self.account.spent) if self.account.spent else ""
        self.bar.note(spent or speed, request.teacher.name)
        self.bar.update()

    def _check_teacher(self, request: Request, response: Response) -> None:
        name = request.teacher.name
        if not response["error"]:
            self.in_a_row[name] = 0
            return
        self.in_a_row[name] += 1
        count = self.in_a_row[name]
        never = count == FIRST_FAILURES and not self.account.answered(request.teacher)
        if never or count > max(FIRST_FAILURES, part_of(self.max_failed, len(self.asked))):
            raise BuildError(
                f"{self.stage}: teacher {name!r} fails: {count} requests in a row, the last with: "
                f"{response['error']}. Fix it and rerun the same command; all answers so far are "
                "kept."
            )

    def check(self) -> None:
        """Raises `BuildError`: requests are left, or too many failed. Says what looks wrong."""
        if left := len(self.asked) - len(self.responses):
            raise BuildError(
                f"{self.stage}: max_cost ${self.account.max_cost:g} is reached: "
                f"${self.account.spent:,.4f} spent, and the next request may exceed it; {left:,} "
                f"of {len(self.asked):,} are left. Raise max_cost and rerun the same command; all "
                "answers so far are kept."
            )
        reasons = Counter((key[0], r["error"]) for key, r in self.responses.items() if r["error"])
        if (count := reasons.total()) > part_of(self.max_failed, len(self.asked)):
            most = "; ".join(
                f"{n:,} × {name!r}: {error[:200]}" for (name, error), n in reasons.most_common(5)
            )
            raise BuildError(
                f"{self.stage}: {count:,} of {len(self.asked):,} requests failed, and max_failed "
                f"is {self.max_failed:.0%}: {most}. Fix it, or raise max_failed, and rerun the "
                "same command; all answers so far are kept."
            )
        for name in list(self.silent):
            self._put(name)
        self._check_samples()

    def _check_samples(self) -> None:
        """Say so where a teacher that draws gives the same answer each time."""
        texts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for (name, prompt_id, _), response in self.responses.items():
            if not response["error"]:
                texts[name][prompt_id].append(response["text"] + response["tool_calls"])
        teachers = {r.teacher.name: r.teacher for r in self.asked.values()}
        for name, of_prompt in texts.items():
            several = [set(found) for found in of_prompt.values() if len(found) > 1]
            temperature = (teachers[name].sampling or Sampling()).temperature
            drawn = facts_of(teachers[name]).journalled and temperature > 0
            equal = len(several) > 1 and all(len(found) == 1 for found in several)
            if drawn and equal and name not in self.account.said:
                self.account.said.add(name)
                logger.warning(
                    "The samples of teacher %r are identical on all %d prompts, at temperature "
                    "%g: its server may decode greedily whatever the request says. More than one "
                    "sample is then useless.",
                    name,
                    len(several),
                    temperature,
                )


def ask_here(
    requests: list[Request],
    account: Account,
    keep: Callable[..., None],
    commits: Mapping[str, str | None] = MappingProxyType({}),
) -> None:
    """Work on the requests; remote teachers in a thread of their own, so that they and local ones
    wait for no other.

    Args:
        commits: by teacher, the commit of its model that is to answer, where a branch may move.
    """

    def at_commit(request: Request) -> Request:
        teacher = request.teacher
        commit = commits.get(teacher.name) or teacher.revision
        return request._replace(teacher=replace(teacher, revision=commit))

    def work(group: list[Request]) -> None:
        engine = engine_of(group[0].teacher)
        with closing(engine.generate(list(map(at_commit, group)), account)) as answers:
            for i, response in answers:
                keep(group[i], response)

    groups: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        groups[request.teacher.engine].append(request)
    parts: dict[bool, list[Any]] = {True: [], False: []}
    for _, group in sorted(groups.items()):
        parts[facts_of(group[0].teacher).remote].append(partial(work, group))
    side_by_side(account, parts[True], parts[False])


def side_by_side(
    account: Account, aside: Sequence[Callable[[], None]], here: Iterable[Callable[[], None]]
) -> None:
    """Do the work `aside` in a thread for each, and that `here` in this one, one after another.

    What one of them raises, or Ctrl-C while waiting, closes the account, so that the others stop,
    and is raised.
    """

    def guard(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            account.closed.set()
            raise

    with ThreadPoolExecutor(max(1, len(aside))) as pool:
        futures = [pool.submit(guard, work) for work in aside]
        for work in here:
            guard(work)
        for future in futures:
            guard(future.result)
