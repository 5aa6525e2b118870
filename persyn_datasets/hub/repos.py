"""The state of repositories on the Hub, and the Hub's errors as messages for users."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.data.build import STATS, Build
from persyn_datasets.hub import cards
from persyn_datasets.hub.versions import in_order


@dataclass
class Repo:
    """A repository as it was when we looked: everything is compared with this commit, and goes on
    top of it only.
    """

    id: str
    kind: str  # dataset or model
    head: str
    files: dict[str, RepoFile]
    versions: list[tuple[str, str]]  # (tag, what changed), oldest first
    card: str = ""

    @classmethod
    def look(cls, api: HfApi, repo_id: str, kind: str) -> "Repo":
        refs = api.list_repo_refs(repo_id, repo_type=kind)
        head = next(branch.target_commit for branch in refs.branches if branch.name == "main")
        tags = in_order(tag.name for tag in refs.tags)
        commits = api.list_repo_commits(repo_id, repo_type=kind, revision=head) if tags else []
        changes = {commit.title: commit.message for commit in reversed(commits)}
        repo = cls(repo_id, kind, head, {}, [(tag, changes.get(tag, "")) for tag in tags])
        repo.files = repo.at(head)
        repo.card = repo.read("README.md", head)
        return repo

    def at(self, revision: str) -> dict[str, RepoFile]:
        """The files at a revision."""
        tree = HfApi().list_repo_tree(
            self.id, repo_type=self.kind, revision=revision, recursive=True
        )
        return {file.path: file for file in tree if isinstance(file, RepoFile)}

    def read(self, path: str, revision: str) -> str:
        """A file's text at a revision; empty if it is not there."""
        try:
            return Path(
                hf_hub_download(self.id, path, repo_type=self.kind, revision=revision)
            ).read_text()
        except RemoteEntryNotFoundError:
            return ""

    def recipe(self, revision: str) -> dict[str, Any] | None:
        """The recipe at a revision, as today's version writes it; None if there is none."""
        values = yaml.safe_load(self.read("recipe.yaml", revision) or "null")
        if not values:
            return None
        try:
            return json.loads(json.dumps(Recipe.written(values).to_dict()))
        except InputError:  # of a version with other keys
            return values

    def stats(self, revision: str) -> Build | None:
        """The record at a revision, of a build; None if there is none."""
        return json.loads(self.read(STATS, revision) or "null")


def same(there: RepoFile, here: Path) -> bool:
    if there.lfs:
        return there.lfs.sha256 == cards.sha256(here)
    content = here.read_bytes()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def matching(paths: Iterable[str], patterns: list[str]) -> list[str]:
    return [path for path in paths if any(fnmatch(path, pattern) for pattern in patterns)]


@contextmanager
def plainly(repo_id: str) -> Iterator[None]:
    """Turns the Hub's errors into messages that say what to do."""
    again = "Every published version is complete; run the same command again to resume."
    try:
        yield
    except InputError:
        raise
    except OfflineModeIsEnabled as error:
        raise InputError(f"{repo_id}: HF_HUB_OFFLINE is set; unset it to publish.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(
                f"{repo_id}: you have no permission to write there ({error}). Check your token."
            ) from error
        if status in (409, 412):
            raise BuildError(
                f"{repo_id}: someone else published at the same time. {again}"
            ) from error
        raise BuildError(f"{repo_id}: publishing failed: {error}. {again}") from error
    except (
        httpx.HTTPError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # ValueError: the Hub refuses the card
        raise BuildError(
            f"{repo_id}: publishing failed: {type(error).__name__}: {error}. {again}"
        ) from error
