"""The data of this study from public repositories.

python -m studies.gsm8k_student.prepare ZEROEVAL GSM8K MATH DATA

ZEROEVAL: a clone of WildEval/ZeroEval.
GSM8K: train.jsonl of openai/grade-school-math.
MATH: a .jsonl file of MATH-500 with `problem` and `solution` (HuggingFaceH4/MATH-500).
Nothing of it is copied into this project.
"""

import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from studies import recorded

QUESTIONS = 1000
# File → name, size in billions of parameters, family.
MODELS = {
    "gemma-2-2b-it": ("gemma-2-2b-it", 2.6, "gemma2"),
    "Phi-3.5-mini-instruct": ("Phi-3.5-mini-instruct", 3.8, "phi3"),
    "Qwen2-7B-Instruct": ("Qwen2-7B-Instruct", 7.6, "qwen2"),
    "Meta-Llama-3-8B-Instruct": ("Meta-Llama-3-8B-Instruct", 8.0, "llama3"),
    "Meta-Llama-3.1-8B-Instruct": ("Meta-Llama-3.1-8B-Instruct", 8.0, "llama3"),
    "Yi-1.5-9B-Chat": ("Yi-1.5-9B-Chat", 8.8, "yi1.5"),
    "gemma-2-9b-it": ("gemma-2-9b-it", 9.2, "gemma2"),
    "Mistral-Nemo-Instruct-2407": ("Mistral-Nemo-Instruct-2407", 12.2, "mistral"),
    "gemma-2-27b-it@together": ("gemma-2-27b-it", 27.2, "gemma2"),
    "Yi-1.5-34B-Chat": ("Yi-1.5-34B-Chat", 34.4, "yi1.5"),
    "command-r": ("command-r", 35.0, "cohere"),
    "Mixtral-8x7B-Instruct-v0.1": ("Mixtral-8x7B-Instruct-v0.1", 46.7, "mistral"),
    "Meta-Llama-3-70B-Instruct": ("Meta-Llama-3-70B-Instruct", 70.6, "llama3"),
    "Meta-Llama-3.1-70B-Instruct": ("Meta-Llama-3.1-70B-Instruct", 70.6, "llama3"),
    "Athene-70B": ("Athene-70B", 70.6, "llama3"),
    "Qwen2-72B-Instruct": ("Qwen2-72B-Instruct", 72.7, "qwen2"),
    "Mistral-Large-2": ("Mistral-Large-2", 123.0, "mistral"),
    "deepseek-v2.5-0908": ("deepseek-v2.5-0908", 236.0, "deepseek"),
    "Llama-3.1-405B-Instruct-Turbo": ("Llama-3.1-405B-Instruct", 405.9, "llama3"),
}


def parse(output: str) -> tuple[str, str | None]:
    """The reasoning and the answer of {"reasoning": …, "answer": …}; where it is no JSON, the text
    behind these keys.
    """
    start, end = output.find("{"), output.rfind("}")
    try:
        found = json.loads(output[start : end + 1], strict=False)
        return str(found["reasoning"]).strip(), str(found["answer"]).strip()
    except (ValueError, KeyError, TypeError):
        reasoning = re.search(r'"reasoning"\s*:\s*"(.*?)"\s*,?\s*"answer"', output, re.DOTALL)
        answer = re.search(r'"answer"\s*:\s*"?(.*?)"?\s*[,}\n]', output, re.DOTALL)
        text = reasoning.group(1) if reasoning else output
        text = text.replace("\\n", "\n").replace('\\"', '"')
        return text.strip(), answer.group(1).strip() if answer else None


def prepare(zeroeval: str, gsm8k: str, math: str, folder: Path) -> None:
    answers = folder / "recorded-gsm8k"
    answers.mkdir(parents=True, exist_ok=True)
    facts = {name: {"params_b": size, "family": family} for name, size, family in MODELS.values()}
    (answers / "teachers.json").write_text(json.dumps(facts, indent=2))
    for file, (name, _, _) in MODELS.items():
        lines = json.loads(recorded.read_blob(zeroeval, f"result_dirs/gsm/{file}.json"))
        rows = []
        for line in lines[:QUESTIONS]:
            reasoning, answer = parse(line["output"][0])
            rows.append(
                {
                    "prompt": line["question"],
                    "answer": line["answer"].removeprefix("# "),
                    "response": f"{reasoning}\n\nThe answer is {answer}." if answer else reasoning,
                }
            )
        pq.write_table(pa.Table.from_pylist(rows), answers / f"{name}.parquet")
    for source, target in ((gsm8k, "gsm8k/train.jsonl"), (math, "math500/test.jsonl")):
        lines = map(json.loads, Path(source).read_text().splitlines())
        rows = [
            {
                "question": x.get("question") or x["problem"],
                # GSM8K's solution is its answer; MATH has both, and the solution is meant.
                "answer": x.get("solution") or x["answer"],
            }
            for x in lines
        ]
        (folder / target).parent.mkdir(exist_ok=True)
        (folder / target).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    prepare(*sys.argv[1:4], Path(sys.argv[4]))
