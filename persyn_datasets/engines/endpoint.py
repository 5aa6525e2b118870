"""Any OpenAI-compatible server: TGI, vLLM, SGLang, llama.cpp, Inference Providers. All times are in
seconds.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from difflib import get_close_matches
from queue import SimpleQueue
from threading import Thread
from typing import Any

from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import get_token_to_send, httpx

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.engines import OF_BODY, Facts, Request, Response, failed
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.lane import POLL, Lane, Row
from persyn_datasets.engines.server import (
    Server,
    headers,
    of_hugging_face,
    says,
    session,
    short,
)

FACTS = Facts(
    remote=True,
    retried=True,
    tools=True,
    keys=("base_url", *OF_BODY),
    needs=("base_url",),
)
CHECK_TIMEOUT = 10.0


def generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """Yield (index, response) as they complete. Closing the iterator cancels what is in flight."""
    results: SimpleQueue[tuple[int, Response] | BaseException | None] = SimpleQueue()
    # In a thread of its own, since the caller's (a notebook's) may already run an event loop.
    loop = asyncio.new_event_loop()
    task = loop.create_task(_answer_all(requests, account, results.put))

    def run() -> None:
        try:
            loop.run_until_complete(task)
            results.put(None)
        except BaseException as error:
            results.put(error)
        finally:
            loop.close()

    thread = Thread(target=run, name="persyn-endpoint", daemon=True)
    thread.start()
    try:
        while (item := results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def check(teacher: Teacher) -> None:
    """Raise `InputError` if a base_url is unreachable, refuses or lacks the key, or does not know
    the model.
    """
    for base_url in teacher.base_urls:
        _check(teacher, base_url)


def _check(teacher: Teacher, base_url: str) -> None:
    url, key, who = (
        url_of(teacher, base_url, "/models"),
        api_key(teacher, base_url),
        f"Teacher {teacher.name!r}: {base_url}",
    )
    try:
        response = session(url).get(
            url, headers=headers(key), timeout=CHECK_TIMEOUT, follow_redirects=False
        )
    except (httpx.HTTPError, OfflineModeIsEnabled) as error:
        cause = short(str(error) or type(error).__name__, key)
        raise InputError(f"{who} cannot be reached ({cause}). Is the server up?") from None
    status = response.status_code
    if status in (401, 403):
        remedy = (
            f"check the key in {teacher.api_key_env}"
            if teacher.api_key_env
            else "name its variable in api_key_env"
        )
        raise InputError(
            f"{who} refused {'the' if key else 'a missing'} key ({says(response, key)}); {remedy}."
        )
    if 300 <= status < 400:
        raise InputError(f"{who} {says(response, key)}.")
    if status >= 500:
        raise InputError(f"{who} is up but answers HTTP {status}: {says(response, key)}")
    if status >= 400:  # no /models, or busy: it may still answer prompts
        return
    try:
        body = response.json()
    except ValueError:
        raise InputError(
            f"{who}/models is not JSON. Expected the base_url up to and with /v1."
        ) from None
    models = body.get("data") if isinstance(body, dict) else body
    listed = models if isinstance(models, list) else []
    known = [str(model["id"]) for model in listed if isinstance(model, dict) and "id" in model]
    # Servers also take Inference Providers' "model:provider", Ollama's implied ":latest" and
    # Gemini's bare names.
    same = {
        teacher.model,
        teacher.model.partition(":")[0],
        f"{teacher.model}:latest",
        f"models/{teacher.model}",
    }
    if known and not same & set(known):
        nearest = ", ".join(get_close_matches(teacher.model, known, n=5, cutoff=0))
        more = f" and {len(known) - 5} more" if len(known) > 5 else ""
        raise InputError(f"{who} has no model {teacher.model!r}; it has {nearest}{more}.")


async def _answer_all(
    requests: Sequence[Request], account: Account, put: Callable[[tuple[int, Response]], None]
) -> None:
    """Put all responses. Each teacher has its own workers, so that a slow server holds up
    no other.
    """
    rows: dict[Any, deque[Row]] = {}
    for index, request in enumerate(requests):
        teacher = request.teacher
        rows.setdefault((teacher.name, teacher.base_urls, teacher.api_key_env), deque()).append(
            Row(0.0, index, request)
        )

    def stop() -> None:  # what is in flight is still taken
        for pending in rows.values():
            pending.clear()

    async with AsyncExitStack() as stack:
        servers: dict[str, Server] = {}
        counter = ThreadPoolExecutor(1, "persyn-tokens")
        stack.callback(counter.shutdown, wait=False, cancel_futures=True)
        lanes = []
        for pending in rows.values():
            teacher = pending[0].request.teacher
            try:
                keys = {
                    url_of(teacher, url, "/chat/completions"): api_key(teacher, url)
                    for url in teacher.base_urls
                }
            except InputError as error:
                for row in pending:
                    put((row.index, failed(row.request.teacher, str(error))))
                continue
            for url in keys:
                server = servers.setdefault(url, Server(url, teacher.concurrency, stack))
                server.limit = server.most = min(server.most, teacher.concurrency)
            lanes.append(
                Lane(
                    teacher,
                    pending,
                    {servers[url]: key for url, key in keys.items()},
                    account,
                    counter,
                )
            )
        workers = [
            asyncio.create_task(lane.work(put, stop)) for lane in lanes for _ in range(lane.places)
        ]
        answered = asyncio.gather(*workers)
        try:
            while not answered.done() and not account.closed.is_set():
                await asyncio.wait([answered], timeout=POLL)
            if answered.done():
                answered.result()  # raises a bug
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(answered, *workers, return_exceptions=True)


def api_key(teacher: Teacher, base_url: str) -> str | None:
    """The key to send: of `api_key_env`; else to Hugging Face's own servers the user's token, to
    others none.
    """
    if name := teacher.api_key_env:
        key = os.environ.get(name, "").strip()
        if not key:
            raise InputError(
                f"Teacher {teacher.name!r}: {name} is not set in the environment; `export "
                f"{name}=...`."
            )
        if not (key.isascii() and key.isprintable()):
            raise InputError(
                f"Teacher {teacher.name!r}: the key in {name} holds a line break or an odd "
                "character."
            )
        return key
    url = url_of(teacher, base_url, "")
    ours = url.startswith("https:") and of_hugging_face(url)
    return get_token_to_send(None) if ours else None


def url_of(teacher: Teacher, base_url: str, path: str) -> str:
    with suppress(httpx.InvalidURL):
        url = httpx.URL(base_url)
        if url.scheme in ("http", "https") and url.host and not url.userinfo:
            return str(url.copy_with(path=(url.path.rstrip("/") or "/v1") + path))
    raise InputError(
        f"Teacher {teacher.name!r}: base_url is {base_url!r}; expected e.g. http://host:8080/v1."
    )
