import pytest

from persyn_datasets import Teacher
from persyn_datasets.config.prompts import Prompts
from persyn_datasets.hub import licenses


def lines(*found):
    return [
        {"of": "teacher", "name": f"t{i}", "family": None, "license": name}
        for i, name in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("found", "strictest", "metadata"),
    [
        (["mit"], ["mit"], {"license": "mit"}),
        (["mit", "cc-by-nc-4.0", "gemma"], ["cc-by-nc-4.0"], {"license": "cc-by-nc-4.0"}),
        (
            ["mit", "gemma", "llama3.3", "gemma"],
            ["gemma", "llama3.3"],
            {"license": ["gemma", "llama3.3"]},
        ),
        (
            ["apache-2.0", "qwen-research"],
            ["qwen-research"],
            {"license": "other", "license_name": "qwen-research"},
        ),
        (["llama3", "cc-by-nc-4.0"], ["llama3"], {"license": "llama3"}),
        (["mit", None], ["mit"], {"license": "unknown"}),
        ([None], [], {"license": "unknown"}),
        (["mit", "my-own-terms"], ["mit"], {"license": "unknown"}),
    ],
)
def test_the_strictest_is_named_and_unknown_ones_are_flagged(found, strictest, metadata):
    made = licenses.worked_out(lines(*found))
    assert (made["strictest"], made["metadata"]) == (strictest, metadata)
    assert made["unknown"] == [
        f"t{i}" for i, name in enumerate(found) if name not in licenses.TERMS
    ]


def test_naming_duties():
    duties = licenses.worked_out(lines("mit", "llama3.1", "qwen-research", "gemma"))["duties"]
    assert len(duties) == 3
    assert any("“Built with Llama”" in d and d.startswith("`llama3.1`") for d in duties)
    assert any("“Built with Qwen”" in d and "no commercial use" in d for d in duties)
    assert any("Gemma Terms of Use" in d for d in duties)
    unknown = lines(None) + [{"of": "teacher", "name": "x", "family": "llama3", "license": None}]
    (duty,) = licenses.worked_out(unknown)["duties"]
    assert duty.startswith("x may be of the llama family") and "“Built with Llama”" in duty


@pytest.fixture
def cards_on_the_hub(hub):
    hub.put("org/prompts", {"README.md": "---\nlicense: [cc-by-sa-4.0]\nlanguage: [de, en]\n---\n"})
    hub.put(
        "org/model",
        {"README.md": "---\nlicense: other\nlicense_name: qwen-research\n---\n"},
        kind="model",
    )
    hub.put("org/base", {"README.md": "---\nlicense: apache-2.0\n---\n"}, kind="model")
    hub.put("org/answers", {"README.md": "---\nlicense: mit\n---\n"})
    return hub


def test_what_nobody_says_here_is_looked_up_on_the_hub(cards_on_the_hub, tmp_path):
    teachers = [
        Teacher("org/model"),
        Teacher("org/none", name="none"),
        Teacher("org/answers", name="recorded", engine="recorded"),
        Teacher("org/model", name="stated", license="gemma"),
        Teacher(str(tmp_path), name="local"),
    ]
    made = licenses.sources(Prompts("org/prompts"), teachers, "org/student", "org/base")
    found = {line["name"]: line["license"] for line in made["licenses"]}
    assert found == {
        "org/prompts": "cc-by-sa-4.0",
        "org/model": "qwen-research",
        "none": None,
        "recorded": "mit",
        "stated": "gemma",
        "local": None,
        "org/base": "apache-2.0",
    }
    assert (made["language"], made["local"]) == (["de", "en"], [str(tmp_path)])
    assert made["models"] == ["org/model", "org/none", str(tmp_path)]
    stated = licenses.sources(Prompts("org/prompts", license="mit", language="fr"), teachers)
    assert (stated["licenses"][0]["license"], stated["language"]) == ("mit", ["fr"])


def test_without_a_hub_they_are_unknown_and_it_is_asked_once(cards_on_the_hub):
    cards_on_the_hub.count_again(lambda n, method, path: "drop")
    made = licenses.sources(Prompts("org/prompts"), [Teacher("org/model"), Teacher("org/base")])
    assert [line["license"] for line in made["licenses"]] == [None] * 3
    assert len(cards_on_the_hub.requests) <= 2  # a client may try a closed connection once more
