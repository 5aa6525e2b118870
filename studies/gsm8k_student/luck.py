"""What of the recorded pool's rewards is luck, and what else than meaning they follow.

    python -m studies.gsm8k_student.luck DATA STUDENT OUTPUT

Reads what `measure` left in OUTPUT; writes `luck.md` beside this file.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset

from persyn_datasets.config.reward import Reward
from persyn_datasets.data.schema import RESPONSE
from persyn_datasets.report.luck import in_words, luck
from persyn_datasets.report.question import order_left, without_question
from persyn_datasets.stages.rank import Rank
from persyn_datasets.stages.score import Score
from studies.gsm8k_student import analyse, measure
from studies.gsm8k_student.common import Data

HERE = Path(__file__).parent
REWARD = Reward(alpha=0.4, normalize="prompt")


def scored(data: Data, output: Path, teachers: list[str]) -> Dataset:
    """The questions on which these teachers' answers are scored, as `Score` leaves them."""
    found = analyse.responses(output, len(teachers))
    signals, questions = analyse.signals(found), found["questions"]
    quality = analyse.right(data, teachers, questions)
    rows = []
    for i, question in enumerate(questions):
        responses = [
            dict.fromkeys(RESPONSE)
            | {
                "teacher": teacher,
                "sample": 0,
                "text": data.answers[teacher][question]["response"],
                "reasoning": "",
                "error": "",
                "quality": quality[i, t],
                "learnability": signals["log-probability"][i, t],
                "rsr": None,
            }
            for t, teacher in enumerate(teachers)
        ]
        messages = [{"role": "user", "content": data.answers[teachers[0]][question]["prompt"]}]
        rows.append({"prompt_id": str(question), "messages": messages, "responses": responses})
    return Dataset.from_list(rows)


def question_left(data: Data, ranked: Dataset) -> float | None:
    """See `report.question`; the same answers are scored without their question, in float32."""
    blank = without_question(ranked)
    again = Score(str(data.student), None)(blank[:])
    return order_left(ranked, Dataset.from_dict(again))


def main(folder: str, student: str, output: str) -> None:
    data, place = Data(Path(folder), Path(student)), Path(output)
    parts = ["# Luck in the recorded pool"]
    for teachers in (data.teachers, measure.pool(data)):
        pool = scored(data, place, teachers)
        ranked = pool.map(Rank(**asdict(REWARD)), batched=True, batch_size=None)
        found = luck(ranked, teachers, REWARD)
        found["without_question"] = question_left(data, ranked)
        parts += [f"## {len(teachers)} teachers, {len(pool)} questions", in_words(found)]
    parts.append("Reward .6 · right + .4 · log-probability, min–max within a question.")
    (HERE / "luck.md").write_text("\n\n".join(parts) + "\n")
    print((HERE / "luck.md").read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
