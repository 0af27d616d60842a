"""A hub on 127.0.0.1 that speaks what huggingface_hub asks for: info, tree, resolve with ETag, commit and Range."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by name: files by path; and what should go wrong."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range) of everything asked."""
    break_after: dict[str, int] = field(default_factory=dict)
    """Path -> the connection drops after so many bytes of each answer."""
    budget: dict[str, int] = field(default_factory=dict)
    """Path -> bytes that are sent in all before it goes silent."""
    corrupt: set[str] = field(default_factory=set)
    """Paths whose content has a byte flipped on the way."""

    def add(self, repo: str, folder: Path) -> None:
        self.repos[repo] = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    def sent(self, suffix: str) -> list[str | None]:
        """Range of every GET of files ending so."""
        return [where for method, path, where in self.requests if method == "GET" and path.endswith(suffix)]


def _is_big(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def _etag(path: str, content: bytes) -> str:
    if _is_big(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith("api/models/"):
            return self.api(path.removeprefix("api/models/").split("/"))
        parts = path.split("/")
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        if repo not in self.hub.repos:
            return self.refuse("RepoNotFound")
        if name not in self.hub.repos[repo]:
            return self.refuse("EntryNotFound")
        return self.file(name, self.hub.repos[repo][name], body)

    def api(self, parts: list[str]) -> None:
        repo = "/".join(parts[:2])
        if repo not in self.hub.repos:
            return self.refuse("RepoNotFound")
        files = self.hub.repos[repo]
        if parts[2:3] == ["tree"]:
            rows = []
            for name, content in files.items():
                row = {"type": "file", "path": name, "size": len(content), "oid": _etag("", content)}
                if _is_big(name):
                    row["lfs"] = {"oid": _etag(name, content), "size": len(content), "pointerSize": 130}
                rows.append(row)
            return self.send(json.dumps(rows).encode())
        siblings = [{"rfilename": name} for name in files]
        return self.send(json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}).encode())

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def file(self, name: str, content: bytes, body: bool) -> None:
        etag, start, end = _etag(name, content), 0, len(content)
        if name in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = self.headers.get("Range")
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1 if last else end, end)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if not body:
            return
        limit = self.hub.break_after.get(name)
        if name in self.hub.budget:
            limit = min(self.hub.budget[name], end - start)
            self.hub.budget[name] -= limit
        if limit is not None and limit < end - start:
            self.wfile.write(content[start : start + limit])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(content[start:end])


@contextmanager
def serve() -> Iterator[Hub]:
    """An empty hub while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
