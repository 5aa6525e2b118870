"""Publish a build: a dataset and its router on the Hub, one commit and one tag for each version.

The tag on the dataset makes the version, and is written last, after both commits and the router's
tag. Whatever goes wrong on the way, every published version is complete, and the same command
resumes.

The differences are worked out before anything is written, since they decide whether there is a new
version. Each commit holds only them, on top of the commit that they were worked out from.
"""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.data.alignment import align
from persyn_datasets.data.build import STATS, Added, Answered, Build
from persyn_datasets.hub import cards, public
from persyn_datasets.hub.repos import Repo, matching, plainly, same
from persyn_datasets.hub.versions import in_order, numbers, what_changed
from persyn_datasets.store.files import ROUTER_FILES, digest_of, router_digest
from persyn_datasets.store.journal import digest

DATASET_FILES = [*cards.PATTERNS, "figures/*.png", "recipe.yaml", STATS]


@dataclass
class Upload:
    """What to publish: files by their path in the repository, the cards' numbers, and the existing
    cards.
    """

    dataset: dict[str, Path]
    router: dict[str, Path]
    recipe: Recipe | None
    stats: cards.Record
    cards: dict[str, str]
    appended: bool = False

    @classmethod
    def load(cls, output: Path, scratch: Path) -> "Upload":
        """Read the output folder of `persyn build` or `persyn synthesize`. Files that name local
        paths are written anew without them, in `scratch`.

        Raises:
            InputError: it holds no finished build or synthesis.
        """
        folder = output / "dataset" if (output / "dataset").is_dir() else output
        dataset, router = (
            cards.files(folder, DATASET_FILES),
            cards.files(output / "router", ROUTER_FILES),
        )
        if STATS not in dataset:
            raise InputError(
                f"{output} holds no finished build or synthesis (no stats.json); run persyn build "
                "or persyn synthesize first."
            )
        stats = json.loads(dataset[STATS].read_text())
        local, recipe = stats["local"], None
        if "recipe.yaml" in dataset:
            _check_router(output / "router", router, stats)
            stated = Recipe.load(str(dataset["recipe.yaml"])).to_dict()
            recipe = Recipe.from_dict(public.values(stated, local))
            dataset["recipe.yaml"] = scratch / "recipe.yaml"
            dataset["recipe.yaml"].write_text(cards.to_yaml(recipe.to_dict()))
        if router:
            router["config.json"] = public.write(
                router["config.json"], local, scratch / "router" / "config.json"
            )
            stats["router_files"] = digest_of(router.values())
        stats = public.values(stats, local)
        dataset[STATS] = scratch / STATS
        dataset[STATS].write_text(json.dumps(stats, indent=2))
        written = {"dataset": folder / "README.md", "model": output / "router" / "README.md"}
        texts = {kind: card.read_text() if card.exists() else "" for kind, card in written.items()}
        return cls(dataset, router, recipe, stats, texts)


def _check_router(folder: Path, files: dict[str, Path], stats: Build) -> None:
    """Raises `InputError` if the router is not the one whose numbers these are."""
    if "router_files" in stats:
        same_router = stats["router_files"] == router_digest(folder)
    elif not files:
        same_router = not stats["router"]
    else:  # a build of version 0.1.0
        facts = json.loads(files["config.json"].read_text()).get("persyn", {})
        same_router = bool(stats.get("router")) and facts.get("metrics") == stats["router"]
    if not same_router:
        raise InputError(
            f"{folder} is not the router that the build made: it was changed or removed later, "
            "e.g. by add_teacher, so the card's numbers do not describe it. Run the build again, "
            "and keep the other router in a separate folder."
        )


def check(
    repo_id: str,
    version: str | None = None,
    private: bool = False,
    students: Iterable[str] | None = None,
) -> None:
    """Can we publish there: a dataset and its router, or the `students` of these strategies? Writes
    nothing.

    Raises:
        InputError: no token, no permission, a name or version that cannot be, a public repository
            for `private`.
    """
    _check_words(repo_id, version)
    if not get_token():
        raise InputError("No Hub token found: run `hf auth login`, or set HF_TOKEN.")
    api = HfApi()
    with plainly(repo_id):
        build = [(repo_id, "dataset"), (f"{repo_id}-router", "model")]
        for name, kind in (
            build if students is None else [(f"{repo_id}-{name}", "model") for name in students]
        ):
            try:
                info = api.repo_info(name, repo_type=kind)
                api.auth_check(name, repo_type=kind, write=True)
            except RepositoryNotFoundError:
                _check_namespace(api.whoami(), repo_id.partition("/")[0])
                continue
            if private and not info.private:
                raise InputError(
                    f"{name} exists and is public; make it private on the Hub first, or drop "
                    "--private."
                )
            if version and kind == "dataset":
                _check_version(
                    version, [tag.name for tag in api.list_repo_refs(name, repo_type=kind).tags]
                )


def _check_words(repo_id: str, version: str | None) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{repo_id!r} is not a valid repository name on the Hub: {error}"
        ) from error
    if repo_id.count("/") != 1:
        raise InputError(
            f"{repo_id!r}: expected ORG/NAME, the organisation or user and the dataset's name."
        )
    if version and not numbers(version):
        raise InputError(f"--version {version}: expected three numbers, e.g. 1.1.0.")


def _check_namespace(who: dict[str, Any], namespace: str) -> None:
    ours = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if namespace not in ours:
        raise InputError(
            f"You are {who['name']} on the Hub and may not publish to {namespace}, but to "
            f"{', '.join(ours)}."
        )


def _check_version(version: str, tags: Iterable[str]) -> None:
    if (latest := in_order(tags)) and (numbers(version) or ()) <= (numbers(latest[-1]) or ()):
        raise InputError(
            f"--version {version}: {latest[-1]} is already published, and published versions never "
            "change; choose a later number."
        )


def publish(
    output: str | Path,
    repo_id: str,
    *,
    version: str | None = None,
    private: bool = False,
    append: bool = False,
) -> str:
    """Publish what `persyn build` or `persyn synthesize` wrote, as a new version of its Hub dataset
    (and router).

    Args:
        output: the folder.
        repo_id: of the dataset, ORG/NAME; the router's is ORG/NAME-router.
        version: three numbers, e.g. 1.1.0. Default: the next minor one.
        private: for repositories that do not exist yet.
        append: add the rows of `persyn synthesize` to those that are published, instead of
            replacing them.

    Returns:
        The version's tag. If this very content is the latest version already, nothing is written.

    Raises:
        InputError: nothing to publish there, or see `check`.
        BuildError: the Hub failed, or somebody else published at the same time. Every version there
            is is whole; the same call goes on.
    """
    with tempfile.TemporaryDirectory() as scratch:
        build = Upload.load(Path(output), Path(scratch))
        _check_words(repo_id, version)
        check(repo_id, None, private)  # the version may be there already, with this very content
        with plainly(repo_id):
            return _publish(build, repo_id, version, private, append, Path(scratch))


def _publish(
    build: Upload, repo_id: str, version: str | None, private: bool, append: bool, scratch: Path
) -> str:
    api, names = HfApi(), {"dataset": repo_id}
    if build.router:
        names["model"] = f"{repo_id}-router"
    if append and not api.repo_exists(repo_id, repo_type="dataset"):
        raise InputError(f"There is no dataset {repo_id}, so --append has nothing to add to.")
    for kind, name in names.items():
        api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
    # The router comes first, everywhere: the dataset's tag makes the version.
    repos = [Repo.look(api, names[kind], kind) for kind in sorted(names, reverse=True)]
    router, dataset = (repos[0] if build.router else None), repos[-1]
    if append:
        build = _appended(build, dataset, scratch)
    elif build.recipe is None and "recipe.yaml" in dataset.files:
        raise InputError(
            f"{repo_id} holds a build; add your rows to it with --append, or give another name."
        )
    published = dataset.stats(dataset.head) if cards.BEGIN in dataset.card else None
    latest = dataset.versions[-1][0] if dataset.versions else None
    if latest and not any(
        latest not in dict(repo.versions)
        or _changes(repo, build, repo.versions, repo_id, published)
        for repo in repos
    ):
        return latest
    tag = _tag(version, latest, router, build)
    what = _what_changed(dataset, latest, build)
    for repo in repos:
        versions = [v for v in repo.versions if v[0] != tag] + [(tag, what)]
        if operations := _changes(repo, build, versions, repo_id, published):
            commit = api.create_commit(
                repo.id,
                operations,
                repo_type=repo.kind,
                parent_commit=repo.head,
                commit_message=tag,
                commit_description=what,
            )
            repo.head = commit.oid
    for repo in repos:
        if tag not in dict(repo.versions):
            api.create_tag(repo.id, repo_type=repo.kind, tag=tag, revision=repo.head)
    return tag


def _what_changed(dataset: Repo, latest: str | None, build: Upload) -> str:
    """What changed since the latest version, as text."""
    old = dataset.stats(latest) if latest else None
    local = old["local"] if old else []
    before = public.values(dataset.recipe(latest), local) if latest else None
    now = json.loads(json.dumps(build.recipe.to_dict())) if build.recipe else None
    return public.text(what_changed(before, now, old, build.stats), local)


def _tag(version: str | None, latest: str | None, router: Repo | None, build: Upload) -> str:
    """The new version. A tag that only the router has is of an interrupted publish: ours, if the
    router is the same.
    """
    if version:
        _check_version(version, [latest] if latest else [])
    before = numbers(latest) if latest else None
    major, minor, patch = (version and numbers(version)) or (
        (before[0], before[1] + 1, 0) if before else (1, 0, 0)
    )
    while router and (tag := f"v{major}.{minor}.{patch}") in dict(router.versions):
        there = {
            path: file for path, file in router.at(tag).items() if matching([path], ROUTER_FILES)
        }
        if set(there) == set(build.router) and all(
            same(there[path], file) for path, file in build.router.items()
        ):
            break
        if version:
            raise InputError(
                f"--version {version}: {router.id} already has {tag}, with other content; choose "
                "a later number."
            )
        minor, patch = minor + 1, 0
    return f"v{major}.{minor}.{patch}"


def _changes(
    repo: Repo, build: Upload, versions: cards.Versions, repo_id: str, published: Build | None
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What a commit has to do so that the repository holds the build, with these versions in its
    card.

    `published`: the numbers behind the cards that are there now.
    """
    of_dataset = repo.kind == "dataset"
    files, patterns = (build.dataset, DATASET_FILES) if of_dataset else (build.router, ROUTER_FILES)
    there = matching(repo.files, patterns)
    if there and cards.BEGIN not in repo.card:
        raise InputError(
            f"{repo.id} has files that persyn did not put there, e.g. {there[0]}; choose another "
            "name."
        )
    stale = [] if build.appended else [path for path in there if path not in files]
    existing, before = (
        (repo.card, published) if repo.card else (build.cards[repo.kind], build.stats)
    )
    if of_dataset:
        data = {
            path: file.lfs.sha256 if file.lfs else file.blob_id for path, file in repo.files.items()
        }
        data |= cards.hashes(files)
        kept = {path: data[path] for path in matching(data, cards.PATTERNS) if path not in stale}
        metadata = cards.dataset_metadata(build.stats, kept)
        text = cards.dataset_card(build.recipe, build.stats, repo_id, repo_id, versions)
        written = cards.dataset_metadata(before) if before else {}
    else:
        assert build.recipe
        metadata = cards.router_metadata(build.stats, repo_id)
        text = cards.router_card(build.recipe, cast(Build, build.stats), repo.id, repo_id, versions)
        written = cards.router_metadata(before, repo_id if repo.card else None) if before else {}
    card = cards.merge(existing, metadata, public.text(text), written)
    changed = [
        path for path in files if path not in repo.files or not same(repo.files[path], files[path])
    ]
    return [
        *(CommitOperationDelete(path) for path in stale),
        *(CommitOperationAdd(path, str(files[path])) for path in changed),
        *([CommitOperationAdd("README.md", card.encode())] if card != repo.card else []),
    ]


def _appended(build: Upload, dataset: Repo, folder: Path) -> Upload:
    """The published build with the rows of a `persyn synthesize` added; its new files are written
    into `folder`.
    """
    stats, recipe = dataset.stats(dataset.head), dataset.recipe(dataset.head)
    if build.recipe:
        raise InputError(
            "--append adds rows of persyn synthesize, and this is a build; leave it out."
        )
    if not stats or cards.BEGIN not in dataset.card:
        raise InputError(f"{dataset.id} was not published by persyn, so --append cannot add to it.")
    if strangers := [p for p in matching(dataset.files, cards.PATTERNS) if not cards.is_ours(p)]:
        raise InputError(
            f"{dataset.id} has {strangers[0]}, which persyn did not put there, among the files of "
            "its rows: rename or remove it, so that rows can be added to persyn's own."
        )
    like = next(path for path in dataset.files if path.startswith("data/persyn-train"))
    schema = pq.read_schema(
        hf_hub_download(dataset.id, like, repo_type="dataset", revision=dataset.head)
    )
    content, answered = digest(cards.hashes(build.dataset))[:12], cast(Answered, build.stats)
    if content not in [more["content"] for more in stats.get("added", [])]:
        added: Added = {
            "content": content,
            "rows": answered["rows"],
            "failed": answered["failed"],
            "router": answered["router"],
            "prompts": answered["prompts"],
        }
        stats["added"] = [*stats.get("added", []), added]
    files = {STATS: folder / STATS}
    files[STATS].write_text(json.dumps(stats, indent=2))
    has_messages = bool(matching(dataset.files, ["messages/*.parquet"]))
    for path in matching(build.dataset, cards.PATTERNS):
        name = f"{path.removesuffix('.parquet')}-{content}.parquet"
        if not path.startswith("messages/"):
            files[name] = align(build.dataset[path], schema, folder / name.replace("/", "-"))
        elif has_messages:  # else the config would have the new rows alone
            files[name] = build.dataset[path]
    known = Recipe.from_dict(recipe) if recipe else None
    return Upload(files, {}, known, stats, {}, appended=True)
