"""The process that holds a model for `vllm.py`; it runs as a program whose argument is the number
of a socket.

Receives the arguments of `vllm.LLM`, then rows: (index, token ids, arguments of `SamplingParams`).
Sends lists of (index, answer): the arguments of `engines.answered`, or the reason why there is
none.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing import active_children
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any


def main(connection: Connection) -> None:
    inbox: SimpleQueue[Any] = SimpleQueue()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                inbox.put(connection.recv())
        os.killpg(
            0, signal.SIGTERM
        )  # the parent is gone; this may happen at any time, also during loading

    Thread(target=listen, daemon=True).start()
    arguments = inbox.get()

    from vllm import LLM, SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    llm = LLM(**arguments)
    Thread(target=_watch, daemon=True).start()
    engine, limit = llm.llm_engine, llm.model_config.max_model_len
    while True:
        answers: list[tuple[int, dict[str, Any] | str]] = []
        while not inbox.empty() or not (answers or engine.has_unfinished_requests()):
            i, ids, sampling = inbox.get()
            if len(ids) >= limit:
                answers.append(
                    (i, f"the prompt has {len(ids)} tokens, the model's context {limit}")
                )
                continue
            sampling["max_tokens"] = min(sampling["max_tokens"], limit - len(ids))
            parameters = SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY)
            try:
                engine.add_request(str(i), tokens_input(ids), parameters)
            except ValueError as error:  # vLLM refuses the row
                answers.append((i, str(error)))
        if engine.has_unfinished_requests():
            finished = [output for output in engine.step() if output.finished]
            answers += [
                (int(o.request_id), _answer(len(o.prompt_token_ids), o.outputs[0]))
                for o in finished
            ]
        if answers:
            connection.send(answers)


def _watch() -> None:
    """Ends this process if the engine's process is killed, e.g. by the out-of-memory killer: vLLM
    0.32 would wait for it forever.
    """
    engines = active_children()
    if engines:
        wait([engine.sentinel for engine in engines])
        time.sleep(
            2
        )  # if the engine shuts down in an orderly way, the main thread fails with a better message
        codes = ", ".join(str(engine.exitcode) for engine in engines if engine.exitcode is not None)
        print(
            f"RuntimeError: vLLM's engine was killed (exit code {codes}); it may have run out of "
            "memory",
            flush=True,
        )
        os._exit(1)


def _answer(prompt_tokens: int, completion: Any) -> dict[str, Any] | str:
    if completion.finish_reason not in ("stop", "length"):
        return f"vLLM ended the answer with finish_reason {completion.finish_reason!r}"
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(completion.token_ids),
    }


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
