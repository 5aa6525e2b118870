"""Score: the raw signals of every response, learnability r_l (RSR and the target signal beside it)
and quality r_q.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any

from persyn_datasets.config.reasoning import Reads
from persyn_datasets.config.student import Student
from persyn_datasets.config.target import Target
from persyn_datasets.config.teacher import Message
from persyn_datasets.data import schema
from persyn_datasets.data.prompts import messages_of
from persyn_datasets.data.reasoning import read
from persyn_datasets.data.rows import rows_hash
from persyn_datasets.data.sources import load
from persyn_datasets.data.tools import tools_of
from persyn_datasets.engines.account import Account
from persyn_datasets.signals import (
    CALLS,
    Quality,
    check_tools,
    facts_of,
    identity,
    resolved,
    signal_of,
)
from persyn_datasets.signals.learnability import SCORER, Signals, signals
from persyn_datasets.signals.target import theta_plus
from persyn_datasets.signals.trained_text import ChatFormat, Row, Rows
from persyn_datasets.store.identity import KnownByContent, weights_of
from persyn_datasets.store.journal import Journal, digest
from persyn_datasets.store.models import dtype, use_device
from persyn_datasets.store.progress import Bar

logger = logging.getLogger(__name__)

SIGNALS = ("quality", "learnability", "rsr")


@dataclass(frozen=True)
class Score(KnownByContent):
    """A `datasets` map that adds `quality`, `learnability` and `rsr` to each response, and `target`
    if there is one.

        generated.map(Score(student="Qwen/Qwen2.5-1.5B", quality="math-verify"), batched=True)

    The signals are kept raw, so that another α or normalisation costs nothing. A failed response
    has none. `rsr` is the Rank-Surprisal Ratio (arXiv 2601.14249), `target` the target signal (see
    `signals.target`); `Rank` can take either for learnability.

    Args:
        student: Hub id or local folder of the model that is to learn, or a `Student`. None: quality
            alone.
        quality: `"math-verify"` (compares the final answer with the column `answer`: 1 right, 0
            wrong; a response that was cut off by `max_tokens` has no final answer: 0),
            `{"reward_model": id}` (also `revision`, `trust_remote_code`), a dotted path to a reward
            function with TRL's signature `f(prompts, completions, **columns) -> list[float]`, such
            a function, or `{"judge": {"model": …, "base_url": …}}` and other signals by their keys.
            None: the responses have their quality already.
        target: reference answers of the kind the student should become good at.
        reads: what of a response the student's signals are of: `both`, the thought and the answer
            as one text; `answer`; or `reasoning`. Default: what `Synthesize` by default puts into
            the completion, on which the student is trained. Quality is always that of the answer
            alone.
        account: counts what a judge costs, and keeps to its `max_cost`.
    """

    student: str | Student | None
    quality: Quality | None = "math-verify"
    target: Target | None = None
    reads: Reads = "both"
    account: Account = field(default_factory=Account, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.student, str):
            object.__setattr__(self, "student", Student(self.student))
        if self.quality is not None:
            signal_of(self.quality)

    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.quality is not None:
            found["quality"] = identity(self.quality)
        if isinstance(self.student, Student):
            found["student"] = weights_of(self.student.model, self.student.revision)
        if self.target:
            found["target"] = rows_hash(load(self.target))
        return found

    def __call__(
        self, batch: Mapping[str, Sequence[Any]], rank: int | None = None
    ) -> dict[str, list[Any]]:
        use_device(rank)
        schema.require(batch, "responses", "Score")
        messages, tools = messages_of(batch), tools_of(batch)
        if any(tools) and self.quality is not None:
            check_tools(self.quality)
        responses = [[dict(r) for r in row] for row in batch["responses"]]
        names = ["quality"] if self.quality is not None else []
        if self.student is not None:
            names += ["learnability", "rsr", *(["target"] if self.target else [])]
        for row in responses:
            for r in row:
                r.update(dict.fromkeys(SIGNALS, None) | r | dict.fromkeys(names))
        places = [(i, r) for i, row in enumerate(responses) for r in row if not r["error"]]
        columns = {
            k: [batch[k][i] for i, _ in places]
            for k in batch
            if k not in ("messages", "prompt", "responses")
        }
        if any(tools):
            columns[CALLS] = [r.get("tool_calls") or "" for _, r in places]
        if self.quality is not None:
            self._add_quality([(messages[i], r) for i, r in places], columns)
        if self.student is not None:
            rows = [(self._row(messages[i], tools[i], r), r) for i, r in places]
            self._add_of_student([(row, r) for row, r in rows if row.answer or row.calls])
        return {"responses": responses}

    def _row(self, messages: list[Message], tools: str, response: dict[str, Any]) -> Row:
        """What the student reads of a response."""
        calls = response.get("tool_calls") if tools and self.reads != "reasoning" else ""
        return Row(messages, read(response, self.reads), tools, calls or "")

    def _add_quality(
        self, places: list[tuple[list[Message], dict[str, Any]]], columns: dict[str, list[Any]]
    ) -> None:
        """Of the answers alone."""
        assert self.quality is not None
        cut = facts_of(self.quality).cut
        rows = [(messages, r["text"]) for messages, r in places]
        for (_, r), quality in zip(places, self.of_quality(rows, columns), strict=True):
            r["quality"] = cut if cut is not None and r["finish_reason"] == "length" else quality

    def _add_of_student(self, places: list[tuple[Row, dict[str, Any]]]) -> None:
        """What the student says of what it reads."""
        rows = [row for row, _ in places]
        for (_, r), by_student in zip(places, self.of_student(rows), strict=True):
            r["learnability"], r["rsr"] = by_student["learnability"], by_student["rsr"]
        if self.target:
            self._add_target([r for _, r in places], rows)

    def _add_target(self, responses: list[dict[str, Any]], rows: Rows) -> None:
        """r_t of each: its learnability under θ⁺ minus that under θ."""
        assert isinstance(self.student, Student) and self.target
        plus = Score(theta_plus(self.student, self.target)).of_student(rows)
        for r, after in zip(responses, plus, strict=True):
            if after["learnability"] is not None:
                r["target"] = after["learnability"] - r["learnability"]

    def of_student(self, rows: Rows) -> list[Signals]:
        """What the student says of each row, from the journal or by the student."""
        assert isinstance(self.student, Student)
        student, weights = self.student, weights_of(self.student.model, self.student.revision)
        if not Path(student.model).is_dir():  # from now on this very commit
            student = replace(student, revision=weights)
        identity = {
            "model": student.model,
            "weights": weights,
            "trust_remote_code": student.trust_remote_code,
            "dtype": str(dtype()),
            "scorer": SCORER,
            **ChatFormat(student).identity(),
        }
        keys = [
            digest(row if any(row[2:]) else row[:2]) for row in rows
        ]  # as before there were tools
        with Journal("learnability", self.student.model, identity) as journal:
            known = journal.get(keys)
            todo = list(
                {key: row for key, row in zip(keys, rows, strict=True) if key not in known}.items()
            )
            with Bar("Score", len(rows), initial=len(rows) - len(todo), unit="answers") as bar:
                scored, start = 0, time.monotonic()
                if todo:
                    _say_if_measured_anew(journal.folder)
                for i, of_row in signals(student, [row for _, row in todo]) if todo else ():
                    known[todo[i][0]] = of_row
                    journal.put(todo[i][0], of_row)
                    scored += of_row["tokens"]
                    bar.note(f"{scored / (time.monotonic() - start):.0f} tokens/s")
                    bar.update()
        if any(known[key]["dropped"] for key in keys):
            _say_what_is_dropped(student.model)
        return [known[key] for key in keys]

    def of_quality(
        self, rows: list[tuple[list[Message], str]], columns: dict[str, list[Any]]
    ) -> list[float | None]:
        """r_q of each row, from the journal or by the signal, where it says that it is kept."""
        assert self.quality is not None
        quality = resolved(self.quality)
        signal, spec = signal_of(quality)
        facts = facts_of(quality)
        if facts.asks:
            spec = spec | {"account": self.account}
        if not facts.journalled:
            scored: list[float | None] = signal.score(rows, columns, **spec)
            return scored
        used = [name for name in facts.columns if name in columns]
        keys = [
            digest([row, {name: columns[name][i] for name in used}]) for i, row in enumerate(rows)
        ]
        depends_on = identity(quality) | {"dtype": str(dtype())}
        with Journal("quality", depends_on["signal"], depends_on) as journal:
            known = journal.get(keys)
            todo = list({key: i for i, key in enumerate(keys) if key not in known}.values())
            if todo:
                chosen = {name: [cells[i] for i in todo] for name, cells in columns.items()}
                found = signal.score([rows[i] for i in todo], chosen, **spec)
                for i, value in zip(todo, found, strict=True):
                    known[keys[i]] = value
                    journal.put(keys[i], value)
        return [known[key] for key in keys]


@lru_cache
def _say_if_measured_anew(folder: Path) -> None:
    """Once: there are scores of this student from before, and they mean something else."""
    others = f"{escape(folder.name.rpartition('-')[0])}-*/identity.json"
    for file in folder.parent.glob(others):
        if json.loads(file.read_text()).get("scorer") != SCORER:
            logger.warning(
                "Scores in %s were computed by an earlier version, on a text other than the one "
                "that is trained on. They are computed again; answers are kept.",
                file.parent,
            )
            return


@lru_cache
def _say_what_is_dropped(student: str) -> None:
    logger.warning(
        "The chat template of %s leaves out a part of some answers, such as their reasoning. What "
        "is left is what the student is trained on, and what is scored.",
        student,
    )
