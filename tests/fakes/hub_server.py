"""A small Hugging Face hub on loopback, for the real client: repositories, gates, revisions, ranges, connections that are cut."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "a" * 40


@dataclass
class Repository:
    """A repository of the hub.

    Attributes:
        files: the bytes of each file, by name.
        gate: "" for everyone; "gated" refuses all, "private" hides it.
        revisions: the names that lead to its one commit.
        private: only those who are logged in see it.
        message: of the last upload.
    """

    files: dict[str, bytes]
    gate: str = ""
    revisions: tuple[str, ...] = ("main", COMMIT)
    private: bool = False
    message: str = ""


@dataclass
class Hub:
    """The hub.

    Attributes:
        url: its address.
        repositories: by kind and name, such as "models/a/b".
        cut: bytes after which each connection that sends a file is cut; None for never.
        requests: "GET path" of each request, in order.
        sent: bytes of files that were sent, by path.
        status: a status that answers everything, such as 503; None for none.
        token: what a client that uploads must send.
        writable: whether the token may write.
        links: if not None, files are on another server, behind links that the hub signs and that stand for one connection; the
            path of each link's file, or "" once it has expired.
        large: files in Git LFS by the hash of their content, which an upload sends before its commit.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    cut: int | None = None
    requests: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    token: str = "hf_token"
    writable: bool = True
    links: list[str] | None = None
    large: dict[str, bytes] = field(default_factory=dict)

    def add(self, name, files, kind="models", **settings):
        """Add a repository from a folder, or from the bytes of its files."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        self.repositories[f"{kind}/{name}"] = Repository(dict(files), **settings)
        return self.repositories[f"{kind}/{name}"]


class Refused(Exception):
    """A status and the code that the client knows it by."""


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does; `hub` is set by `serve`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing."""

    def do_HEAD(self):
        """As GET, without a body."""
        self.do_GET()

    def do_POST(self):
        """An upload's requests, as GET."""
        self.do_GET()

    def do_PUT(self):
        """The content of a large file."""
        self.do_GET()

    def do_GET(self):
        """Answer one request."""
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if self.hub.status is not None:
                raise Refused(self.hub.status, "")
            body = self._body()
            if self.command in ("POST", "PUT") or path == "api/whoami-v2":
                self._upload(path, body)
            elif path.startswith("api/"):
                self._api(path.removeprefix("api/"))
            elif path.startswith("signed/"):
                self._signed(int(path.removeprefix("signed/")))
            elif self.hub.links is not None:
                self._link(path)
            else:
                self._send(self._content(path), path)
        except Refused as refusal:
            status, code = refusal.args
            self._answer(status, b"{}", {"X-Error-Code": code} if code else {})

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _upload(self, path, body):
        """Who one is, a new repository, and the three steps of an upload: modes of files, large files, the commit."""
        if path.startswith("lfs/"):
            self.hub.large[path.removeprefix("lfs/")] = body
            return self._answer(200, b"{}")
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            raise Refused(401, "")
        if path == "api/whoami-v2":
            return self._answer(200, b'{"name": "me", "type": "user", "orgs": []}')
        if not self.hub.writable:
            raise Refused(403, "")
        return self._answer(200, json.dumps(self._written(path, body)).encode())

    def _written(self, path, body):
        if path == "api/validate-yaml":
            return {"warnings": [], "errors": []}
        if path == "api/repos/create":
            entry = json.loads(body)
            name = f"{entry.get('organization') or 'me'}/{entry['name'].rpartition('/')[2]}"
            private = entry.get("private", entry.get("visibility") == "private")  # by earlier and by newer clients
            self.hub.repositories.setdefault(f"models/{name}", Repository({}, private=private))
            return {"url": f"{self.hub.url}/{name}"}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}} for o in objects]
            return {"transfer": "basic", "objects": actions}
        repository, (action, *_) = self._repository(path.removeprefix("api/"))
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "regular" if name.endswith(".md") else "lfs" for name in names}
            return {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]}
        for entry in map(json.loads, body.decode().splitlines()):
            value = entry["value"]
            if entry["key"] == "header":
                repository.message = value["summary"]
            elif entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                repository.files[value["path"]] = self.hub.large[value["oid"]]
        name = "/".join(path.split("/")[2:4])
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}

    def _repository(self, path):
        """The repository that a path begins with, and the rest of the path."""
        if path.count("/") < 2:
            raise Refused(404, "")
        kind, owner, name, *rest = path.split("/")
        repository = self.hub.repositories.get(f"{kind}/{owner}/{name}")
        is_known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repository is None or repository.gate == "private" or (repository.private and not is_known):
            raise Refused(404 if is_known else 401, "RepoNotFound")
        return repository, rest

    def _api(self, path):
        repository, rest = self._repository(path)
        if rest[:1] == ["auth-check"]:
            if repository.gate == "gated":
                raise Refused(403, "GatedRepo")
            return self._answer(200, b"{}")
        if len(rest) > 1 and "/".join(rest[1:]) not in repository.revisions:
            raise Refused(404, "RevisionNotFound")
        entries = [
            {"type": "file", "path": name, "rfilename": name, "size": len(content),
             "oid": digest(content), "blobId": digest(content),
             "lfs": {"oid": digest(content), "sha256": digest(content), "size": len(content), "pointerSize": 1}}
            for name, content in repository.files.items()
        ]  # fmt: skip
        info = {
            "id": path,
            "sha": COMMIT,
            "private": repository.private,
            "gated": "auto" if repository.gate == "gated" else False,
            "siblings": entries,
        }
        return self._answer(200, json.dumps(entries if rest[:1] == ["tree"] else info).encode())

    def _link(self, path):
        content = self._content(path)
        link = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/signed/{len(self.hub.links)}"
        self.hub.links.append(path)
        headers = {"Location": link, "X-Linked-ETag": f'"{digest(content)}"', "X-Linked-Size": str(len(content))}
        self._answer(302, b"", {**headers, "X-Repo-Commit": COMMIT})

    def _signed(self, number):
        path = self.hub.links[number]
        if not path or self.headers.get("Authorization"):
            raise Refused(403 if not path else 400, "")
        if self.command == "GET":
            self.hub.links[number] = ""
        _, owner, name, _, _, *rest = f"models/{path}".split("/")
        self._send(self.hub.repositories[f"models/{owner}/{name}"].files["/".join(rest)], path)

    def _content(self, path):
        repository, (_, revision, *rest) = self._repository(path if path.startswith("datasets/") else f"models/{path}")
        if repository.gate == "gated":
            raise Refused(403, "GatedRepo")
        if revision not in repository.revisions:
            raise Refused(404, "RevisionNotFound")
        content = repository.files.get("/".join(rest))
        if content is None:
            raise Refused(404, "EntryNotFound")
        return content

    def _send(self, content, path):
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._answer(206 if begin else 200, content[begin:], headers, path)

    def _answer(self, status, body, headers=(), path=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        part = body if path is None else body[: self.hub.cut]
        self.wfile.write(part)
        if path is not None:
            self.hub.sent[path] = self.hub.sent.get(path, 0) + len(part)
        if len(part) < len(body):
            self.close_connection = True


def digest(content):
    """The hash by which the hub names a content."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serve():
    """A hub on a free port of loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of the test's own, to which this process's client speaks, with an empty cache."""
    from huggingface_hub import constants

    from unlearnbench.storage import hub as hub_module

    with serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(hub_module, "_answers", {})
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield server
