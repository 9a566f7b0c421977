"""A server on loopback that speaks as much of the Hugging Face hub's API as downloading needs.

Repositories are files in memory by commit. A large file is served from a second address, as the hub does from its CDN.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 4096  # bytes, from which on a file lies with the CDN

REFUSALS = {
    "missing": (404, "RepoNotFound", "Repository not found"),
    "gated": (403, "GatedRepo", "Access to this repository is restricted"),
    "busy": (429, None, "Too many requests"),
}


@dataclass
class Repository:
    """`state` is "open", or the name of a refusal. `cut` connections break in the middle of a large file."""

    commits: dict[str, dict[str, bytes]]
    main: str
    state: str = "open"
    cut: int = 0


@dataclass
class Hub:
    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def find(self, kind: str, name: str) -> Repository:
        return (self.datasets if kind == "datasets" else self.models).get(name, Repository({}, "", "missing"))


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(
        json.dumps(sorted((n, hashlib.sha1(b).hexdigest()) for n, b in files.items())).encode()
    ).hexdigest()


def repository(files: dict[str, bytes]) -> Repository:
    commit = commit_of(files)
    return Repository({commit: files}, commit)


def push(repo: Repository, files: dict[str, bytes]) -> None:
    """Move the main branch to a commit with these files."""
    repo.main = commit_of(files)
    repo.commits[repo.main] = files


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.requests.append(f"{self.command} {self.path}")
        if match := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        ):
            self._api(*match.groups(), parse_qs(parts.query))
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve("datasets" if match[1] else "models", *match.groups()[1:])
        elif match := re.fullmatch(r"/cdn/(models|datasets)/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._cdn(*match.groups())
        else:
            self._send(404, b"{}")

    def _files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; None if the refusal was sent."""
        repo = self.hub.find(kind, name)
        if repo.state != "open":
            status, code, message = REFUSALS[repo.state]
            self._send(status, b"{}", {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})})
            return None
        commit = repo.main if revision in ("main", "") else revision
        if commit not in repo.commits:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            return None
        return commit, repo.commits[commit]

    def _api(
        self, kind: str, name: str, what: str | None, revision: str | None, folder: str | None, query: Any
    ) -> None:
        if (there := self._files(kind, name, revision or "main")) is None:
            return
        commit, files = there
        if what == "tree":
            self._json([_entry(n, b) for n, b in sorted(files.items())] + _folders(files))
        elif what == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths", []) or json.loads(self.body or b"{}").get("paths", [])
            self._json([_entry(n, files[n]) for n in wanted if n in files])
        else:
            self._json(
                {
                    "_id": "0" * 24,
                    "id": name,
                    "modelId": name,
                    "author": name.split("/")[0],
                    "sha": commit,
                    "private": False,
                    "disabled": False,
                    "gated": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "lastModified": "2026-01-01T00:00:00.000Z",
                    "createdAt": "2026-01-01T00:00:00.000Z",
                    "siblings": [{"rfilename": n} for n in sorted(files)],
                }
            )

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        if (there := self._files(kind, name, revision)) is None:
            return
        commit, files = there
        if path not in files:
            self._send(
                404,
                b"",
                {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit},
            )
            return
        body = files[path]
        about = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Accept-Ranges": "bytes"}
        if len(body) >= LARGE:
            about |= {
                "X-Linked-Size": str(len(body)),
                "X-Linked-ETag": about["ETag"],
                "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{kind}/{name}/{commit}/{path}",
            }
            self._send(302, b"", about)
        else:
            self._send(200, body, about)

    def _cdn(self, kind: str, name: str, commit: str, path: str) -> None:
        repo = self.hub.find(kind, name)
        body = repo.commits[commit][path]
        about = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), int(match[2] or len(body) - 1)
            about["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            body = body[start : end + 1]
        if repo.cut and self.command == "GET":
            repo.cut -= 1
            self.send_response(206 if "Content-Range" in about else 200)
            for header, value in {**about, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self._send(206 if "Content-Range" in about else 200, body, about)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(name: str, body: bytes) -> dict[str, Any]:
    sha = hashlib.sha256(body).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
    if len(body) >= LARGE:
        entry["lfs"] = {"oid": sha, "size": len(body), "pointerSize": 130}
    return entry


def _folders(files: dict[str, bytes]) -> list[dict[str, Any]]:
    names = sorted({n.rpartition("/")[0] for n in files if "/" in n})
    return [{"type": "directory", "path": n, "size": 0, "oid": hashlib.sha1(n.encode()).hexdigest()} for n in names]
