"""A router on the Hub, and new prompts for it."""

import json

from pool import TEACHERS, answer, make_recipe, problems

from persyn_datasets import PersynBuilder, Recipe
from persyn_datasets.hub.publish import publish

ORG, ROUTER = "org/tiny", "org/tiny-router"
NOWHERE = "http://127.0.0.1:9/v1"  # nothing listens there

NEW = [f"{a} plus {b}?" for a, b in [(50, 3), (51, 4), (52, 5)]] + [
    f"{a} times {b}?" for a, b in [(50, 3), (51, 4)]
]

ANSWERS = "".join(
    json.dumps({"prompt": p, "teacher": t, "response": answer(t, p)}) + "\n"
    for p in [*NEW, *(p for p, _ in problems())]
    for t in TEACHERS
)

PROMPTS = "".join(json.dumps({"prompt": p}) + "\n" for p in NEW)


def publish_answers(hub, chat_model, models_folder):
    """A build whose recorded answers are on the Hub, published there; the prompts to come, too."""
    hub.put("org/answers", {"train.jsonl": ANSWERS, "README.md": "---\nlicense: mit\n---\n"})
    hub.put(
        "org/new",
        {"train.jsonl": PROMPTS, "README.md": "---\nlicense: apache-2.0\nlanguage: en\n---\n"},
    )
    folder = models_folder / "reuse"
    if not folder.exists():
        folder.mkdir()
        values = make_recipe(folder, chat_model)
        values["teachers"] = [t | {"model": "org/answers"} for t in values["teachers"]]
        PersynBuilder(Recipe.from_dict(values), folder / "out").download_and_prepare()
    assert publish(folder / "out", ORG) == "v1.0.0"
    return folder / "out"


def synthesize(output, *teachers):
    """The command that answers the new prompts; by these teachers only, if they are named."""
    only = ["--teachers", *teachers] if teachers else []
    return ["synthesize", ROUTER, "org/new", "--output", str(output), *only]


def right(rows):
    return [(r["prompt"][0]["content"], r["completion"][0]["content"]) for r in rows] == [
        (p, answer(t, p)) for p, t in zip(NEW, rows["teacher"], strict=True)
    ]


def foreign(hub, folder, **changes):
    """The published router with another second teacher."""
    config = json.loads((folder / "router/config.json").read_text())
    config["persyn"]["teachers"][1] |= changes
    hub.put(ROUTER, {"config.json": json.dumps(config)}, kind="model")
