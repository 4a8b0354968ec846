# SPDX-License-Identifier: Apache-2.0
"""Calls of an ASGI app in its own process, without a socket: the API for files of requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message

HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]


async def post(app: ASGIApp, path: str, body: Any) -> tuple[int, Any]:
    """The status and the JSON of an answer to `body`, which becomes JSON too."""
    data = json.dumps(body).encode()
    given: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]
    status, found = 500, b""

    async def receive() -> Message:
        if given:
            return given.pop()
        await asyncio.get_running_loop().create_future()  # this client stays until it is answered
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status, found
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            found += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("ascii", "replace"),
        "query_string": b"",
        "root_path": "",
        "headers": [*HEADERS, (b"content-length", str(len(data)).encode())],
        "client": None,
        "server": ("localhost", 80),
    }
    await app(scope, receive, send)
    return status, json.loads(found)
