import copy
import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from persyn_datasets import InputError, Recipe
from persyn_datasets.hub import cards
from persyn_datasets.report.figures import CAPTIONS
from persyn_datasets.report.verdict import (
    FEWEST_PROMPTS,
    WORTH_SEEING,
    prompts_needed,
    verdict,
)

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)*%?")


def test_a_file_that_is_written_anew_has_another_hash_at_the_same_size_and_date(tmp_path):
    """By its hash it is published, or taken for what is on the Hub already."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    first, stat = cards.sha256(file), file.stat()
    assert first == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cards.sha256(file) == hashlib.sha256(b"two").hexdigest()


@pytest.fixture
def stats(done):
    """The build's numbers as if half of it had been priced and something had failed."""
    stats = copy.deepcopy(done.stats)
    stats["account"][0] |= {
        "usd": 1.25,
        "prompt_tokens": 3210,
        "completion_tokens": 4321,
        "retries": 17,
        "failed": 13,
    }
    stats |= {
        "cost": {"usd": 1.25, "generate_then_select_usd": 6.75},
        "failed": 3,
        "errors": {"HTTP 500": 3},
    }
    stats["per_teacher"]["adder"]["calibration_failed"] = 19
    return stats


def leaves(values):
    if isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from leaves(value)
    else:
        yield values


def written(value):
    """The ways in which a card may write a number."""
    if isinstance(value, str):
        return set(NUMBER.findall(value))
    if value is None or isinstance(value, bool):
        return set()
    whole = {f"{value:,.0f}", f"{value:.0f}"} if value == int(value) else set()
    rounded = {f"{value:,.1f}", f"{value:.3f}", f"{value:+.3f}", f"{value:,.2f}", f"{value:,.4f}"}
    return whole | rounded | {str(value)}


@pytest.mark.parametrize("kind", ["dataset", "router"])
def test_every_number_is_one_of_the_stats(kind, done, stats):
    versions = [("v1.0.0", "the first version: 24 rows")]
    card = getattr(cards, f"{kind}_card")(done.recipe, stats, "org/tiny", "org/tiny", versions)
    static = "".join(f.read_text() for f in (ROOT / "cards").glob("*.md")) + " ".join(
        [*CAPTIONS.values(), *stats["errors"]]
    )
    known = (
        set(NUMBER.findall(static))
        | {"95%", "v1.0.0", "1.0.0"}
        | set(NUMBER.findall(versions[0][1]))
    )
    for value in [*leaves(stats), *leaves(done.recipe.to_dict())]:
        known |= written(value)
    account, routed = stats["account"], [t["routed"] for t in stats["per_teacher"].values()]
    for key in (
        "answers",
        "reused",
        "failed",
        "retries",
        "prompt_tokens",
        "completion_tokens",
        "usd",
        "reused_usd",
    ):
        known |= written(sum(line[key] for line in account))
    known |= {f"{n / stats['rows']:.0%}" for n in routed} | written(stats["rows"] - stats["failed"])
    # What a verdict takes, and how many prompts would have it.
    lead = stats["router"]["against"]["best single"]
    known |= {str(FEWEST_PROMPTS), str(WORTH_SEEING)}
    known |= written(max(FEWEST_PROMPTS, prompts_needed(lead, stats["router"]["prompts"])))
    known |= {f"{stats['generate_then_select'] / stats['generations']:.1f}"}
    found = set(NUMBER.findall(re.sub(r"\(https?://\S*\)|SHA|v1\.0\.0", "", card)))
    assert len(found) > 30 and found - known == set()


SHOWN = [
    ("per_teacher", "adder", "quality"),
    ("per_teacher", "adder", "learnability"),
    ("per_teacher", "guesser", "reward"),
    ("per_teacher", "guesser", "best"),
    ("per_teacher", "multiplier", "routed"),
    ("router", "hit@1", "router"),
    ("router", "hit@3", "random"),
    ("router", "reward", "oracle"),
    ("router", "regret", "best single"),
    ("router", "against", "best single", "low"),
    ("router", "against", "random", "high"),
    ("router", "prompts"),
    ("rows",),
    ("failed",),
    ("generations",),
    ("generate_then_select",),
    ("calibration",),
    ("teachers",),
    ("cost", "usd"),
    ("cost", "generate_then_select_usd"),
    ("errors", "HTTP 500"),
    ("per_teacher", "adder", "calibration_failed"),
    ("account", 0, "prompt_tokens"),
    ("account", 0, "usd"),
]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: ".".join(map(str, path)))
def test_the_card_follows_the_stats(path, done, stats):
    before = cards.dataset_card(done.recipe, stats, "org/tiny")
    place = stats
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = place[path[-1]] + 1234 if isinstance(place[path[-1]], int) else 0.987
    after = cards.dataset_card(done.recipe, stats, "org/tiny")
    new = [line for line in after.splitlines() if line not in before.splitlines()]
    assert any(number in line for line in new for number in written(place[path[-1]]))


def test_it_says_what_it_has_to(done, stats):
    card = cards.dataset_card(
        done.recipe, stats, "org/tiny", "org/tiny", [("v1.0.0", "a"), ("v1.1.0", "b")]
    )
    for words in (
        'load_dataset("org/tiny", split="train", revision="v1.1.0")',
        "trl sft --model_name_or_path",
        "r = (1 − α)·r_q + α·r_l with α = 0.4, each signal normalised by `prompt`",
        verdict(stats["router"]),
        "figures/allocation.png",
        "persyn build recipe.yaml",
        "2510.10925",
        "| `v1.0.0` | a |",
        "- 3 × HTTP 500",
        "https://huggingface.co/org/tiny-router",
        "$1.25 in all; generate-then-select would cost about $6.75",
    ):
        assert words in card, words
    router = cards.router_card(done.recipe, stats, "org/tiny-router", "org/tiny", [("v1.1.0", "b")])
    for words in (
        'top_k=None, truncation=True, revision="v1.1.0")',
        "persyn synthesize org/tiny-router",
        'Router.from_pretrained("org/tiny-router", revision="v1.1.0")',
    ):
        assert words in router, words
    for script in re.findall(r"```python\n(.*?)```", card + router, re.DOTALL):
        compile(script, "card", "exec")


def test_the_hubs_own_validation_takes_the_metadata(hub, done, stats):
    stats |= {
        "language": ["en"],
        "local": [],
        "student": "org/student",
        "models": ["org/a", "org/b"],
    }
    for line, name in zip(
        stats["licenses"], ["mit", "gemma", "apache-2.0", "llama3.1", "mit"], strict=True
    ):
        line["license"] = name
    data = {"data/persyn-train.parquet": "0", "pairs/train.parquet": "1"}
    dataset = DatasetCard(cards.merge("", cards.dataset_metadata(stats, data), "# x"))
    router = ModelCard(cards.merge("", cards.router_metadata(stats, "org/tiny"), "# x"))
    dataset.validate()
    router.validate()
    facts, of_router = dataset.data.to_dict(), router.data.to_dict()
    assert facts["tags"] == ["persyn", "synthetic", "student:org/student"] and facts[
        "language"
    ] == ["en"]
    assert (facts["license"], facts["size_categories"]) == (["gemma", "llama3.1"], ["n<1K"])
    assert facts["base_model"] == ["org/a", "org/b"] and facts["source_datasets"] == [
        stats["licenses"][0]["name"]
    ]
    assert [c["config_name"] for c in facts["configs"]] == ["default", "pairs"]
    assert (of_router["pipeline_tag"], of_router["library_name"]) == (
        "text-classification",
        "transformers",
    )
    assert (of_router["datasets"], of_router["license"]) == (["org/tiny"], "mit")
    stats["licenses"][0]["license"] = "sold-by-weight"
    unknown = DatasetCard(cards.merge("", cards.dataset_metadata(stats), "# x"))
    unknown.validate()
    assert unknown.data.license == "unknown"


@pytest.mark.parametrize(("rows", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**9, "n>100M")])
def test_sizes(rows, size, stats):
    assert cards.dataset_metadata(stats | {"rows": rows + 3})["size_categories"] == [size]


def test_a_machines_paths_are_not_in_a_published_card(done):
    stats = done.stats
    assert "/" in stats["student"] and stats["student"] in stats["local"]
    for make in (cards.dataset_card, cards.router_card):
        assert str(done.output.parent) not in make(done.recipe, stats, "org/tiny", "org/tiny")
    metadata = yaml.safe_dump([cards.dataset_metadata(stats), cards.router_metadata(stats)])
    assert str(done.output.parent) not in metadata and "student:chat" in metadata


def test_the_local_cards_are_of_the_same_kind(done):
    text = (done.folder / "README.md").read_text()
    metadata, above, below = cards.split(text)
    assert (above, below) == ("", "") and metadata["configs"][0]["config_name"] == "default"
    assert all((done.folder / figure).exists() for figure in re.findall(r"\((figures/\S+)\)", text))
    again = cards.merge(text, metadata, text.split(cards.BEGIN)[1].split(cards.END)[0], metadata)
    assert again == text  # a merge of the same changes nothing


def test_three_ways(done):
    """What we wrote and nobody touched follows us; what others changed stays; what we drop goes."""
    old = {
        "license": "mit",
        "language": ["en"],
        "tags": ["persyn", "a"],
        "size_categories": ["n<1K"],
    }
    new = {"license": "gemma", "tags": ["persyn", "b"], "size_categories": ["1K<n<10K"]}
    card = cards.merge("", old, "one")
    made, above, below = cards.split(cards.merge(card, new, "two", old))
    assert made == {"license": "gemma", "tags": ["persyn", "b"], "size_categories": ["1K<n<10K"]}
    mine = (
        card.replace("license: mit", "license: cc0-1.0\nmore: 1").replace("- a\n", "- a\n- mine\n")
        + "\nBelow."
    )
    made, above, below = cards.split(cards.merge(mine.replace("\n", "\r\n"), new, "two", old))
    assert made == {
        "license": "cc0-1.0",
        "more": 1,
        "tags": ["persyn", "b", "mine"],
        "size_categories": ["1K<n<10K"],
    }
    assert (above, below) == ("", "Below.")
    with pytest.raises(InputError, match="is missing"):
        cards.merge(card.replace(cards.END, ""), new, "two")


def test_numbers_can_be_read_back(done):
    assert json.loads((done.folder / "stats.json").read_text()) == done.stats
    assert Recipe.load(str(done.folder / "recipe.yaml")) == done.recipe
