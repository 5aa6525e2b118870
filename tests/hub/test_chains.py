"""Chains of two and more steps: what is published says what it holds, whatever came before."""

import json
import shutil

import pytest
import yaml
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi
from pool import make_recipe, write_lines

from persyn_datasets import InputError, PersynBuilder, Recipe, Router, Teacher
from persyn_datasets.cli import main
from persyn_datasets.hub import public
from persyn_datasets.hub.cards import merge, split
from persyn_datasets.hub.publish import publish
from persyn_datasets.router.add_teacher import add_teacher

ORG = "org/chain"


def build(values, output):
    builder = PersynBuilder(Recipe.from_dict(values), output)
    builder.download_and_prepare()
    return builder


def licensed(values, *licenses):
    teachers = [t | {"license": x} for t, x in zip(values["teachers"], licenses, strict=True)]
    prompts = values["prompts"] | {"license": "mit"}
    return values | {"teachers": teachers, "prompts": prompts}


def header(hub, name=ORG, kind="dataset"):
    card = hub.repo(name, kind).branches["main"].files["README.md"].decode()
    return yaml.safe_load(card.split("---\n")[1])


@pytest.fixture
def folder(chat_model, tmp_path):
    shutil.copytree(chat_model, tmp_path / "first-student")
    shutil.copytree(chat_model, tmp_path / "second-student")
    (tmp_path / "second-student" / "notes.txt").write_text("another one")
    return tmp_path


@pytest.fixture
def values(folder, chat_model):
    values = make_recipe(folder, str(folder / "first-student"))
    values["router"]["backbone"] = chat_model
    return values


def test_a_build_again_in_the_same_output_says_only_its_own_terms(hub, folder, values):
    build(licensed(values, "mit", "mit", "mit"), folder / "out")
    card = folder / "out/dataset/README.md"
    card.write_text(
        card.read_text().replace("tags:\n", "tags:\n- mine\n").replace("---\n", "---\nx: 1\n", 1)
    )
    values["student"] = {"model": str(folder / "second-student")}
    build(licensed(values, "mit", "mit", "cc-by-nc-4.0"), folder / "out")
    publish(folder / "out", ORG)
    found = header(hub)
    assert found["license"] == "cc-by-nc-4.0" and found["x"] == 1
    students = [tag for tag in found["tags"] if tag.startswith("student:")]
    assert students == ["student:second-student"] and "mine" in found["tags"]
    router = header(hub, f"{ORG}-router", "model")
    assert [t for t in router["tags"] if t.startswith("student:")] == ["student:second-student"]


def test_a_licence_that_the_user_wrote_into_the_card_stays(hub, folder, values):
    build(licensed(values, "mit", "mit", "mit"), folder / "out")
    card = folder / "out/dataset/README.md"
    card.write_text(card.read_text().replace("license: mit\n", "license: cc-by-4.0\n"))
    build(licensed(values | {"reward": {"alpha": 0.3}}, "mit", "mit", "mit"), folder / "out")
    publish(folder / "out", ORG)
    assert header(hub)["license"] == "cc-by-4.0"


def test_a_card_of_0_1_0_that_does_not_say_what_was_ours():
    ours = {"license": "mit", "tags": ["persyn", "student:a"]}
    old = merge("", ours, "old").replace(merge("", ours, "old").split("\n\n")[1].split("\n")[1], "")
    assert "entries of the header" not in old
    new = {"license": "apache-2.0", "tags": ["persyn", "student:b"]}
    assert split(merge(old, new, "new"))[0] == new
    theirs = old.replace("license: mit", "license: gemma")
    assert split(merge(theirs, new, "new", before=ours))[0]["license"] == "gemma"


def test_a_router_that_was_changed_after_the_build_is_not_published_with_its_card(
    hub, folder, values
):
    builder = build(values, folder / "out")
    router = Router.from_pretrained(str(folder / "out/router"))
    ranked = load_dataset(str(builder.folder), "calibration", split="train")
    ranked = ranked.map(
        lambda row: {"responses": [*row["responses"], row["responses"][0] | {"teacher": "new"}]}
    )
    new = Teacher("new", engine="recorded")
    larger = add_teacher(router, ranked, new, str(folder / "out/router"))
    assert len(larger.names) == 4
    with pytest.raises(InputError, match="router"):
        publish(folder / "out", ORG)
    assert not hub.repos
    build(values, folder / "out2")
    shutil.copytree(folder / "out2/router", folder / "out/router", dirs_exist_ok=True)
    publish(folder / "out2", ORG)


def test_no_path_of_this_machine_is_in_public_cards(hub, folder, values):
    lost = [json.loads(line) for line in (folder / "answers.jsonl").open()]
    write_lines(folder / "answers.jsonl", [r for r in lost if r["prompt"] != lost[0]["prompt"]])
    values["max_failed"] = 0.5
    build(values, folder / "out")
    publish(folder / "out", ORG)
    values["student"] = {"model": str(folder / "second-student")}
    moved = shutil.move(values["prompts"]["path"], folder / "moved.jsonl")
    values["prompts"]["path"] = str(moved)
    build(values, folder / "out")
    publish(folder / "out", ORG)
    for name, kind in ((ORG, "dataset"), (f"{ORG}-router", "model")):
        branch = hub.repo(name, kind).branches["main"]
        card = branch.files["README.md"].decode()
        assert str(folder) not in card and "/tmp" not in card
        assert "student.model: first-student → second-student" in card
        assert str(folder) not in branch.message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("in /home/me/secret/answers.jsonl, row 3", "in answers.jsonl, row 3"),
        ("from ~/models/a → ../models/b", "from a → b"),
        ("C:\\Users\\me\\a.jsonl: gone", "a.jsonl: gone"),
        ("https://huggingface.co/org/name and http://h:80/v1/x", None),
        ("![cost](figures/cost.png) and/or org/name, 3/4, a/b/c", None),
        ("`quality/none` | /data | 1/2", None),
    ],
)
def test_what_looks_like_a_path_is_shown_by_its_last_part(text, shown):
    assert public.text(text) == (shown or text)
    assert public.text("x models/a/b y", ["models/a/b"]) == "x b y"


def test_a_dataset_that_others_pushed_before_loads_after_ours(hub, folder, values):
    Dataset.from_list([{"a": 1, "b": "x"}]).push_to_hub(ORG)
    Dataset.from_list([{"c": 2.0}]).push_to_hub(ORG, config_name="theirs")
    build(values, folder / "out")
    publish(folder / "out", ORG)
    rows = load_dataset(ORG, split="train")
    assert rows.to_list() == load_dataset(str(folder / "out/dataset"), split="train").to_list()
    assert len(load_dataset(ORG, "pairs", split="train")) > 1
    assert load_dataset(ORG, "theirs", split="train").to_list() == [{"c": 2.0}]
    assert [info["config_name"] for info in header(hub)["dataset_info"]] == ["theirs"]


@pytest.mark.parametrize("configs", [None, "theirs"])
def test_a_push_by_datasets_between_two_of_ours(hub, folder, values, configs):
    build(values, folder / "out")
    publish(folder / "out", ORG)
    rows = load_dataset(ORG, split="train")
    more = {"config_name": configs} if configs else {}
    rows.push_to_hub(ORG, **more)  # now the card says what its columns are
    values["reward"] = {"alpha": 0.2}
    build(values, folder / "out")
    publish(folder / "out", ORG)
    assert load_dataset(ORG, split="train").num_rows == 24
    assert header(hub).get("dataset_info", []) == [] or configs


def test_conversations_are_a_config_of_their_own(hub, folder, values):
    lost = [json.loads(line) for line in (folder / "answers.jsonl").open()]
    write_lines(folder / "answers.jsonl", [r for r in lost if r["prompt"] != lost[0]["prompt"]])
    values["max_failed"] = 0.5
    builder = build(values, folder / "out")
    publish(folder / "out", ORG)
    rows, chats = load_dataset(ORG, split="train"), load_dataset(ORG, "messages", split="train")
    assert chats.column_names == ["messages", "prompt_id", "teacher"]
    assert len(chats) == len(rows) == 23 and len(load_dataset(ORG, split="failed")) == 1
    for row, chat in zip(rows, chats, strict=True):
        assert chat["messages"] == row["prompt"] + row["completion"]
    card = (builder.folder / "README.md").read_text()
    longest = builder.stats["max_length"]
    assert f"--max_length {longest} " in card and 30 < longest < 200


def test_answers_of_a_router_have_conversations_too_and_are_added(hub, folder, values, tmp_path):
    build(values, folder / "out")
    publish(folder / "out", ORG)
    output = str(tmp_path / "more")
    assert (
        main(
            [
                "synthesize",
                str(folder / "out/router"),
                values["prompts"]["path"],
                "--output",
                output,
            ]
        )
        == 0
    )
    assert len(load_dataset(output, "messages", split="train")) == 24
    assert main(["push", output, ORG, "--append"]) == 0
    for config in ("default", "messages"):
        assert len(load_dataset(ORG, config, split="train")) == 48


def test_rows_are_not_added_beside_a_file_of_somebody_else(hub, folder, values, tmp_path):
    build(values, folder / "out")
    publish(folder / "out", ORG)
    router, prompts = str(folder / "out/router"), values["prompts"]["path"]
    assert main(["synthesize", router, prompts, "--output", str(tmp_path / "more")]) == 0
    stray = tmp_path / "stray.parquet"
    load_dataset(ORG, split="train").add_column("note", ["x"] * 24).to_parquet(stray)
    for path in ("data/train-0.parquet", "data/persyn-train-notes.parquet"):
        HfApi().upload_file(
            path_or_fileobj=stray, path_in_repo=path, repo_id=ORG, repo_type="dataset"
        )
    before = hub.repo(ORG, "dataset").branches["main"]
    with pytest.raises(InputError, match="data/persyn-train-notes.parquet"):
        publish(tmp_path / "more", ORG, append=True)
    assert hub.repo(ORG, "dataset").branches["main"] == before
    api = HfApi()
    api.delete_file("data/persyn-train-notes.parquet", ORG, repo_type="dataset")
    publish(tmp_path / "more", ORG, append=True)
    publish(tmp_path / "more", ORG, append=True)  # ours are known by their names
    assert load_dataset(ORG, split="train").num_rows == 48


def test_a_build_that_lost_a_file_is_made_whole_by_the_same_command(folder, values):
    builder = build(values, folder / "out")
    table = builder.folder / "calibration" / "test-00000-of-00001.parquet"
    before = Dataset.from_parquet(str(table)).to_list()
    table.unlink()
    build(values, folder / "out")
    assert Dataset.from_parquet(str(table)).to_list() == before
    shutil.rmtree(folder / "out/router")
    build(values, folder / "out")
    assert Router.from_pretrained(str(folder / "out/router")).metrics == builder.stats["router"]


def test_a_build_whose_router_is_gone_is_not_published_without_it(hub, folder, values):
    build(values, folder / "out")
    shutil.rmtree(folder / "out/router")
    with pytest.raises(InputError, match="router"):
        publish(folder / "out", ORG)
    assert not hub.repos


def test_a_router_lying_beside_a_build_without_one_is_not_published(hub, folder, values):
    build(values, folder / "out")
    build(values | {"strategy": "random"}, folder / "random")
    shutil.copytree(folder / "out/router", folder / "random/router")
    with pytest.raises(InputError, match="router"):
        publish(folder / "random", ORG)


def test_rows_that_were_added_go_with_the_next_whole_build(hub, folder, values, tmp_path):
    build(values, folder / "out")
    publish(folder / "out", ORG)
    more = str(tmp_path / "more")
    prompts = values["prompts"]["path"]
    assert main(["synthesize", str(folder / "out/router"), prompts, "--output", more]) == 0
    assert publish(more, ORG, append=True) == "v1.1.0"
    assert publish(more, ORG, append=True) == "v1.1.0"  # the same rows again are none
    assert len(load_dataset(ORG, split="train")) == 48
    assert publish(folder / "out", ORG) == "v1.2.0"
    for config in ("default", "messages"):
        assert len(load_dataset(ORG, config, split="train")) == 24


def test_a_foreign_router_stays_foreign_when_it_is_saved_or_grown_here(hub, folder, values):
    build(values, folder / "out")
    publish(folder / "out", ORG)
    files = dict(hub.repo(f"{ORG}-router", "model").branches["main"].files)
    config = json.loads(files["config.json"])
    config["persyn"]["teachers"][0] |= {"engine": "endpoint", "base_url": "https://evil.example/v1"}
    hub.put("org/evil", files | {"config.json": json.dumps(config)}, "model")
    evil = Router.from_pretrained("org/evil")
    evil.save_pretrained(str(folder / "saved"))
    ranked = load_dataset(str(folder / "out/dataset"), "calibration", split="train")
    ranked = ranked.map(
        lambda row: {"responses": [*row["responses"], row["responses"][0] | {"teacher": "new"}]}
    )
    larger = add_teacher(evil, ranked, Teacher("new", engine="recorded"), str(folder / "larger"))
    for router in (evil, Router.from_pretrained(str(folder / "saved")), larger):
        with pytest.raises(InputError, match="evil.example"):
            _ = router.teachers
