"""Publishing over real HTTP, by the real clients, to the Hub of hub_server.py."""

import json
import shutil

import pytest
import yaml
from datasets import Dataset, load_dataset
from pool import built, make_recipe, save
from transformers import AutoModelForSequenceClassification, pipeline

from persyn_datasets import BuildError, InputError, PersynBuilder, Recipe, Router, publish
from persyn_datasets.cli import main
from persyn_datasets.hub import publish as hub_module

ORG = "org/tiny"


@pytest.fixture(scope="module")
def first(chat_model, models_folder):
    return built(models_folder / "hub-first", chat_model).output


@pytest.fixture(scope="module")
def second(chat_model, models_folder):
    """Another recipe of the same name: fewer calibration prompts, another α."""
    folder = models_folder / "hub-second"
    folder.mkdir()
    values = make_recipe(
        folder, chat_model, calibration={"size": 12, "seed": 3}, reward={"alpha": 0.3}
    )
    builder = PersynBuilder(Recipe.from_dict(values), folder / "out")
    builder.download_and_prepare()
    return builder.output


def rows(version, config="default", split="train"):
    return load_dataset(ORG, config, split=split, revision=version).to_list()


def local(folder, config="default", split="train"):
    return load_dataset(str(folder / "dataset"), config, split=split).to_list()


def shown(values, folder):
    """JSON values with the local places of a build by their last part."""
    text = json.dumps(values)
    for place in json.loads((folder / "dataset/stats.json").read_text())["local"]:
        text = text.replace(place, place.rpartition("/")[2])
    return json.loads(text)


def tags(hub):
    return {
        kind: sorted(hub.repo(name, kind).tags)
        for kind, name in (("dataset", ORG), ("model", f"{ORG}-router"))
    }


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
        with pytest.raises(InputError, match=r"v2\.0\.0 is published, and none is moved"):
            publish(second, ORG, version=version)
    assert publish(second, ORG) == "v2.1.0"
    assert rows("v2.0.0") == local(first)
    for refuse in (
        lambda: hub_module.check(ORG, "1.1"),
        lambda: publish(second, ORG, version="1.1"),
    ):
        with pytest.raises(InputError, match=r"--version 1\.1: expected three numbers"):
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
    with pytest.raises(InputError, match="its header is not YAML"):
        publish(first, "org/broken")
    for theirs in ("data/persyn-train-1.parquet", "stats.json"):
        hub.put("org/other", {"data/persyn-train-1.parquet": None, theirs: b"{}"})
        with pytest.raises(InputError, match="has files that persyn did not put there"):
            publish(first, "org/other")
        assert hub.repo("org/other").branches["main"].files == {theirs: b"{}"}


def state(hub):
    return {
        name: (repo.branches["main"].oid, sorted(repo.tags)) for name, repo in hub.repos.items()
    }


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        (lambda m: m.setenv("HF_TOKEN", "hf_reader"), "does not let you write there"),
        (
            lambda m: (
                m.delenv("HF_TOKEN"),
                m.setattr("huggingface_hub.hf_api.get_token", lambda: None),
            ),
            "hf auth login",
        ),
    ],
    ids=["read-only", "no token"],
)
def test_permission_is_checked_before_anything_is_written(hub, first, monkeypatch, refuse, words):
    publish(first, ORG)
    before = state(hub)
    refuse(monkeypatch)
    with pytest.raises(InputError, match=words):
        hub_module.check(ORG)
    assert state(hub) == before


def test_what_is_refused(hub, first, tmp_path):
    for repo_id, words in (
        ("name", "ORG/NAME"),
        ("a b/c", "no name"),
        ("nobody/x", "may not publish to nobody"),
    ):
        with pytest.raises(InputError, match=words):
            publish(first, repo_id)
    with pytest.raises(InputError, match="holds nothing finished"):
        publish(tmp_path, ORG)
    assert hub.repos == {}
    publish(first, ORG)
    with pytest.raises(InputError, match="is public"):
        publish(first, ORG, private=True)
    publish(first, "org/secret", private=True)
    assert hub.repo("org/secret").private and hub.repo("org/secret-router", "model").private


FAULTS = [500, "drop", "lose"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_any_call_leaves_no_half_version(hub, first, second, fault, monkeypatch):
    """The n-th request of a publish fails, for every n."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    publish(first, ORG)
    old = {name: repo.tags["v1.0.0"] for name, repo in hub.repos.items()}
    start = {name: repo.branches["main"] for name, repo in hub.repos.items()}
    failed, n = 0, 0
    while True:
        n += 1
        for name, repo in hub.repos.items():
            repo.branches["main"], repo.tags = start[name], {"v1.0.0": old[name]}
        hub.objects.clear()
        hub.count_again(lambda i, method, path, n=n: fault if i == n else None)
        try:
            assert publish(second, ORG) == "v1.1.0"
        except BuildError as error:
            failed += 1
            assert "the same command goes on" in str(error)
        else:
            if len(hub.requests) < n:
                break
        for name, repo in hub.repos.items():
            assert repo.tags["v1.0.0"] == old[name]
        if "v1.1.0" in hub.repo(ORG).tags:
            whole(hub, second)
        hub.count_again()
        assert publish(second, ORG) == "v1.1.0"
        whole(hub, second)
    assert failed > 10 and n > 20
    assert rows("v1.0.0") == local(first) and rows("v1.1.0") == local(second)


def whole(hub, folder):
    for kind, name, part in (("dataset", ORG, "dataset"), ("model", f"{ORG}-router", "router")):
        files = hub.repo(name, kind).tags["v1.1.0"].files
        for file in (folder / part).rglob("*"):
            if file.is_file() and file.name not in ("README.md", "dataset_info.json"):
                assert files[str(file.relative_to(folder / part))] == file.read_bytes()
        assert "| `v1.1.0` |" in files["README.md"].decode()
        assert files["README.md"].decode().count("| `v1.1.0` |") == 1


def test_an_interrupted_publish_then_another_content(hub, first, second):
    """The router of the first attempt has its tag: the second attempt takes the next number."""

    def stop(n, method, path):
        return 500 if f"datasets/{ORG}/tag/" in path else None

    hub.count_again(stop)
    with pytest.raises(BuildError):
        publish(first, ORG)
    hub.count_again()
    assert tags(hub) == {"dataset": [], "model": ["v1.0.0"]}
    with pytest.raises(InputError, match="has v1.0.0 with another content"):
        publish(second, ORG, version="1.0.0")
    assert publish(second, ORG) == "v1.1.0"
    assert tags(hub) == {"dataset": ["v1.1.0"], "model": ["v1.0.0", "v1.1.0"]}
    assert rows("v1.1.0") == local(second)


@pytest.mark.parametrize(
    "at",
    [
        f"{repo}/{what}"
        for what in ("commit", "tag")
        for repo in ("models/org/tiny-router", "datasets/org/tiny")
    ],
)
def test_two_publish_at_once(hub, first, second, at):
    """Just before one of the first one's writes, somebody else publishes whole."""
    publish(first, ORG, version="0.1.0")
    other = []

    def meanwhile(n, method, path):
        if at in path and not other:
            other.append(True)
            hub.count_again()
            hub.lock.release()
            try:
                other.append(publish(first_changed, ORG))
            finally:
                hub.lock.acquire()

    first_changed = first.parent / "changed"
    shutil.rmtree(first_changed, ignore_errors=True)
    shutil.copytree(first, first_changed)
    stats = json.loads((first_changed / "dataset/stats.json").read_text())
    (first_changed / "dataset/stats.json").write_text(json.dumps(stats | {"build": "another"}))
    hub.count_again(meanwhile)
    last = at == "datasets/org/tiny/tag"  # all the rest of ours is done, so they come after us
    if last:
        assert publish(second, ORG) == "v0.2.0" and rows("v0.2.0") == local(second)
    else:
        with pytest.raises(BuildError, match="somebody else published at the same time"):
            publish(second, ORG)
    version = "v0.3.0" if last else "v0.2.0"
    assert other == [True, version]
    theirs = hub.repo(ORG).tags[version]
    assert json.loads(theirs.files["stats.json"])["build"] == "another"
    again = publish(second, ORG)
    assert again == ("v0.4.0" if last else "v0.3.0") and rows(again) == local(second)
    assert hub.repo(ORG).tags[version] is theirs and rows("v0.1.0") == local(first)


def test_build_and_publish_at_once(hub, chat_model, tmp_path, capsys):
    recipe, output = save(tmp_path, make_recipe(tmp_path, chat_model)), str(tmp_path / "out")
    arguments = [
        "build",
        recipe,
        "--output",
        output,
        "--push-to-hub",
        ORG,
        "--private",
        "--version",
        "1.0.0",
    ]
    assert main([*arguments, "--dry-run"]) == 0 and hub.repos == {}
    for _ in range(2):
        assert main(arguments) == 0
        assert "Published: load_dataset('org/tiny', revision='v1.0.0')" in capsys.readouterr().out
    assert hub.repo(ORG).private and rows("v1.0.0") == local(tmp_path / "out")
    assert main(["push", output, ORG, "--version", "1.2.0"]) == 0  # the same content: nothing new
    assert tags(hub) == {"dataset": ["v1.0.0"], "model": ["v1.0.0"]}


def test_where_we_may_not_publish_nothing_is_built(hub, chat_model, tmp_path, capsys, monkeypatch):
    recipe, output = save(tmp_path, make_recipe(tmp_path, chat_model)), tmp_path / "out"
    for dry in ([], ["--dry-run"]):
        assert (
            main(["build", recipe, "--output", str(output), "--push-to-hub", "nobody/x", *dry]) == 1
        )
        assert "may not publish to nobody, but to me, org" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["build", recipe, "--output", str(output), "--push-to-hub", ORG]) == 1
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    assert not output.exists()


def test_a_failed_publish_says_so_last(hub, first, capsys):
    hub.count_again(lambda n, method, path: 500 if "/commit/" in path else None)
    assert main(["push", str(first), ORG]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .splitlines()[-1]
        .endswith("the same command goes on from here.")
    )
