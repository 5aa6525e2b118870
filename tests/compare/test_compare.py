"""`persyn compare` end to end on tiny models: that it does what it says, not who wins. Needs the
extra `compare`.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from pool import answer, counting, make_recipe, problems, save, write_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from persyn_datasets import InputError, Recipe
from persyn_datasets.cli import main
from persyn_datasets.compare import compare, train
from persyn_datasets.compare import report as comparison

pytestmark = pytest.mark.slow

pytest.importorskip("trl", reason='needs TRL: pip install "persyn-datasets[compare]"')
pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "persyn-datasets[compare]"')
NAMES = ["persyn", "strong", "random"]


def sections(folder):
    rows = [{"prompt": p, "solution": answer("adder", p)} for p, _ in problems(40)[24:]]
    held_out = {
        "path": write_lines(folder / "test.jsonl", rows),
        "column": "prompt",
        "response_column": "solution",
    }
    training = {
        "learning_rate": 1e-2,
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
    }
    return {
        "training": training,
        "evaluation": {"held_out": held_out},
        "baselines": {"strong": "guesser"},
    }


def command(recipe, output):
    return ["compare", recipe, "--strategies", *NAMES, "--seeds", "2", "--output", str(output)]


def test_a_broken_student_is_refused_before_a_teacher_is_asked(chat_model, tmp_path, monkeypatch):
    """The strategy has no calibration, in which the student would be loaded."""
    student = tmp_path / "student"
    shutil.copytree(chat_model, student)
    (student / "model.safetensors").write_bytes(b"cut off")
    values = make_recipe(tmp_path, chat_model, engine="transformers", **sections(tmp_path))
    recipe = Recipe.from_dict(values | {"student": {"model": str(student)}})
    counter = counting(monkeypatch)
    with pytest.raises(InputError, match=r"student\.model"):
        compare.compare(recipe, ["random"], tmp_path / "out", seeds=1)
    assert counter.asked == []


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, chat_model):
    folder = tmp_path_factory.mktemp("compare")
    return save(folder, make_recipe(folder, chat_model, **sections(folder)))


@pytest.fixture(scope="module")
def output(recipe, tmp_path_factory):
    """A finished comparison; its journal is its own, too."""
    output = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSYN_JOURNAL", str(output / "journal"))
        assert main(command(recipe, output)) == 0
    return output


def test_every_strategy_gets_the_same_examples_and_steps(output):
    results = json.loads((output / "results.json").read_text())
    assert list(results["strategies"]) == ["untrained", *NAMES]
    for name in NAMES:
        students = results["strategies"][name]["students"]
        assert [(s["seed"], s["examples"], s["steps"]) for s in students] == [
            (0, 24, 3),
            (1, 24, 3),
        ]
    generations = {name: results["strategies"][name]["generations"] for name in NAMES}
    assert generations == {"persyn": 16 * 3 + 8, "strong": 24, "random": 24}
    assert len(list((output / "students").glob("*/model"))) == len(NAMES) * 2


def test_the_numbers_are_those_of_the_prompts(output):
    results = json.loads((output / "results.json").read_text())
    lines = [json.loads(line) for line in (output / "prompts.jsonl").read_text().splitlines()]
    means = {}
    for name in ["untrained", *NAMES]:
        values = [
            [x["value"] for x in lines if (x["strategy"], x["seed"]) == (name, seed)]
            for seed in (0, 1)
        ]
        values = np.array([v for v in values if v])
        of = results["strategies"][name]["measures"]["log-likelihood"]
        assert values.shape == (1 if name == "untrained" else 2, 16) and of["prompts"] == 16
        assert of["mean"] == pytest.approx(values.mean()) and of["low"] < of["mean"] < of["high"]
        assert of["seeds"] == pytest.approx(values.mean(1))
        means[name] = values.mean()
    assert (
        min(means[name] for name in NAMES) > means["untrained"]
    )  # they learn the form of an answer at least
    for c in results["comparisons"]:
        assert c["mean"] == pytest.approx(means["persyn"] - means[c["other"]])
        assert c["p"] <= c["p_holm"] <= 1 and c["low"] <= c["mean"] <= c["high"]
    assert [c["other"] for c in results["comparisons"]] == ["untrained", "strong", "random"]


def test_tables_and_figures(output):
    made = (output / "results.md").read_text()
    assert "By log-likelihood (16 prompts) the student of **persyn**" in made and "± " in made
    assert (
        "trained for 3 steps on datasets of 24 examples" in made
        and "spread between 2 seeds" in made
    )
    assert {p.name for p in (output / "figures").iterdir()} == {"scores.png"}


def test_a_second_run_trains_and_measures_nothing(recipe, output, monkeypatch):
    monkeypatch.setenv("PERSYN_JOURNAL", str(output / "journal"))
    monkeypatch.setattr(train, "_trainer", lambda *args: pytest.fail("trained again"))
    before = (output / "results.json").read_text()
    monkeypatch.setattr(
        "persyn_datasets.stages.score.signals", lambda *args: pytest.fail("scored again")
    )
    assert main(command(recipe, output)) == 0
    assert (output / "results.json").read_text() == before


def test_students_are_published_with_their_cards(recipe, output, monkeypatch, hub):
    monkeypatch.setenv("PERSYN_JOURNAL", str(output / "journal"))
    publish = [*command(recipe, output), "--push-to-hub"]
    assert main([*publish, "nobody/tiny"]) == 1  # before anything is done
    assert main([*publish, "org/tiny"]) == 0
    place = (
        output
        / json.loads((output / "results.json").read_text())["strategies"]["random"]["students"][0][
            "folder"
        ]
    )
    there = AutoModelForCausalLM.from_pretrained("org/tiny-random").state_dict()
    here = AutoModelForCausalLM.from_pretrained(place / "model").state_dict()
    assert all(torch.equal(there[name], here[name]) for name in here)
    assert AutoTokenizer.from_pretrained("org/tiny-random").chat_template
    main_branch = hub.repo("org/tiny-random", "model").branches["main"]
    card = main_branch.files["README.md"].decode()
    assert (
        "strategy `random`" in card and "3 steps" in card and "| `learning_rate` | 0.01 |" in card
    )
    assert not any(
        str(output.parent.parent).encode() in content for content in main_branch.files.values()
    )
    assert main([*publish, "org/tiny"]) == 0
    assert hub.repo("org/tiny-random", "model").branches["main"] == main_branch  # no new commit


def test_only_prompts_that_all_answered_are_trained_on():
    rows = {"prompt_id": ["a", "b", "c"], "completion": ["1", "2", "3"]}
    less = {"prompt_id": ["c", "a"], "completion": ["30", "10"]}
    common = compare._common({"x": Dataset.from_dict(rows), "y": Dataset.from_dict(less)})
    assert (common["x"]["completion"][:], common["y"]["completion"][:]) == (
        ["1", "3"],
        ["10", "30"],
    )


def test_the_words_follow_the_numbers():
    """Seeds are averaged before the interval: 2 seeds of 40 prompts are 40 values, not 80."""
    rng = np.random.default_rng(0)
    base, keys = rng.normal(size=40), [str(i) for i in range(40)]

    def runs(shift):
        return [
            {"m": dict(zip(keys, base + shift + rng.normal(0, 0.1, 40), strict=True))}
            for _ in range(2)
        ]

    measured = {
        "untrained": runs(-1)[:1],
        "persyn": runs(0),
        "worse": runs(-0.3),
        "same": runs(0),
        "better": runs(0.3),
    }
    results = {"recipe": "r", "student": "s", "seeds": 2, **compare.analyse(measured, "persyn")}
    results["strategies"]["persyn"]["students"] = [{"examples": 5, "steps": 1}]
    ours = np.mean([list(run["m"].values()) for run in measured["persyn"]], axis=0)
    of = results["strategies"]["persyn"]["measures"]["m"]
    assert of["high"] - of["low"] == pytest.approx(2 * 1.96 * ours.std() / 40**0.5, rel=0.1)
    words = comparison.conclusion(results)
    assert "is better than untrained, worse; is worse than better;" in words
    assert "cannot be distinguished from same." in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "strong", "strong"], "--strategies: 'strong'"),
        (["--strategies", "storng"], "storng"),
        (["--strategies", "strong", "--seeds", "0"], "--seeds is 0; expected 1 or more"),
        (
            ["--strategies", "strong", "--per-teacher"],
            "teachers: found 3; a correlation over so few says nothing, it takes at least 5",
        ),
        (
            ["--strategies", "strong", "--set", "evaluation={}"],
            "evaluation: there is nothing to do",
        ),
        (
            ["--strategies", "strong", "--set", "training.max_length=9"],
            "training.max_length is 9, and the prompt '3 times 4?'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, message, recipe, tmp_path, capsys):
    assert main(["compare", recipe, *arguments, "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
