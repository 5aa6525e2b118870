"""The endpoint engine against a bare asyncio + httpx loop and against other libraries, on one
server on loopback.

python benchmarks/endpoint.py [--concurrency 32 256] [--rounds 20] [--repeats 3] [--latency 0.2]
                              [--peer datatrove=/path/to/its/venv/bin/python …]

The server, in a process of its own, answers each prompt after a time drawn from a heavy tail
(log-normal, its median `--latency` seconds, sigma 1, at most 5 s): the same for all. Each contender
runs in a process of its own too, in turn with the others. The rate is the server's: prompts per
second from the first request to the last answer, so that no start-up counts. Peers are run as their
users run them, each by the Python that has it installed: distilabel (`pip install
"distilabel[openai]" requests`), curator (`pip install bespokelabs-curator`), datatrove and
datatrove_remote (`pip install datatrove aiofiles aiosqlite httpx openai orjson`).
"""

import argparse
import asyncio
import json
import math
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from importlib.metadata import version

PROMPT = (
    "Question {}: which of these numbers is the largest, and how do you know? "
    + "12 7 45 30 21 " * 10
)
ANSWER = "The answer follows in a few steps. " * 30
OPTIONS = {"temperature": 0.7, "max_tokens": 512, "top_p": 0.9}
MAX_LATENCY = 5.0


# The server ---------------------------------------------------------------------------------------
class Server(asyncio.Protocol):
    """Chat completions; GET /stats tells the times and questions since the last one; /stats?keep
    lets them stand.
    """

    median: float
    first, last = math.inf, 0.0
    asked: list[int] = []  # noqa: RUF012

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.data = transport, b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, complete, body = self.data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if not complete or len(body) < (int(length[1]) if length else 0):
            return
        self.data, loop = b"", asyncio.get_running_loop()
        self.last = b"connection: close" in head.lower()
        if question := re.search(rb"Question (\d+)", body):
            Server.first = min(Server.first, loop.time())
            Server.asked.append(int(question[1]))
            draw = random.Random(int(question[1])).lognormvariate(0, 1)
            loop.call_later(min(MAX_LATENCY, Server.median * draw), self.answer, int(question[1]))
        elif b"/stats" in head:
            self.send({"seconds": Server.last - Server.first, "asked": Server.asked})
            if b"?keep" not in head:
                Server.first, Server.last, Server.asked = math.inf, 0.0, []
        else:
            self.send({"object": "list", "data": [{"id": "m", "object": "model"}]})

    def answer(self, question: int) -> None:
        message = {"role": "assistant", "content": f"{question}. {ANSWER}"}
        usage = {"prompt_tokens": 70, "completion_tokens": 240, "total_tokens": 310}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": choices,
            "usage": usage,
        }
        self.send(body)
        Server.last = asyncio.get_running_loop().time()

    def send(self, body: object) -> None:
        data = json.dumps(body).encode()
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
            f"{len(data)}\r\n\r\n"
        )
        self.transport.write(head.encode() + data)  # type: ignore[attr-defined]
        if self.last:
            self.transport.close()


async def serve(median: float) -> None:
    Server.median = median
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    with suppress(OSError):  # not every system has it
        await loop.create_server(Server, "127.0.0.2", port, backlog=1024)
    print(port, flush=True)
    await server.serve_forever()


# The contenders: each gives the answers in the order of the prompts -------------------------------
def bare(url: str, prompts: list[str], concurrency: int) -> list[str]:
    from huggingface_hub.utils import httpx

    answers = [""] * len(prompts)

    async def work(client: "httpx.AsyncClient", rest: "enumerate[str]") -> None:
        for i, prompt in rest:
            body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **OPTIONS}
            reply = await client.post(f"{url}/chat/completions", json=body)
            answers[i] = reply.json()["choices"][0]["message"]["content"]

    async def main() -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            rest = enumerate(prompts)
            await asyncio.gather(*(work(client, rest) for _ in range(concurrency)))

    asyncio.run(main())
    return answers


def inference_client(url: str, prompts: list[str], concurrency: int) -> list[str]:
    from huggingface_hub import AsyncInferenceClient

    answers = [""] * len(prompts)

    async def work(client: AsyncInferenceClient, rest: "enumerate[str]") -> None:
        for i, prompt in rest:
            output = await client.chat_completion(
                [{"role": "user", "content": prompt}], model="m", **OPTIONS
            )
            answers[i] = output.choices[0].message.content or ""

    async def main() -> None:
        async with AsyncInferenceClient(base_url=url, api_key="none", timeout=60) as client:
            rest = enumerate(prompts)
            await asyncio.gather(*(work(client, rest) for _ in range(concurrency)))

    asyncio.run(main())
    return answers


def persyn(url: str, prompts: list[str], concurrency: int) -> list[str]:
    from persyn_datasets import Sampling, Teacher
    from persyn_datasets.engines import Request, endpoint
    from persyn_datasets.engines.account import Account

    teacher = Teacher(
        "m", engine="endpoint", base_url=url, concurrency=concurrency, sampling=Sampling(**OPTIONS)
    )
    requests = [
        Request(teacher, str(i), [{"role": "user", "content": prompt}])
        for i, prompt in enumerate(prompts)
    ]
    responses = dict(endpoint.generate(requests, Account()))
    return [responses[i]["text"] for i in range(len(prompts))]


def datatrove(url: str, prompts: list[str], concurrency: int) -> list[str]:
    from pathlib import Path

    from datatrove.data import Document
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    async def rollout(document, generate):  # type: ignore[no-untyped-def]
        return await generate({"messages": [{"role": "user", "content": document.text}], **OPTIONS})

    config = InferenceConfig(
        server_type="endpoint",
        endpoint_url=url.removesuffix("/v1"),
        model_name_or_path="m",
        api_key="none",
        max_concurrent_generations=concurrency,
        metric_interval=3600,
    )
    with tempfile.TemporaryDirectory() as folder:
        runner = InferenceRunner(rollout, config, JsonlWriter(folder, compression=None))
        runner.run(Document(text=prompt, id=str(i)) for i, prompt in enumerate(prompts))
        lines = [json.loads(line) for file in Path(folder).rglob("*.jsonl") for line in file.open()]
    texts = {int(line["id"]): line["metadata"]["rollout_results"][0]["text"] for line in lines}
    return [texts[i] for i in range(len(prompts))]


def datatrove_remote(url: str, prompts: list[str], concurrency: int) -> list[str]:
    """As it asks any host but localhost: there it takes a short cut of its own, without an HTTP
    client.
    """
    return datatrove(url.replace("127.0.0.1", "127.0.0.2"), prompts, concurrency)


def distilabel(url: str, prompts: list[str], concurrency: int) -> list[str]:
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    options = {"temperature": 0.7, "max_new_tokens": 512, "top_p": 0.9}
    with Pipeline() as pipeline:
        rows = LoadDataFromDicts(
            data=[{"instruction": prompt, "i": i} for i, prompt in enumerate(prompts)],
            batch_size=concurrency,
        )
        llm = OpenAILLM(model="m", base_url=url, api_key="none", generation_kwargs=options)
        rows >> TextGeneration(llm=llm, input_batch_size=concurrency)
    data = pipeline.run(use_cache=False)["default"]["train"]
    texts = dict(zip(data["i"], data["generation"], strict=True))
    return [texts[i] for i in range(len(prompts))]


def curator(url: str, prompts: list[str], concurrency: int) -> list[str]:
    import os
    from importlib.util import find_spec
    from pathlib import Path

    # It wants a tokenizer from the network; litellm, which it depends on, brings the same.
    litellm = Path(find_spec("litellm").origin).parent  # type: ignore[union-attr, arg-type]
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(litellm / "litellm_core_utils" / "tokenizers"))
    from bespokelabs import curator
    from datasets import Dataset

    params = {"base_url": url, "api_key": "none", "max_concurrent_requests": concurrency}
    params |= {"max_requests_per_minute": 10**6, "max_tokens_per_minute": 10**9}

    class Ask(curator.LLM):  # type: ignore[misc]
        def prompt(self, row: dict) -> str:
            return row["prompt"]

        def parse(self, row: dict, response: str) -> dict:
            return {"i": row["i"], "text": response}

    data = Dataset.from_dict({"i": list(range(len(prompts))), "prompt": prompts})
    with tempfile.TemporaryDirectory() as folder:
        llm = Ask(
            model_name="m", backend="openai", backend_params=params, generation_params=OPTIONS
        )
        answers = llm(data, working_dir=folder)
        answers = getattr(answers, "dataset", answers)
        texts = dict(zip(answers["i"], answers["text"], strict=True))
    return [texts[i] for i in range(len(prompts))]


CONTENDERS = {
    f.__name__: f
    for f in (bare, inference_client, persyn, datatrove, datatrove_remote, distilabel, curator)
}
PACKAGES = {"bare": "httpx2", "inference_client": "huggingface_hub", "persyn": "persyn-datasets"}
PACKAGES |= {"curator": "bespokelabs-curator", "datatrove_remote": "datatrove"}


def contend(name: str, url: str, requests: int, concurrency: int) -> None:
    answers = CONTENDERS[name](url, [PROMPT.format(i) for i in range(requests)], concurrency)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    right = sum(answer.startswith(f"{i}. ") for i, answer in enumerate(answers))
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    package = PACKAGES.get(name, name)
    print(json.dumps({"right": right, "cpu_s": cpu, "version": f"{package} {version(package)}"}))


def measure(name: str, python: str, url: str, requests: int, concurrency: int) -> dict:
    command = [python, __file__, "--contend", name, url, str(requests), str(concurrency)]
    done = subprocess.run(command, capture_output=True, text=True)
    with urllib.request.urlopen(f"{url}/stats") as reply:
        stats = json.load(reply)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if found["right"] != requests or sorted(stats["asked"]) != list(range(requests)):
        print(
            f"{name}: {found['right']} of {requests} right, {len(stats['asked'])} requests",
            file=sys.stderr,
        )
    return found | {"rate": requests / stats["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[32, 256])
    parser.add_argument(
        "--rounds", type=int, default=20, help="prompts, as a multiple of the concurrency"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--contend", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return asyncio.run(serve(args.latency))
    if args.contend:
        name, url, count, concurrency = args.contend
        return contend(name, url, int(count), int(concurrency))

    from persyn_datasets.report.tables import table

    peers = [peer.partition("=") for peer in args.peer]
    pythons = dict.fromkeys(["bare", "persyn", "inference_client"], sys.executable) | {
        n: p for n, _, p in peers
    }
    command = [sys.executable, __file__, "--serve", "--latency", str(args.latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
            rows, results = [], {}
            for concurrency in args.concurrency:
                requests = args.rounds * concurrency
                runs: dict[str, list[dict]] = {name: [] for name in pythons}
                for _ in range(args.repeats):
                    for name, python in pythons.items():
                        runs[name].append(measure(name, python, url, requests, concurrency))
                for name, tries in runs.items():
                    rates = [run["rate"] for run in tries]
                    of_bare = statistics.median(
                        r / b["rate"] for r, b in zip(rates, runs["bare"], strict=True)
                    )
                    cpu = statistics.median(run["cpu_s"] for run in tries) / requests
                    spread = f"{min(rates):,.0f}–{max(rates):,.0f}"
                    rate = f"{statistics.median(rates):,.0f}"
                    shares = [f"{of_bare:.1%}", f"{cpu * 1e3:.2f}"]
                    rows.append(
                        [name, tries[0]["version"], str(concurrency), rate, spread, *shares]
                    )
                    results[f"{name}_{concurrency}"] = {
                        "rate": statistics.median(rates),
                        "of_bare": of_bare,
                    }
        finally:
            server.terminate()
    print(
        table(
            [
                "contender",
                "version",
                "concurrency",
                "prompts/s",
                "range",
                "of bare",
                "CPU ms/prompt",
            ],
            rows,
        )
    )
    lines = [
        [
            f"endpoint engine, prompts/s at {n} in flight",
            f"{results[f'persyn_{n}']['rate']:,.0f}",
            f"{results[f'{other}_{n}']['rate']:,.0f}: {other}",
            f"{results[f'persyn_{n}']['of_bare'] / results[f'{other}_{n}']['of_bare']:.2f}",
            "bare: a loop of requests",
        ]
        for n in args.concurrency
        for other in pythons
        if other != "persyn"
    ]
    print(json.dumps(results | {"rows": lines}))


if __name__ == "__main__":
    main()
