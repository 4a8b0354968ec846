# SPDX-License-Identifier: Apache-2.0
"""What every dialect needs of HTTP: bodies with bounds, errors, streams, clients that go away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from .fields import Fields, Refused, read_json
from .request import Caller
from .scheduler import log, report
from .service import Answers, Service

MOST_BODY = 16 << 20  # bytes of JSON
BODY_SECONDS = 60.0
PING_SECONDS = 15.0
GONE = 499  # of a client that did not wait; nobody sees it but the log
STATES = "/v1/states"
OCTETS = "application/octet-stream"

T = TypeVar("T")


@dataclass
class Call:
    """A request at the door of a dialect."""

    http: HttpRequest
    service: Service
    caller: Caller
    body: Fields
    """Empty where the method has none."""

    async def patient(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, unless the client goes away meanwhile: then it is cancelled."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Refused(GONE, "the client went away")
            return task.result()
        finally:
            for each in (task, gone):
                each.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await each

    async def _gone(self) -> None:
        while (await self.http.receive())["type"] != "http.disconnect":
            pass


def json_response(found: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(found), status, headers, "application/json")


def to_json(found: Any) -> bytes:
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def openai_error(error: Refused) -> dict[str, Any]:
    return {
        "error": {
            "message": str(error),
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


ErrorBody = Callable[[Refused], dict[str, Any]]
Handler = Callable[[Call], Awaitable[Response]]


def refusal(error: Refused, body: ErrorBody = openai_error) -> Response:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return json_response(body(error), error.status, headers)


def door(
    service: Service, handler: Handler, error_body: ErrorBody = openai_error
) -> Callable[[HttpRequest], Awaitable[Response]]:
    """An endpoint for a route. What the handler refuses is written by `error_body`."""

    async def enter(http: HttpRequest) -> Response:
        started = time.monotonic()
        try:
            if not service.ready:
                raise Refused(503, "the server is not ready", kind="server_error")
            body = Fields({})
            kind = media_type(http.headers.get("content-type"))
            if http.method == "POST" and not is_upload(http.scope["path"], kind):
                data = await read_body(http, MOST_BODY)
                body = Fields(await off_the_loop(read_json, data))
            caller = Caller(http.scope.get("rwkv_edge.caller", ""))
            response = await handler(Call(http, service, caller, body))
        except Refused as error:
            response = refusal(error, error_body)
        except Exception as error:  # whose text may be somebody's
            report(error)
            response = refusal(Refused(500, "the server failed", kind="server_error"), error_body)
        # No word of what was said, nor what stands in a path for the name of something.
        path: str = http.scope["path"]
        for name in filter(None, http.path_params.values()):
            path = path.replace(name, "*")
        seconds = time.monotonic() - started
        log.info("%s %s %d %.3f s", http.method, path, response.status_code, seconds)
        return response

    return enter


def media_type(header: str | None) -> str:
    """That of a content-type, without its parameters."""
    return (header or "").partition(";")[0].strip().lower()


def is_upload(path: str, kind: str) -> bool:
    """Whether a body is a file. Any other is JSON."""
    return path == STATES and kind == OCTETS


async def off_the_loop(function: Callable[[bytes], T], data: bytes) -> T:
    """Short work here, long work in another thread."""
    return function(data) if len(data) < 1 << 16 else await asyncio.to_thread(function, data)


async def read_body(http: HttpRequest, most: int) -> bytes:
    """Raises Refused for a body that is too large, or comes too slowly."""
    length = http.headers.get("content-length")
    if length is not None and (not length.isdigit() or int(length) > most):
        raise Refused(413, f"the body is larger than {most} bytes")
    parts, size = [], 0

    async def rest() -> bytes:
        nonlocal size
        async for part in http.stream():
            size += len(part)
            if size > most:
                raise Refused(413, f"the body is larger than {most} bytes")
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(rest(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refused(408, "the body did not come in time") from None
    except ClientDisconnect:
        raise Refused(GONE, "the client went away") from None


# ---- streams ------------------------------------------------------------------------------------


async def pinged(chunks: AsyncIterator[bytes], ping: bytes) -> AsyncIterator[bytes]:
    """Chunks; and where none comes for long, a sign of life."""
    waiting: asyncio.Future[bytes] | None = None
    try:
        while True:
            if waiting is None:
                waiting = asyncio.ensure_future(anext(chunks))
            done, _ = await asyncio.wait([waiting], timeout=PING_SECONDS)
            if not done:
                yield ping
                continue
            try:
                chunk = waiting.result()
            except StopAsyncIteration:
                return
            waiting = None
            yield chunk
    finally:
        if waiting is not None:
            waiting.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await waiting


def stream_response(
    answers: Answers,
    chunks: AsyncIterator[bytes],
    *,
    media_type: str,
    ping: bytes,
    broken: Callable[[Refused], bytes],
) -> Response:
    """The chunks of a dialect as they come. `broken` is what ends a stream that fails; a client
    that goes away ends the answers."""

    async def guarded() -> AsyncIterator[bytes]:
        try:
            async for chunk in pinged(chunks, ping):
                yield chunk
        except Refused as error:
            yield broken(error)
        finally:
            answers.close()

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(guarded(), 200, headers, media_type)


async def drained(answers: Answers, events: AsyncIterator[object]) -> None:
    """Let a writer see all of its events, for an answer in one piece."""
    try:
        async for _ in events:
            pass
    finally:
        answers.close()


def sse(found: Any, event: str | None = None) -> bytes:
    """An event of a stream, with LF: some clients know no other."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + to_json(found) + b"\n\n"


def event_stream(
    answers: Answers, chunks: AsyncIterator[bytes], broken: Callable[[Refused], bytes]
) -> Response:
    return stream_response(
        answers, chunks, media_type="text/event-stream", ping=b": ping\n\n", broken=broken
    )
