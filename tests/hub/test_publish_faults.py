import json
import shutil

import pytest
from hub_builds import ORG, built_second, local, rows, tags
from pool import make_recipe, save

from persyn_datasets import BuildError, InputError, publish
from persyn_datasets.cli import main
from persyn_datasets.hub import publish as hub_module


@pytest.fixture(scope="module")
def first(done):
    return done.output


@pytest.fixture(scope="module")
def second(chat_model, models_folder):
    return built_second(models_folder / "hub-second", chat_model)


def state(hub):
    return {
        name: (repo.branches["main"].oid, sorted(repo.tags)) for name, repo in hub.repos.items()
    }


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        (lambda m: m.setenv("HF_TOKEN", "hf_reader"), "token"),
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
        ("a b/c", "'a b/c'"),
        ("nobody/x", "nobody"),
    ):
        with pytest.raises(InputError, match=words):
            publish(first, repo_id)
    with pytest.raises(InputError, match=r"stats\.json"):
        publish(tmp_path, ORG)
    assert hub.repos == {}
    publish(first, ORG)
    with pytest.raises(InputError, match="--private"):
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
    hub.count_again()  # reading them has no fault
    assert rows("v1.0.0") == local(first) and rows("v1.1.0") == local(second)


WITHOUT_PATHS = ("recipe.yaml", "stats.json", "config.json")  # local places by their last part


def whole(hub, folder):
    for kind, name, part in (("dataset", ORG, "dataset"), ("model", f"{ORG}-router", "router")):
        files = hub.repo(name, kind).tags["v1.1.0"].files
        for file in (folder / part).rglob("*"):
            if not file.is_file() or file.name in ("README.md", "dataset_info.json"):
                continue
            published = files[str(file.relative_to(folder / part))]
            if file.name in WITHOUT_PATHS:
                assert str(folder.parent).encode() not in published
            else:
                assert published == file.read_bytes()
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
    with pytest.raises(InputError, match=r"--version.*v1\.0\.0"):
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
        with pytest.raises(BuildError, match=ORG):
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
    said = capsys.readouterr().err
    assert ORG in said and "same command" in said.strip().splitlines()[-1]
