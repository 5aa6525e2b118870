"""Publishing over real HTTP, by the real clients, to the Hub of hub_server.py."""

import json
import shutil

import pytest
import yaml
from datasets import Dataset, load_dataset
from hub_builds import ORG, built_second, local, rows, tags
from transformers import AutoModelForSequenceClassification, pipeline

from persyn_datasets import InputError, Recipe, Router, publish
from persyn_datasets.hub import publish as hub_module


@pytest.fixture(scope="module")
def first(done):
    return done.output


@pytest.fixture(scope="module")
def second(chat_model, models_folder):
    return built_second(models_folder / "hub-second", chat_model)


def shown(values, folder):
    """JSON values with the local places of a build by their last part."""
    text = json.dumps(values)
    for place in json.loads((folder / "dataset/stats.json").read_text())["local"]:
        text = text.replace(place, place.rpartition("/")[2])
    return json.loads(text)


def test_publish_change_and_publish_again(hub, first, second):
    assert publish(first, ORG) == "v1.0.0"
    assert publish(second, ORG) == "v1.1.0"
    for version, folder, calibration in (("v1.0.0", first, 12), ("v1.1.0", second, 9)):
        assert rows(version) == local(folder)
        assert len(rows(version, "calibration")) == calibration
        for config in ("pairs", "routing"):
            assert rows(version, config) == local(folder, config)
        router = Router.from_pretrained(f"{ORG}-router", revision=version)
        here = Router.from_pretrained(str(folder / "router")).config.persyn
        assert router.config.persyn == shown(here, folder)
    assert rows("main") == local(second) == list(load_dataset(ORG, split="train", streaming=True))
    assert tags(hub) == {"dataset": ["v1.0.0", "v1.1.0"], "model": ["v1.0.0", "v1.1.0"]}
    published = json.loads(hub.repo(ORG).branches["main"].files["stats.json"])
    ours = shown(json.loads((second / "dataset/stats.json").read_text()), second)
    assert published | {"router_files": ""} == ours | {"router_files": ""}
    card = hub.repo(ORG).branches["main"].files["README.md"].decode()
    (changed,) = (line for line in card.splitlines() if line.startswith("| `v1.1.0` |"))
    assert all(
        w in changed
        for w in ("24 rows (+0)", "calibration.size: 16 → 12", "reward.alpha: 0.4 → 0.3")
    )
    assert "| `v1.0.0` | the first version: 24 rows |" in card
    assert f"(https://huggingface.co/{ORG}-router)" in card
    other = hub.repo(f"{ORG}-router", "model").branches["main"].files["README.md"].decode()
    assert f"(https://huggingface.co/datasets/{ORG})" in other and "| `v1.1.0` |" in other


def test_no_local_path_leaves_the_machine(hub, first, models_folder):
    publish(first, ORG)
    for name, kind in ((ORG, "dataset"), (f"{ORG}-router", "model")):
        files = hub.repo(name, kind).branches["main"].files
        binary = (".parquet", ".png", ".safetensors")
        texts = {n: c.decode() for n, c in files.items() if not n.endswith(binary)}
        assert {"README.md"} < set(texts)
        assert not [n for n, text in texts.items() if str(models_folder) in text]
    recipe = Recipe.load(ORG, ["prompts.path=mine.jsonl"])
    assert recipe.name == "tiny" and recipe.prompts.path == "mine.jsonl"


def test_a_publish_is_one_commit_and_identical_content_none(hub, first):
    publish(first, ORG)
    commits = {
        kind: hub.repo(name, kind).branches["main"]
        for kind, name in (("dataset", ORG), ("model", f"{ORG}-router"))
    }
    for commit in commits.values():
        assert [c.title for c in commit.parents] == ["initial commit"]
    hub.count_again()
    assert publish(first, ORG) == "v1.0.0"
    assert publish(first, ORG, version="3.0.0") == "v1.0.0"
    assert not [r for r in hub.requests if "/commit/" in r[1] or "/tag/" in r[1] or r[0] == "PUT"]
    assert tags(hub) == {"dataset": ["v1.0.0"], "model": ["v1.0.0"]}


def test_plain_libraries_suffice(hub, first):
    publish(first, ORG)
    model = AutoModelForSequenceClassification.from_pretrained(f"{ORG}-router", revision="v1.0.0")
    assert set(model.config.id2label.values()) == {"adder", "multiplier", "guesser"}
    (found,) = pipeline("text-classification", f"{ORG}-router", top_k=None)(["3 plus 4?"])
    assert {f["label"] for f in found} == {"adder", "multiplier", "guesser"}
    files = hub.repo(f"{ORG}-router", "model").branches["main"].files
    assert set(files) >= {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]


def test_a_version_may_be_named_but_never_moved(hub, first, second):
    assert publish(first, ORG, version="2.0.0") == "v2.0.0"
    for version in ("2.0.0", "1.5.0"):
        with pytest.raises(InputError, match=r"--version.*v2\.0\.0"):
            publish(second, ORG, version=version)
    assert publish(second, ORG) == "v2.1.0"
    assert rows("v2.0.0") == local(first)
    for refuse in (
        lambda: hub_module.check(ORG, "1.1"),
        lambda: publish(second, ORG, version="1.1"),
    ):
        with pytest.raises(InputError, match=r"--version 1\.1"):
            refuse()


def test_fewer_files_leave_no_rows_behind(hub, first, second, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(first, more)
    data = more / "dataset/data"
    half = Dataset.from_list(local(first)[:12])
    (data / "persyn-train.parquet").unlink()
    for i in range(2):
        half.to_parquet(data / f"persyn-train-0000{i}-of-00002.parquet")
    half.to_parquet(data / "persyn-failed.parquet")
    publish(more, ORG)
    assert len(rows("main")) == 24 and len(rows("main", split="failed")) == 12
    publish(first, ORG)
    assert rows("main") == local(first) and list(load_dataset(ORG)) == ["train"]
    assert len(rows("v1.0.0")) == 24 and rows("v1.0.0") != local(first)


def test_what_others_wrote_into_a_card_stays(hub, first, second, tmp_path):
    publish(first, ORG)
    Dataset.from_list([{"x": 1}]).to_parquet(tmp_path / "a.parquet")
    parquet = (tmp_path / "a.parquet").read_bytes()
    card = hub.repo(ORG).branches["main"].files["README.md"].decode()
    theirs = yaml.safe_dump(
        [{"config_name": "mine", "data_files": "mine/*.parquet", "default": True}]
    )
    card = card.replace("configs:\n", f"configs:\n{theirs}").replace(
        "license: unknown", "license: mit\nannotations: me"
    )
    card = card.replace("- synthetic\n", "- synthetic\n- of-mine\n")
    hub.put(
        ORG,
        {
            "README.md": f"{card}\nBelow, by me.\n".replace(
                "---\n\n<!--", "---\n\nAbove, by me.\n\n<!--"
            ),
            "mine/a.parquet": parquet,
        },
    )
    publish(second, ORG)
    new = hub.repo(ORG).branches["main"].files["README.md"].decode()
    head = yaml.safe_load(new.split("---\n")[1])
    assert (head["license"], head["annotations"]) == ("mit", "me")
    assert set(head["tags"]) >= {"persyn", "synthetic", "of-mine"}
    assert (
        new.index("Above, by me.")
        < new.index("# tiny")
        < new.index("## Versions")
        < new.index("Below, by me.")
    )
    assert load_dataset(ORG, "mine", split="train").to_list() == [{"x": 1}]
    assert rows("main") == local(second)
    assert new.count("# tiny") == 1 and "v1.1.0" in new


def test_a_card_by_hand_comes_after_ours(hub, first):
    hub.put(ORG, {"README.md": "---\ntags: [a]\n---\n# My plan\n"})
    publish(first, ORG)
    card = hub.repo(ORG).branches["main"].files["README.md"].decode()
    assert card.index("# tiny") < card.index("# My plan") and rows("main") == local(first)
    hub.put("org/broken", {"README.md": "---\ntags: [a\n---\n"})
    with pytest.raises(InputError, match="README.md.*YAML"):
        publish(first, "org/broken")
    for theirs in ("data/persyn-train-1.parquet", "stats.json"):
        hub.put("org/other", {"data/persyn-train-1.parquet": None, theirs: b"{}"})
        with pytest.raises(InputError, match="org/"):
            publish(first, "org/other")
        assert hub.repo("org/other").branches["main"].files == {theirs: b"{}"}
