"""Held-out log-likelihood of the students that `measure` judges by exact match.

    python -m studies.problems_student.likelihood OUTPUT [SEEDS]

Every student is a file in OUTPUT, so that an interrupted run goes on where it was. Writes
`likelihood.json` and `likelihood.md` beside this file.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from persyn_datasets.report.tables import table
from persyn_datasets.signals.log_probs import response_log_probs
from persyn_datasets.signals.math_verify import verdicts
from persyn_datasets.signals.trained_text import ChatFormat, TrainedText
from persyn_datasets.stages.generate import Generate
from persyn_datasets.store import models
from studies.problems_student import student, tables
from studies.problems_student.analyse import HERE, REFERENCE, compare
from studies.problems_student.measure import Study, assignments, piece, prepare, read
from studies.problems_student.student import Example

REFERENCES, OTHERS = "held-out references", "teachers' right answers"
JUDGED = (
    "persyn",
    "persyn, log-probability",
    "random",
    "shares at random",
    "best single",
    "car",
    "strong",
)


def other_answers(study: Study) -> list[Example]:
    """One right answer of a teacher to each development problem that has one."""
    file = study.output / "development-answers.json"
    rows = study.parts["development"]
    if not file.exists():
        answered = Generate(study.teachers)(rows.remove_columns("response").to_dict())
        texts = [[r["text"] for r in row] for row in answered["responses"]]
        file.write_text(json.dumps(texts))
    draw, chosen = np.random.default_rng(0), []
    for messages, answer, texts in zip(
        rows["messages"], rows["answer"], json.loads(file.read_text()), strict=True
    ):
        right = np.array(verdicts([(answer, text) for text in texts])) > 0
        if right.any():
            chosen.append((messages, texts[draw.choice(right.nonzero()[0])]))
    return chosen


def judged(model: PreTrainedModel, texts: Sequence[TrainedText]) -> np.ndarray:
    """Mean log-probability per trained token of each text."""
    rows = [(text.ids[: text.loss_from], text.ids[text.loss_from :]) for text in texts]
    scored = {i: x.mean().item() for i, x, _ in response_log_probs(model, rows)}
    return np.array([scored[i] for i in range(len(rows))])


def measure(study: Study, seeds: int) -> dict[str, Any]:
    """Strategy → judge → (seeds, texts); what is untrained has one row."""
    folder = Path(study.student.model)
    chat = ChatFormat(study.student)
    judges = {
        REFERENCES: list(chat.render(study.references("held-out"))),
        OTHERS: list(chat.render(other_answers(study))),
    }
    seen, asked = read(study)
    for part in ("calibration", "taught"):
        study.scored(part)
    models.free()
    steps, rate = json.loads((HERE / "results.json").read_text())["setting"]

    def of(examples: list[Example], seed: int) -> dict[str, np.ndarray]:
        name = study.name_of("likelihood", examples, (steps, rate), seed)

        def measured() -> dict[str, np.ndarray]:
            trained = steps if examples else 0
            model = student.fine_tuned(folder, examples, trained, rate, seed).float()
            return {judge: judged(model, texts) for judge, texts in judges.items()}

        return piece(study.output / name, measured)

    found: dict[str, list[dict[str, np.ndarray]]] = {"untrained": [of([], 0)]}
    for seed in range(seeds):
        picked = assignments(study, seed, seen, asked)
        lines = {name: study.examples(picked[name]) for name in JUDGED}
        lines["target alone"] = study.references()
        for name, examples in lines.items():
            found.setdefault(name, []).append(of(examples, seed))
    return {
        judge: {name: np.stack([run[judge] for run in runs]) for name, runs in found.items()}
        for judge in judges
    }


def summary(of_judge: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Per judge the gain over the untrained student, and persyn minus each other."""
    result: dict[str, Any] = {}
    for judge, runs in of_judge.items():
        before = runs["untrained"]
        gains = {name: of - before for name, of in runs.items() if name != "untrained"}
        every = runs | {"untrained": np.broadcast_to(before, runs[REFERENCE].shape)}
        result[judge] = {
            "texts": before.shape[1],
            "gain": {
                name: {"mean": float(gain.mean()), "seeds": gain.mean(-1).tolist()}
                for name, gain in gains.items()
            },
            "comparisons": compare(every, REFERENCE),
        }
    return result


def describe(results: dict[str, Any]) -> str:
    parts = ["# The same students by log-likelihood: results"]
    for judge, of in results.items():
        gains = sorted(of["gain"].items(), key=lambda item: -item[1]["mean"])
        rows = [
            [name, f"{line['mean']:+.3f}", " ".join(f"{x:+.3f}" for x in line["seeds"])]
            for name, line in gains
        ]
        parts += [
            f"## {of['texts']} {judge}",
            table(["student of", "gain, nats per token", "seeds"], rows),
            tables.compared(of["comparisons"]),
        ]
    parts += [
        "Gain over the untrained student; differences paired by text and seed; 95% bootstrap over "
        "texts and seeds; p by sign flips over texts, Holm over a judge's lines."
    ]
    return "\n\n".join(parts) + "\n"


def main(output: Path, seeds: int) -> None:
    study = prepare(output)
    results = summary(measure(study, seeds))
    (HERE / "likelihood.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    (HERE / "likelihood.md").write_text(describe(results))
    print(describe(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
