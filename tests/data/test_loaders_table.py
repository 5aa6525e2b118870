"""The table of docs/data.md says what `datasets` and we make of these files."""

import importlib.util
from importlib.metadata import version
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "scripts" / "data.py"
spec = importlib.util.spec_from_file_location("docs_data", SCRIPT)
page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page)


@pytest.fixture(scope="module")
def written():
    lines = page.PAGE.read_text().partition(page.BEGIN)[2].partition(page.END)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row for row in cells if len(row) == 5}


@pytest.mark.parametrize("what", page.FILES)
def test_the_page_says_what_is_read(what, written):
    name, text = page.FILES[what]
    _, _, theirs, ours, answers = written[what]
    assert page.found(page.by_persyn, name, text) == ours
    assert page.found(page.as_answers, name, text) == answers
    if f"datasets {version('datasets')}" in page.PAGE.read_text():
        assert page.found(page.by_datasets, name, text) == theirs


def test_answers_are_as_written(written):
    """Of the same files `datasets` keeps those of one alone, which holds texts only."""
    kept = {what for what, row in written.items() if "'007'" in row[4] and "'007'" not in row[2]}
    assert {"csv: codes", "tsv: codes", "json: one list", "csv.gz"} <= kept
    assert written["ndjson"][2:] == ["`'007', '08'`"] * 3
