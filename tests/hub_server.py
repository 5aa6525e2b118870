"""A small Hugging Face Hub on loopback, for the real clients: `server = HubServer(); server.url`.

Repositories live in memory as commits of {path: bytes}. Reads need no token, except of private
repositories; writes need one whose name does not start with `hf_read`.
"""

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_store import LICENSES, Commit, Hub, Repo, blob, entry, is_lfs, metadata
from loopback import Handler, Loopback


class _Error(Exception):
    def __init__(self, status: int, text: str, code: str = "") -> None:
        self.status, self.text, self.code = status, text, code


class _Handler(Handler):
    def handle_any(self) -> None:
        hub: Hub = self.of
        split = urlsplit(self.path)
        path, query = unquote(split.path), {k: v[0] for k, v in parse_qs(split.query).items()}
        body = self.read()
        with hub.lock:
            hub.requests.append((self.command, path))
            fault = hub.fault(len(hub.requests), self.command, path)
            if isinstance(fault, int):
                return self.send(fault, {"error": "the server is on fire"})
            try:
                answer = None if fault == "drop" else self.serve(hub, path, query, body)
            except _Error as error:
                return self.send(
                    error.status,
                    {"error": error.text},
                    {"X-Error-Code": error.code} if error.code else {},
                )
        if fault:
            self.close_connection = True
        elif answer is not None:
            self.send(*answer)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any

    def serve(self, hub: Hub, path: str, query: dict[str, str], body: bytes) -> tuple[Any, ...]:
        if self.command == "PUT" and path.startswith("/objects/"):
            oid = path.removeprefix("/objects/")
            assert hashlib.sha256(body).hexdigest() == oid
            hub.objects[oid] = body
            return 200, {}
        if path == "/api/repos/create":
            return self.create(hub, json.loads(body))
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body))
        if path == "/api/whoami-v2":
            self.user()
            organisation = {"name": "org", "roleInOrg": "write"}
            return 200, {
                "name": "me",
                "type": "user",
                "orgs": [organisation],
                "auth": {"accessToken": {"role": "write"}},
            }
        parts = path.strip("/").split("/")
        if parts[0] == "api" and parts[1] in ("models", "datasets"):
            return self.api(hub, parts[1][:-1], "/".join(parts[2:4]), parts[4:], query, body)
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        repo_id = "/".join(parts[:2])
        if repo_id.endswith(".git"):
            return self.lfs_batch(hub, kind, repo_id.removesuffix(".git"), json.loads(body))
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve(self.find(hub, kind, repo_id), parts[3], "/".join(parts[4:]))
        raise _Error(404, f"no {path}", "RepoNotFound")

    def user(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            raise _Error(401, "Invalid username or password.")
        return token

    def writer(self) -> None:
        if self.user().startswith("hf_read"):
            raise _Error(403, "Forbidden: your token has no write permission.")

    def find(self, hub: Hub, kind: str, repo_id: str) -> Repo:
        repo = hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not self.headers.get("Authorization")):
            raise _Error(404, "Repository not found", "RepoNotFound")
        return repo

    def at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise _Error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def create(self, hub: Hub, wanted: dict[str, Any]) -> tuple[Any, ...]:
        self.writer()
        organisation = wanted.get("organization") or "me"
        if organisation not in ("me", "org", "Qwen"):
            raise _Error(
                403, f"You don't have the rights to create a repository under {organisation!r}."
            )
        kind, repo_id = wanted.get("type", "model"), f"{organisation}/{wanted['name']}"
        prefix = "datasets/" if kind == "dataset" else ""
        if (kind, repo_id) in hub.repos:
            return 409, {
                "error": "You already created this repo",
                "url": f"{hub.url}/{prefix}{repo_id}",
            }
        hub.repos[kind, repo_id] = Repo(wanted.get("visibility") == "private")
        hub.put(repo_id, {".gitattributes": "*.parquet filter=lfs\n"}, kind, "initial commit")
        return 200, {"url": f"{hub.url}/{prefix}{repo_id}", "id": repo_id}

    def validate(self, wanted: dict[str, Any]) -> tuple[Any, ...]:
        _, head, _ = wanted["content"].split("---\n", 2)
        values, wrong = yaml.safe_load(head), []
        licenses = values.get("license", [])
        wrong += [
            f"license {x!r}"
            for x in ([licenses] if isinstance(licenses, str) else licenses)
            if x not in LICENSES
        ]
        wrong += [
            "license_name is required"
            for _ in [0]
            if licenses == "other" and not values.get("license_name")
        ]
        wrong += [
            f"{k} is not a list"
            for k in ("tags", "task_categories", "size_categories", "configs")
            if not isinstance(values.get(k, []), list)
        ]
        errors = [{"message": text} for text in wrong]
        return 400 if wrong else 200, {"errors": errors, "warnings": []}

    def api(
        self,
        hub: Hub,
        kind: str,
        repo_id: str,
        rest: list[str],
        query: dict[str, str],
        body: bytes,
    ) -> tuple[Any, ...]:
        repo = self.find(hub, kind, repo_id)
        what, revision = (rest[0] if rest else "revision"), (rest[1] if len(rest) > 1 else "main")
        if what == "revision":
            commit = self.at(repo, revision)
            files = [{"rfilename": path} for path in commit.files]
            card = commit.files.get("README.md", b"").decode()
            facts = {
                "id": repo_id,
                "sha": commit.oid,
                "private": repo.private,
                "siblings": files,
                "tags": [],
            }
            return 200, facts | {"cardData": metadata(card), "downloads": 0}
        if what == "auth-check":
            self.user()
            if len(rest) > 1 or query:
                self.writer()
            return 200, {}
        if what == "refs":
            refs = {
                "branches": ("heads", repo.branches),
                "tags": ("tags", repo.tags),
                "converts": ("convert", {}),
            }
            return 200, {
                name: [
                    {"name": k, "ref": f"refs/{ref}/{k}", "targetCommit": c.oid}
                    for k, c in values.items()
                ]
                for name, (ref, values) in refs.items()
            }
        commit = self.at(repo, revision)
        if what == "commits":
            found = [commit]
            while found[-1].parents:
                found.append(found[-1].parents[0])
            date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            return 200, [
                {"id": c.oid, "title": c.title, "message": c.message, "date": date, "authors": []}
                for c in found
            ]
        if what == "tree":
            folder = "/".join(rest[2:])
            found = {
                k: v for k, v in commit.files.items() if not folder or k.startswith(f"{folder}/")
            }
            if folder and not found:
                raise _Error(404, f"{folder} does not exist", "EntryNotFound")
            entries = [entry(k, v) for k, v in found.items()]
            folders = {
                "/".join(k.split("/")[:i]) for k in found for i in range(1, k.count("/") + 1)
            }
            entries += [
                {"type": "directory", "path": f, "size": 0, "oid": "0" * 40}
                for f in sorted(folders)
                if f != folder
            ]
            if query.get("recursive", "").lower() not in ("1", "true"):
                depth = folder.count("/") + 1 if folder else 0
                entries = [e for e in entries if e["path"].count("/") == depth]
            return 200, entries
        if what == "paths-info":
            paths = (
                parse_qs(body.decode()).get("paths", [])
                if not body.startswith(b"{")
                else json.loads(body)["paths"]
            )
            return 200, [entry(p, commit.files[p]) for p in paths if p in commit.files]
        self.writer()
        if what == "preupload":
            files = json.loads(body)["files"]
            return 200, {
                "files": [self.preupload(commit, f["path"]) for f in files],
                "commitOid": commit.oid,
            }
        if what == "commit":
            return self.commit(
                hub, repo, revision, commit, [json.loads(line) for line in body.splitlines()]
            )
        if what == "tag" and self.command == "POST":
            name = json.loads(body)["tag"]
            if name in repo.tags:
                return 409, {"error": f"Tag {name} already exists"}
            repo.tags[name] = commit
            return 201, {}
        raise _Error(404, f"no {what}")

    def preupload(self, commit: Commit, path: str) -> dict[str, Any]:
        found = commit.files.get(path)
        mode = "lfs" if is_lfs(path) else "regular"
        facts = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if found is None:
            return facts
        return facts | {"oid": hashlib.sha256(found).hexdigest() if mode == "lfs" else blob(found)}

    def commit(
        self, hub: Hub, repo: Repo, branch: str, head: Commit, lines: list[Any]
    ) -> tuple[Any, ...]:
        header, files = lines[0]["value"], dict(head.files)
        if header.get("parentCommit", head.oid) != head.oid:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in hub.objects:
                    return 400, {"error": f"LFS pointer to {value['oid']}, which was not uploaded"}
                files[value["path"]] = hub.objects[value["oid"]]
            elif key == "deletedFile":
                if value["path"] not in files:
                    return 404, {"error": "A file with this name doesn't exist"}
                del files[value["path"]]
        made = hub.commit(repo, branch, files, header["summary"], header.get("description", ""))
        kind, repo_id = next(name for name, r in hub.repos.items() if r is repo)
        prefix = "datasets/" if kind == "dataset" else ""
        return 200, {
            "commitUrl": f"{hub.url}/{prefix}{repo_id}/commit/{made.oid}",
            "commitOid": made.oid,
        }

    def lfs_batch(
        self, hub: Hub, kind: str, repo_id: str, wanted: dict[str, Any]
    ) -> tuple[Any, ...]:
        self.writer()
        self.find(hub, "dataset" if kind == "dataset" else "model", repo_id)
        objects = [
            {"oid": o["oid"], "size": o["size"]}
            | (
                {}
                if o["oid"] in hub.objects
                else {"actions": {"upload": {"href": f"{hub.url}/objects/{o['oid']}"}}}
            )
            for o in wanted["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def resolve(self, repo: Repo, revision: str, path: str) -> tuple[Any, ...]:
        commit = self.at(repo, revision)
        if path not in commit.files:
            raise _Error(404, f"no {path}", "EntryNotFound")
        content = commit.files[path]
        etag = hashlib.sha256(content).hexdigest() if is_lfs(path) else blob(content)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            return 200, b"", headers | {"Content-Length": str(len(content))}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            end = int(first) + len(part) - 1
            return 206, part, headers | {"Content-Range": f"bytes {first}-{end}/{len(content)}"}
        return 200, content, headers


class HubServer(Hub, Loopback):
    """A `Hub` at `url`, from now on."""

    def __init__(self) -> None:
        Hub.__init__(self)
        Loopback.__init__(self, _Handler)
        self.__enter__()

    @property
    def url(self) -> str:
        return self.host
