# SPDX-License-Identifier: Apache-2.0
"""A server on a free port of this machine, and clients for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from rwkv_edge.server.app import create_app
from rwkv_edge.server.serve import listen, server_of
from rwkv_edge.server.service import Service

PATIENCE = 60.0  # seconds until something must have happened, however busy the machine is


@contextmanager
def serving(service: Service, **guard: Any) -> Iterator[str]:
    """The address, while it serves; `guard` is for `create_app`."""
    server = server_of(create_app(service, **guard))
    with listen("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            eventually(lambda: server.started)
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def client_of(service: Service, **guard: Any) -> Iterator[httpx.Client]:
    with serving(service, **guard) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        yield client


def eventually(check: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.002)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    """A chat request with one question."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def answered(client: httpx.Client, path: str, body: Any, **headers: str) -> dict[str, Any]:
    """The JSON of an answer that must be right."""
    response = client.post(path, json=body, headers=headers)
    assert response.status_code in (200, 201), response.text
    found: dict[str, Any] = response.json()
    return found


def content(found: dict[str, Any], index: int = 0) -> str:
    """The text of a chat's answer."""
    text: str = found["choices"][index]["message"]["content"]
    return text


def events(data: bytes) -> list[Any]:
    """Of a stream, as a strict client reads it: LF, a blank line behind each."""
    assert b"\r" not in data
    assert data.endswith(b"\n\n")
    lines = [part for part in data.decode().split("\n\n") if part and not part.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    return [x if (x := line[6:]) == "[DONE]" else json.loads(x) for line in lines]


def streamed(client: httpx.Client, path: str, body: Any) -> list[Any]:
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events(response.content)
