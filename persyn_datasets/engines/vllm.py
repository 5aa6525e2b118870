"""Local teachers with vLLM: each model runs in a child process (vllm_child.py), whose memory is
released when it ends.

This side never imports vllm: it sends token ids and sampling parameters, a bounded number of rows
ahead, and yields what comes back. The child is a program, not a `multiprocessing` process: that
would run a user's script again if it has no `__main__` guard, and cannot be started under
`Dataset.map(num_proc=…)`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.engines import (
    Facts,
    Request,
    Response,
    answered,
    failed,
    thoughts,
    transformers,
)
from persyn_datasets.engines.account import Account
from persyn_datasets.store import models

if TYPE_CHECKING:  # its import takes a second
    from transformers import PreTrainedTokenizerBase

FACTS = Facts(retried=True, renders=True, keys=("engine_args", "chat_template_kwargs"))
IN_FLIGHT = 2048  # rows that the child has; vLLM works on at most 1024 at a time by default
POLL = 0.2  # seconds
PATIENCE = 5.0  # seconds for vLLM to shut down by itself
LAST_LINES = 60  # of the child's output, shown when it dies
OF_THE_TEACHER = (
    "model",
    "revision",
    "trust_remote_code",
    "tokenizer",
    "tokenizer_revision",
    "generation_config",
)
ASK_FOR_FIELDS = """
import json
from dataclasses import fields
from vllm.engine.arg_utils import EngineArgs
print(json.dumps([field.name for field in fields(EngineArgs)]))
"""
Answers = list[tuple[int, dict[str, Any] | str]]


def generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """See `persyn_datasets.engines`. Teachers that share a model and its `engine_args` share one
    child.
    """
    loads: dict[str, list[int]] = {}
    for i in sorted(
        range(len(requests)), key=lambda i: requests[i].teacher.name
    ):  # a teacher's prompts share their beginning, which vLLM caches
        loads.setdefault(json.dumps(_arguments(requests[i].teacher), sort_keys=True), []).append(i)
    for indices in loads.values():
        if not (yield from _answer(requests, indices, account)):
            return


def _answer(
    requests: Sequence[Request], indices: Sequence[int], account: Account
) -> Generator[tuple[int, Response], None, bool]:
    """Answer the requests to one model; returns False if the account ends it early."""
    left = dict.fromkeys(indices)
    in_flight: set[int] = set()
    tokenizer = _tokenizer(requests[indices[0]].teacher)
    rows = _rows(requests, indices, tokenizer)
    openings: dict[int, str] = {}
    row = next(rows, None)
    child: _Child | None = None
    with ExitStack() as stack:
        while row or in_flight:
            while row and len(in_flight) < IN_FLIGHT:
                i, ids = row
                if isinstance(ids, str):
                    yield i, failed(requests[i].teacher, ids)
                    del left[i]
                elif account.admit(requests[i]):
                    child = child or stack.enter_context(_Child(_arguments(requests[i].teacher)))
                    child.send((i, ids, _sampling(requests[i])))
                    openings[i] = thoughts.opening(tokenizer, ids)
                    in_flight.add(i)
                elif in_flight:
                    break
                else:
                    return False
                row = next(rows, None)
            answers, dead = child.receive() if child else ([], "")
            for i, answer in answers:
                response = _response(requests[i].teacher, answer, openings.pop(i))
                yield i, thoughts.with_count(response, tokenizer)
                in_flight.discard(i)
                del left[i]
            if dead:
                yield from ((i, failed(requests[i].teacher, dead)) for i in left)
                return True
            if account.closed.is_set():
                return False
    return True


def _response(teacher: Teacher, answer: dict[str, Any] | str, opening: str) -> Response:
    """Of an answer, or of the reason why there is none; the prompt ends with the tag `opening`."""
    if isinstance(answer, str):
        return failed(teacher, answer)
    return answered(teacher, **answer | {"text": opening + answer["text"]})


def _tokenizer(teacher: Teacher) -> PreTrainedTokenizerBase:
    return models.load_tokenizer(teacher.model, teacher.revision, teacher.trust_remote_code)


def _rows(
    requests: Sequence[Request], indices: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[int, list[int] | str]]:
    """The token ids of each request, or the reason why it has none; made when they are needed."""
    # If it is missing or -1, the child uses the limit that vLLM derives.
    limit = requests[indices[0]].teacher.engine_args.get("max_model_len", 0)
    for i in indices:
        try:
            switches = requests[i].teacher.chat_template_kwargs
            ids = models.prompt_ids(tokenizer, requests[i].messages, switches)
        except TemplateError as error:
            yield i, f"the model's chat template refuses the prompt: {error}"
            continue
        too_long = isinstance(limit, int) and 0 < limit <= len(ids)
        yield (
            i,
            f"the prompt has {len(ids)} tokens, the model's context {limit}" if too_long else ids,
        )


def _arguments(teacher: Teacher) -> dict[str, Any]:
    """For `vllm.LLM`. Of the generation defaults that a model ships, only its end tokens count."""
    model = {
        "model": teacher.model,
        "revision": teacher.revision,
        "tokenizer_revision": teacher.revision,
    }
    return (
        teacher.engine_args
        | model
        | {"trust_remote_code": teacher.trust_remote_code, "generation_config": "vllm"}
    )


def _sampling(request: Request) -> dict[str, Any]:
    """For `vllm.SamplingParams`. Each prompt has a random stream of its own."""
    sampling = request.sampling
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": request.seed,
        "stop": list(sampling.stop),
        **sampling.stated,
    }


class _Child:
    """The process that holds the model. Leaving the `with` block ends it and all that vLLM
    started.
    """

    def __init__(self, arguments: dict[str, Any]):
        models.free()  # vLLM takes nearly the whole device
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self.connection, theirs = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "persyn_datasets.engines.vllm_child", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            # a process group, to be ended as a whole; this process handles Ctrl-C
            start_new_session=True,
        )
        theirs.close()
        self.send(arguments)

    def send(self, message: Any) -> None:
        with suppress(OSError):  # the child has died: `receive` reports why
            self.connection.send(message)

    def receive(self) -> tuple[Answers, str]:
        """Answers that arrived within a short wait; and if the child has died, the reason."""
        died = (
            self.process.poll() is not None
        )  # checked first, so that everything it sent is still read
        try:
            if self.connection.poll(POLL):
                return self.connection.recv(), ""
        except (EOFError, OSError):
            died = True
        return [], self._reason() if died else ""

    def _reason(self) -> str:
        """Why the child died, as one line; its last lines go to the log."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").splitlines()
        logging.getLogger(__name__).error("vLLM's last lines:\n%s", "\n".join(lines[-LAST_LINES:]))
        if (code := self.process.returncode or 0) < 0:
            return (
                f"the vLLM process was killed by {signal.Signals(-code).name}; it may have run "
                "out of memory"
            )
        # One error causes others, and vLLM's processes repeat them: the first one is the cause.
        error = re.compile(r"^(?!.* (?:INFO|WARNING) ).*?([\w.]*(?:Error|Exception): .*)")
        first = next((n for n, line in enumerate(lines) if error.match(line)), len(lines) - 3)
        cause = " ".join(error.sub(r"\1", line) for line in lines[max(0, first) :][:3])
        return f"the vLLM process died: {cause}"[:500]

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when the whole group is gone: only then is the device free for the next model."""
        self.connection.close()
        with suppress(ProcessLookupError):
            for sign in (signal.SIGTERM, signal.SIGKILL):
                os.killpg(self.process.pid, sign)
                end = time.monotonic() + PATIENCE
                while time.monotonic() < end:
                    self.process.poll()
                    os.killpg(self.process.pid, 0)
                    time.sleep(0.02)
        self.output.close()


def check(teacher: Teacher) -> None:
    """Raises `InputError` if vllm is missing, an engine argument wrong, the model not found or its
    template refuses.
    """
    who = f"Teacher {teacher.name!r}"
    if not find_spec("vllm"):
        raise InputError(f'{who}: vLLM is not installed; `pip install "persyn-datasets[vllm]"`.')
    for key in teacher.engine_args:
        if key in OF_THE_TEACHER:
            raise InputError(
                f"{who}: engine_args has {key!r}, which the teacher's own keys set; remove it."
            )
        if key not in (known := _engine_arguments()):
            nearest = get_close_matches(key, known, n=1, cutoff=0)[0]
            raise InputError(
                f"{who}: vLLM has no engine argument {key!r}; did you mean {nearest!r}?"
            )
    transformers.check(teacher)


@lru_cache(maxsize=1)
def _engine_arguments() -> list[str]:
    """The fields of vLLM's `EngineArgs`, asked of a process of its own: its import takes memory for
    good.
    """
    asked = subprocess.run([sys.executable, "-c", ASK_FOR_FIELDS], capture_output=True, text=True)
    if asked.returncode:
        reason = asked.stderr.strip().splitlines()[-1:] or ["no error message"]
        raise InputError(f"vLLM is installed and cannot be imported: {reason[0]}")
    return list(json.loads(asked.stdout.splitlines()[-1]))
