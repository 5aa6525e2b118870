"""Answers to requests: from the journal, else from the engines, all at once; nothing lost, nothing
bought twice.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import groupby
from threading import Lock

from persyn_datasets.config.errors import BuildError
from persyn_datasets.engines import Request, Response, engine_of
from persyn_datasets.engines.account import Account
from persyn_datasets.store.journal import Journal
from persyn_datasets.store.progress import Bar, usd

FIRST_FAILURES = 36  # of a teacher that has not answered once: it never will
# Has requests answered, by `keep(request, response)`; with True as a third argument the answer is
# in the journal.
Ask = Callable[[list[Request], Account, Callable[..., None]], None]
TRIED_AGAIN = ("endpoint", "vllm")  # other engines fail by a row's own fault only


def respond(
    requests: Sequence[Request],
    stage: str,
    account: Account,
    max_failed: float = 1.0,
    ask: Ask | None = None,
) -> list[Response]:
    """The response to each request, in order.

    Endpoints are asked while local teachers work, one after another, in this thread. What failed is
    tried once more at the end, and then is a response with an `error`. `ask` (default: `ask_here`)
    has them answered.

    Raises:
        BuildError: every request to a teacher fails, more than the share `max_failed` of all
            failed, or `account.max_cost` is reached. What was answered is in the journal by then.
    """
    asked = {_key(r): r for r in requests}
    account.open(stage)
    with ExitStack() as stack:
        journals: dict[tuple[str, int], Journal] = {}
        for (name, sample), r in {(r.teacher.name, r.sample): r for r in asked.values()}.items():
            if r.teacher.engine != "recorded":  # is a record already
                asked_so = replace(r.teacher, sampling=r.sampling)
                journal = Journal("responses", asked_so.model, asked_so.identity())
                journals[name, sample] = stack.enter_context(journal)
        responses: dict[tuple[str, str, int], Response] = {}
        for (name, sample), journal in journals.items():
            known = journal.get(key for teacher, key, j in asked if (teacher, j) == (name, sample))
            responses.update({(name, key, sample): response for key, response in known.items()})
        for key, response in responses.items():
            account.settle(asked[key], response, reused=True)
        todo = [request for key, request in asked.items() if key not in responses]
        bar = stack.enter_context(
            Bar(stage, total=len(asked), initial=len(responses), unit="answers")
        )
        in_a_row: Counter[str] = Counter()
        tokens, start, lock = 0, time.monotonic(), Lock()

        def keep(request: Request, response: Response, journalled: bool = False) -> None:
            nonlocal tokens
            name, failed = request.teacher.name, response["finish_reason"] == "error"
            with lock:
                responses[_key(request)] = response
                account.settle(request, response)
                # An empty answer was answered too: it stays, with its error, and is not bought
                # again.
                if not (failed or journalled) and (name, request.sample) in journals:
                    journals[name, request.sample].put(request.prompt_id, response)
                tokens += response["completion_tokens"] or 0
                speed = f"{tokens / (time.monotonic() - start):.0f} tokens/s"
                bar.note(usd(account.spent) if account.spent else speed, name)
                bar.update()
                in_a_row[name] = in_a_row[name] + 1 if failed else 0
                never = in_a_row[name] == FIRST_FAILURES and not account.answered(request.teacher)
                if never or (
                    failed and in_a_row[name] > max(FIRST_FAILURES, max_failed * len(asked))
                ):
                    raise BuildError(
                        f"{stage}: teacher {name!r} fails: {in_a_row[name]} requests in a row, "
                        "the last with: "
                        f"{response['error']}. All answers are kept: mend it, and the same "
                        "command goes on."
                    )

        (ask or ask_here)(todo, account, keep)
        failed = [asked[key] for key, r in responses.items() if r["finish_reason"] == "error"]
        if again := [request for request in failed if request.teacher.engine in TRIED_AGAIN]:
            for request in again:
                account.again(request)
            bar.update(-len(again))
            in_a_row.clear()
            (ask or ask_here)(again, account, keep)
    if left := len(asked) - len(responses):
        raise BuildError(
            f"{stage}: max_cost ${account.max_cost:g} is reached: ${account.spent:,.4f} spent, "
            "and the next request "
            f"may pass it; {left:,} of {len(asked):,} are left. All answers are kept: raise "
            "max_cost, and the same "
            "command goes on."
        )
    reasons = Counter(
        (key[0], r["error"]) for key, r in responses.items() if r["finish_reason"] == "error"
    )
    if (count := reasons.total()) > max_failed * len(asked):
        most = "; ".join(
            f"{n:,} × {name!r}: {error[:200]}" for (name, error), n in reasons.most_common(5)
        )
        raise BuildError(
            f"{stage}: {count:,} of {len(asked):,} requests failed, and max_failed is "
            f"{max_failed:.0%}: {most}. "
            "All answers are kept: mend it, or raise max_failed, and the same command goes on."
        )
    return [responses[_key(r)] | {"teacher": r.teacher.name} for r in requests]


def _key(request: Request) -> tuple[str, str, int]:
    return request.teacher.name, request.prompt_id, request.sample


def ask_here(requests: list[Request], account: Account, keep: Callable[..., None]) -> None:
    """Work on the requests; endpoints in a thread of their own, so that they and local teachers
    wait for no other.
    """

    def work(group: list[Request]) -> None:
        with closing(engine_of(group[0].teacher).generate(group, account)) as answers:
            for i, response in answers:
                keep(group[i], response)

    by_engine = sorted(requests, key=lambda r: r.teacher.engine)
    groups = {
        engine: list(group) for engine, group in groupby(by_engine, key=lambda r: r.teacher.engine)
    }
    remote = [partial(work, groups.pop("endpoint"))] if "endpoint" in groups else []
    side_by_side(account, remote, [partial(work, group) for group in groups.values()])


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
