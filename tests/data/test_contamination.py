import pytest
from datasets import Dataset
from pool import make_recipe, problems, write_lines

from persyn_datasets import InputError, PersynBuilder, Recipe
from persyn_datasets.config.overrides import apply_overrides
from persyn_datasets.data import contamination
from persyn_datasets.data.contamination import (
    Benchmark,
    Decontaminate,
    clean,
    in_words,
    overlaps,
    runs,
)
from persyn_datasets.plan import checks, cost
from persyn_datasets.report import text as report

WORDS = [f"w{i}" for i in range(30)]


def prompts(*texts):
    return Dataset.from_list([{"messages": [{"role": "user", "content": text}]} for text in texts])


def text(start, end):
    return " ".join(WORDS[start:end])


def test_runs_by_hand():
    assert runs(text(0, 14)) == {text(0, 13), text(1, 14)}
    assert runs("It's  ONE,\ntwo!") == {"its one two"} and runs("?!") == set()


def test_thirteen_words_and_not_twelve(tmp_path):
    """Whatever stands around them, whatever case and punctuation they have, in whichever column of
    the benchmark.
    """
    rows = [
        {"question": "Else.", "solutions": [{"text": f"Well, {text(5, 18)}, so."}]},
        {"question": "What is 2 + 2?"},
    ]
    benchmark = write_lines(tmp_path / "bench.jsonl", rows)
    found = overlaps(
        prompts(
            f"x {text(5, 18).upper().replace(' ', ' - ', 3)}. Y",  # thirteen
            f"{text(5, 17)} x {text(6, 18)}",  # twelve, twice
            "what is 2  2",  # short, but the whole
            "what is 2 + 2 and 3",
            text(0, 30),
        ),
        [benchmark],
    )
    assert found == {"bench.jsonl": [0, 2, 4]}


def test_against_brute_force(tmp_path):
    texts = [" ".join(WORDS[(i * j * j) % 7] for j in range(20 + i % 5)) for i in range(40)]
    benchmark = write_lines(tmp_path / "bench.jsonl", [{"q": t} for t in texts[::3]])

    def share(a, b):
        a, b = a.split(), b.split()
        return any(
            a[i : i + 13] == b[j : j + 13] for i in range(len(a) - 12) for j in range(len(b) - 12)
        )

    expected = [i for i, t in enumerate(texts) if any(share(t, other) for other in texts[::3])]
    assert overlaps(prompts(*texts), (Benchmark(benchmark),)) == {"bench.jsonl": expected}
    assert len(expected) > 0


def test_several_benchmarks_and_dropping(tmp_path):
    files = [write_lines(tmp_path / f"{i}.jsonl", [{"q": text(i, i + 15)}]) for i in (0, 1)]
    rows = prompts(text(0, 14), text(15, 30), text(3, 16))
    kept, made = clean(rows, Decontaminate(tuple(files)))
    assert (
        len(kept) == 3
        and "2 of 3 prompts share 13 words" in in_words(made)
        and "kept" in in_words(made)
    )
    assert {name: b["overlapping"] for name, b in made["benchmarks"].items()} == {
        "0.jsonl": 1,
        "1.jsonl": 2,
    }
    kept, made = clean(rows, Decontaminate(tuple(files), drop=True))
    assert kept.to_list() == rows.to_list()[1:2] and in_words(made).endswith("and are dropped.")
    assert made["benchmarks"]["1.jsonl"]["examples"] == [text(0, 14), text(3, 16)]
    with pytest.raises(InputError, match=r"none\.jsonl"):
        overlaps(rows, ["none.jsonl"])


@pytest.mark.parametrize("drop", [False, True])
def test_in_a_build(chat_model, tmp_path, drop):
    values = make_recipe(tmp_path, chat_model)
    benchmark = write_lines(
        tmp_path / "bench.jsonl", [{"question": problems()[i][0]} for i in (2, 5)]
    )
    values["prompts"]["decontaminate"] = {"against": [benchmark], "drop": drop}
    recipe = Recipe.from_dict(values)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    words = (
        "2 of 24 prompts share 13 words in a row with a benchmark (2 with bench.jsonl), and are "
    )
    assert words in " ".join(cost.describe(recipe, checks.check(recipe)).split())
    builder = PersynBuilder(recipe, tmp_path / "out", strategy="random")
    builder.download_and_prepare()
    asked = [row["prompt"][0]["content"] for row in builder.as_dataset(split="train")]
    assert asked == [p for i, (p, _) in enumerate(problems()) if not drop or i not in (2, 5)]
    assert words in f"{' '.join(report.describe(builder.recipe, builder.stats).split())} "
    assert words in (builder.folder / "README.md").read_text()


def test_a_recipe_from_the_hub_names_no_file_of_this_machine(tmp_path):
    benchmark = write_lines(tmp_path / "bench.jsonl", [{"q": "x"}])
    values = {"prompts": {"path": "org/prompts", "decontaminate": {"against": [benchmark]}}}
    with pytest.raises(InputError, match=r"prompts\.decontaminate\.against\.0"):
        apply_overrides(values, [], "The recipe")


def test_prompts_are_compared_once(tmp_path, monkeypatch):
    """The plan and the build ask the same; other prompts, or another benchmark there, do not."""
    benchmark = write_lines(tmp_path / "bench.jsonl", [{"q": text(0, 15)}])
    calls = []
    monkeypatch.setattr(
        contamination, "_texts", lambda value: calls.append(value) or iter(value.values())
    )
    rows = prompts(text(0, 14), text(16, 30))
    assert [overlaps(rows, [benchmark]) for _ in range(3)] == [{"bench.jsonl": [0]}] * 3
    assert len(calls) == 1
    assert overlaps(rows.select([1, 0]), [benchmark]) == {"bench.jsonl": [1]}
    write_lines(tmp_path / "bench.jsonl", [{"q": text(15, 30)}])
    assert overlaps(rows, [benchmark]) == {"bench.jsonl": [1]}


def test_nothing_that_is_left_is_said(tmp_path):
    benchmark = write_lines(tmp_path / "bench.jsonl", [{"q": text(0, 30)}])
    with pytest.raises(InputError, match=r" 2 .*bench\.jsonl"):
        clean(prompts(text(0, 14), text(15, 30)), Decontaminate((benchmark,), drop=True))
