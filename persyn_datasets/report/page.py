"""One page for the browser with all that is known of a build; it needs no network."""

import base64
from collections import Counter
from math import exp
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.data.build import Build, read
from persyn_datasets.data.reasoning import read as read_response
from persyn_datasets.report import text as report
from persyn_datasets.report.figures import CAPTIONS, draw

EXAMPLES = 6
OURS = {"prompt_id", "prompt", "completion", "teacher", "finish_reason", "error", "answer", "tools"}
MOST_GROUPS = 20  # a column of more values is no grouping


def load(output: Path) -> tuple[Recipe, Build]:
    """The recipe and the numbers of a finished build.

    Raises:
        InputError: there is none.
    """
    recipe, build = output / "dataset" / "recipe.yaml", read(output / "dataset")
    if not (recipe.exists() and build):
        above = output.parent
        meant = f": did you mean {above}?" if (above / "dataset" / "stats.json").exists() else ""
        raise InputError(
            f"{output} holds no finished build (dataset/recipe.yaml, dataset/stats.json)"
            f"{meant or '; run persyn build.'}"
        )
    return Recipe.load(str(recipe)), build


def write(output: Path, recipe: Recipe, stats: Build, license: dict[str, Any]) -> Path:
    """Write `report/index.html` and its figures; returns the page's path.

    Args:
        license: see `licenses.worked_out`.
    """
    figures = draw(recipe, stats, output / "report")
    images = {
        f.stem: f"data:image/png;base64,{base64.b64encode(f.read_bytes()).decode()}"
        for f in figures
    }
    student = recipe.student.model
    page = output / "report" / "index.html"
    template = report.templates().get_template("report.html")
    page.write_text(
        template.render(
            stats=stats,
            **report.facts(recipe, stats),
            student=Path(student).name if student in stats["local"] else student,
            examples=examples(output / "dataset"),
            groups=groups(output / "dataset"),
            images=images,
            captions=CAPTIONS,
            license=license,
            text=report.to_yaml(recipe.to_dict()),
        )
    )
    return page


def examples(dataset: Path, most: int = EXAMPLES) -> list[dict[str, Any]]:
    """Prompts of the calibration with all answers, the held-out ones first; of every teacher that
    is chosen one, before any comes twice.

    Returns:
        `prompt`; the `chosen` and the `best` teacher; and of each of the `answers` its `teacher`,
        `text`, `quality`, `reward`, and the student's `probability` per token, e^r_l.
    """
    rows = [
        row for split in ("test", "train") for row in _rows(dataset / "calibration", split, most)
    ]
    routing = _table(dataset / "routing", "train")
    teacher = (
        dict(zip(*(routing[c].to_pylist() for c in ("prompt_id", "teacher")), strict=True))
        if routing
        else {}
    )
    turns: Counter[str] = Counter()
    order = []
    for i, row in enumerate(rows):
        chosen = teacher.get(row["prompt_id"], "")
        order.append((turns[chosen], i))
        turns[chosen] += 1
    return [_example(rows[i], teacher.get(rows[i]["prompt_id"])) for _, i in sorted(order)[:most]]


def _example(row: dict[str, Any], chosen: str | None) -> dict[str, Any]:
    answers = [
        {
            "teacher": r["teacher"],
            "text": r["error"]
            or f"{read_response(r, 'answer')}\n{r.get('tool_calls') or ''}".strip(),
            "quality": r["quality"],
            "reward": r["reward"],
            "probability": None if r["learnability"] is None else exp(r["learnability"]),
        }
        for r in row["responses"]
    ]
    return {
        "prompt": row["messages"][-1]["content"],
        "chosen": chosen,
        "best": row["best_teacher"],
        "answers": answers,
    }


def _rows(folder: Path, split: str, most: int) -> list[dict[str, Any]]:
    """Some rows of a split, spread over it: 20 times as many as are wanted, at most."""
    table = _table(folder, split)
    if not table:
        return []
    table = table.slice(0, 20 * most)
    return table.select(["prompt_id", "messages", "responses", "best_teacher"]).to_pylist()


def _table(folder: Path, split: str) -> pa.Table | None:
    files = sorted(folder.glob(f"*{split}*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files]) if files else None


def groups(dataset: Path) -> dict[str, Any] | None:
    """Who answers which kind of prompt: by the first column of the prompts' own that has 2 to
    `MOST_GROUPS` different texts. None if there is no such column.

    Returns:
        `column`, `teachers` (most prompts first), and `rows`: `name`, `prompts` and the `shares` of
        the teachers.
    """
    table = _table(dataset / "data", "train")
    if not table:
        return None
    for column in table.column_names:
        values = table[column]
        if column in OURS or not (
            pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        ):
            continue
        counts = Counter(values.to_pylist())
        if not 2 <= len(counts) <= min(MOST_GROUPS, table.num_rows // 2):
            continue
        teachers = [name for name, _ in Counter(table["teacher"].to_pylist()).most_common()]
        pairs = Counter(zip(values.to_pylist(), table["teacher"].to_pylist(), strict=True))
        return {
            "column": column,
            "teachers": teachers,
            "rows": [
                {
                    "name": name or "–",
                    "prompts": n,
                    "shares": [pairs[name, teacher] / n for teacher in teachers],
                }
                for name, n in sorted(counts.items(), key=lambda item: str(item[0]))
            ],
        }
    return None
