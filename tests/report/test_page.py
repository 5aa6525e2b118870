import copy
import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from datasets import load_dataset
from pool import build, make_recipe

from persyn_datasets.cli import main
from persyn_datasets.hub.licenses import worked_out
from persyn_datasets.report import page, text
from persyn_datasets.report.figures import CAPTIONS, draw
from persyn_datasets.report.verdict import verdict

POINT = {"hit@1": 0.3, "hit@3": 0.6, "quality": 0.5, "learnability": -1.2}


@pytest.fixture(scope="module")
def done(chat_model, models_folder):
    """A finished build, as if it had been large enough for curves."""
    folder = models_folder / "page"
    folder.mkdir()
    builder = build(make_recipe(folder, chat_model), folder / "out")
    stats = builder.stats
    stats["analysis"]["by_size"] = [{"prompts": n} | POINT for n in (20, 40)]
    stats["second_opinions"] = {"asked": 5, "better": 2}
    stats["analysis"]["by_alpha"] = [{"alpha": alpha} | POINT for alpha in (0.0, 0.4)]
    (builder.folder / "stats.json").write_text(json.dumps(stats))
    return builder


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_report_writes_one_page_that_needs_no_network(done, capsys):
    assert main(["report", str(done.output)]) == 0
    printed = capsys.readouterr().out
    assert verdict(done.stats["router"]) in " ".join(printed.split())
    assert str(done.output / "report/index.html") in printed
    html = (done.output / "report/index.html").read_text()
    tags, words_of = Tags(html), unescape(html)
    assert tags.open == []
    menu = [a for a in tags.addresses if a.startswith("#")]
    assert menu and all(f'id="{a[1:]}"' in html for a in menu)
    images = [a for a in tags.addresses if a not in menu]
    assert len(images) == len(CAPTIONS)
    assert all(address.startswith("data:image/png;base64,") for address in images)
    assert not re.search(r"(?:@import|url\(|<script|<link)", html)
    (opinions,) = text.notes(done.stats)
    told_there = (
        verdict(done.stats["router"]),
        opinions,
        "56 generations",
        "40 calibration prompts",
    )
    for words in (*CAPTIONS.values(), *told_there):
        assert words in words_of
    for name, t in done.stats["per_teacher"].items():
        numbers = [f"{t[key]:.3f}" for key in ("quality", "learnability", "reward")]
        rows = [tags.cells[i : i + 8] for i, cell in enumerate(tags.cells) if cell == name]
        assert any(row[1:4] == numbers and row[7] == str(t["routed"]) for row in rows)


def test_names_are_text_not_markup(done, tmp_path):
    stats = copy.deepcopy(done.stats)
    stats["per_teacher"]["<b>|&"] = stats["per_teacher"].pop("adder")
    html = page.write(tmp_path, done.recipe, stats, worked_out(stats["licenses"])).read_text()
    assert "<b>" not in html and "&lt;b&gt;|&amp;" in html
    assert Tags(html).open == []


def test_examples_show_all_answers_and_who_was_chosen(done):
    shown = page.examples(done.folder)
    assert len(shown) == page.EXAMPLES and len({e["prompt"] for e in shown}) == len(shown)
    for example in shown:
        by_name = {a["teacher"]: a for a in example["answers"]}
        assert set(by_name) == {"adder", "multiplier", "guesser"}
        assert example["chosen"] in by_name and example["best"] in (*by_name, None)
        assert all(0 < a["probability"] <= 1 for a in by_name.values() if a["text"])
    chosen = {e["chosen"] for e in shown[:2]}
    assert len(chosen) == 2  # of every teacher that is chosen one first


def test_groups_are_shares_by_a_column_of_few_texts(done):
    folder = done.output / "grouped"
    rows = load_dataset(str(done.folder), split="train")
    kinds = ["sum" if "plus" in p[-1]["content"] else "product" for p in rows["prompt"]]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows.add_column("kind", kinds).to_parquet(folder / "data" / "persyn-train.parquet")
    found = page.groups(folder)
    assert found["column"] == "kind" and [r["name"] for r in found["rows"]] == ["product", "sum"]
    for row in found["rows"]:
        assert row["prompts"] == kinds.count(row["name"])
        assert sum(row["shares"]) == pytest.approx(1)
    assert page.groups(done.output / "nothing") is None


def test_a_folder_inside_of_a_build_is_not_taken_for_it(done, capsys):
    assert main(["report", str(done.folder)]) == 1
    assert f"did you mean {done.output}?" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["as it is", "priced", "nothing known"])
def test_figures_of_any_build(change, done, tmp_path):
    stats = copy.deepcopy(done.stats)
    if change == "priced":
        stats["cost"] = {"usd": 12.5, "generate_then_select_usd": 80.0}
    if change == "nothing known":
        for t in stats["per_teacher"].values():
            t |= {
                "quality": None,
                "reward": None,
                "learnability": None,
                "characters": None,
                "routed_characters": None,
            }
        stats["routing"] |= {"reliability": [], "calibration_error": None}
    files = draw(done.recipe, stats, tmp_path)
    assert [f.stem for f in files] == list(CAPTIONS)
    assert all(f.read_bytes().startswith(b"\x89PNG") and f.stat().st_size > 5000 for f in files)
    before = [f.read_bytes() for f in files]
    assert [
        f.read_bytes() for f in draw(done.recipe, stats, tmp_path)
    ] == before  # no commit for nothing


def test_a_figure_follows_its_numbers(done, tmp_path):
    before = {f.stem: f.read_bytes() for f in draw(done.recipe, done.stats, tmp_path)}
    stats = copy.deepcopy(done.stats)
    stats["per_teacher"]["guesser"] |= {"routed": 24, "reward": 2.0, "characters": [1, 500, 900]}
    stats["routing"]["confidence"][2] += 50
    stats["generations"] += 5
    stats["analysis"]["difficulty"][0]["routed"] = {"guesser": 1}
    stats["analysis"]["by_alpha"][0]["hit@1"] = 0.123
    stats["analysis"]["confusion"][0][0] += 7
    stats["tradeoff"]["curve"][3]["measured"] += 1
    after = {f.stem: f.read_bytes() for f in draw(done.recipe, stats, tmp_path)}
    assert [name for name in before if before[name] == after[name]] == []


def test_nothing_to_report(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no finished build" in capsys.readouterr().err


def test_a_build_knows_what_its_machine_worked_on(done):
    works = done.stats["compute"]
    assert set(works) == {"Score", "Router training", "Router evaluation", "Route"}
    assert all(w["seconds"] > 0 and w["cpu_seconds"] >= 0 for w in works.values())
    shown = text.facts(done.recipe, done.stats)["compute"]
    assert all(f"{works[name]['seconds']:,.1f}" in shown for name in works)
    assert text.facts(done.recipe, {**done.stats, "compute": {}})["compute"] == ""
