"""The documentation names what there is: functions, tests, files, and recipes that load."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])


def names_in(path):
    tree = ast.parse(path.read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "cards").glob("*.md"))], ids=lambda p: p.name
)
def test_every_snippet_of_a_router_truncates(page):
    """A pipeline does not by itself: a long prompt would end in another teacher, or a crash."""
    for call in re.findall(r'pipeline\(\s*"text-classification"[^)]*\)', page.read_text()):
        assert "truncation=True" in call


def test_every_equation_has_its_function_and_its_test():
    rows = re.findall(
        r"^\| .*\| `([^`]+)` \| `([^`]+)` \|$", (ROOT / "docs/method.md").read_text(), re.M
    )
    assert len(rows) >= 20
    for place, test in rows:
        for folder, named in (("persyn_datasets", place), ("tests", test)):
            file, _, name = named.partition(":")
            assert (ROOT / folder / file).is_file(), named
            assert not name or name in names_in(ROOT / folder / file), named


def test_the_rooms_are_those_of_the_package():
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = {f.parent.name for f in (ROOT / "persyn_datasets").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^\| `(\w+)/` \|", text, re.M))
