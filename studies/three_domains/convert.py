"""WildEval/ZeroEval's recorded answers (Apache-2.0) to three domains as `recorded` teachers.

python -m studies.three_domains.convert CLONE FOLDER
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from studies import recorded

DOMAINS = ("gsm", "math-l5", "crux")
# The open models that answered all three, by their files; sizes in billions of parameters.
MODELS: dict[str, float] = {
    "Athene-70B": 70.6,
    "Llama-3.1-405B-Inst@sambanova": 405.9,
    "Meta-Llama-3-70B-Instruct": 70.6,
    "Meta-Llama-3-8B-Instruct": 8,
    "Meta-Llama-3.1-70B-Instruct": 70.6,
    "Meta-Llama-3.1-8B-Instruct": 8,
    "Mistral-Large-2": 123,
    "Phi-3.5-mini-instruct": 3.8,
    "Qwen2-72B-Instruct": 72.7,
    "Qwen2-7B-Instruct": 7.6,
    "Yi-1.5-34B-Chat": 34.4,
    "Yi-1.5-9B-Chat": 8.8,
    "deepseek-v2.5-0908": 236,
    "gemma-2-27b-it": 27.2,
    "gemma-2-2b-it": 2.6,
    "gemma-2-9b-it": 9.2,
}
FILES = {("gsm", "gemma-2-27b-it"): "gemma-2-27b-it@together"}  # named by its host in one folder


def parse(output: str) -> tuple[str, str | None]:
    """The reasoning and the answer of an output that should be {"reasoning": …, "answer": …}."""
    start, end = output.find("{"), output.rfind("}")
    try:
        found = json.loads(output[start : end + 1].replace("\n", ""), strict=False)
        return str(found.get("reasoning", "")), str(found["answer"])
    except (ValueError, KeyError, AttributeError):  # broken JSON: by its keys
        reasoning = re.search(r'"reasoning"\s*:\s*"(.*?)"\s*,\s*"answer"', output, re.DOTALL)
        answer = re.search(r'"answer"\s*:\s*"(.*?)"\s*[,}\n]', output, re.DOTALL)
        answer = answer or re.search(r'"answer"\s*:\s*([^"\n}]+)', output)
        answer = answer or re.search(
            r"\\boxed\{(\w+)\}", output[-40:]
        )  # the benchmark's rule for some
        text = reasoning.group(1) if reasoning else output
        return text.replace("\\n", "\n"), answer.group(1).strip() if answer else None


def number(text: str) -> float | None:
    """The first number, of a fraction its value: the benchmark's rule for GSM8K and MATH."""
    text = text.replace("$", "").replace(",", "").replace("#", "").strip()
    if fraction := re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)", text):
        over = float(fraction.group(2))
        return float(fraction.group(1)) / over if over else None
    found = re.search(r"-?\d+(\.\d+)?", text)
    return float(found.group()) if found else None


def right(domain: str, answer: str | None, reference: str) -> bool:
    if answer is None:
        return False
    if domain == "crux":
        return answer.strip("'\"").replace("\n", "\\n") == reference.strip("'\"")
    return number(answer) is not None and number(answer) == number(reference)


def graded(
    completions: list[list[dict[str, str]]], answer: list[str], group: list[str], **_: Any
) -> list[float]:
    """A reward function: 1 if the answer at the end is right."""
    found = []
    for completion, reference, domain in zip(completions, answer, group, strict=True):
        _, there, said = completion[-1]["content"].rpartition("\n\nThe answer is ")
        found.append(float(right(domain, said.removesuffix(".") if there else None, reference)))
    return found


def convert(clone: str | Path, folder: Path) -> None:
    prompts: dict[str, dict[str, Any]] = {}
    answers = []
    for domain in DOMAINS:
        for model in MODELS:
            file = FILES.get((domain, model), model)
            done = set()
            for entry in json.loads(recorded.read_blob(clone, f"result_dirs/{domain}/{file}.json")):
                text = (entry.get("question") or entry.get("problem")).strip()
                if text in done:  # asked twice
                    continue
                done.add(text)
                reference = entry["answer"].replace("#", "").strip()
                prompts[text] = {"prompt": text, "answer": reference, "group": domain}
                reasoning, answer = parse(entry["output"][0])
                response = (
                    f"{reasoning}\n\nThe answer is {answer}." if answer is not None else reasoning
                )
                correct = float(right(domain, answer, reference))
                answers.append(
                    {"prompt": text, "teacher": model, "response": response, "correct": correct}
                )
    recorded.write(
        folder, list(prompts.values()), answers, MODELS, "studies.three_domains.convert.graded"
    )
    print(f"{recorded.commit(clone)}: {len(prompts)} prompts, {len(MODELS)} teachers")


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
