# SPDX-License-Identifier: Apache-2.0
"""The whole server as one ASGI app, for any server of such, for tests and for Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from .. import _core
from . import anthropic, native, ollama, openai, responses, scores, static
from .fields import Refused
from .guard import Guard
from .http import ErrorBody, json_response, openai_error, refusal
from .service import Service

TIDY_SECONDS = 15.0  # between two times that memory is given back
DIALECTS = (openai, responses, anthropic, ollama, native, scores)


def create_app(
    service: Service,
    *,
    keys: Iterable[str] = (),
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    public: bool = False,
) -> ASGIApp:
    """An app that serves; `Guard` says what the rest means.

    The service begins with the app's lifespan and ends with it.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        tidying = asyncio.create_task(tidy())
        yield
        tidying.cancel()
        await asyncio.to_thread(service.stop)

    async def health(_: HttpRequest) -> Response:
        if service.ready:
            return json_response({"status": "ok"})
        return refusal(Refused(503, "the server is not ready", kind="server_error"))

    async def not_found(http: HttpRequest, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        text, code = "no such path", "not_found"
        if status == 405:
            text, code = "no such method for this path", "method_not_allowed"
        return refusal(Refused(status, text, code=code), words(http.url.path))

    routes: list[BaseRoute] = [
        Route(path, health, methods=["GET"]) for path in ("/health", "/v1/health")
    ]
    for dialect in DIALECTS:
        routes += dialect.routes(service)
    routes += static.routes()
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={404: not_found, 405: not_found},
    )
    return Guard(app, keys=keys, hosts=hosts, origins=origins, public=public, words=words)


async def tidy() -> None:
    """Now and then give back memory: of what many threads need for a moment, glibc keeps most."""
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        await asyncio.to_thread(_core.give_back_memory)


def words(path: str) -> ErrorBody:
    """How errors of a path are written, where no handler does it."""
    for paths, body in ((anthropic.PATHS, anthropic.error_body), (ollama.PATHS, ollama.error_body)):
        if any(path == each or path.startswith(f"{each}/") for each in paths):
            return body
    return openai_error
