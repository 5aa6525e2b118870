"""The example notebook, cell by cell, as it stands."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "recorded_answers.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_recorded_answers_to_a_router(chat_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDENT", chat_model)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) < 15 and not any(cell.get("outputs") for cell in cells)
    names = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    data, stats = names["data"], names["builder"].stats
    assert len(data) == 48 and stats["calibration"] == 32
    assert sum(n["routed"] for n in stats["per_teacher"].values()) == 48
    wrong = [row for row in data if row["teacher"] == "guesser"]
    assert len(wrong) < 5  # whoever reads the rewards does not choose who is always wrong
    assert set(names["routed"]["teacher"]) <= {"adder", "multiplier", "guesser"}
    assert (tmp_path / "outputs/recorded/build/router/config.json").exists()
