# SPDX-License-Identifier: Apache-2.0
"""A hub on this machine, which can cut, lie, redirect and refuse."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class FakeHub:
    """What it holds and how it misbehaves. `headers` replace those of an answer; None leaves one
    out."""

    files: dict[str, bytes]
    repo: str = "org/repo"
    url: str = ""
    listing: list[dict[str, Any]] | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    cut: int | None = None  # bytes after which the connection ends
    extra: bytes = b""  # behind the file
    ranges: bool = True
    content_range: str | None = None
    elsewhere: str | None = None  # where the bytes are said to be
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # before all else
    token: str | None = None  # that is needed
    gate: threading.Event | None = None  # opened before the second half is sent
    seen: list[Seen] = field(default_factory=list)

    def gets(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "GET" and "/api/" not in seen.path]

    def ranges_asked(self) -> list[str | None]:
        return [seen.headers.get("range") for seen in self.gets()]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        own = {name.lower(): value for name, value in self.headers.items()}
        hub.seen.append(Seen(self.command, self.path, own))
        self.close_connection = True
        if hub.refusals:
            return self._send(*hub.refusals.pop(0), b"")
        if hub.token is not None and own.get("authorization") != f"Bearer {hub.token}":
            return self._send(401, {"X-Error-Code": "GatedRepo"}, b"")
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path.startswith((f"/api/models/{hub.repo}/tree/", f"/api/v1/models/{hub.repo}/")):
            return self._send(
                200, {}, json.dumps(self._listing(path, parse_qs(url.query))).encode()
            )
        for before in (f"/{hub.repo}/resolve/", f"/models/{hub.repo}/resolve/"):
            if path.startswith(before):
                return self._file(path.removeprefix(before).partition("/")[2], own.get("range"))
        return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")

    def _listing(self, path: str, query: dict[str, list[str]]) -> Any:
        files = self.hub.files.items()
        if path.startswith("/api/v1/"):
            assert query["Revision"] == ["master"]
            found = [
                {"Path": name, "Size": len(data), "Type": "blob", "Sha256": sha256(data)}
                for name, data in files
            ]
            return {"Code": 200, "Data": {"Files": self.hub.listing or found}}
        return self.hub.listing or [
            {"type": "file", "path": name, "size": len(data)} for name, data in files
        ]

    def _file(self, name: str, asked: str | None) -> None:
        hub = self.hub
        data = hub.files.get(name)
        if data is None:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        headers: dict[str, str | None] = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{sha256(data)}"',
        }
        headers |= hub.headers
        if hub.elsewhere is not None:
            return self._send(302, headers | {"Location": hub.elsewhere}, b"")
        if asked is None or not hub.ranges:
            return self._send(200, headers, data + hub.extra)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = hub.content_range or f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(206, headers, data[start:] + hub.extra)

    def _send(self, code: int, headers: Any, data: bytes) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        data = data[: self.hub.cut]
        half = len(data) // 2
        self.wfile.write(data[:half])
        if self.hub.gate is not None:
            self.hub.gate.wait(60)
        try:
            self.wfile.write(data[half:])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    handler = type("Own", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        if hub.gate is not None:
            hub.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
