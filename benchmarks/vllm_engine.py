"""The vllm engine against bare `LLM.generate`: the same prompts, token ids, sampling and engine
arguments.

python benchmarks/vllm_engine.py [--prompts 64] [--max-tokens 32] [--rounds 3]

Each answers the prompts `--rounds` times with a loaded model, in a process of its own, one after
the other, and all of it twice, since a machine has its moods. Starting and loading, and one prompt
to warm up, are not in the times. The engine's times have all in them that a build has: chat
template, tokenising, the way to the child and back. The model is SmolLM2-135M-Instruct in float32;
see persyn_datasets/quickstart.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from persyn_datasets import Sampling, Teacher, quickstart
from persyn_datasets.engines import Request, vllm
from persyn_datasets.engines.account import Account
from persyn_datasets.report.tables import table
from persyn_datasets.store.models import load_tokenizer, prompt_ids

ENGINE_ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "max_model_len": 1024,
}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GB
WARM_UP = "round 0"
Rounds = dict[str, list[Request]]


class OneRoundAtATime(Account):
    """Admits the requests of one round only."""

    now = WARM_UP

    def admit(self, request: Request) -> bool:
        return request.teacher.name == self.now and super().admit(request)


def by_engine(rounds: Rounds) -> tuple[list[float], int]:
    """Seconds of each round, and the tokens of the last one."""
    account = OneRoundAtATime()
    seconds, tokens = [], 0
    everything = [request for requests in rounds.values() for request in requests]
    with closing(vllm.generate(everything, account)) as answers:  # type: ignore[type-var]
        for account.now, requests in rounds.items():
            start = time.perf_counter()
            responses = [next(answers)[1] for _ in requests]
            seconds.append(time.perf_counter() - start)
            assert not any(response["error"] for response in responses)
            tokens = sum(response["completion_tokens"] or 0 for response in responses)
    return seconds[1:], tokens


def by_bare_vllm(rounds: Rounds) -> tuple[list[float], int]:
    """The same in another process, by `bare`."""
    teacher = rounds[WARM_UP][0].teacher
    tokenizer = load_tokenizer(teacher.model)
    rows = [
        [[prompt_ids(tokenizer, r.messages), vllm._sampling(r)] for r in requests]
        for requests in rounds.values()
    ]
    order = json.dumps([vllm._arguments(teacher), rows])
    program = [sys.executable, __file__, "--bare"]
    output = subprocess.run(
        program, input=order, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    seconds, tokens = json.loads(
        next(line for line in output.splitlines() if line.startswith("[["))
    )
    return seconds[1:], tokens


def bare() -> None:
    from vllm import LLM, SamplingParams

    arguments, rounds = json.load(sys.stdin)
    llm: Any = LLM(**arguments)
    seconds, tokens = [], 0
    for rows in rounds:
        start = time.perf_counter()
        prompts = [{"prompt_token_ids": ids} for ids, _ in rows]
        outputs = llm.generate(
            prompts, [SamplingParams(**sampling) for _, sampling in rows], use_tqdm=False
        )
        seconds.append(time.perf_counter() - start)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(json.dumps([seconds, tokens]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        return bare()
    model = quickstart.smollm2()
    sampling = Sampling(temperature=0.7, max_tokens=options.max_tokens)
    rounds: Rounds = {}
    for k in range(options.rounds + 1):
        name = f"round {k}"
        teacher = Teacher(
            str(model), name=name, engine="vllm", engine_args=ENGINE_ARGS, sampling=sampling
        )
        problems = quickstart.problems(options.prompts if k else 1)
        messages = [[{"role": "user", "content": problem["prompt"]}] for problem in problems]
        rounds[name] = [Request(teacher, str(i), m) for i, m in enumerate(messages)]
    found: dict[str, list[float]] = {"LLM.generate": [], "vllm engine": []}
    tokens = set()
    for _ in range(2):
        for name, way in (("LLM.generate", by_bare_vllm), ("vllm engine", by_engine)):
            seconds, count = way(rounds)
            found[name] += seconds
            tokens.add(count)
    assert len(tokens) == 1, f"not the same work: {tokens} tokens"
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    rows: list[Sequence[str]] = [
        [
            name,
            f"{median[name]:.2f}",
            f"{min(seconds):.2f}",
            f"{max(seconds):.2f}",
            f"{max(tokens) / median[name]:,.0f}",
        ]
        for name, seconds in found.items()
    ]
    print(table([f"{options.prompts} prompts", "median s", "least", "most", "tokens per s"], rows))
    least = {name: min(seconds) for name, seconds in found.items()}
    result = {
        "seconds": found,
        "rows": [
            [
                f"vllm engine, s for {options.prompts} prompts of {options.max_tokens} tokens",
                f"{median['vllm engine']:.2f}",
                f"{median['LLM.generate']:.2f}: LLM.generate",
                f"{median['LLM.generate'] / median['vllm engine']:.2f}",
                "1.00: the same engine",
            ]
        ],
        "tokens": max(tokens),
        "overhead_of_medians": median["vllm engine"] / median["LLM.generate"] - 1,
        "overhead_of_least": least["vllm engine"] / least["LLM.generate"] - 1,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
