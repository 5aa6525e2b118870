"""The cards: `cards/*.md` filled from the numbers of a build, merged into what is already
written.

What others wrote survives, in the text and entry by entry in the header. huggingface_hub's card
classes hold one card; merging two is the work, and it is done here on plain values.
"""

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias, cast

import yaml

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.data.build import Answered, Build
from persyn_datasets.hub.licenses import worked_out
from persyn_datasets.hub.versions import rows
from persyn_datasets.report import text as report
from persyn_datasets.report.figures import CAPTIONS
from persyn_datasets.report.tables import account_table, table
from persyn_datasets.report.text import to_yaml as to_yaml
from persyn_datasets.store.identity import content_hash
from persyn_datasets.store.journal import digest

BEGIN = (
    "<!-- persyn writes from here to its end mark anew. What you write above or below stays. -->"
)
END = "<!-- end of what persyn writes -->"
HEADER = "<!-- persyn's entries of the header: {} -->"
_NOTE = re.compile("(.*?)".join(re.escape(part) for part in HEADER.split("{}")))
# config → (folder and beginning of its files, its splits)
CONFIGS = {
    "default": ("data/persyn-", ("train", "failed")),
    "calibration": ("calibration/", ("train", "test")),
    "pairs": ("pairs/", ("train",)),
    "routing": ("routing/", ("train",)),
    "second_opinions": ("second_opinions/", ("train",)),
    "messages": ("messages/", ("train",)),
    "preferences": ("preferences/", ("train",)),
}
PATTERNS = [f"{prefix}{split}*.parquet" for prefix, splits in CONFIGS.values() for split in splits]
# What follows a split in a name that we gave: the shard, then the content of rows that were added.
_OURS = re.compile(r"(-\d{5}-of-\d{5})?(-[0-9a-f]{12})*\.parquet")
Versions = Sequence[tuple[str, str]]
Record: TypeAlias = Build | Answered


def write(output: Path, recipe: Recipe, stats: Build) -> None:
    """Write the cards of a build that is not published; what others wrote into them stays."""
    dataset, router = output / "dataset", output / "router"
    written = [
        (
            dataset,
            dataset_metadata(stats, hashes(files(dataset, PATTERNS))),
            dataset_card(recipe, stats, str(dataset)),
        )
    ]
    if stats["router"]:
        written.append((router, router_metadata(stats), router_card(recipe, stats, str(router))))
    for folder, metadata, text in written:
        card = folder / "README.md"
        card.write_text(merge(card.read_text() if card.exists() else "", metadata, text))


def dataset_card(
    recipe: Recipe | None,
    stats: Record,
    where: str,
    repo: str | None = None,
    versions: Versions = (),
) -> str:
    """The text of a dataset's card; without a recipe it is one of `persyn synthesize`.

    Args:
        where: what `load_dataset` takes.
        repo: its Hub id, if it is published.
        versions: (tag, what changed), oldest first, with the one that this card is part of.
    """
    if recipe:
        return _fill("dataset.md", recipe, cast(Build, stats), where, repo, versions)
    sources = stats["licenses"]
    shares = [
        (name, t["routed"], t["routed"] / stats["rows"]) for name, t in stats["per_teacher"].items()
    ]
    lines = [[name, f"{n:,}", f"{share:.0%}"] for name, n, share in shares]
    return _render(
        "answers.md",
        stats,
        where,
        repo,
        versions,
        sources,
        title=stats["name"],
        student_id=None,
        account=account_table(stats["account"]),
        teachers_table=table(["teacher", "routed to it", "share"], lines),
    )


def router_card(
    recipe: Recipe,
    stats: Build,
    where: str,
    repo: str | None = None,
    versions: Versions = (),
) -> str:
    """The text of a router's card. `repo` is the Hub id of the dataset that it made."""
    return _fill("router.md", recipe, stats, where, repo, versions)


def _fill(
    template: str,
    recipe: Recipe,
    stats: Build,
    where: str,
    repo: str | None,
    versions: Versions,
) -> str:
    names = _names(stats)
    student = recipe.student.model
    of = ("router",) if template == "router.md" else ("prompts", "teacher")
    return _render(
        template,
        stats,
        where,
        repo,
        versions,
        [line for line in stats["licenses"] if line["of"] in of],
        student=names.get(student) or f"[{student}](https://huggingface.co/{student})",
        student_id=None if student in names else student,
        backbone=names.get(recipe.router.backbone, recipe.router.backbone),
        **report.facts(recipe, stats),
        captions=CAPTIONS,
    )


def _render(
    template: str,
    stats: Record,
    where: str,
    repo: str | None,
    versions: Versions,
    sources: Any,
    **values: Any,
) -> str:
    return (
        report.templates()
        .get_template(template)
        .render(
            stats=stats,
            where=where,
            repo=repo,
            versions=versions,
            sources=sources,
            names=_names(stats),
            license=worked_out(sources),
            pinned=f', revision="{versions[-1][0]}"' if versions else "",
            **values,
        )
    )


def _names(stats: Record) -> dict[str, str]:
    """Local paths as a card shows them: their last part only."""
    return {path: Path(path).name for path in stats["local"]}


def dataset_metadata(stats: Record, data: dict[str, str] | None = None) -> dict[str, Any]:
    """The Hub's metadata of a dataset's card; with `configs` if its `data` files are given, as path
    → SHA-256.
    """
    bounds = {
        1e3: "n<1K",
        1e4: "1K<n<10K",
        1e5: "10K<n<100K",
        1e6: "100K<n<1M",
        1e7: "1M<n<10M",
        1e8: "10M<n<100M",
    }
    prompts = next(line["name"] for line in stats["licenses"] if line["of"] == "prompts")
    return {
        "pretty_name": stats["name"],
        **({"language": stats["language"]} if stats["language"] else {}),
        **worked_out(stats["licenses"])["metadata"],
        "task_categories": ["text-generation"],
        "size_categories": [
            next((name for bound, name in bounds.items() if rows(stats) < bound), "n>100M")
        ],
        "tags": ["persyn", "synthetic", *_student(stats)],
        **({} if prompts in stats["local"] else {"source_datasets": [prompts]}),
        **_on_hub("base_model", stats["models"], stats),
        **({"configs": configs(data)} if data else {}),
    }


def router_metadata(stats: Record, repo: str | None = None) -> dict[str, Any]:
    """The Hub's metadata of a router's card; `repo` is the Hub id of the dataset that it made."""
    return {
        **({"language": stats["language"]} if stats["language"] else {}),
        **worked_out(stats["licenses"], of=("router",))["metadata"],
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["persyn", "router", *_student(stats)],
        **_on_hub(
            "base_model",
            [line["name"] for line in stats["licenses"] if line["of"] == "router"],
            stats,
        ),
        **({"datasets": [repo]} if repo else {}),
    }


def _student(stats: Record) -> list[str]:
    student = cast(str | None, stats.get("student"))
    return [f"student:{_names(stats).get(student, student)}"] if student else []


def _on_hub(key: str, models: list[str], stats: Record) -> dict[str, list[str]]:
    on_hub = [model for model in dict.fromkeys(models) if model not in stats["local"]]
    return {key: on_hub} if on_hub else {}


def files(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """path in the folder → file."""
    found = sorted(
        {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    )
    return {str(file.relative_to(folder)): file for file in found}


def is_ours(path: str) -> bool:
    """Is this data file named as we name ours?"""
    beginnings = [prefix + split for prefix, splits in CONFIGS.values() for split in splits]
    return any(
        path.startswith(begin) and _OURS.fullmatch(path.removeprefix(begin)) for begin in beginnings
    )


def hashes(found: dict[str, Path]) -> dict[str, str]:
    """path → SHA-256 of the data files among these."""
    data = {path: file for path, file in found.items() if path.endswith(".parquet")}
    return {path: sha256(file) for path, file in data.items()}


def sha256(file: Path) -> str:
    found = content_hash(file)
    assert found, f"{file} is no file"
    return found


def configs(data: dict[str, str]) -> list[dict[str, Any]]:
    """The `configs:` of data files, given as path → SHA-256.

    `load_dataset` (5.2) caches a local folder by its last name and these entries alone: without the
    content among them it would give the rows of any other build that it has loaded before.
    """
    entries = []
    for name, (prefix, splits) in CONFIGS.items():
        patterns = {split: f"{prefix}{split}*.parquet" for split in splits}
        data_files = [
            {"split": k, "path": p} for k, p in patterns.items() if any(fnmatch(f, p) for f in data)
        ]
        if data_files:
            entry = {
                "config_name": name,
                "data_files": data_files,
                "description": f"content {digest(data)}",
            }
            entries.append(entry | ({"default": True} if name == "default" else {}))
    return entries


def merge(
    existing: str, metadata: dict[str, Any], text: str, before: dict[str, Any] | None = None
) -> str:
    """A card of ours, with what others wrote into the existing one.

    Their text outside our marks stays, and so do their entries of the metadata: those that we do
    not write, and those that differ from what we wrote the last time, which the card itself says in
    a comment. Of `tags`, `configs` and `dataset_info` each entry counts alone; our configs are
    always ours, and what an earlier push by other tools says of their columns goes.

    Args:
        before: what we wrote the last time, for a card without that comment (of version 0.1.0).
            Default: every entry that we write.

    Raises:
        InputError: the existing card cannot be read.
    """
    theirs, above, below = split(existing)
    if (noted := _noted(existing)) is not None:
        before = noted
    elif before is None:
        before = {k: v for k, v in theirs.items() if k in metadata} if BEGIN in existing else {}
    written = {k for k in before if theirs.get(k) == before[k]} | {"size_categories"}
    merged = {k: v for k, v in theirs.items() if k not in written}
    merged = metadata | merged
    tags = [tag for tag in theirs.get("tags", []) if tag not in before.get("tags", [])]
    merged["tags"] = list(dict.fromkeys([*metadata["tags"], *tags]))
    if "configs" in metadata:
        merged |= _configs_beside(theirs, metadata["configs"])
        if not merged["dataset_info"]:
            del merged["dataset_info"]
    ours = f"{BEGIN}\n{_note(metadata)}\n\n{_NOTE.sub('', text).strip()}\n\n{END}"
    body = "\n\n".join(part for part in (above, ours, below) if part)
    return f"---\n{to_yaml(merged)}---\n\n{body}\n"


def _configs_beside(theirs: dict[str, Any], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """`configs` and `dataset_info` with the entries of others' configs beside ours."""
    own = {c["config_name"] for c in ours} | set(CONFIGS)
    others = [{k: v for k, v in c.items() if k != "default"} for c in theirs.get("configs", [])]
    info = theirs.get("dataset_info") or []
    infos = [i for i in (info if isinstance(info, list) else [info]) if isinstance(i, dict)]
    return {
        "configs": ours + [c for c in others if c.get("config_name") not in own],
        "dataset_info": [i for i in infos if i.get("config_name", "default") not in own],
    }


def _note(metadata: dict[str, Any]) -> str:
    entries = {k: v for k, v in metadata.items() if k != "configs"}
    return HEADER.format(json.dumps(entries, ensure_ascii=False).replace(">", "\\u003e"))


def _noted(card: str) -> dict[str, Any] | None:
    """What a card says that we wrote into its header; None: it does not say."""
    found = _NOTE.search(card.partition(BEGIN)[2])
    return json.loads(found[1]) if found else None


def split(card: str) -> tuple[dict[str, Any], str, str]:
    """A card's metadata, and what others wrote above and below our part."""
    card = card.replace("\r\n", "\n")
    head, text = "", card
    if card.startswith("---\n"):
        head, _, text = card[4:].partition("\n---\n")
    try:
        metadata = yaml.safe_load(head) or {}
    except yaml.YAMLError as error:
        raise InputError(f"README.md: its header is not YAML, fix it: {error}") from error
    if not isinstance(metadata, dict):
        raise InputError(
            f"README.md: its header is {type(metadata).__name__}; expected keys and values. Fix it."
        )
    above, begin, rest = text.partition(BEGIN)
    if begin and END not in rest:
        raise InputError(
            f"README.md: the line {END!r} is missing. Put it back after the part that persyn "
            "writes."
        )
    below = rest.partition(END)[2] if begin else ""
    return metadata, *((above.strip(), below.strip()) if begin else ("", text.strip()))
