"""A model hub on loopback with the addresses that huggingface_hub requests for a snapshot.

GET       /api/models/ORG/MODEL/revision/REVISION   {"id", "sha", "siblings"}
GET       /api/models/ORG/MODEL/tree/COMMIT         [{"type", "path", "size", "oid"}]
HEAD, GET /ORG/MODEL/resolve/COMMIT/PATH            the file; ETag, X-Repo-Commit; ranges
GET       /signed/KEY/ORG/MODEL/PATH                the same on another host, for a time

It can also be busy, cut its answers off, and change files, as servers do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = hashlib.sha1(b"commit").hexdigest()


@dataclass
class Hub:
    """The models of the server, and the requests that it received.

    models:    folder of each model, by ORG/MODEL; gated: models that need a permission
    revisions: commit of each branch and tag; tokens: valid for gated models
    asked:     method and path of each request
    sent:      path, first byte and bytes of each answer with content of safetensors and GGUFs
    trouble:   for the next requests of such content, one after the other: "429", "503", "cut" (the
               connection ends in the middle), "short" (half of the range), "expired", "whole"
    is_large:  ETags are sha256, and the content is on another host, at an address that expires
    delay:     seconds before each answer with such content
    sha256:    what the Hub states of large files; None is the truth
    key:       part of the addresses that are valid
    """

    models: dict[str, Path]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": "1" * 40})
    gated: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    trouble: deque[str] = field(default_factory=deque)
    is_large: bool = False
    delay: float = 0.0
    sha256: str | None = None
    key: int = 0

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
        if found := re.fullmatch(r"/signed/(\d+)/([^/]+/[^/]+)/(.+)", path):
            if int(found[1]) != self.hub.key or self.headers.get("Authorization"):
                return self.refuse(403, "Expired")
            return self.file(self.hub.models[found[2]] / found[3], None)
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
                {
                    "type": "file",
                    "path": p,
                    "size": (folder / p).stat().st_size,
                    "oid": _etag(folder / p),
                }
                for p in _files(folder)
            ]
            return self.answer(tree)
        if found := re.fullmatch(r"/resolve/([0-9a-f]{40})/(.+)", rest):
            path = folder / found[2]
            if path.is_file() and self.hub.is_large and path.suffix in _WEIGHTS:
                return self.redirect(path, found[1], f"{model[1]}/{found[2]}")
            if path.is_file():
                return self.file(path, found[1])
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

    def redirect(self, path: Path, commit: str, name: str) -> None:
        port = self.server.server_address[1]
        sha256 = self.hub.sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{port}/signed/{self.hub.key}/{name}")
        self.send_header("X-Linked-ETag", f'"{sha256}"')
        self.send_header("X-Linked-Size", str(path.stat().st_size))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def file(self, path: Path, commit: str | None) -> None:
        n_bytes = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        is_weights = self.command == "GET" and path.suffix in _WEIGHTS
        trouble = self.hub.trouble.popleft() if is_weights and self.hub.trouble else ""
        if is_weights:
            time.sleep(self.hub.delay)
        if trouble in ("429", "503"):
            self.refuse(int(trouble), "Busy")
            return
        if trouble == "expired":
            self.hub.key += 1
            self.refuse(403, "Expired")
            return
        if trouble == "whole":
            wanted = None
        start = int(wanted[1]) if wanted else 0
        stop = min(int(wanted[2]) + 1, n_bytes) if wanted and wanted[2] else n_bytes
        if start >= n_bytes > 0:
            self.refuse(416, "OutOfRange")
            return
        if trouble == "short":
            stop = start + (stop - start + 1) // 2
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{n_bytes}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{_etag(path)}"')
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "GET":
            return
        if trouble == "cut":
            stop = start + (stop - start) // 2
            self.close_connection = True
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start)
        if is_weights:
            self.hub.sent.append((path.name, start, len(content)))
        self.wfile.write(content)


_WEIGHTS = (".safetensors", ".gguf")


def _files(folder: Path) -> list[str]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p.relative_to(folder).as_posix() for p in found)


def _etag(path: Path) -> str:
    """Return a tag that changes when the file is written."""
    there = path.stat()
    return hashlib.sha1(f"{path.name} {there.st_size} {there.st_mtime_ns}".encode()).hexdigest()


class _Server(ThreadingHTTPServer):
    """A server that does not report clients that end connections, such as killed ones."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Serving:
    """Serves a hub at `endpoint` inside a `with` block; handler: answers its requests."""

    handler: type[BaseHTTPRequestHandler] = _Handler

    def __init__(self, hub: Any) -> None:
        handler = type("Handler", (self.handler,), {"hub": hub})
        self._server = _Server(("127.0.0.1", 0), handler)
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

    def take_over(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Make huggingface_hub in this process use this hub, with an empty cache in `home`."""
        from huggingface_hub import constants

        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
