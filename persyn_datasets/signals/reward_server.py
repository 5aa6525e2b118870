"""A reward model behind a server: the raw output for a whole conversation, by vLLM's `/classify`
(its page "Classification Usages"; `vllm serve MODEL --runner pooling`).

The server applies the model's own chat template; no activation, as in `reward_model.py`.
"""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.teacher import Message, Teacher
from persyn_datasets.engines import endpoint
from persyn_datasets.engines.server import headers, says, session, short

IN_FLIGHT = 16
TRIES = 6
BACKOFF_SECONDS = 1.0  # doubles with each try
TIMEOUT_SECONDS = 600.0
PROBE: list[Message] = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
]
logger = logging.getLogger(__name__)


def score(
    conversations: Sequence[list[Message]], model: str, base_url: str, api_key_env: str | None
) -> list[float | None]:
    """The output for each conversation. None: the server refuses it, e.g. as too long; how many
    there are is logged.

    Raises:
        BuildError: the server does not answer.
        InputError: what it answers has not one number, or it refuses all.
    """
    url, key = _route(base_url), _key(api_key_env)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        found = list(pool.map(lambda messages: _ask(url, key, model, messages), conversations))
    refused = [why for why in found if isinstance(why, str)]
    if refused and len(refused) == len(found):
        raise InputError(f"quality.reward_model: {url} refuses every conversation: {refused[0]}")
    if refused:
        logger.warning(
            "quality.reward_model: %d of %d conversations have no reward and take no part, the "
            "first since %s says: %s",
            len(refused),
            len(found),
            url,
            refused[0],
        )
    return [None if isinstance(value, str) else value for value in found]


def check(model: str, base_url: str, api_key_env: str | None) -> None:
    """The server is up, takes the key, and serves a reward model of this name.

    Raises:
        InputError: one of these is not so.
    """
    endpoint.check(
        Teacher(
            model,
            name=f"reward model {model}",
            engine="endpoint",
            base_url=base_url,
            api_key_env=api_key_env,
        )
    )
    score([PROBE], model, base_url, api_key_env)


def _route(base_url: str) -> str:
    return base_url.rstrip("/").removesuffix("/v1") + "/classify"


def _key(api_key_env: str | None) -> str | None:
    if not api_key_env:
        return None
    if key := os.environ.get(api_key_env, "").strip():
        return key
    raise InputError(
        f"quality.reward_model: {api_key_env} is not set in the environment; `export "
        f"{api_key_env}=...`."
    )


def _ask(url: str, key: str | None, model: str, messages: list[Message]) -> float | str:
    """The output, or the server's words for why it has none."""
    body = {
        "model": model,
        "messages": messages,
        "add_generation_prompt": False,
        "use_activation": False,
    }
    why = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        try:
            reply = session(url).post(
                url,
                json=body,
                headers=headers(key),
                timeout=TIMEOUT_SECONDS,
                follow_redirects=False,
            )
        except (httpx.HTTPError, OfflineModeIsEnabled) as error:
            why = short(str(error) or type(error).__name__, key)
            continue
        if reply.is_success:
            return _output(reply, url)
        why = f"HTTP {reply.status_code}: {says(reply, key)}"
        if reply.status_code in (400, 413, 422):
            return why
        if reply.status_code < 500 and reply.status_code not in (408, 425, 429):
            raise InputError(f"quality.reward_model: {url} answers {why}")
    raise BuildError(
        f"quality.reward_model: {url} does not answer ({why}). Fix it and rerun the same command; "
        "all answers are kept."
    )


def _output(reply: httpx.Response, url: str) -> float:
    try:
        body: Any = reply.json()
        [row] = body["data"]
        outputs = row["probs"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"quality.reward_model: {url} does not answer as vLLM's /classify does ({error!r})."
        ) from error
    if len(outputs) != 1:
        raise InputError(
            f"quality.reward_model: the model at {url} has {len(outputs)} labels; a reward model "
            "has one."
        )
    return float(outputs[0])
