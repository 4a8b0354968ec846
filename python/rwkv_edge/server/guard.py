# SPDX-License-Identifier: Apache-2.0
"""Who may come in. All of this is decided before any handler runs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .fields import Refused, wrong
from .http import OCTETS, ErrorBody, is_upload, media_type, openai_error, refusal

LOCAL = ("localhost", "127.0.0.1", "::1")
OPEN = ("/health", "/v1/health")
"""Paths that need no key; and whatever is no API (the page)."""
API = ("/v1", "/api", "/chat", "/completions", "/models", "/embeddings", "/tokenize",
       "/detokenize", "/tokenizer_info", "/props", "/metrics", "/states", "/responses",
       "/messages", "/scores")  # fmt: skip
"""Beginnings of paths that need a key, and a body of JSON."""
OF_BROWSERS = (b"origin", b"referer", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest")
"""Headers that come with what a page sends; the first with each of its POSTs."""


class Guard:
    """Checks the Host, the Origin, the key and the kind of the body of each request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Iterable[str] = (),
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        public: bool = False,
        words: Callable[[str], ErrorBody] = lambda _: openai_error,
    ) -> None:
        """Without `keys`, anyone may come in. `hosts` are names of this server beside those of
        loopback; a `public` server also answers to any address in digits. `origins` are those of
        web pages that may use it, beside its own. `words` says how the errors of a path are
        written."""
        self._app = app
        self._digests = [digest(key) for key in keys]
        self._hosts = {*LOCAL, *(host.lower() for host in hosts)}
        self._origins = set(origins)
        self._public = public
        self._words = words
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        origin = one(headers, b"origin")
        allowed = origin if origin in self._origins else None

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"x-content-type-options", b"nosniff"), (b"vary", b"origin")]
                if allowed is not None:
                    extra.append((b"access-control-allow-origin", allowed.encode()))
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            host = one(headers, b"host") or ""
            self._check_host(host)
            if not follows_link(scope, headers):
                self._check_origin(origin, host, one(headers, b"sec-fetch-site"))
            if scope["method"] == "OPTIONS":
                await preflight(scope, receive, send_with)
                return
            scope["rwkv_edge.caller"] = self._caller(scope["path"], headers)
            check_body(scope, headers)
            if scope["path"] not in OPEN:
                await self._turns.wait()
        except Refused as error:
            await refusal(error, self._words(scope["path"]))(scope, receive, send_with)
            return
        await self._app(scope, receive, send_with)

    def _check_host(self, host: str) -> None:
        """Another name means that somebody else's page has been led here (DNS rebinding)."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            name = ""
        if name in self._hosts and name:
            return
        if self._public and is_address(name):
            return
        raise Refused(403, "this server does not answer to that Host; --allowed-host adds one")

    def _check_origin(self, origin: str | None, host: str, site: str | None) -> None:
        if origin is None:
            if site == "cross-site":
                raise Refused(403, "a page of another site may not use this server")
            return
        if origin in self._origins:
            return
        try:
            netloc = urlsplit(origin).netloc
        except ValueError:
            netloc = ""
        if not netloc or netloc.lower() != host.lower():
            raise Refused(403, "a page of another origin may not use this server; --cors-origin")

    def _caller(self, path: str, headers: dict[bytes, list[bytes]]) -> str:
        """Whose request it is: a digest of the key."""
        if not self._digests or path in OPEN or not is_api(path):
            return ""
        given = one(headers, b"authorization")
        key = one(headers, b"x-api-key")
        if given is not None and given[:7].lower() == "bearer ":
            key = given[7:].strip()
        if key is None:
            raise Refused(
                401, "this server needs a key", kind="authentication_error", code="no_api_key"
            )
        found = digest(key)
        # All are compared, and each in the same time.
        if not sum([hmac.compare_digest(found, known) for known in self._digests]):
            raise Refused(
                401, "the key is wrong", kind="authentication_error", code="invalid_api_key"
            )
        return found.hex()[:32]


class Turns:
    """Lets a few requests begin, then whatever else the event loop has to do, then the next few. So
    a hundred that come at once keep nobody's tokens and no look at the health waiting for long."""

    AT_ONCE = 4

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_soon(self._next, loop)
        await turn

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(min(self.AT_ONCE, len(self._waiting))):
            turn = self._waiting.popleft()
            if not turn.done():  # or the client is gone
                turn.set_result(None)
        if self._waiting:
            loop.call_soon(self._next, loop)


def one(headers: dict[bytes, list[bytes]], name: bytes) -> str | None:
    """The value of a header. Raises Refused where it comes twice."""
    found = headers.get(name, [])
    if len(found) > 1:
        raise Refused(400, f"the header {name.decode()} comes {len(found)} times")
    return found[0].decode("latin-1") if found else None


def digest(key: str) -> bytes:
    return hashlib.sha256(b"rwkv-edge key " + key.encode("utf-8", "replace")).digest()


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_api(path: str) -> bool:
    return any(path == each or path.startswith(f"{each}/") for each in API)


def follows_link(scope: Scope, headers: dict[bytes, list[bytes]]) -> bool:
    """Whether somebody goes to the page by a link on another site: its files tell nobody anything,
    and no frame shows it."""
    return (
        scope["method"] == "GET"
        and not is_api(scope["path"])
        and one(headers, b"origin") is None
        and one(headers, b"sec-fetch-mode") == "navigate"
        and one(headers, b"sec-fetch-dest") == "document"
    )


def check_body(scope: Scope, headers: dict[bytes, list[bytes]]) -> None:
    """A page of another site can send a form, a text and a body without a type before a browser
    asks us; JSON is none of them. So a page has to say JSON. Some programs say nothing or octets
    for JSON. That is taken where no header is a browser's; a form or a text never is."""
    if scope["method"] in ("GET", "HEAD", "DELETE"):
        return
    kind = media_type(one(headers, b"content-type"))
    if kind == "application/json" or is_upload(scope["path"], kind):
        return
    if kind in ("", OCTETS) and not any(name in headers for name in OF_BROWSERS):
        return
    raise wrong("content-type", kind, "application/json", status=415)


async def preflight(scope: Scope, receive: Receive, send: Send) -> None:
    """What a browser asks before it sends another origin's request."""
    from starlette.responses import Response

    headers = {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": "authorization, content-type, x-api-key",
        "access-control-max-age": "600",
    }
    await Response(status_code=204, headers=headers)(scope, receive, send)
