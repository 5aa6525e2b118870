"""Any OpenAI-compatible server: TGI, vLLM, SGLang, llama.cpp, Inference Providers. All times are in seconds."""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from threading import Thread
from typing import Any

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import get_session, get_token_to_send, httpx

from persyn_datasets.account import Account
from persyn_datasets.engines import Request, Response, failed
from persyn_datasets.errors import InputError
from persyn_datasets.teacher import Sampling, Teacher

CONCURRENCY = 32  # requests in flight per base_url
TRIES = 6
BACKOFF = 2.0  # doubles with each try: about a minute in all, which outlasts a per-minute rate limit
MAX_RETRY_AFTER = 120.0
TIMEOUT = httpx.Timeout(1800.0, connect=20.0)  # a full queue on a slow server is no fault
CHECK_TIMEOUT = 10.0
NO_KEY = "no-key"


def generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """Yield (index, response) as they complete. Closing the iterator cancels what is in flight."""
    results: SimpleQueue[tuple[int, Response] | BaseException | None] = SimpleQueue()
    # In a thread of its own, since the caller's (a notebook's) may already run an event loop.
    loop = asyncio.new_event_loop()
    task = loop.create_task(_answer_all(requests, results.put))

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
    """Raise `InputError` if the key is missing or refused, the server unreachable or the model unknown to it."""
    key, who = _key(teacher), f"Teacher {teacher.name!r}: {teacher.base_url}"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        response = get_session().get(_url(teacher, "/models"), headers=headers, timeout=CHECK_TIMEOUT)
    except (httpx.HTTPError, OfflineModeIsEnabled) as error:
        cause = _short(str(error) or type(error).__name__, key)
        raise InputError(f"{who} cannot be reached ({cause}). Is the server up?") from None
    status = response.status_code
    if status in (401, 403):
        mend = f"check the key in {teacher.api_key_env}" if teacher.api_key_env else "name its variable in api_key_env"
        raise InputError(f"{who} refused {'the' if key else 'a missing'} key ({_says(response, key)}); {mend}.")
    if status >= 500:
        raise InputError(f"{who} is up but answers HTTP {status}: {_says(response, key)}")
    if status >= 400:  # no /models, or busy: it may still answer prompts
        return
    try:
        body = response.json()
    except ValueError:
        raise InputError(f"{who}/models is not JSON. Expected the base_url up to and with /v1.") from None
    models = body.get("data") if isinstance(body, dict) else body
    listed = models if isinstance(models, list) else []
    known = [str(model["id"]) for model in listed if isinstance(model, dict) and "id" in model]
    # Servers also take Inference Providers' "model:provider", Ollama's implied ":latest" and Gemini's bare names.
    same = {teacher.model, teacher.model.partition(":")[0], f"{teacher.model}:latest", f"models/{teacher.model}"}
    if known and not same & set(known):
        nearest = ", ".join(get_close_matches(teacher.model, known, n=5, cutoff=0))
        more = f" and {len(known) - 5} more" if len(known) > 5 else ""
        raise InputError(f"{who} has no model {teacher.model!r}; it has {nearest}{more}.")


async def _answer_all(requests: Sequence[Request], put: Callable[[tuple[int, Response]], None]) -> None:
    """Put all responses; each base_url has its own workers, so that a slow server holds up no other."""
    lanes: dict[str | None, list[int]] = {}
    for index, request in enumerate(requests):
        lanes.setdefault(request.teacher.base_url, []).append(index)
    clients: dict[tuple[str | None, str | None], AsyncInferenceClient] = {}

    def connect(teacher: Teacher) -> AsyncInferenceClient:
        address = (teacher.base_url, teacher.api_key_env)
        if address not in clients:
            clients[address] = _client(teacher)
            stack.push_async_callback(clients[address].close)
        return clients[address]

    async def work(pending: Iterator[int]) -> None:
        for index in pending:
            put((index, await _answer(connect, requests[index])))

    async with AsyncExitStack() as stack:
        queues = [(iter(lane), min(CONCURRENCY, len(lane))) for lane in lanes.values()]
        workers = [asyncio.create_task(work(queue)) for queue, count in queues for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _answer(connect: Callable[[Teacher], AsyncInferenceClient], request: Request) -> Response:
    teacher, sampling = request.teacher, request.teacher.sampling or Sampling()
    options: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": int(sampling.seed),
        "stop": list(sampling.stop) or None,
    }
    for tries in range(1, TRIES + 1):
        pause = BACKOFF * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
        try:
            client = connect(teacher)
            output = await client.chat_completion(request.messages, model=teacher.model, **options)
            return _response(teacher, output)
        except (InputError, OfflineModeIsEnabled) as error:
            return failed(teacher, str(error))
        except Exception as error:
            # huggingface_hub trips over error bodies that are JSON but no object: the status is then in the context.
            refusal = getattr(error, "response", getattr(error.__context__, "response", None))
            if refusal is None and not isinstance(error, httpx.HTTPError | ValueError):
                raise  # a bug
            if refusal is None:
                what = "not a chat completion" if isinstance(error, ValueError) else "connection failed"
                reason = f"{what}: {_short(str(error) or type(error).__name__, client.token)}"
            else:
                status = refusal.status_code
                reason = f"HTTP {status}: {_says(refusal, client.token)}"
                if status in (400, 422) and "top_p" in reason and options.get("top_p") == 1:
                    del options["top_p"]  # TGI refuses 1; others, were it never sent, would take the model's default
                    continue
                if status not in (408, 409, 425, 429) and status < 500:
                    return failed(teacher, reason)
                pause = max(pause, _retry_after(refusal))
        if tries < TRIES:
            await asyncio.sleep(pause)
    return failed(teacher, f"{reason} (tried {TRIES} times)")


def _response(teacher: Teacher, output: dict[str, Any]) -> Response:
    match output:
        case {"choices": [{"message": {"content": str() | None as text}, "finish_reason": str() | None as reason}, *_]}:
            if not text and not reason:
                raise ValueError("the choice is empty")
        case _:
            raise ValueError(_message({key: value for key, value in output.items() if value is not None}))
    usage = output.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Response(
        teacher=teacher.name,
        text=_storable(text or ""),
        finish_reason="stop" if reason in (None, "", "eos_token", "stop_sequence") else reason,
        prompt_tokens=counts.get("prompt_tokens"),
        completion_tokens=counts.get("completion_tokens"),
        error="" if text else "empty response",
    )


def _client(teacher: Teacher) -> AsyncInferenceClient:
    key = _key(teacher)
    # Without a token huggingface_hub sends the user's own to any host: give it one, and drop the header.
    headers: dict[str, Any] = {} if key else {"authorization": None}
    url = _url(teacher, "/chat/completions")
    return AsyncInferenceClient(base_url=url, api_key=key or NO_KEY, headers=headers, timeout=TIMEOUT)  # type: ignore[arg-type]


def _key(teacher: Teacher) -> str | None:
    """The key to send: of `api_key_env`; else to Hugging Face's own servers the user's token, to others none."""
    if name := teacher.api_key_env:
        key = os.environ.get(name, "").strip()
        if not key:
            raise InputError(f"Teacher {teacher.name!r}: {name} is not set in the environment; `export {name}=...`.")
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"Teacher {teacher.name!r}: the key in {name} holds a line break or an odd character.")
        return key
    url = httpx.URL(_url(teacher, ""))
    return get_token_to_send(None) if url.scheme == "https" and f".{url.host}".endswith(".huggingface.co") else None


def _url(teacher: Teacher, path: str) -> str:
    with suppress(httpx.InvalidURL):
        url = httpx.URL(teacher.base_url or "")
        if url.scheme in ("http", "https") and url.host:
            return str(url.copy_with(path=(url.path.rstrip("/") or "/v1") + path))
    raise InputError(f"Teacher {teacher.name!r}: base_url is {teacher.base_url!r}; expected e.g. http://host:8080/v1.")


def _says(response: httpx.Response, key: str | None) -> str:
    """The server's own words for what went wrong, without the key."""
    try:
        message = _message(response.json())
    except ValueError:
        message = "" if response.text.lstrip().startswith("<") else response.text
    return _short(message or response.reason_phrase, key)


def _message(body: Any) -> str:
    body = body[0] if isinstance(body, list) and body else body
    for field in ("error", "message", "detail"):
        body = body.get(field) or body if isinstance(body, dict) else body
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def _short(text: str, key: str | None) -> str:
    return " ".join(_storable(text.replace(key, "***") if key else text).split())[:300]


def _storable(text: str) -> str:
    """JSON can hold half a surrogate pair, Arrow cannot."""
    return text.encode(errors="replace").decode()


def _retry_after(response: httpx.Response) -> float:
    """Seconds; the header holds a number of them or a date."""
    value = response.headers.get("retry-after", "0")
    with suppress(ValueError):
        wait = float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
        return min(max(0.0, wait), MAX_RETRY_AFTER)
    return 0.0
