# SPDX-License-Identifier: Apache-2.0
"""The page: a few files of the package, read once, and answered from memory by their names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

FOLDER = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing of another origin, no code but these files, and no text that becomes HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


class PageFile:
    """An endpoint for one file."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._headers = {
            **HEADERS,
            "content-type": TYPES[path.suffix],
            "etag": f'"{hashlib.sha256(self._data).hexdigest()[:32]}"',
        }

    async def answer(self, http: HttpRequest) -> Response:
        marks = http.headers.get("if-none-match", "").split(",")
        if self._headers["etag"] in [mark.strip().removeprefix("W/") for mark in marks]:
            return Response(None, 304, self._headers)
        return Response(self._data, 200, self._headers)


def routes() -> list[BaseRoute]:
    """`/` is index.html, and `/page/NAME` is each of the others."""
    found: list[BaseRoute] = []
    for path in sorted(FOLDER.iterdir()):
        where = "/" if path.name == "index.html" else f"/page/{path.name}"
        found.append(Route(where, PageFile(path).answer, methods=["GET"]))
    return found
