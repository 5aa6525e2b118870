"""What a small Hub of the tests holds: repositories as commits of {path: bytes}, in memory."""

import fnmatch
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

LFS = ("*.parquet", "*.safetensors", "*.png")
LICENSES = {
    "mit",
    "apache-2.0",
    "cc-by-4.0",
    "gemma",
    "llama3",
    "llama3.1",
    "cc-by-nc-4.0",
    "unknown",
    "other",
}
Fault = Callable[[int, str, str], str | int | None]


@dataclass(frozen=True)
class Commit:
    oid: str
    files: dict[str, bytes]
    title: str
    message: str
    parents: tuple["Commit", ...] = ()


@dataclass
class Repo:
    private: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        if found := self.branches.get(revision) or self.tags.get(revision):
            return found
        waiting = [*self.branches.values(), *self.tags.values()]
        while waiting:
            commit = waiting.pop()
            if commit.oid == revision:
                return commit
            waiting += commit.parents
        return None


class Hub:
    """Repositories, none after `reset()`.

    `fault(n, method, path)` is asked before the n-th request since `reset` or `count_again`: a
    status to answer, `drop` to close the connection unanswered, `lose` to do what is asked and then
    close it unanswered, None to serve.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.count_again()

    def count_again(self, fault: Fault = lambda n, method, path: None) -> None:
        self.requests: list[tuple[str, str]] = []
        self.fault = fault

    def repo(self, repo_id: str, kind: str = "dataset") -> Repo:
        return self.repos[kind, repo_id]

    def put(
        self,
        repo_id: str,
        files: dict[str, str | bytes],
        kind: str = "dataset",
        title: str = "by hand",
    ) -> Commit:
        """A commit on main, as a push by git would make it; None as content removes a file."""
        repo = self.repos.setdefault((kind, repo_id), Repo())
        head = repo.branches.get("main")
        contents = {k: v.encode() if isinstance(v, str) else v for k, v in files.items()}
        merged = {
            k: v for k, v in ((head.files if head else {}) | contents).items() if v is not None
        }
        return self.commit(repo, "main", merged, title, "")

    def commit(
        self, repo: Repo, branch: str, files: dict[str, bytes], title: str, message: str
    ) -> Commit:
        head = repo.branches.get(branch)
        seed = (
            f"{head.oid if head else ''} {title} {message} "
            f"{sorted((k, blob(v)) for k, v in files.items())} {id(repo)}"
        )
        commit = Commit(
            hashlib.sha1(seed.encode()).hexdigest(), files, title, message, (head,) if head else ()
        )
        repo.branches[branch] = commit
        return commit


def blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def metadata(card: str) -> Any:
    try:
        return yaml.safe_load(card.split("---\n", 2)[1]) if card.startswith("---\n") else {}
    except yaml.YAMLError:
        return {}


def is_lfs(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LFS)


def entry(path: str, content: bytes) -> dict[str, Any]:
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": blob(content),
    }
    return entry | ({"lfs": lfs} if is_lfs(path) else {})
