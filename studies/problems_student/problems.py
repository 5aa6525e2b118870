"""Problems of six kinds with short answers, and who answers them: two small models, asked in
several ways.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from persyn_datasets import quickstart
from persyn_datasets.config.teacher import Message, Sampling, Teacher

SYSTEM = "Answer briefly."
SHORT = Sampling(temperature=0, max_tokens=24, stop=("\n",))
STRONG, WEAK = "gemma-general", "smollm2-brief"
Worked = tuple[str, int, str]  # problem, answer, and the answer with a line of working


def times(r: random.Random) -> Worked:
    problem, answer = quickstart.times(r)
    a, b = (int(word.strip("?")) for word in problem.split() if word.strip("?").isdigit())
    return problem, answer, f"{a} × {b} = {answer}."


def units(r: random.Random) -> Worked:
    (big, small, k), n = r.choice(quickstart.UNITS), r.randint(2, 16)
    return f"How many {small} are in {n} {big}?", n * k, f"{n} × {k} = {n * k}."


def story(r: random.Random) -> Worked:
    problem, answer = quickstart.story(r)
    a, b = (int(word.strip(".")) for word in problem.split() if word.strip(".").isdigit())
    return problem, answer, f"{a} {'+' if answer > a else '-'} {b} = {answer}."


def digits(r: random.Random) -> Worked:
    problem, answer = quickstart.digits(r)
    words = problem.removeprefix("Write the number ").removesuffix(" in digits.")
    return problem, answer, f"{words.capitalize()} is {answer}."


def last(r: random.Random) -> Worked:
    problem, answer = quickstart.last(r)
    return problem, answer, f"The last number is {answer}."


def words(r: random.Random) -> Worked:
    chosen = r.sample(quickstart.WORDS, r.randint(3, 5))
    counted = ", ".join(f"{i} {word}" for i, word in enumerate(chosen, 1))
    return f"How many words are in this list: {', '.join(chosen)}?", len(chosen), f"{counted}."


FAMILIES: tuple[Callable[[random.Random], Worked], ...] = (times, units, story, digits, last, words)


def draw(sizes: dict[str, int], seed: int) -> dict[str, Dataset]:
    """Parts of so many problems each, the families in turn, no problem twice in any of them.

    Columns: `messages`, `answer`, `response` (a line of working) and `family`.
    """
    r = random.Random(seed)
    seen: set[str] = set()
    parts: dict[str, Dataset] = {}
    for part, n in sizes.items():
        rows: list[dict[str, object]] = []
        while len(rows) < n:
            family = FAMILIES[len(rows) % len(FAMILIES)]
            problem, answer, response = family(r)
            if problem in seen:
                continue
            seen.add(problem)
            messages = [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": problem},
            ]
            rows.append(
                {
                    "messages": messages,
                    "answer": str(answer),
                    "response": response,
                    "family": family.__name__,
                }
            )
        parts[part] = Dataset.from_list(rows)
    return parts


UNITS_SHOT = ("How many minutes are in 5 hours?", "5 × 60 = 300.")
BUYS_SHOT = ("Eva has 6 toys and buys 4 more. How many toys does Eva have now?", "6 + 4 = 10.")
GIVES_SHOT = ("Leo has 9 cards and gives away 2. How many cards are left?", "9 - 2 = 7.")
DIGITS_SHOT = ("Write the number sixty-two in digits.", "Sixty-two is 62.")
LAST_SHOT = ("What is the last number in the list 31, 85, 52, 77, 19?", "The last number is 19.")
THREE_SHOT = ("How many words are in this list: sky, moon, star?", "1 sky, 2 moon, 3 star.")
FIVE_SHOT = (
    "How many words are in this list: pen, cup, box, hat, dog?",
    "1 pen, 2 cup, 3 box, 4 hat, 5 dog.",
)
ASKED: dict[str, tuple[tuple[str, str], ...]] = {
    "gemma-units": (UNITS_SHOT,),
    "gemma-stories": (GIVES_SHOT, BUYS_SHOT),
    "gemma-digits": (DIGITS_SHOT,),
    "gemma-counting": (THREE_SHOT, FIVE_SHOT),
    STRONG: (UNITS_SHOT, GIVES_SHOT, DIGITS_SHOT, LAST_SHOT),
}


def teachers(folder: Path = quickstart.FOLDER) -> list[Teacher]:
    """SmolLM2-135M-Instruct by what it is told, gemma-3-270m (a base model) by what it is shown."""
    smollm2, gemma = (str(folder / name) for name in quickstart.MODELS)
    brief = "Answer with a short sentence that states the result."
    own: dict[str, Any] = {"model": smollm2, "size": 0.135, "family": "smollm2", "sampling": SHORT}
    other: dict[str, Any] = {"model": gemma, "size": 0.27, "family": "gemma3", "sampling": SHORT}
    tutor = _examples((("What is 6 times 9?", "6 × 9 = 54."),))
    return [
        Teacher(name=WEAK, system_prompt=brief, **own),
        Teacher(name="smollm2-tutor", system_prompt="You are a math tutor.", examples=tutor, **own),
        *(Teacher(name=name, examples=_examples(shots), **other) for name, shots in ASKED.items()),
    ]


def _examples(shots: tuple[tuple[str, str], ...]) -> tuple[Message, ...]:
    roles = "user", "assistant"
    return tuple(
        {"role": role, "content": text}
        for shot in shots
        for role, text in zip(roles, shot, strict=True)
    )
