"""A Hub on the loopback interface: enough of its HTTP interface for huggingface_hub to create, upload and download.

with Hub() as hub:                      # a free port; stopped at the end
    hub.commit("user/repo", {"file": b"content"})
    ...  # in another process, with HF_ENDPOINT=hub.url and HF_HUB_DISABLE_XET=1 from the start
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

Client = Callable[..., Any]
"""Calls a function in a process whose Hub this is."""


@dataclass
class Repo:
    """The commits of a repo, each with all its files, and what its branches and tags point to."""

    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.refs.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        url: what HF_ENDPOINT must be.
        repos: by name; that of a data set begins with `datasets/`.
        requests: method and path of every request so far.
    """

    TOKEN = "hf_member"
    """The token of a user who may see gated repos."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def commit(self, name: str, files: dict[str, bytes], revision: str = "main", gated: bool = False) -> str:
        """Add files to a repo, made if need be, and return the commit."""
        repo = self.repos.setdefault(name, Repo(gated))
        before = repo.files(revision)
        files = {**(before[1] if before else {}), **files}
        sha = hashlib.sha1(repr((name, len(repo.commits), sorted(files.items()))).encode()).hexdigest()
        repo.commits[sha], repo.refs[revision] = files, sha
        return sha


def _entry(path: str, content: bytes) -> dict[str, object]:
    """A file as the Hub lists it."""
    return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": path}


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code)

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that is asked for; answers with the error if there is none."""
        repo = self.server.repos.get(name)
        if repo is None:
            self._error(404, "RepoNotFound")
        elif repo.gated and self.headers.get("Authorization") != f"Bearer {Hub.TOKEN}":
            self._error(403, "GatedRepo")
        elif (found := repo.files(revision)) is None:
            self._error(404, "RevisionNotFound")
        else:
            return found
        return None

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {unquote(path)}")
        if resolve := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            name, revision, filename = map(unquote, resolve.groups())
            if (found := self._found(name, revision)) is None:
                return
            sha, files = found
            if filename not in files:
                self._error(404, "EntryNotFound")
                return
            etag = hashlib.sha1(files[filename]).hexdigest()
            self._answer(200, files[filename], X_Repo_Commit=sha, ETag=f'"{etag}"')
        elif tree := re.fullmatch(r"/api/(datasets/.+?/.+?)/tree/([^/]+)/?(.*)", path):
            name, revision, folder = map(unquote, tree.groups())
            if (found := self._found(name, revision)) is not None:
                self._answer(200, [_entry(f, found[1][f]) for f in found[1] if f.startswith(folder)])
        elif info := re.fullmatch(r"/api/(?:models/)?(.+?)(?:/revision/(.+))?", path):
            name, revision = unquote(info[1]), unquote(info[2] or "main")
            if path == "/api/whoami-v2":
                self._answer(200, {"name": "user", "type": "user", "orgs": []})
            elif (found := self._found(name, revision)) is not None:
                siblings = [{"rfilename": filename} for filename in found[1]]
                self._answer(200, {"id": name, "modelId": name, "sha": found[0], "siblings": siblings})
        else:
            self._error(404, "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"POST {path}")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/repos/create":
            wanted = json.loads(content)
            name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            if name in self.server.repos:
                self._answer(409, {"error": "exists", "url": f"{self.server.url}/{name}"})
            else:
                self.server.commit(name, {".gitattributes": b""})
                self._answer(200, {"url": f"{self.server.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif wanted := re.fullmatch(r"/api/(datasets/.+?)/paths-info/(.+)", path):
            if (found := self._found(*wanted.groups())) is not None:
                asked = [unquote(f) for key, f in parse_qsl(content.decode()) if key == "paths"]
                self._answer(200, [_entry(f, found[1][f]) for f in asked if f in found[1]])
        elif preupload := re.fullmatch(r"/api/models/(.+?)/preupload/(.+)", path):
            if self._found(*preupload.groups()) is not None:
                asked = [file["path"] for file in json.loads(content)["files"]]
                answer = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
                self._answer(200, {"files": answer})
        elif commit := re.fullmatch(r"/api/models/(.+?)/commit/(.+)", path):
            if self._found(*commit.groups()) is not None:
                entries = [json.loads(line) for line in content.splitlines()]
                files = {
                    e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"
                }
                sha = self.server.commit(commit[1], files, commit[2])
                url = f"{self.server.url}/{commit[1]}/commit/{sha}"
                self._answer(200, {"commitUrl": url, "commitOid": sha, "success": True})
        else:
            self._error(404, "EntryNotFound")
