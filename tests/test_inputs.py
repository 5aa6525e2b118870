"""What a build, a router, a card and the journal remember, and what each of it depends on."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi
from pool import make_recipe, problems, write_lines
from safetensors.torch import load_file, save_file

from persyn_datasets import BuildError, InputError, PersynBuilder, Recipe
from persyn_datasets.data.sources import load
from persyn_datasets.inputs import build_id

QUALITY = """
def right(completions, answer, **_):
    return [float(c[0]["content"].endswith(f" {a}.")) for c, a in zip(completions, answer)]
"""


def train_on(folder):
    """Other weights in the same folder: the same names and sizes."""
    file = Path(folder) / "model.safetensors"
    weights = load_file(file)
    for tensor in weights.values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture
def world(chat_model, reward_model, tmp_path, monkeypatch):
    """A recipe whose every place is a folder or file of its own."""
    for name, model in (
        ("student", chat_model),
        ("backbone", chat_model),
        ("teacher", chat_model),
        ("reward", reward_model),
    ):
        shutil.copytree(model, tmp_path / name)
    values = make_recipe(tmp_path, str(tmp_path / "student"))
    values["router"]["backbone"] = str(tmp_path / "backbone")
    values["teachers"].append({"name": "local", "model": str(tmp_path / "teacher"), "size": 9})
    rows = [{"question": f"And {p}", "known": str(a)} for p, a in problems(4)]
    target = write_lines(tmp_path / "target.jsonl", rows)
    values["target"] = {"path": target, "column": "question", "response_column": "known"}
    benchmark = write_lines(tmp_path / "benchmark.jsonl", [{"text": "one two three"}])
    values["prompts"]["decontaminate"] = {"against": [benchmark]}
    (tmp_path / "my_quality.py").write_text(QUALITY)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_quality", None)
    return tmp_path, values | {"quality": "my_quality.right"}


def edit(name, old, new, count=1):
    def change(folder, values):
        file = folder / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, count))

    return change


def state(path, value):
    def change(folder, values):
        *above, last = path.split(".")
        for key in above:
            values = values[int(key)] if isinstance(values, list) else values[key]
        values[int(last) if isinstance(values, list) else last] = value

    return change


def trained(name):
    return lambda folder, values: train_on(folder / name)


def moved(name, *places):
    """The same bytes at another place."""

    def change(folder, values):
        to = folder / "elsewhere" / name
        to.parent.mkdir()
        (folder / name).rename(to)
        for place in places:
            state(place, str(to))(folder, values)

    return change


def touched(folder, values):
    for file in folder.glob("*.jsonl"):
        file.touch()


def rewritten(folder, values):
    """The same rows in another format."""
    rows = [json.loads(line) for line in (folder / "answers.jsonl").open()]
    Dataset.from_list(rows).to_parquet(folder / "answers.parquet")
    for teacher in values["teachers"][:3]:
        teacher["model"] = str(folder / "answers.parquet")


def thoughtful(folder, values):
    """A thought comes beside each answer."""
    rows = [json.loads(line) for line in (folder / "answers.jsonl").open()]
    write_lines(folder / "answers.jsonl", [row | {"reasoning": "Well."} for row in rows])


def reward_model(folder, values):
    values["quality"] = {"reward_model": str(folder / "reward")}


ALL = {"persyn", "car", "random"}
CALIBRATED = {"persyn", "car"}
# What changes, and the strategies whose builds are others then.
TABLE = {
    "student": (trained("student"), CALIBRATED),
    "backbone": (trained("backbone"), {"persyn"}),
    "teacher's weights": (trained("teacher"), ALL),
    "recorded answers": (edit("answers.jsonl", "9999", "9998"), ALL),
    "recorded thoughts": (thoughtful, ALL),
    "prompts": (edit("prompts.jsonl", '"source": "made"', '"source": "found"'), ALL),
    "reference answers": (edit("prompts.jsonl", '"answer": "15"', '"answer": "16"'), ALL),
    "benchmark": (edit("benchmark.jsonl", "three", "four"), ALL),
    "target": (edit("target.jsonl", '"known": "15"', '"known": "16"'), CALIBRATED),
    "quality function": (edit("my_quality.py", "float(", "0.5 * float("), CALIBRATED),
    "reward": (state("reward", {"alpha": 0.2}), CALIBRATED),
    "calibration": (state("calibration.seed", 4), CALIBRATED),
    "router": (state("router.seed", 4), {"persyn"}),
    "second opinions": (state("second_opinion", 0.5), {"persyn"}),
    "system prompt": (state("teachers.0.system_prompt", "Subtract."), ALL),
    "price": (state("teachers.0.price", {"input": 1, "output": 1}), ALL),
    "license": (state("teachers.0.license", "mit"), ALL),
    "sampling of a teacher": (state("teachers.3.sampling", {"seed": 3}), ALL),
    "shared sampling": (state("sampling", {"seed": 3}), ALL),
    "training": (state("training", {"num_train_epochs": 1}), set()),
    "evaluation": (state("evaluation", {"tasks": ["gsm8k"]}), set()),
    "limit of money": (state("max_cost", None), set()),
    "dates of files": (touched, set()),
    "place of the student": (moved("student", "student.model"), set()),
    "place of the backbone": (moved("backbone", "router.backbone"), set()),
    "place of the teacher": (moved("teacher", "teachers.3.model"), set()),
    "place of the prompts": (moved("prompts.jsonl", "prompts.path"), set()),
    "place of the target": (moved("target.jsonl", "target.path"), set()),
    "place of the benchmark": (
        moved("benchmark.jsonl", "prompts.decontaminate.against.0"),
        set(),
    ),
    "place of the answers": (
        moved("answers.jsonl", *(f"teachers.{i}.model" for i in range(3))),
        set(),
    ),
    "format of the answers": (rewritten, set()),
}


def ids(values):
    found = {}
    for strategy in sorted(ALL):
        recipe = Recipe.from_dict(values | {"strategy": strategy})
        found[strategy] = build_id(recipe, load(recipe.prompts))
    return found


@pytest.mark.parametrize("what", TABLE)
def test_a_builds_id_follows_what_its_strategy_reads_and_nothing_else(world, what):
    folder, values = world
    change, expected = TABLE[what]
    before = ids(values)
    change(folder, values)
    sys.modules.pop("my_quality", None)
    after = ids(values)
    assert {name for name in ALL if before[name] != after[name]} == expected


def test_a_reward_model_is_known_by_its_weights(world):
    folder, values = world
    reward_model(folder, values)
    before = ids(values)
    moved("reward", "quality.reward_model")(folder, values)
    assert ids(values) == before
    train_on(folder / "elsewhere" / "reward")
    assert {name for name, found in ids(values).items() if found != before[name]} == CALIBRATED


def test_a_branch_on_the_hub_is_known_by_its_commit(world, hub):
    folder, values = world
    api = HfApi()
    api.create_repo("org/student")
    api.upload_folder(repo_id="org/student", folder_path=folder / "student")
    values["student"]["model"] = "org/student"
    before = ids(values)
    assert ids(values) == before
    train_on(folder / "student")
    api.upload_folder(repo_id="org/student", folder_path=folder / "student")
    after = ids(values)
    assert {name for name in ALL if before[name] != after[name]} == CALIBRATED
    first = api.list_repo_commits("org/student")[1].commit_id
    values["student"]["revision"] = first
    assert ids(values) == before


def test_a_recorded_teacher_is_read_at_its_revision(world, hub):
    folder, values = world
    values["strategy"] = "random"
    rows = [json.loads(line) for line in (folder / "answers.jsonl").open()]
    Dataset.from_list(rows).push_to_hub("org/answers")
    HfApi().create_tag("org/answers", tag="old", repo_type="dataset")
    for teacher in values["teachers"][:3]:
        teacher |= {"model": "org/answers", "revision": "old"}
    before = ids(values)
    others = [row | {"response": f"{row['response']}!"} for row in rows]
    Dataset.from_list(others).push_to_hub("org/answers")
    assert ids(values) == before
    for teacher in values["teachers"][:3]:
        teacher["revision"] = "main"
    assert ids(values) != before


def test_what_is_not_there_is_named_by_its_key(world):
    folder, values = world
    for key in ("student.model", "router.backbone", "teachers.3.model"):
        broken = json.loads(json.dumps(values))
        state(key, str(folder / "nowhere"))(folder, broken)
        recipe = Recipe.from_dict(broken)
        with pytest.raises(InputError, match=key.replace("teachers.3.model", "teacher 'local'")):
            build_id(recipe, load(recipe.prompts))


def build(values, folder):
    builder = PersynBuilder(Recipe.from_dict(values), folder / "out")
    builder.download_and_prepare()
    return builder


def learnability(folder):
    rows = load_dataset(str(folder / "out/dataset"), "calibration", split="train")
    return [r["learnability"] for row in rows["responses"] for r in row]


@pytest.fixture
def small(chat_model, tmp_path):
    shutil.copytree(chat_model, tmp_path / "student")
    values = make_recipe(tmp_path, str(tmp_path / "student"))
    values["router"]["backbone"] = chat_model
    return tmp_path, values


def test_a_student_that_was_trained_on_in_its_folder_is_measured_anew(small):
    folder, values = small
    first = build(values, folder)
    before, written = learnability(folder), first.stats
    train_on(folder / "student")
    again = build(values, folder)
    assert again.stats["build"] != written["build"]
    assert max(abs(a - b) for a, b in zip(learnability(folder), before, strict=True)) > 0.1


def test_other_answers_under_the_same_name_are_taken_up_in_the_same_process(small):
    folder, values = small
    values["strategy"] = "random"
    build(values, folder)
    edit("answers.jsonl", "The answer is", "It is", count=-1)(folder, values)
    rows = build(values, folder).as_dataset(split="train")
    assert {c[0]["content"][:5] for c in rows["completion"]} == {"It is"}


def test_a_model_that_changes_while_a_build_reads_it_stops_the_build(small, monkeypatch):
    folder, values = small
    judge = PersynBuilder._judge

    def meanwhile(self, generated, rank, account):
        ranked = judge(self, generated, rank, account)
        train_on(folder / "student")
        return ranked

    monkeypatch.setattr(PersynBuilder, "_judge", meanwhile)
    with pytest.raises(BuildError, match="changed"):
        build(values, folder)
    monkeypatch.undo()
    assert build(values, folder).stats["rows"] == 24


def test_a_moved_student_leaves_the_build_and_its_recipe_says_the_new_place(small):
    folder, values = small
    before = build(values, folder).stats
    moved("student", "student.model")(folder, values)
    values["training"] = {"num_train_epochs": 1}
    again = build(values, folder)
    assert again.stats["build"] == before["build"] and again.stats["router"] == before["router"]
    recipe = Recipe.load(str(folder / "out/dataset/recipe.yaml"))
    assert recipe == again.recipe and str(folder / "elsewhere/student") in again.stats["local"]
    assert "elsewhere" not in (folder / "out/dataset/README.md").read_text().split("\n# ")[1]
