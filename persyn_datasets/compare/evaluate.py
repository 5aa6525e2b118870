"""Evaluate a student, prompt by prompt: tasks of lm-evaluation-harness, and the user's own held-out
prompts.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from persyn_datasets.config.evaluation import Evaluation, manager
from persyn_datasets.config.student import Student
from persyn_datasets.config.teacher import Sampling, Teacher
from persyn_datasets.signals import quality
from persyn_datasets.signals.trained_text import TEMPLATE_DATE, ChatFormat, at_date
from persyn_datasets.stages.generate import Generate
from persyn_datasets.stages.score import Score
from persyn_datasets.store import models
from persyn_datasets.store.identity import content_hash, weights_of
from persyn_datasets.store.journal import digest, replace_file

Measures = dict[str, dict[str, float]]  # measure → prompt → value; more is better

EXACT_MATCH, LOG_LIKELIHOOD = "exact match", "log-likelihood"


def evaluate(student: Student, evaluation: Evaluation, folder: Path) -> Measures:
    """Every measure of a student, prompt by prompt; what is there already is not measured again.

    Args:
        folder: for the student's answers: `<task>.jsonl` with the harness's samples,
            `held-out.jsonl`.

    Returns:
        A value per prompt of each measure: `<task>/<metric>` (`,<filter>` where the task has
        several; a group's tasks are pooled), `exact match` and `log-likelihood`. Of a metric whose
        smaller values are better, the negative.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measures: Measures = {}
    for task in evaluation.tasks:
        measures |= _task(student, task, evaluation, folder)
    if held_out := evaluation.held_out:
        rows = held_out.load()
        if held_out.answer_column:
            measures[EXACT_MATCH] = _exact_match(student, rows, held_out.max_tokens, folder)
        if held_out.response_column:
            pairs = list(zip(rows["messages"], rows[held_out.response_column], strict=True))
            told = zip(rows["prompt_id"], Score(student).of_student(pairs), strict=True)
            measures[LOG_LIKELIHOOD] = {
                key: s["learnability"] for key, s in told if s["learnability"] is not None
            }
    return measures


def _exact_match(
    student: Student, rows: Dataset, max_tokens: int, folder: Path
) -> dict[str, float]:
    """1.0 where the final answer is right; an answer that was cut off has none. The journal keeps
    the answers.
    """
    greedy = Sampling(temperature=0, max_tokens=max_tokens)
    asked = Teacher(
        student.model,
        "student",
        revision=student.revision,
        sampling=greedy,
        trust_remote_code=student.trust_remote_code,
    )
    answers = [r for (r,) in Generate([asked])({"messages": rows["messages"][:]})["responses"]]
    right = quality.math_verify(
        [(a, r["text"]) for a, r in zip(rows["answer"], answers, strict=True)]
    )
    values = [
        0.0 if r["finish_reason"] == "length" else v for v, r in zip(right, answers, strict=True)
    ]
    lines = [
        {
            "prompt_id": key,
            "messages": m,
            "answer": a,
            "right": v,
            **{k: r[k] for k in ("text", "finish_reason", "error")},
        }
        for key, m, r, a, v in zip(
            rows["prompt_id"], rows["messages"], answers, rows["answer"], values, strict=True
        )
    ]
    _write_lines(folder / "held-out.jsonl", lines)
    return dict(zip(rows["prompt_id"], values, strict=True))


def _task(student: Student, task: str, evaluation: Evaluation, folder: Path) -> Measures:
    """One task of lm-evaluation-harness, by its Python API."""
    options = {k: getattr(evaluation, k) for k in ("limit", "num_fewshot", "apply_chat_template")}
    own = content_hash(evaluation.include_path) if evaluation.include_path else None
    weights = student.model, student.revision, student.trust_remote_code
    form = ChatFormat(student)
    content = digest(
        [
            *weights,
            form.identity(),
            weights_of(student.model, student.revision),
            task,
            own,
            options,
            version("lm_eval"),
        ]
    )
    kept = folder / f"{task.replace('/', '-')}.json"
    if kept.exists() and (told := json.loads(kept.read_text()))["content"] == content:
        return told["measures"]
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tokenizer = deepcopy(form.tokenizer)
    tokenizer.chat_template = at_date(form.published_template, TEMPLATE_DATE)
    model = HFLM(
        models.load_causal_lm(*weights), tokenizer=tokenizer, batch_size=evaluation.batch_size
    )
    # The harness keeps its answers as they come: a task that is interrupted, or cannot be scored,
    # goes on.
    answers = folder / content
    results = simple_evaluate(
        model,
        use_cache=str(answers),
        tasks=[task],
        task_manager=manager(evaluation),
        bootstrap_iters=0,
        **options,
    )
    measures = _by_prompt(task, results)
    _write_lines(
        kept.with_suffix(".jsonl"), [s for samples in results["samples"].values() for s in samples]
    )
    replace_file(kept, json.dumps({"content": content, "measures": measures}).encode())
    for database in folder.glob(f"{content}*.db"):
        database.unlink()
    return measures


def _by_prompt(task: str, results: Any) -> Measures:
    """The harness's samples as `measure → prompt → value`. Metrics of whole corpora have no value
    per prompt.
    """
    measures: Measures = {}
    for name, samples in results["samples"].items():
        better = results["higher_is_better"][name]
        for sample in samples:
            for metric in sample["metrics"]:
                value = np.asarray(sample[metric])
                if value.dtype.kind not in "bif" or isinstance(sample[metric], tuple):
                    continue
                sign = -1 if better.get(metric) is False else 1
                measure = f"{task}/{'−' * (sign < 0)}{metric}"
                measure += f",{sample['filter']}" * (sample["filter"] != "none")
                measures.setdefault(measure, {})[f"{name}:{sample['doc_id']}"] = sign * float(
                    value.mean()
                )
    return measures


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
