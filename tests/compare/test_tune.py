"""`persyn tune`, and `compare` with a target, on tiny models. Needs the extra `compare`."""

import json

import pytest
import yaml
from pool import answer, make_recipe, problems, save, write_lines

from persyn_datasets.cli import main
from persyn_datasets.compare import train

pytestmark = pytest.mark.slow

pytest.importorskip("trl", reason='needs TRL: pip install "persyn-datasets[compare]"')
pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "persyn-datasets[compare]"')
# From what the target says to what has nothing of it.
STYLES = {
    "like": "The answer is {}.",
    "near": "The answer: {}.",
    "half": "The ans is {}",
    "bare": "= {}",
    "noise": "zq zq {} zq zq zq",
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, chat_model):
    folder = tmp_path_factory.mktemp("tune")
    values = make_recipe(folder, chat_model)
    answers = [
        {"prompt": p, "teacher": name, "response": style.format(a)}
        for p, a in problems()
        for name, style in STYLES.items()
    ]
    path = write_lines(folder / "styles.jsonl", answers)
    reference = [{"prompt": p, "solution": answer("adder", p)} for p, _ in problems(60)[24:]]
    target = {
        "path": write_lines(folder / "target.jsonl", reference[:20]),
        "response_column": "solution",
        "learning_rate": 5e-3,
    }
    held_out = {
        "path": write_lines(folder / "test.jsonl", reference[20:]),
        "column": "prompt",
        "response_column": "solution",
    }
    training = {
        "learning_rate": 5e-3,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    }
    changed = {
        "teachers": [{"name": n, "model": path, "engine": "recorded"} for n in STYLES],
        "target": target,
        "training": training,
        "evaluation": {"held_out": held_out},
    }
    return save(folder, values | changed)


@pytest.fixture(scope="module")
def output(recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSYN_JOURNAL", str(output / "journal"))
        assert main(["tune", recipe, "--output", str(output)]) == 0
    return output


def test_probes_are_trained_on_one_half_and_signals_measured_on_the_other(output):
    played = json.loads((output / "tournament.json").read_text())
    assert list(played["teachers"]) == list(STYLES) and played["prompts"] == 8
    assert played["cost"]["probes"] == 5 and played["cost"]["examples"] == 5 * 8
    assert played["cost"]["steps"] == 5 * 3 and played["cost"]["tokens"] > 0
    of = played["signals"]["log-likelihood"]
    assert {"log-probability", "rsr", "target", "length"} <= set(of)
    gains = {name: t["gain"]["log-likelihood"] for name, t in played["teachers"].items()}
    assert gains["like"] == max(gains.values()) and gains["noise"] == min(gains.values())
    assert of["target"]["rho"] > of["log-probability"]["rho"]


def test_the_recipe_is_written_with_what_won_or_not_at_all(recipe, output):
    played = json.loads((output / "tournament.json").read_text())
    tuned = output / "recipe.yaml"
    assert tuned.exists() == (played["winner"] is not None)
    made = (output / "tournament.md").read_text()
    if played["winner"]:
        reward = yaml.safe_load(tuned.read_text())["reward"]
        assert reward["learnability"] == played["winner"]["learnability"] and "predicts" in made
        assert main(["build", str(tuned), "--dry-run"]) == 0
    else:
        assert "No signal is proven" in made
    assert (output / "tournament.png").stat().st_size > 0


def test_a_second_run_trains_nothing(recipe, output, monkeypatch):
    monkeypatch.setenv("PERSYN_JOURNAL", str(output / "journal"))
    monkeypatch.setattr(train, "_trainer", lambda *args: pytest.fail("trained again"))
    before = (output / "tournament.json").read_text()
    assert main(["tune", recipe, "--output", str(output)]) == 0
    assert (output / "tournament.json").read_text() == before


def test_a_comparison_shows_the_target_itself_and_plays_too(recipe, output, monkeypatch):
    """The probes are those of `tune`, found again in the same folder."""
    monkeypatch.setenv("PERSYN_JOURNAL", str(output / "journal"))
    command = ["compare", recipe, "--strategies", "car", "random", "--seeds", "1", "--per-teacher"]
    assert main([*command, "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    lines = ["untrained", "car", "random", "target", "car + target"]
    assert list(results["strategies"]) == lines
    assert [c["other"] for c in results["comparisons"]] == [n for n in lines if n != "car"]
    assert results["tournament"]["signals"]["log-likelihood"]["target"]
    means = {n: s["measures"]["log-likelihood"]["mean"] for n, s in results["strategies"].items()}
    assert means["target"] > means["untrained"]
    assert "car + target" in (output / "results.md").read_text()
