"""A model hub on loopback with the addresses that huggingface_hub requests for a snapshot.

GET       /api/models/ORG/MODEL/revision/REVISION   {"id", "sha", "siblings"}
GET       /api/models/ORG/MODEL/tree/COMMIT         [{"type", "path", "size", "oid"}]
HEAD, GET /ORG/MODEL/resolve/COMMIT/PATH            the file; ETag, X-Repo-Commit; ranges
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"commit").hexdigest()


@dataclass
class Hub:
    """The models of the server, and the requests that it received.

    models:    folder of each model, by ORG/MODEL; gated: models that need a permission
    revisions: commit of each branch and tag; tokens: valid for gated models
    asked:     method and path of each request
    """

    models: dict[str, Path]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": "1" * 40})
    gated: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def fetched(self) -> set[str]:
        """Names of the files whose content was requested."""
        return {a.rpartition("/")[2] for a in self.asked if a.startswith("GET") and "resolve" in a}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which waits 40 ms between head and body

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        model = re.search(r"^/(?:api/models/)?([^/]+/[^/]+)", path)
        folder = self.hub.models.get(model[1]) if model else None
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if model is None or folder is None:
            return self.refuse(401 if not token else 404, "RepoNotFound")
        if model[1] in self.hub.gated and token not in self.hub.tokens:
            return self.refuse(403, "GatedRepo")
        rest = path[model.end() :]
        if found := re.fullmatch(r"/revision/(.+)|", rest):
            revision = found[1] or "main"
            commits = set(self.hub.revisions.values())
            commit = revision if revision in commits else self.hub.revisions.get(revision)
            if commit is None:
                return self.refuse(404, "RevisionNotFound")
            files = [{"rfilename": p} for p in _files(folder)]
            return self.answer({"id": model[1], "sha": commit, "siblings": files})
        if re.fullmatch(r"/tree/[0-9a-f]{40}", rest):
            tree = [
                {"type": "file", "path": p, "size": (folder / p).stat().st_size, "oid": _etag(p)}
                for p in _files(folder)
            ]
            return self.answer(tree)
        if found := re.fullmatch(r"/resolve/([0-9a-f]{40})/(.+)", rest):
            if (folder / found[2]).is_file():
                return self.file(folder / found[2], found[1])
            return self.refuse(404, "EntryNotFound")
        return self.refuse(404, "NotFound")

    def refuse(self, code: int, why: str) -> None:
        self.answer({"error": why}, code, {"X-Error-Code": why, "X-Error-Message": why})

    def answer(self, document: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(document).encode()
        self.send_response(code)
        for name, value in ((headers or {}) | {"Content-Type": "application/json"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def file(self, path: Path, commit: str) -> None:
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        stop = int(wanted[2]) + 1 if wanted and wanted[2] else len(content)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{_etag(path.name)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:stop])


def _files(folder: Path) -> list[str]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p.relative_to(folder).as_posix() for p in found)


def _etag(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


class Serving:
    """Serves a hub at `endpoint` inside a `with` block; handler: answers its requests."""

    handler: type[BaseHTTPRequestHandler] = _Handler

    def __init__(self, hub: Any) -> None:
        handler = type("Handler", (self.handler,), {"hub": hub})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables of a process that uses this hub, with an empty cache in `home`."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
