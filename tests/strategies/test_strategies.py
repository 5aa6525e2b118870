from collections import Counter
from html import unescape

import pytest
from datasets import Dataset, load_dataset
from pool import TEACHERS, CountingEngine, answer, make_recipe, problems, save

from persyn_datasets import BuildError, InputError, PersynBuilder, Recipe
from persyn_datasets.cli import main
from persyn_datasets.config.strategy import ROUTED, STRATEGIES
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.engines import transformers as engine
from persyn_datasets.hub import publish as hub
from persyn_datasets.hub.licenses import worked_out
from persyn_datasets.report import page
from persyn_datasets.report import text as report
from persyn_datasets.strategies.baselines import (
    assign,
    compatibility_adjusted_rewards,
    mean_rewards,
    teachers_of,
)

N, C, M = 24, 16, 3
PROMPTS = [p for p, _ in problems()]
WHO_CAN = ["adder" if "plus" in p else "multiplier" for p in PROMPTS]
SIZES = {"adder": (70.0, "llama"), "multiplier": (405.0, "llama"), "guesser": (2.0, "tiny")}


def values(folder, model, **more):
    made = (
        make_recipe(
            folder, model, engine="transformers", student={"model": model, "family": "tiny"}
        )
        | more
    )
    for teacher in made["teachers"]:
        teacher["size"], teacher["family"] = SIZES[teacher["name"]]
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strategies")


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal")


@pytest.fixture
def asked(journal, monkeypatch):
    """All strategies share one journal here."""
    monkeypatch.setenv("PERSYN_JOURNAL", str(journal))
    counter = CountingEngine()
    monkeypatch.setattr(engine, "generate", counter)
    return counter.asked


def ids(names):
    return [prompt_id([{"role": "user", "content": name}]) for name in names]


EXPECTED = {
    "strong": ["multiplier"] * N,
    "family-strong": ["guesser"] * N,
    "oracle": WHO_CAN,
}


def test_the_best_single_has_the_largest_mean_and_a_failed_answer_counts_as_the_lowest():
    rewards = [(0.9, 0.2), (None, 0.5), (0.1, 0.6), (None, None)]
    ranked = Dataset.from_list(
        [
            {
                "prompt_id": str(i),
                "responses": [{"teacher": "a", "reward": a}, {"teacher": "b", "reward": b}],
            }
            for i, (a, b) in enumerate(rewards)
        ]
    )
    found = mean_rewards(ranked, ["a", "b"])
    assert found == pytest.approx({"a": (0.9 + 0.5 + 0.1) / 3, "b": (0.2 + 0.5 + 0.6) / 3})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_ones_dataset(strategy, folder, chat_model, asked, tmp_path):
    recipe = Recipe.from_dict(values(folder, chat_model))
    builder = PersynBuilder(recipe, folder / strategy, strategy=strategy)
    builder.download_and_prepare()
    data, stats = builder.as_dataset(split="train"), builder.stats
    assert [
        row["prompt"][0]["content"] for row in data
    ] == PROMPTS  # the same prompts, in the same order
    assert [row["completion"][0]["content"] for row in data] == [
        answer(t, p) for t, p in zip(data["teacher"], PROMPTS, strict=True)
    ]
    routed = strategy in ROUTED
    tables = {"data", "routing"} | ({"pairs"} if routed else set())
    tables |= {"calibration"} if routed or strategy in ("car", "best-single", "oracle") else set()
    assert {
        p.name
        for p in builder.folder.iterdir()
        if p.name in ("data", "routing", "pairs", "calibration")
    } == tables
    assert (builder.output / "router").exists() == routed == (stats["router"] is not None)
    calibration = N if strategy == "oracle" else C if "calibration" in tables else 0
    assert (stats["strategy"], stats["calibration"]) == (strategy, calibration)
    assert stats["generations"] == calibration * M + N - calibration
    assert load_dataset(str(builder.folder), "routing", split="train")["teacher"] == data["teacher"]
    if strategy in EXPECTED:
        assert data["teacher"] == EXPECTED[strategy]
    assert max(Counter(asked).values(), default=0) <= 1
    assert len(asked) <= stats["generations"]
    # The card, the closing report, the page and the account all speak of it.
    card, text = (builder.folder / "README.md").read_text(), report.describe(builder.recipe, stats)
    title = "tiny" if strategy == "persyn" else f"tiny-{strategy}"
    assert f"\n# {title}\n" in card and text.startswith(f"{title}\n")
    assert STRATEGIES[strategy] in text
    assert ("## Router" in card) == routed and "{{" not in card
    if strategy in ("strong", "car"):
        recipe_read, numbers = page.load(builder.output)
        terms = worked_out(numbers["licenses"])
        html = page.write(builder.output, recipe_read, numbers, terms).read_text()
        assert report.outcome(builder.recipe, stats) in unescape(html)
    assert hub.Upload.load(builder.output, tmp_path).recipe.title == builder.recipe.title
    again = PersynBuilder(recipe, folder / strategy, strategy=strategy)
    before = len(asked)
    again.download_and_prepare()
    assert (again.stats, len(asked)) == (stats, before)


def test_only_what_it_needs_is_asked(tmp_path, chat_model, monkeypatch):
    for strategy, most in (
        ("strong", N),
        ("family-strong", N),
        ("mix", N),
        ("random", N),
        ("car", C * M + N - C),
    ):
        monkeypatch.setenv("PERSYN_JOURNAL", str(tmp_path / strategy))
        counter = CountingEngine()
        monkeypatch.setattr(engine, "generate", counter)
        recipe = Recipe.from_dict(values(tmp_path, chat_model))
        PersynBuilder(recipe, tmp_path / "out" / strategy, strategy=strategy).download_and_prepare()
        assert len(counter.asked) == len(set(counter.asked)) == most, strategy
    monkeypatch.setenv("PERSYN_JOURNAL", str(tmp_path / "car"))  # which has all calibration answers
    counter.asked.clear()
    PersynBuilder(
        recipe, tmp_path / "out" / "random again", strategy="random"
    ).download_and_prepare()
    assert len(counter.asked) <= N - C


def test_mix_and_random_by_their_prompts(tmp_path):
    made = values(tmp_path, "s")
    many = ids(map(str, range(4000)))

    def counts(strategy, keys=many, **baselines):
        return assign(
            Recipe.from_dict(made | {"strategy": strategy, "baselines": baselines}), keys, None
        )

    mixed = Counter(counts("mix"))
    assert set(mixed) == {"multiplier", "guesser"} and mixed["multiplier"] / 4000 == pytest.approx(
        0.2, abs=0.03
    )
    assert Counter(counts("mix", strong_share=0.7))["multiplier"] / 4000 == pytest.approx(
        0.7, abs=0.03
    )
    assert set(counts("mix", strong="adder", weak="multiplier")) == {"adder", "multiplier"}
    spread = Counter(counts("random"))
    assert all(spread[name] / 4000 == pytest.approx(1 / 3, abs=0.03) for name in TEACHERS)
    assert counts("random", many[::-1])[::-1] == counts("random")  # whatever the others are
    assert counts("random", seed=1) != counts("random")


def ranked(*rows):
    """(teacher, quality, learnability, characters) of each response to one prompt."""
    keys = ("teacher", "quality", "learnability")
    return Dataset.from_list(
        [
            {
                "prompt_id": "x",
                "best_teacher": None,
                "responses": [
                    dict(zip(keys, r[:3], strict=True)) | {"text": "x" * r[3], "error": ""}
                    for r in rows
                ],
            }
        ]
    )


def test_car_by_hand():
    rows = [
        ("a", 1.0, -0.5, 1),
        ("a", 0.0, -1.5, 1),
        ("b", 1.0, -3.0, 1),
        ("b", 0.8, -2.0, 1),
        ("c", None, -1.0, 1),
    ]
    assert compatibility_adjusted_rewards(ranked(*rows), 3) == pytest.approx(
        {"a": 0.5 / 4, "b": 0.9 / 8.5}
    )
    assert compatibility_adjusted_rewards(ranked(*rows), 0) == pytest.approx({"a": 0.5, "b": 0.9})
    shifted = compatibility_adjusted_rewards(ranked(("a", -8.0, -1.0, 1), ("b", -2.0, -1.0, 1)), 1)
    assert shifted == pytest.approx(
        {"a": 0, "b": 6 / 2}
    )  # a larger loss must not raise a negative reward
    with pytest.raises(BuildError, match="calibration"):
        compatibility_adjusted_rewards(ranked(("a", None, None, 0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": "strongest"},
            "strategy is 'strongest'; expected one of persyn, quality-only",
        ),
        (
            {"strategy": "strong", "sizes": (1, None, 2)},
            "goes by size, and the teacher 'multiplier' has none",
        ),
        (
            {"strategy": "mix", "sizes": (1, None, 2), "baselines": {"strong": "adder"}},
            "strategy mix goes by size",
        ),
        (
            {"strategy": "mix", "baselines": {"weak": "nobody"}},
            "baselines.weak is 'nobody'; expected one of adder",
        ),
        (
            {"strategy": "family-strong", "student": {"model": "s"}},
            "student.family is None, and the teachers are llama",
        ),
        ({"baselines": {"strong_share": 1.5}}, "baselines.strong_share is 1.5"),
        ({"baselines": {"beta": -1}}, "baselines.beta is -1"),
        ({"baselines": {"strogn": "a"}}, "did you mean 'strong'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, message):
    made = values(tmp_path, "s")
    for teacher, size in zip(made["teachers"], changes.pop("sizes", ()), strict=False):
        teacher["size"] = size
    with pytest.raises(InputError) as error:
        teachers_of(Recipe.from_dict(made | changes))
    assert message in str(error.value)


def test_of_equal_sizes_the_one_listed_first(tmp_path):
    made = values(tmp_path, "s")
    for teacher in made["teachers"]:
        teacher["size"] = 7
    for strategy in ("strong", "family-strong"):
        recipe = Recipe.from_dict(
            made | {"strategy": strategy, "student": {"model": "s", "family": "llama"}}
        )
        assert [t.name for t in teachers_of(recipe)] == ["adder"]
    named = Recipe.from_dict(made | {"strategy": "strong", "baselines": {"strong": "guesser"}})
    assert [t.name for t in teachers_of(named)] == ["guesser"]


def test_the_command(tmp_path, chat_model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = make_recipe(tmp_path, chat_model)
    made["teachers"][1]["size"], made["teachers"][0]["size"], made["teachers"][2]["size"] = 3, 1, 2
    recipe = save(tmp_path, made)
    assert main(["build", recipe, "--strategy", "strong", "--dry-run"]) == 0
    assert (
        "then 24 responses, each from the strongest teacher\n24 generations in all"
        in capsys.readouterr().out
    )
    assert main(["build", recipe, "--strategy", "strong"]) == 0
    printed = capsys.readouterr().out
    assert "outputs/tiny-strong/dataset" in printed and "Router:" not in printed
    assert set(load_dataset("outputs/tiny-strong/dataset", split="train")["teacher"]) == {
        "multiplier"
    }
    assert Recipe.load("outputs/tiny-strong/dataset/recipe.yaml").strategy == "strong"
    assert main(["build", recipe, "--output", "outputs/tiny-strong"]) == 1
    assert (
        "a build of the recipe 'tiny', strategy strong, and this recipe is 'tiny', strategy persyn"
        in (capsys.readouterr().err)
    )
