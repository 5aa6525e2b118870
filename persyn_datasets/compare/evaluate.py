"""Evaluate a student, prompt by prompt: tasks of lm-evaluation-harness, and the user's own held-out
prompts.
"""

import json
import logging
from collections.abc import Sequence
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from persyn_datasets.compare import harness
from persyn_datasets.config.errors import BuildError
from persyn_datasets.config.evaluation import Evaluation
from persyn_datasets.config.student import Student
from persyn_datasets.config.teacher import Sampling, Teacher
from persyn_datasets.data.sources import load
from persyn_datasets.signals.learnability import Signals
from persyn_datasets.signals.math_verify import identity, verdicts
from persyn_datasets.signals.trained_text import ChatFormat
from persyn_datasets.stages.generate import Generate
from persyn_datasets.stages.score import Score
from persyn_datasets.store import models
from persyn_datasets.store.identity import content_hash, weights_of
from persyn_datasets.store.journal import digest, replace_file
from persyn_datasets.store.templates import at_date

Measures = dict[str, dict[str, float]]  # measure → prompt → value; more is better

_logger = logging.getLogger(__name__)
CUT = "cut"
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
        rows = load(held_out)
        if held_out.answer_column:
            measures[EXACT_MATCH] = _exact_match(student, rows, held_out.max_tokens, folder)
        if held_out.response_column:
            pairs = list(zip(rows["messages"], rows[held_out.response_column], strict=True))
            scored = zip(rows["prompt_id"], Score(student).of_student(pairs), strict=True)
            measures[LOG_LIKELIHOOD] = _likely(student.model, dict(scored))
    return measures


def _likely(student: str, scored: dict[str, Signals]) -> dict[str, float]:
    """The log-probability of each reference response that has a token."""
    values = {key: of["learnability"] for key, of in scored.items()}
    found = {key: value for key, value in values.items() if value is not None}
    for key, value in found.items():
        if np.isnan(value):
            raise BuildError(
                f"{student}: its log-likelihood is NaN on the held-out prompt {key}; its weights "
                "are broken. Train it again, e.g. with a lower learning rate."
            )
    return found


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
        chat_template_kwargs=student.chat_template_kwargs or {},
        trust_remote_code=student.trust_remote_code,
    )
    answers = [r for (r,) in Generate([asked])({"messages": rows["messages"][:]})["responses"]]
    right = verdicts([(a, r["text"]) for a, r in zip(rows["answer"], answers, strict=True)])
    values = [
        0.0 if r["finish_reason"] == "length" else v for v, r in zip(right, answers, strict=True)
    ]
    lines = [
        {
            "prompt_id": key,
            "messages": m,
            "answer": a,
            "right": v,
            **{k: r[k] for k in ("text", "reasoning", "finish_reason", "error")},
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
            evaluation.max_gen_toks,
            content_hash(evaluation.data[task]) if task in evaluation.data else None,
            version("lm_eval"),
            identity({}),
        ]
    )
    kept = folder / f"{task.replace('/', '-')}.json"
    if kept.exists() and (kept_before := json.loads(kept.read_text()))["content"] == content:
        return kept_before["measures"]
    from lm_eval import simple_evaluate

    tokenizer = deepcopy(form.tokenizer)
    tokenizer.chat_template = at_date(form.published_template)
    model = _language_model(evaluation)(
        models.load_causal_lm(*weights), tokenizer=tokenizer, batch_size=evaluation.batch_size
    )
    # The harness keeps its answers as they come: a task that is interrupted, or cannot be scored,
    # goes on.
    answers = folder / content
    results = simple_evaluate(
        model,
        use_cache=str(answers),
        tasks=[harness.named(evaluation, task)],
        task_manager=harness.manager(evaluation),
        bootstrap_iters=0,
        **options,
    )
    samples = [s for of_task in results["samples"].values() for s in of_task]
    _refuse_nan(student.model, task, samples)
    measures = _by_prompt(task, results) | _cut(task, results, tokenizer, model.max_gen_toks)
    _write_lines(kept.with_suffix(".jsonl"), samples)
    replace_file(kept, json.dumps({"content": content, "measures": measures}).encode())
    for database in folder.glob(f"{content}*.db"):
        database.unlink()
    return measures


def _language_model(evaluation: Evaluation) -> type[Any]:
    """The harness's model, with our limit of new tokens where a task states none: its own is 256,
    whatever the model can.
    """
    from lm_eval.models.huggingface import HFLM

    class Student(HFLM):
        @property
        def max_gen_toks(self) -> int:
            return min(evaluation.max_gen_toks, int(self.max_length) // 2)

    return Student


def _refuse_nan(student: str, task: str, samples: Sequence[dict[str, Any]]) -> None:
    """A student whose log-likelihoods are no numbers would be right on every question whose right
    choice stands first.
    """
    for sample in samples:
        for response in sample["resps"]:
            values = np.ravel([v for v in np.atleast_1d(response[0]) if _is_number(v)])
            if np.isnan(values.astype(float)).any():
                raise BuildError(
                    f"{student}: its log-likelihood is NaN on {task}, prompt {sample['doc_id']}; "
                    "its weights are broken. Train it again, e.g. with a lower learning rate."
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating) or str(value) == "nan"


def _cut(task: str, results: Any, tokenizer: Any, limit: int) -> Measures:
    """−1.0 where an answer was cut off by the limit of new tokens, of tasks that generate."""
    values: dict[str, float] = {}
    for name, samples in results["samples"].items():
        for sample in samples:
            for arguments, response in zip(sample["arguments"], sample["resps"], strict=False):
                if len(arguments) < 2 or not isinstance(arguments[1], dict):
                    continue
                most = arguments[1].get("max_gen_toks", limit)
                length = len(tokenizer(response[0], add_special_tokens=False)["input_ids"])
                # Encoded again, a text may be a little shorter.
                values[f"{name}:{sample['doc_id']}"] = -float(length > 0.98 * most)
    cut = sum(value < 0 for value in values.values())
    if cut:
        _logger.warning(
            "%s: %d of %d answers were cut off before their end; raise evaluation.max_gen_toks.",
            task,
            cut,
            len(values),
        )
    return {f"{task}/−{CUT}": values} if values else {}


def _by_prompt(task: str, results: Any) -> Measures:
    """The harness's samples as `measure → prompt → value`. Metrics of whole corpora have no value
    per prompt.

    A metric that the harness counts over all parts of all prompts (IFEval's instructions) is a
    prompt's sum over the mean number of parts, so that the mean over prompts is the harness's
    ratio.
    """
    measures: Measures = {}
    for name, samples in results["samples"].items():
        better = results["higher_is_better"][name]
        for metric in {metric for sample in samples for metric in sample["metrics"]}:
            found = [
                (sample, np.asarray(sample[metric]))
                for sample in samples
                if metric in sample["metrics"] and not isinstance(sample[metric], tuple)
            ]
            found = [(sample, value) for sample, value in found if value.dtype.kind in "bif"]
            parts = sum(value.size for _, value in found) / max(1, len(found))
            sign = -1 if better.get(metric) is False else 1
            for sample, value in found:
                measure = f"{task}/{'−' * (sign < 0)}{metric}"
                measure += f",{sample['filter']}" * (sample["filter"] != "none")
                measures.setdefault(measure, {})[f"{name}:{sample['doc_id']}"] = sign * float(
                    value.sum() / parts
                )
    return dict(sorted(measures.items()))


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
