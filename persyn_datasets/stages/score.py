"""Score: the raw signals of every response, learnability r_l (RSR and the target signal beside it)
and quality r_q.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.student import Student
from persyn_datasets.config.target import Target
from persyn_datasets.config.teacher import Message
from persyn_datasets.data.prompts import messages_of
from persyn_datasets.signals import quality as q
from persyn_datasets.signals.learnability import SCORER, Signals, signals
from persyn_datasets.signals.target import theta_plus
from persyn_datasets.signals.trained_text import ChatFormat
from persyn_datasets.store.identity import weights_of
from persyn_datasets.store.journal import Journal, digest
from persyn_datasets.store.models import dtype, use_device
from persyn_datasets.store.progress import Bar

logger = logging.getLogger(__name__)

Quality = str | Mapping[str, Any] | Callable[..., Any]


@dataclass(frozen=True)
class Score:
    """A `datasets` map that adds `quality`, `learnability` and `rsr` to each response, and `target`
    if there is one.

        generated.map(Score(student="Qwen/Qwen2.5-1.5B", quality="math-verify"), batched=True)

    The signals are kept raw, so that another α or normalisation costs nothing. A failed response
    has none. `rsr` is the Rank-Surprisal Ratio (arXiv 2601.14249), `target` the target signal (see
    `signals.target`); `Rank` can take either for learnability.

    Args:
        student: Hub id or local folder of the model that is to learn, or a `Student`.
        quality: `"math-verify"` (compares the final answer with the column `answer`: 1 right, 0
            wrong; a response that was cut off by `max_tokens` has no final answer: 0),
            `{"reward_model": id}` (also `revision`, `trust_remote_code`), a dotted path to a reward
            function with TRL's signature `f(prompts, completions, **columns) -> list[float]`, or
            such a function.
        target: reference answers of the kind the student shall become good at.
    """

    student: str | Student
    quality: Quality = q.MATH_VERIFY
    target: Target | None = None

    def __post_init__(self) -> None:
        if isinstance(self.student, str):
            object.__setattr__(self, "student", Student(self.student))
        if isinstance(self.quality, Mapping) and "reward_model" not in self.quality:
            raise InputError(
                f"quality: found {dict(self.quality)}; expected the key 'reward_model'."
            )
        if isinstance(self.quality, str) and self.quality != q.MATH_VERIFY:
            q.resolve(self.quality)

    def __call__(
        self, batch: Mapping[str, Sequence[Any]], rank: int | None = None
    ) -> dict[str, list[Any]]:
        use_device(rank)
        messages = messages_of(batch)
        responses = [[dict(r) for r in row] for row in batch["responses"]]
        places = [(i, r) for i, row in enumerate(responses) for r in row if not r["error"]]
        rows = [(messages[i], r["text"]) for i, r in places]
        columns = {
            k: [batch[k][i] for i, _ in places]
            for k in batch
            if k not in ("messages", "prompt", "responses")
        }
        for row in responses:
            for r in row:
                r["quality"] = r["learnability"] = r["rsr"] = None
        for (_, r), quality, told in zip(
            places, self._quality(rows, columns), self.of_student(rows), strict=True
        ):
            unfinished = self.quality == q.MATH_VERIFY and r["finish_reason"] == "length"
            r["quality"] = 0.0 if unfinished else quality
            r["learnability"], r["rsr"] = told["learnability"], told["rsr"]
        if self.target:
            for row in responses:
                for r in row:
                    r["target"] = None
            self._add_target([r for _, r in places], rows)
        return {"responses": responses}

    def _add_target(
        self, responses: list[dict[str, Any]], rows: list[tuple[list[Message], str]]
    ) -> None:
        """r_t of each: its learnability under θ⁺ minus that under θ."""
        assert isinstance(self.student, Student) and self.target
        plus = Score(theta_plus(self.student, self.target)).of_student(rows)
        for r, after in zip(responses, plus, strict=True):
            if after["learnability"] is not None:
                r["target"] = after["learnability"] - r["learnability"]

    def of_student(self, rows: list[tuple[list[Message], str]]) -> list[Signals]:
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
        keys = [digest(row) for row in rows]
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

    def _quality(
        self, rows: list[tuple[list[Message], str]], columns: dict[str, list[Any]]
    ) -> list[float | None]:
        """r_q of each row. A user's function is called each time: its content has no address to
        journal it by.
        """
        completions = [[{"role": "assistant", "content": text}] for _, text in rows]
        if callable(self.quality) or (
            isinstance(self.quality, str) and self.quality != q.MATH_VERIFY
        ):
            function = q.resolve(self.quality) if isinstance(self.quality, str) else self.quality
            return q.call(function, [m for m, _ in rows], completions, columns)
        if isinstance(self.quality, Mapping):
            model = {"model" if k == "reward_model" else k: v for k, v in self.quality.items()}
            whole = [m + c for (m, _), c in zip(rows, completions, strict=True)]
            identity = model | {
                "weights": weights_of(model["model"], model.get("revision")),
                "dtype": str(dtype()),
            }
            return self._journalled(
                model["model"], identity, whole, lambda todo: q.reward_model_scores(todo, **model)
            )
        if "answer" not in columns:
            raise InputError(
                "quality 'math-verify' compares with a column 'answer', and there is none; "
                "rename yours."
            )
        missing = next(
            (m for (m, _), a in zip(rows, columns["answer"], strict=True) if a in (None, "")), None
        )
        if missing is not None:
            raise InputError(
                f"The prompt {missing[-1]['content'][:60]!r} has no answer; math-verify needs one."
            )
        answered = [(str(a), text) for a, (_, text) in zip(columns["answer"], rows, strict=True)]
        return self._journalled(q.MATH_VERIFY, {"verifier": q.MATH_VERIFY}, answered, q.math_verify)

    @staticmethod
    def _journalled(
        name: str,
        identity: dict[str, Any],
        rows: list[Any],
        score: Callable[[list[Any]], list[float]],
    ) -> list[float | None]:
        keys = [digest(row) for row in rows]
        with Journal("quality", name, identity) as journal:
            known = journal.get(keys)
            todo = list(
                {key: row for key, row in zip(keys, rows, strict=True) if key not in known}.items()
            )
            for (key, _), value in zip(
                todo, score([row for _, row in todo]) if todo else (), strict=True
            ):
                known[key] = value
                journal.put(key, value)
        return [known[key] for key in keys]


@lru_cache
def _say_if_measured_anew(folder: Path) -> None:
    """Once: there are scores of this student from before, and they mean something else."""
    others = f"{escape(folder.name.rpartition('-')[0])}-*/identity.json"
    for file in folder.parent.glob(others):
        if json.loads(file.read_text()).get("scorer") != SCORER:
            logger.warning(
                "Scores in %s were measured by an earlier version, behind another text than the "
                "one that is trained. They are measured again; answers are kept.",
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
