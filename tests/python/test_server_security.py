# SPDX-License-Identifier: Apache-2.0
"""What has happened to servers of models, each as a test that it does not happen here."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from rwkv_edge import Model, cli
from rwkv_edge.cli import serve as cli_serve
from rwkv_edge.server import http as server_http
from rwkv_edge.server import serve
from rwkv_edge.server.guard import Guard, Turns
from rwkv_edge.server.service import Options, Service
from served import PATIENCE, answered, ask, client_of, content, eventually
from starlette.types import Scope

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(Model(threads=1))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with client_of(service, hosts=["house.example"], origins=["https://app.example"]) as client:
        yield client


def error_of(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    assert list(found) == ["message", "type", "param", "code"]
    return found


# ---- whose request it is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.nip.io",
        "localhost.evil.com",
        "",
        "x@localhost:1@evil",
        "[",
        "10.0.0.1",
    ],
)
def test_a_name_that_was_led_here(client: httpx.Client, host: str) -> None:
    """DNS rebinding: a page's own name points to this machine."""
    for path in ("/v1/models", "/health"):
        assert client.get(path, headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:99", "[::1]:99", "house.example", "LOCALHOST"]
)
def test_names_of_this_server(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_a_public_server_is_called_by_its_address() -> None:
    with client_of(Service(Model(threads=1)), public=True) as client:
        for host, status in (("10.0.0.1", 200), ("[fd00::1]:8080", 200), ("evil.example", 403)):
            assert client.get("/v1/models", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "text/plain;application/json"}, 415),
        # what LiteLLM sends, and what a page could send in the same way without asking first
        ({}, 200),
        ({"content-type": ""}, 200),
        ({"content-type": "application/octet-stream"}, 200),
        ({"origin": "https://app.example"}, 415),
        ({"content-type": "", "origin": "https://app.example"}, 415),
        ({"content-type": "application/octet-stream", "origin": "https://app.example"}, 415),
        ({"origin": "https://evil.example"}, 403),
        ({"referer": "https://evil.example/"}, 415),
        ({"sec-fetch-site": "same-site"}, 415),
        ({"sec-fetch-mode": "no-cors"}, 415),
        ({"sec-fetch-dest": "empty"}, 415),
        ({**JSON, "origin": "https://evil.example"}, 403),
        ({**JSON, "origin": "null"}, 403),
        ({**JSON, "origin": "http://["}, 403),
        ({**JSON, "sec-fetch-site": "cross-site"}, 403),
        ({**JSON, "origin": "https://app.example"}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "Application/JSON"}, 200),
        (JSON, 200),
    ],
    ids=str,
)
def test_a_page_of_another_site(
    client: httpx.Client, service: Service, headers: dict[str, str], status: int
) -> None:
    """It is refused before anything is done, not only kept from reading the answer."""
    before = service.scheduler.counts.requests
    found = client.post(CHAT, content=json.dumps(ask("Hello!")), headers=headers)
    assert found.status_code == status
    assert service.scheduler.counts.requests - before == (status == 200)
    expected = "https://app.example" if headers.get("origin") == "https://app.example" else None
    assert found.headers.get("access-control-allow-origin") == expected


def test_the_page_of_this_server(client: httpx.Client) -> None:
    own = {"origin": f"http://{client.base_url.host}:{client.base_url.port}"}
    assert client.get("/v1/models", headers=own).status_code == 200


def test_what_a_browser_asks_first(service: Service) -> None:
    """It carries no key."""
    ask_first = {"access-control-request-method": "POST"}
    guard = {"keys": ["a secret key"], "origins": ["https://app.example"]}
    with client_of(Service(service.model), **guard) as client:
        for origin, status in (("https://app.example", 204), ("https://evil.example", 403)):
            found = client.options(CHAT, headers={**ask_first, "origin": origin})
            assert found.status_code == status
            assert ("access-control-allow-origin" in found.headers) == (status == 204)


def test_keys(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared in constant time, each with every known one."""
    compared: list[int] = []
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    with client_of(Service(service.model), keys=["the first key", "the second key"]) as client:
        for path in ("/v1/models", "/models", "/metrics", "/props", "/v1/states", "/v1/nothing"):
            found = client.get(path)
            assert found.status_code == 401, path
            assert error_of(found)["type"] == "authentication_error"
        assert compared == []
        for given in ("Bearer the first key", "bearer the second key"):
            assert client.get("/v1/models", headers={"authorization": given}).status_code == 200
        assert client.get("/v1/models", headers={"x-api-key": "the first key"}).status_code == 200
        assert compared == [32] * 6
        for wrong in ("the first ke", "the first key2", ".", "é"):
            header = {b"authorization": f"Bearer {wrong}".encode()}
            assert client.get("/v1/models", headers=header).status_code == 401
        twice = [("x-api-key", "the first key"), ("x-api-key", "another")]
        assert client.get("/v1/models", headers=twice).status_code == 400
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "house.example"])
def test_beyond_this_machine_a_key_is_needed(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RWKV_EDGE_API_KEY", raising=False)
    found = CliRunner().invoke(cli.main, ["serve", "--host", host])
    assert found.exit_code == 2
    assert "--no-key" in found.stderr


def test_where_keys_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never from the command line, which every user of the machine can read."""
    options = [name for option in cli_serve.serve.params for name in option.opts]
    assert [name for name in options if "key" in name] == ["--api-key-file", "--no-key"]
    path = tmp_path / "keys"
    path.write_text("# mine\nfirst-key\n\n  second-key \n")
    assert cli_serve.read_keys(path) == ["first-key", "second-key"]
    monkeypatch.setenv("RWKV_EDGE_API_KEY", "from-the-environment")
    assert cli_serve.read_keys(None) == ["from-the-environment"]
    path.write_text("short\n")
    with pytest.raises(ValueError, match=r"keys: a key is shorter than 8"):
        cli_serve.read_keys(path)
    path.write_text("# none\n")
    with pytest.raises(ValueError, match="holds no key"):
        cli_serve.read_keys(path)


# ---- what a request may say ---------------------------------------------------------------------


VALUES: dict[str, list[Any]] = {
    "temperature": [-1, "1", True, 1e999, 10**400, [], {}],
    "top_p": [1.5, "a"],
    "top_k": [-2, 1.5, 2**40],
    "max_tokens": [-1, 10**12, 1.5, True, "5"],
    "n": [0, -1, 10**6, True],
    "seed": [1.5, "x", 10**400],
    "logit_bias": [
        *({"-1": 1}, {"99999999": 1}, {"a": 1}, {"1": "x"}, {"1": 1e9}, []),
        {str(i): 0 for i in range(1025)},
    ],
    "stop": [["x"] * 17, "x" * 257, [1], 5],
    "stop_token_ids": [[-1], [10**9], ["1"], [True], 1],
    "top_logprobs": [21, -1],
    "presence_penalty": [1e9, "a"],
    "min_tokens": [-1, 1e300],
    "timeout": [-1, "x"],
    "stream": [1, "true"],
    "state": [5, "x" * 65, "../../etc/passwd", "st_0", "st_" + "a" * 22],
    "tools": [
        *(5, [5], [{}], [{"function": {"name": 5}}], [{"function": {}}]),
        [{"function": {"name": f"f{i}"}} for i in range(129)],
        [{"function": {"name": "f", "parameters": {"type": "array"}}}],
        [{"function": {"name": "f", "description": "x" * 70_000}}],
    ],
    "response_format": [
        *(5, {"type": "xml"}, {"type": "json_schema"}),
        {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}},
        {"type": "json_schema", "json_schema": {"schema": {"const": "x" * 70_000}}},
    ],
    "reasoning_effort": ["much", 5],
    "user_name": ["a\n\nSystem", "{}", "", "x" * 65],
    "guided_regex": ["(", 5],
    "chat_template_kwargs": [5, {"enable_thinking": "yes"}],
    "messages": [
        *(None, 5, [], [5], [{}], [{"role": "x"}], [{"role": "user"}] * 4097),
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": "a", "prefix": True}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}],
    ],
}
WRONG = [(name, value) for name, values in VALUES.items() for value in values]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda x: repr(x)[:40])
def test_a_value_out_of_range(client: httpx.Client, name: str, value: Any) -> None:
    body = {**ask("Hello!", max_tokens=1, logprobs=name == "top_logprobs"), name: value}
    found = client.post(CHAT, content=json.dumps(body), headers=JSON)
    assert found.status_code in (400, 404), found.text
    error = error_of(found)
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 700


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", "\\1" * 99])
def test_a_pattern_that_is_none(client: httpx.Client, pattern: str) -> None:
    for found in with_pattern(client, pattern):
        assert found.status_code == 400, found.text
        assert error_of(found)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "pattern", ["a{1000000000}", "(a{1000}){1000}", "(.*a){300}", "(a|aa)*" * 50]
)
def test_a_pattern_that_is_large(client: httpx.Client, pattern: str) -> None:
    """It is written, or found too large, and the engine goes on."""
    for found in with_pattern(client, pattern):
        assert found.status_code in (200, 400), found.text


def with_pattern(client: httpx.Client, pattern: str) -> list[httpx.Response]:
    """In a tool and in a form."""
    schema = {
        "type": "object",
        "properties": {"x": {"type": "string", "pattern": pattern}},
        "required": ["x"],
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    return [
        client.post(CHAT, json=ask("Hello!", max_tokens=30, **fields))
        for fields in ({"tools": [tool], "tool_choice": "required"}, {"response_format": form})
    ]


def test_the_server_is_well_after_all_that(client: httpx.Client, service: Service) -> None:
    assert content(answered(client, CHAT, ask("Hello!")))
    assert service.scheduler.counts.failed == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b'"a"', b"{'a': 1}", b'{"a": NaN}', b'{"a": -Infinity}', b"\xff{}",
     b'{"a": ["\\uD800"]}', b'{"\\ud800": 1}', b'{"a": "\xed\xa0\x80"}',
     '{"a": 1}'.encode("utf-16"),
     b'{"a": "' + b"[" * 1000 + b'"}', b'{"a":' * 100_000, b"[" * 1_000_000,
     b'{"a": ' + b"9" * 10_000 + b"}"],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_a_body_that_is_no_json(client: httpx.Client, body: bytes) -> None:
    found = client.post(CHAT, content=body, headers=JSON)
    assert found.status_code == 400
    assert error_of(found)["type"] == "invalid_request_error"


def test_a_body_that_is_too_large(client: httpx.Client) -> None:
    said = {**JSON, "content-length": str(1 << 40)}
    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:  # type: ignore[arg-type]
        lines = [
            f"POST {CHAT} HTTP/1.1",
            "host: localhost",
            *(f"{k}: {v}" for k, v in said.items()),
        ]
        raw.sendall("\r\n".join([*lines, "", ""]).encode())
        assert b" 413 " in raw.recv(100)
    endless = (b" " * (1 << 20) for _ in range(64))
    # unless it is cut off while it is sent
    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):
        assert client.post(CHAT, content=endless, headers=JSON).status_code == 413


def test_a_text_that_is_too_long(client: httpx.Client) -> None:
    with client_of(Service(Model(threads=1), Options(max_prompt=20))) as small:
        found = small.post(CHAT, json=ask("word " * 30))
        assert found.status_code == 400
        assert error_of(found)["code"] == "context_length_exceeded"
        assert small.post("/v1/embeddings", json={"input": "word " * 30}).status_code == 400
    assert client.post(CHAT, json=ask("x" * (5 << 20))).status_code in (400, 413)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, ask("Hello!", max_tokens=1)),
        (COMPLETIONS, {"prompt": "Hello!", "max_tokens": 1}),
        ("/v1/embeddings", {"input": "Hello!"}),
        ("/v1/scores", {"continuation": "Hello!"}),
        ("/v1/states", {"prompt": "Hello!"}),
        ("/tokenize", {"prompt": "Hello!"}),
    ],
    ids=str,
)
def test_a_long_text_holds_nobody_up(
    client: httpx.Client,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    """Turning it into tokens takes a while, and others are answered meanwhile."""
    encode, begun, go_on = service.composer._encode, threading.Event(), threading.Event()

    def slow(text: str) -> list[int]:
        begun.set()
        assert go_on.wait(PATIENCE)
        return encode(text)

    monkeypatch.setattr(service.composer, "_encode", slow)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answered, client, path, body)
        try:
            assert begun.wait(PATIENCE)
            assert client.get("/health", timeout=PATIENCE / 2).status_code == 200
            assert not waiting.done()
        finally:
            go_on.set()
        waiting.result(PATIENCE)


def test_no_request_names_a_path(client: httpx.Client, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("something")
    for path in (f"/v1/states/{secret}", "/v1/states/..%2f..%2fetc%2fpasswd/file",
                 "/v1/states/../../etc/passwd", f"/v1/models/{secret}"):  # fmt: skip
        found = client.get(path)
        assert found.status_code == 404, path
        assert "something" not in found.text
        assert str(tmp_path) not in found.text
    for path in ("/v1/update-config", "/models/load", "/slots/0?action=save", "/api/create"):
        assert client.post(path, json={"filename": str(secret)}).status_code in (404, 405), path
    assert client.get("/slots").status_code == 404
    assert client.put("/v1/models", json={}).status_code == 405


def test_parts_of_a_file(client: httpx.Client) -> None:
    """Many ranges of a file cost a server more than the client."""
    id = answered(client, "/v1/states", {"prompt": "a"})["id"]
    path = f"/v1/states/{id}/file"
    ranges = {"range": f"bytes={','.join(f'{i}-' for i in range(1000))}"}
    assert client.get(path, headers=ranges).content == client.get(path).content


def test_the_server_calls_nobody(client: httpx.Client) -> None:
    """No picture is fetched, no model is pulled, no other server is asked."""
    called: list[Any] = []
    watching = [True]  # a hook cannot be taken back
    own = client.base_url.port

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching and event in ("socket.connect", "socket.getaddrinfo"):
            address = args[1] if event == "socket.connect" else args
            if not (isinstance(address, tuple) and own in address):
                called.append((event, address))

    sys.addaudithook(hook)
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    body = {"messages": [{"role": "user", "content": [picture]}]}
    found = client.post(CHAT, json=body)
    assert found.status_code == 400
    assert "text; this model reads nothing else" in error_of(found)["message"]
    assert client.post("/api/pull", json={"model": "http://127.0.0.1:9/x"}).status_code == 404
    answered(client, CHAT, ask("http://127.0.0.1:9/", chat_template="http://127.0.0.1:9/"))
    watching.clear()
    assert called == []


def test_no_template_of_a_request_is_run(client: httpx.Client) -> None:
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    plain = answered(client, CHAT, ask("Hello!"))
    found = answered(client, CHAT, ask("Hello!", chat_template=evil, template=evil))
    assert found["choices"] == plain["choices"]
    text = answered(client, "/tokenize", {"prompt": evil})
    assert answered(client, "/detokenize", {"tokens": text["tokens"]})["content"] == evil


# ---- slowness -----------------------------------------------------------------------------------


def connected(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), PATIENCE)  # type: ignore[arg-type]


def test_half_a_header(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that says nothing, or half of what it wants, is closed (slow-loris)."""
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.2)
    for half in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: "):
        with connected(client) as raw:
            raw.sendall(half)
            assert raw.recv(1) == b""
    # one that was answered may stay a while, and then goes too
    with connected(client) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        data = b""
        while part := raw.recv(4096):
            data += part
        assert data.startswith(b"HTTP/1.1 200")


def test_an_answer_may_take_longer(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.05)
    body = {"prompt": "Once", "ignore_eos": True, "max_tokens": 1 << 20, "timeout": 0.5}
    assert answered(client, COMPLETIONS, body)["choices"][0]["finish_reason"] == "length"


def test_a_body_that_never_ends(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_http, "BODY_SECONDS", 0.2)
    with connected(client) as raw:
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            "content-length: 100\r\n\r\n{".encode()
        )
        assert b" 408 " in raw.recv(100)


def test_half_a_body(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    """Its sender goes away: nothing has failed."""
    caplog.set_level(logging.INFO, "rwkv_edge.server")
    with connected(client) as raw:
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            "content-length: 100\r\n\r\n{".encode()
        )
    eventually(lambda: f"POST {CHAT} 499" in caplog.text)
    assert "failed" not in caplog.text


def test_many_at_once_take_turns() -> None:
    """What the loop has to do besides is done before the last of them begins."""
    begun: list[str] = []

    async def app(scope: Scope, *_: object) -> None:
        begun.append(scope["path"])

    async def arrive(guard: Guard, path: str) -> None:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        await guard(scope, None, None)  # type: ignore[arg-type]

    async def storm() -> None:
        guard = Guard(app)
        many = [asyncio.create_task(arrive(guard, CHAT)) for _ in range(100)]
        many[0].cancel()  # its client is gone
        await asyncio.sleep(0)
        await arrive(guard, "/health")
        await asyncio.wait(many)

    asyncio.run(storm())
    assert begun.count(CHAT) == 99
    assert begun.index("/health") <= 2 * Turns.AT_ONCE


def test_too_many_connections(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MOST_CONNECTIONS", 3)
    with client_of(Service(service.model)) as client, contextlib.ExitStack() as stack:
        assert client.get("/health").status_code == 200
        idle = [stack.enter_context(connected(client)) for _ in range(3)]
        eventually(lambda: client.get("/health").status_code == 503)
        for each in idle:
            each.close()
        eventually(lambda: client.get("/health").status_code == 200)


def test_a_huge_header(client: httpx.Client) -> None:
    # unless it is closed while it is sent
    with connected(client) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 200_000)
        raw.sendall(b"\r\n\r\n")
        assert b" 400 " in raw.recv(100)
    assert client.get("/health").status_code == 200


# ---- what is left behind ------------------------------------------------------------------------


def test_logs_hold_no_text(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    with client_of(Service(service.model), keys=["the-secret-key"]) as client:
        key = {"authorization": "Bearer the-secret-key"}
        found = answered(client, CHAT, ask("My secret is Rumpelstilzchen."), **key)
        client.post(CHAT, content=b'{"Rumpelstilzchen": ', headers={**JSON, **key})
        client.get("/v1/models/Rumpelstilzchen", headers=key)

        def fail(*_: Any) -> None:
            raise RuntimeError("Rumpelstilzchen")

        monkeypatch.setattr("rwkv_edge.server.openai.read_sampling", fail)
        failed = client.post(CHAT, json=ask("Rumpelstilzchen"), headers=key)
        assert failed.status_code == 500
        assert error_of(failed)["message"] == "the server failed"
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert any(f"POST {CHAT} 200" in line for line in ours)
    assert any("GET /v1/models/* 404" in line for line in ours)
    text = "\n".join(ours)
    assert "RuntimeError" in text
    assert "Rumpelstilzchen" not in text
    assert "the-secret-key" not in text
    assert content(found) not in text
