"""A model hub on loopback that takes uploads, with the addresses that huggingface_hub requests.

POST      /api/repos/create                        {"organization", "name", "private"}
GET       /api/models/REPO[/revision/REVISION]     {"id", "sha", "private"}
GET       /api/models/REPO/tree/REVISION           [{"type", "path", "size", "oid", "lfs"}]
POST      /api/models/REPO/branch/BRANCH
POST      /api/models/REPO/preupload/BRANCH        {"files"}: which files are large
POST      /api/models/REPO/commit/BRANCH           lines of JSON: header, file, lfsFile, deletedFile
POST      /REPO.git/info/lfs/objects/batch         where large files go; nowhere if they are stored
PUT       /lfs/OID                                 a large file
POST      /api/validate-yaml                       {"content"}: a model card
HEAD, GET /REPO/resolve/REVISION/PATH              a file
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from tiny_hub import Serving

LICENSES = {"mit", "apache-2.0", "gemma", "other"}
"""Some of the licenses that the Hub knows."""


@dataclass
class Commit:
    """A commit: its hash, its message, and all files."""

    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Stored:
    """A repository: the commits of each branch, the oldest first."""

    private: bool
    branches: dict[str, list[Commit]]

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"][-1].files

    @property
    def messages(self) -> list[str]:
        return [commit.message for commit in self.branches["main"]]


@dataclass
class Failure:
    """An answer instead of the usual one, to requests whose method and path match.

    after: requests that are answered as usual; 0 as status closes the connection
    """

    pattern: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0


@dataclass
class PublishingHub:
    """Repositories by ORG/NAME, large files by SHA-256, and the organizations of each token.

    ignored: names in a .gitignore, which the Hub leaves out of commits
    """

    repositories: dict[str, Stored] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, set[str]] = field(default_factory=lambda: {"good": {"me"}, "reads": set()})
    failures: list[Failure] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)
    interrupt: Any = None
    """Called with the path before each commit."""

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Stored:
        """Create a repository with one commit."""
        made = Stored(private, {"main": [Commit(_sha(f"{name}/0"), "initial commit", dict(files))]})
        self.repositories[name] = made
        return made

    def commit(self, name: str, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        commits = self.repositories[name].branches[branch]
        made = Commit(_sha(f"{name}/{branch}/{len(commits)}"), message, files)
        commits.append(made)
        return made

    def uploads(self) -> list[str]:
        return [a for a in self.asked if a.startswith("PUT")]


def _sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith(".gguf")


class _Handler(BaseHTTPRequestHandler):
    hub: PublishingHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which waits 40 ms between head and body

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.respond()

    def do_GET(self) -> None:
        self.respond()

    def do_PUT(self) -> None:
        self.respond()

    def do_POST(self) -> None:
        self.respond()

    def body(self) -> bytes:
        if (self.headers.get("Transfer-Encoding") or "") == "chunked":
            parts: list[bytes] = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def respond(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        content = self.body()
        for failure in self.hub.failures:
            if re.search(failure.pattern, f"{self.command} {path}"):
                failure.after -= 1
                if failure.after >= 0:
                    continue
                if failure.status == 0:
                    self.close_connection = True
                    return None
                return self.answer({"error": "refused"}, failure.status, failure.headers)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            why = "Invalid credentials in Authorization header"
            return self.answer({"error": why}, 401, {"X-Error-Message": why})
        if path == "/api/validate-yaml":
            return self.validate(json.loads(content)["content"])
        if path == "/api/repos/create":
            return self.create(json.loads(content), token)
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            assert hashlib.sha256(content).hexdigest() == found[1]
            self.hub.large[found[1]] = content
            return self.answer({})
        found = re.match(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?(?=/|$)", path)
        stored = self.hub.repositories.get(found[1]) if found else None
        if found is None or stored is None or (stored.private and not token):
            return self.refuse(404 if token else 401, "RepoNotFound")
        name, rest = found[1], path[found.end() :]
        if self.command == "POST":
            if not token:
                return self.refuse(401, "RepoNotFound")
            if name.split("/")[0] not in self.hub.tokens[token]:
                return self.forbid(name)
            return self.write(name, stored, rest, content)
        return self.read(name, stored, rest)

    def read(self, name: str, stored: Stored, rest: str) -> None:
        if not (found := re.fullmatch(r"/?(revision|tree|resolve|)/?([^/]*)/?(.*)", rest)):
            return self.refuse(404, "EntryNotFound")
        kind, revision, file = found.groups()
        every = {c.sha: c for commits in stored.branches.values() for c in commits}
        branch = stored.branches.get(revision or "main")
        commit = branch[-1] if branch else every.get(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        if kind == "tree":
            return self.answer([_item(n, content) for n, content in commit.files.items()])
        if kind == "resolve":
            if file not in commit.files:
                return self.refuse(404, "EntryNotFound")
            return self.file(file, commit.files[file], commit.sha)
        return self.answer({"id": name, "sha": commit.sha, "private": stored.private})

    def write(self, name: str, stored: Stored, rest: str, content: bytes) -> None:
        if found := re.fullmatch(r"/branch/(.+)", rest):
            stored.branches[found[1]] = list(stored.branches["main"])
            return self.answer({})
        if rest == "/info/lfs/objects/batch":
            return self.batch(json.loads(content)["objects"])
        found = re.fullmatch(r"/(preupload|commit)/(.+)", rest)
        if found is None or found[2] not in stored.branches:
            return self.refuse(404, "RevisionNotFound")
        commits = stored.branches[found[2]]
        if found[1] == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                    "shouldIgnore": file["path"] in self.hub.ignored,
                    "oid": _item(file["path"], commits[-1].files[file["path"]])["oid"]
                    if file["path"] in commits[-1].files
                    else None,
                }
                for file in json.loads(content)["files"]
            ]
            return self.answer({"files": files})
        if self.hub.interrupt:
            self.hub.interrupt(rest)
        return self.commit(name, found[2], [json.loads(li) for li in content.splitlines()])

    def batch(self, objects: list[dict[str, Any]]) -> None:
        host = f"http://{self.headers['Host']}"
        answers = [
            {"oid": o["oid"], "size": o["size"]}
            | (
                {}
                if o["oid"] in self.hub.large
                else {"actions": {"upload": {"href": f"{host}/lfs/{o['oid']}"}}}
            )
            for o in objects
        ]
        self.answer({"transfer": "basic", "objects": answers})

    def commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        header = lines[0]["value"]
        latest = self.hub.repositories[name].branches[branch][-1]
        if header.get("parentCommit") not in (None, latest.sha):
            return self.answer({"error": "the branch has another commit"}, 412)
        files = dict(latest.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    return self.answer({"error": "not uploaded"}, 400)
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        made = self.hub.commit(name, branch, header["summary"], files)
        url = f"http://{self.headers['Host']}/{name}/commit/{made.sha}"
        return self.answer({"commitUrl": url, "commitOid": made.sha})

    def create(self, wanted: dict[str, Any], token: str) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if not token or wanted["organization"] not in self.hub.tokens[token]:
            return self.forbid(name)
        if name in self.hub.repositories:
            return self.answer({"url": name}, 409)
        private = wanted.get("private", False) or wanted.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b""}, private=private)
        return self.answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})

    def validate(self, content: str) -> None:
        front = yaml.safe_load(content.split("---\n")[1])
        if front.get("license") not in {None, *LICENSES}:
            errors = [{"message": '"license" must be one of the known licenses'}]
            return self.answer({"errors": errors, "warnings": []}, 400)
        return self.answer({"errors": [], "warnings": []})

    def forbid(self, name: str) -> None:
        why = f"You don't have the rights to write to {name}"
        self.answer({"error": why}, 403, {"X-Error-Message": why})

    def refuse(self, code: int, why: str) -> None:
        self.answer({"error": why}, code, {"X-Error-Code": why, "X-Error-Message": why})

    def answer(self, document: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(document).encode()
        self.send_response(code)
        for name, value in ((headers or {}) | {"Content-Type": "application/json"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def file(self, name: str, content: bytes, commit: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_item(name, content)["oid"]}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _item(name: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": oid}
    if is_large(name):
        sha256 = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return found


class ServingUploads(Serving):
    """Serves a hub that takes uploads at `endpoint` inside a `with` block."""

    handler = _Handler
