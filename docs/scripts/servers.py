"""Makes the table of docs/teachers.md: what a running server honours of what it is asked.

    python docs/scripts/servers.py http://127.0.0.1:8000/v1 MODEL "vLLM 0.32.0" --context 1024

Prints a column and writes it into the page, beside those of other servers. MODEL is the name that
the server knows, CONTEXT the tokens that it takes for prompt and answer together. The model must
be able to end a short answer by itself; its control token is `<|im_end|>`, or what you name.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from huggingface_hub.utils import httpx

from persyn_datasets import Generate, Sampling, Teacher
from persyn_datasets.report.tables import table

PAGE = Path(__file__).parents[1] / "teachers.md"
BEGIN, END = "<!-- servers -->\n", "<!-- /servers -->"
TIMEOUT_SECONDS = 1200
SEEDS = 8
STORY = "Write a story about a {} {}."
STORIES = [
    STORY.format(adjective, noun)
    for adjective in ("red", "blue", "old", "new", "small", "golden")
    for noun in ("ship", "lamp", "king", "cat", "road", "house", "tree", "river")
]
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}


class Server:
    """One model behind one server."""

    def __init__(self, base_url: str, model: str, context: int, control: str) -> None:
        self.base_url, self.model = base_url, model
        self.context, self.control = context, control
        self.client = httpx.Client(timeout=TIMEOUT_SECONDS)

    def ask(self, messages: str | list[dict[str, str]], **body: Any) -> Any:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": 16,
        } | body
        return self.client.post(f"{self.base_url}/chat/completions", json=body)

    def choice(self, messages: str | list[dict[str, str]], **body: Any) -> dict[str, Any]:
        return self.ask(messages, **body).raise_for_status().json()["choices"][0]

    def text(self, messages: str | list[dict[str, str]], **body: Any) -> str:
        return self.choice(messages, **body)["message"]["content"] or ""

    def usage(self, messages: str | list[dict[str, str]], **body: Any) -> dict[str, int]:
        return self.ask(messages, **body).raise_for_status().json()["usage"]

    def texts(self, bodies: list[dict[str, Any]]) -> list[str]:
        """All at once."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.text(**body), bodies))


def _seeded() -> list[dict[str, Any]]:
    return [
        {"messages": STORIES[0], "temperature": 1, "seed": seed, "max_tokens": 12}
        for seed in range(SEEDS)
    ]


def same_seed(server: Server) -> str:
    body = _seeded()[0]
    first, second = (server.text(**body) for _ in range(2))
    return "the same text" if first == second else "another text"


def same_seed_at_once(server: Server) -> str:
    alone = [server.text(**body) for body in _seeded()]
    same = sum(a == b for a, b in zip(alone, server.texts(_seeded()), strict=True))
    return f"{same} of {SEEDS} texts as alone"


def other_seeds(server: Server) -> str:
    return f"{len({server.text(**body) for body in _seeded()})} different"


def one_seed_for_all(server: Server) -> str:
    bodies = [
        {"messages": story, "temperature": 1, "seed": 0, "max_tokens": 2} for story in STORIES
    ]
    return f"{len(set(server.texts(bodies)))} of {len(STORIES)}"


def own_seeds(server: Server) -> str:
    """As this package asks."""
    teacher = Teacher(
        name="teacher",
        engine="endpoint",
        model=server.model,
        base_url=server.base_url,
        sampling=Sampling(temperature=1, max_tokens=2),
    )
    with tempfile.TemporaryDirectory() as journal:
        os.environ["PERSYN_JOURNAL"] = journal
        prompts = Dataset.from_dict({"prompt": STORIES})
        rows = prompts.map(Generate([teacher]), batched=True, batch_size=None)
        return f"{len({row['responses'][0]['text'] for row in rows})} of {len(STORIES)}"


def temperature(server: Server) -> str:
    body = {"messages": STORIES[0], "max_tokens": 12}
    greedy = {server.text(**body, temperature=0) for _ in range(SEEDS)}
    drawn = {server.text(**body, temperature=1) for _ in range(SEEDS)}
    return f"{len(drawn)} different at 1, {len(greedy)} at 0"


def stop(server: Server) -> str:
    string = " the"
    found = server.choice("Tell me about the sea.", max_tokens=60, stop=[string])
    before, _, after = found["message"]["content"].partition(string)
    if after or found["finish_reason"] == "length":
        return "ignored"
    return "ends before it" if found["message"]["content"] == before else "ends with it"


def several(server: Server) -> str:
    found = server.ask(STORIES[0], temperature=1, n=3)
    if not found.is_success:
        return f"refused ({found.status_code})"
    texts = [choice["message"]["content"] for choice in found.json()["choices"]]
    return "ignored: 1 answer" if len(texts) == 1 else f"{len(texts)}, {len(set(texts))} different"


def past_the_context(server: Server) -> str:
    return _too_much(server, "Say hello.", server.context - 8)


def more_than_the_context(server: Server) -> str:
    return _too_much(server, "Say hello.", 10 * server.context)


def long_prompt(server: Server) -> str:
    return _too_much(server, "word " * (server.context + 100), 4)


def _too_much(server: Server, prompt: str, max_tokens: int) -> str:
    found = server.ask(prompt, max_tokens=max_tokens)
    if not found.is_success:
        return f"refused ({found.status_code})"
    used = found.json()["usage"]
    if used["prompt_tokens"] > server.context:
        return "answered all the same"
    return "answered"


def logprobs(server: Server) -> str:
    found = server.ask("Say hello.", logprobs=True, top_logprobs=2)
    if not found.is_success:
        return f"refused ({found.status_code})"
    given = (found.json()["choices"][0].get("logprobs") or {}).get("content")
    return f"yes, and {len(given[0]['top_logprobs'])} others" if given else "ignored"


def json_schema(server: Server) -> str:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    found = server.ask("Describe a dog.", max_tokens=100, response_format=form)
    if not found.is_success:
        return f"refused ({found.status_code})"
    try:
        answer = json.loads(found.json()["choices"][0]["message"]["content"])
    except ValueError:
        return "ignored"
    return "honoured" if set(answer) == {"age"} else "JSON of another kind"


def end_token(server: Server) -> str:
    """One token less is too few for the same answer's end, if the end is counted."""
    found = server.ask("Say hello.", max_tokens=200).raise_for_status().json()
    counted, choice = found["usage"]["completion_tokens"], found["choices"][0]
    if choice["finish_reason"] != "stop":
        raise SystemExit("the model does not end its answer to 'Say hello.' within 200 tokens")
    less = server.choice("Say hello.", max_tokens=counted - 1)
    text, shorter = choice["message"]["content"], less["message"]["content"]
    if not text.startswith(shorter):
        return "unknown: not greedy"
    return "counted" if text == shorter and less["finish_reason"] == "length" else "not counted"


def assistant_last(server: Server) -> str:
    said = "The capital of"
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": said},
    ]
    found = server.ask(messages)
    if not found.is_success:
        return f"refused ({found.status_code})"
    text = found.json()["choices"][0]["message"]["content"] or ""
    turns = server.usage(messages)["prompt_tokens"] - server.usage(messages[:1])["prompt_tokens"]
    closed = turns > server.usage(said)["prompt_tokens"] - server.usage("")["prompt_tokens"] + 1
    if closed:
        return "another turn"
    return "continued, given back too" if text.startswith(said) else "continued"


def quoted_control_token(server: Server) -> str:
    """Ten of them are ten tokens more, or the many that their letters are."""
    quoted = server.usage(10 * server.control)["prompt_tokens"]
    more = quoted - server.usage("")["prompt_tokens"]
    return "read as the token" if more <= 12 else "read as text"


def unknown_field(server: Server) -> str:
    found = server.ask("Say hello.", no_such_field=1)
    return "ignored" if found.is_success else f"refused ({found.status_code})"


ROWS: dict[str, Callable[[Server], str]] = {
    "one `seed`, twice": same_seed,
    f"the same {SEEDS} seeds, all at once": same_seed_at_once,
    f"{SEEDS} seeds at temperature 1": other_seeds,
    f"no seed, {SEEDS} times": temperature,
    f"beginnings of {len(STORIES)} answers, one seed for all": one_seed_for_all,
    f"beginnings of {len(STORIES)} answers, as persyn asks": own_seeds,
    "`stop`": stop,
    "`n: 3`": several,
    "prompt and `max_tokens` beyond the context": past_the_context,
    "`max_tokens` alone beyond the context": more_than_the_context,
    "a prompt beyond the context": long_prompt,
    "`logprobs`": logprobs,
    "`response_format: json_schema`": json_schema,
    "end token in `completion_tokens`": end_token,
    "the assistant's message last": assistant_last,
    "a control token that a user quotes": quoted_control_token,
    "a field that nobody knows": unknown_field,
}


def column(server: Server) -> list[str]:
    return [ask(server) for ask in ROWS.values()]


def with_column(page: str, name: str, cells: list[str]) -> str:
    """The page with this server's column, in the place of its last one or after all others."""
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    lines = [re.split(r"\s*\|\s*", line.strip("| \n")) for line in old.strip().splitlines()]
    known: dict[str, list[str]] = {}
    if lines:
        head, rows = lines[0], lines[2:]
        if [row[0] for row in rows] == list(ROWS):
            known = {n: [row[i + 1] for row in rows] for i, n in enumerate(head[1:])}
    known[name] = cells
    rows = [[row, *(of[i] for of in known.values())] for i, row in enumerate(ROWS)]
    return f"{before}{BEGIN}{table(['what is asked', *known], rows)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base_url")
    parser.add_argument("model")
    parser.add_argument("name", help="the server and its version: the column's head")
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--control", default="<|im_end|>")
    options = parser.parse_args()
    server = Server(options.base_url, options.model, options.context, options.control)
    cells = []
    for name, ask in ROWS.items():
        cells.append(ask(server))
        print(f"{name}: {cells[-1]}", flush=True)
    head = f"{options.name}, {datetime.now(UTC):%Y-%m-%d}"
    PAGE.write_text(with_column(PAGE.read_text(), head, cells))


if __name__ == "__main__":
    disable_progress_bars()
    main()
