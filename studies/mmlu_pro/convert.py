"""TIGER-AI-Lab/MMLU-Pro's recorded answers (Apache-2.0) as `recorded` teachers.

python -m studies.mmlu_pro.convert CLONE FOLDER
"""

import ast
import io
import json
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from studies import recorded

# Instruct models whose answers are in files below 4 MiB; sizes in billions of parameters.
MODELS: dict[str, float | None] = {
    "DeepSeek-Coder-V2": 236,
    "Meta-Llama-3_1-70B-Instruct": 70.6,
    "Meta-Llama-3_1-8B-Instruct": 8,
    "Mistral-7B-Instruct-v0.1": 7.2,
    "Mistral-7B-Instruct-v0.2": 7.2,
    "Mixtral-8x7B-Instruct-v0.1": 46.7,
    "Phi-3-mini-4k-instruct": 3.8,
    "Qwen1.5-72B-Chat": 72.3,
    "Qwen1.5-7B-Chat": 7.7,
    "Yi-6b-Chat": 6.1,
    "c4ai-command-r-v01": 35,
    "gemini-1.5-flash-002": None,
    "gemini-1.5-pro-002": None,
    "jamba-1.5-large": 398,
    "mathstral-7B": 7.2,
}
POOLS = {
    "MMLU-Pro-15": list(MODELS),
    "MMLU-Pro-12": [m for m in MODELS if "gemini" not in m and m != "DeepSeek-Coder-V2"],
}
POOLS["MMLU-Pro-9"] = [
    m
    for m in POOLS["MMLU-Pro-12"]
    if m not in ("Meta-Llama-3_1-70B-Instruct", "jamba-1.5-large", "Mistral-7B-Instruct-v0.1")
]


def letter(text: str) -> str | None:
    """The option that an answer chooses, by the benchmark's own patterns (compute_accuracy.py).

    The first pattern that is found counts. Where none is, the benchmark guesses; here it is None.
    """
    if said := re.search(r"answer is \(?([A-J])\)?", text):
        return said.group(1)
    for line in text.split("\n"):
        if labelled := re.findall(r"[aA]nswer:\s*([A-J])", line):
            return labelled[-1]
    letters = re.findall(r"\b[A-J]\b", text)
    return letters[-1] if letters else None


def right(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float]:
    """A reward function: 1 if the chosen option is the right one."""
    pairs = zip(completions, answer, strict=True)
    return [float(letter(c[-1]["content"]) == reference) for c, reference in pairs]


def prompt(question: str, options: list[str]) -> str:
    lines = [f"{'ABCDEFGHIJ'[i]}. {option}" for i, option in enumerate(options)]
    return question.strip() + "\n\n" + "\n".join(lines)


def read(clone: str | Path, model: str) -> dict[int, dict[str, Any]]:
    """A model's answers by question, without the entries that are none (one file has some)."""
    blob = recorded.read_blob(clone, f"eval_results/model_outputs_{model}_5shots.zip")
    archive = zipfile.ZipFile(io.BytesIO(blob))
    (name,) = (n for n in archive.namelist() if not n.startswith("__MACOSX"))
    answers = {}
    for entry in json.loads(archive.read(name)):
        if not isinstance(entry, dict):
            continue
        options = entry["options"]
        entry["options"] = ast.literal_eval(options) if isinstance(options, str) else options
        entry["text"] = entry.get("model_outputs") or entry.get("generated_text") or ""
        answers[int(entry["question_id"])] = entry
    return answers


def convert(clone: str | Path, folder: Path) -> None:
    of_model = {model: read(clone, model) for model in MODELS}
    prompts, answers, left_out = [], [], Counter[str]()
    for number, entry in of_model["Phi-3-mini-4k-instruct"].items():
        all_of_it = [of_one[number] for of_one in of_model.values() if number in of_one]
        if len({(e["answer"], *(o.strip() for o in e["options"])) for e in all_of_it}) > 1:
            left_out["questions whose files disagree on the options or the right one"] += 1
            continue
        text = prompt(entry["question"], entry["options"])
        prompts.append({"prompt": text, "answer": entry["answer"], "group": entry["category"]})
        for model, of_one in of_model.items():
            if number not in of_one:
                continue
            response = of_one[number]["text"].strip()
            correct = float(letter(response) == entry["answer"])
            answers.append(
                {"prompt": text, "teacher": model, "response": response, "correct": correct}
            )
    repeated = Counter(p["prompt"] for p in prompts)
    left_out["questions asked twice, the later one"] = len(prompts) - len(repeated)
    unique = list({p["prompt"]: p for p in reversed(prompts)}.values())
    recorded.write(folder, unique, answers, MODELS, "studies.mmlu_pro.convert.right")
    print(f"{recorded.commit(clone)}: {len(repeated)} prompts; left out: {dict(left_out)}")


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
