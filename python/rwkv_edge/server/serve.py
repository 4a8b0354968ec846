# SPDX-License-Identifier: Apache-2.0
"""The app on a socket: uvicorn, with timers that it lacks."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0
"""From a connection's beginning, or the end of its last answer, to the end of the next header."""
MOST_CONNECTIONS = 512
GRACE_SECONDS = 35  # more than the service takes


class TimedProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection which sends no whole header in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self._answering:
            self._stop_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_timer()

    @property
    def _answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _set_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._expired)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        if not self._answering:
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """Raises OSError where that address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(256)
    except BaseException:
        found.close()
        raise
    return found


def server_of(app: ASGIApp) -> uvicorn.Server:
    """A server for `app`, which ends after `should_exit`."""
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=int(HEADER_SECONDS),
    )
    return uvicorn.Server(config)
