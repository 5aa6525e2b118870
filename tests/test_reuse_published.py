import json

from datasets import load_dataset
from reusing import NEW, ORG, ROUTER, right, synthesize

from persyn_datasets.cli import main
from persyn_datasets.hub.publish import publish


def test_the_answers_become_a_dataset_of_their_own_or_are_appended(hub, published, tmp_path):
    output = tmp_path / "mine"
    assert main([*synthesize(output), "--push-to-hub", "org/mine"]) == 0
    assert right(load_dataset("org/mine", split="train", revision="v1.0.0"))
    card = hub.repo("org/mine").branches["main"].files["README.md"].decode()
    assert (
        "license:\n- apache-2.0\n- mit\n" in card
        and "`apache-2.0`" in card
        and "language:\n- en" in card
        and ROUTER in card
    )
    assert ("model", "org/mine-router") not in hub.repos

    before = load_dataset(ORG, split="train").to_list()
    assert main(["push", str(output), ORG]) == 1  # would replace the build
    for _ in range(2):  # the second time it is there already
        assert main(["push", str(output), ORG, "--append"]) == 0
        assert sorted(hub.repo(ORG).tags) == ["v1.0.0", "v1.1.0"]
    after = load_dataset(ORG, split="train", revision="v1.1.0").to_list()
    assert load_dataset(ORG, split="train", revision="v1.0.0").to_list() == before
    assert [r["prompt"][0]["content"] for r in after if r not in before] == NEW and len(
        after
    ) == len(before) + len(NEW)
    assert {r["answer"] for r in after if r not in before} == {None}
    card = hub.repo(ORG).branches["main"].files["README.md"].decode()
    assert f"| `v1.1.0` | 5 rows added, answered by {ROUTER}@" in card and "## Added since" in card
    assert len(load_dataset(ORG, "calibration")["train"]) == 12
    assert (
        publish(published, ORG) == "v1.2.0" and load_dataset(ORG, split="train").to_list() == before
    )


def test_columns_that_the_published_rows_have_not_are_refused(hub, published, tmp_path, capsys):
    hub.put(
        "org/new",
        {"train.jsonl": "".join(json.dumps({"prompt": p, "mood": "good"}) + "\n" for p in NEW)},
    )
    assert main([*synthesize(tmp_path / "o"), "--push-to-hub", ORG, "--append"]) == 1
    assert "column 'mood'" in capsys.readouterr().err and sorted(hub.repo(ORG).tags) == ["v1.0.0"]
    assert main(["push", str(tmp_path / "o"), "org/none", "--append"]) == 1
    assert (
        "nothing to add to" in capsys.readouterr().err and ("dataset", "org/none") not in hub.repos
    )
