"""What the tests of publishing publish, and what is then on the Hub."""

from functools import lru_cache

from datasets import load_dataset
from pool import make_recipe

from persyn_datasets import PersynBuilder, Recipe

ORG = "org/tiny"


@lru_cache
def built_second(folder, chat_model):
    """Another recipe of the same name: fewer calibration prompts, another α."""
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


def tags(hub):
    return {
        kind: sorted(hub.repo(name, kind).tags)
        for kind, name in (("dataset", ORG), ("model", f"{ORG}-router"))
    }
