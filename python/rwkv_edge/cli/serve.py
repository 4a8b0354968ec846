# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge serve`."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import webbrowser
from pathlib import Path
from typing import Any

import click

from .. import _core
from ..chat import TEMPLATES, THINK_MODES
from ..files.form import read_bytes
from .chat import template_named
from .options import FILE, model_and_threads, open_model, vocab_option

MOST_KEYS = 1 << 20  # bytes of the file
LEAST_KEY = 8  # characters
KEYS = "RWKV_EDGE_API_KEY"
SWITCH_SECONDS = 0.0005
"""How long a thread keeps Python from the others. With Python's own 5 ms the thread of the
connections, which gives Python away at each system call, waits too long for its turn."""
SIZE = click.FloatRange(min=0)
NEEDS = "the server needs two packages: pip install 'rwkv-edge[server]'"


@click.command()
@model_and_threads
@vocab_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free."
)
@click.option(
    "--api-key-file",
    type=FILE,
    metavar="FILE",
    help=f"A file with a key in each line. Without it, {KEYS} may hold one.",
)
@click.option("--no-key", is_flag=True, help="Serve beyond this machine without a key.")
@click.option(
    "--allowed-host",
    multiple=True,
    metavar="NAME",
    help="A name by which clients reach this server. Repeatable.",
)
@click.option(
    "--cors-origin",
    multiple=True,
    metavar="ORIGIN",
    help="A web page that may use the server, such as https://app.example. Repeatable.",
)
@click.option("--alias", metavar="NAME", help="What clients call the model. Default: its file.")
@click.option("--strict-model", is_flag=True, help="Refuse requests for another model.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@click.option(
    "--template",
    metavar="NAME|FILE",
    help=f"Format of the turns: {', '.join(TEMPLATES)}, or a file (docs/chat.md).",
)
@click.option(
    "--paragraphs",
    is_flag=True,
    help="Let an answer have several paragraphs, whatever the template says.",
)
@click.option(
    "--think",
    type=click.Choice(THINK_MODES),
    default="off",
    show_default=True,
    help="How long a model thinks where a request does not say, if it was trained to.",
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Length of an answer where a request does not say.",
)
@click.option(
    "--max-prompt",
    type=click.IntRange(min=1),
    default=131072,
    show_default=True,
    metavar="N",
    help="Tokens that a request may have.",
)
@click.option(
    "--max-sessions",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    metavar="N",
    help="Answers that are written at once.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(0, 65536),
    default=128,
    show_default=True,
    metavar="N",
    help="Requests that may wait; others are refused.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Then an answer ends.",
)
@click.option(
    "--cache-memory",
    type=SIZE,
    default=512.0,
    show_default=True,
    metavar="MB",
    help="Memory for beginnings that were read.",
)
@click.option("--cache-dir", type=FILE, metavar="DIR", help="A folder for more of them.")
@click.option(
    "--cache-disk", type=SIZE, default=4096.0, show_default=True, metavar="MB", help="Of it."
)
@click.option(
    "--state-memory",
    type=SIZE,
    default=1024.0,
    show_default=True,
    metavar="MB",
    help="Memory for states that clients store.",
)
@click.option(
    "--state-dir", type=FILE, metavar="DIR", help="A folder in which they outlive the server."
)
@click.option(
    "--state-disk", type=SIZE, default=16384.0, show_default=True, metavar="MB", help="Of it."
)
@click.option("-v", "--verbose", is_flag=True, help="A line for each request; no texts.")
def serve(
    *,
    model: Path | None,
    threads: int | None,
    device: str | None,
    vocab: Path | None,
    host: str,
    port: int,
    api_key_file: Path | None,
    no_key: bool,
    allowed_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    alias: str | None,
    open_page: bool,
    template: str | None,
    verbose: bool,
    **options: Any,
) -> None:
    """Serve a model over HTTP, in the words of OpenAI's API. docs/server.md has examples."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise _core.UnsupportedError(NEEDS) from None
    from ..server.app import create_app
    from ..server.serve import listen, server_of
    from ..server.service import Options, Service

    _core.share_memory_pools()
    keys = read_keys(api_key_file)
    public = not is_loopback(host)
    if public and not keys and not no_key:
        raise click.UsageError(
            f"--host {host} is more than this machine: name an --api-key-file, or say --no-key"
        )
    for name in ("cache_memory", "cache_disk", "state_memory", "state_disk"):
        options[name] = int(options[name] * 1e6)
    found = template_named(template)
    opened = open_model(model, vocab, threads, device)
    service = Service(opened, Options(alias=alias, template=found, **options))
    names = (*allowed_host, *([host, socket.gethostname()] if public else [host]))
    app = create_app(service, keys=keys, hosts=names, origins=cors_origin, public=public)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(message)s"
    )
    with contextlib.closing(listen(host, port)) as found_socket:
        port = found_socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
        url = f"http://{shown}:{port}"
        click.echo(f"{service.name} at {url} (OpenAI's API: {url}/v1). Ctrl-C ends it.")
        if open_page:
            webbrowser.open(url)
        sys.setswitchinterval(SWITCH_SECONDS)
        server_of(app).run(sockets=[found_socket])


def read_keys(path: Path | None) -> list[str]:
    """One in each line; empty lines and those that begin with # are none."""
    if path is None:
        given = os.environ.get(KEYS, "")
        found = [given] if given else []
    else:
        lines = read_bytes(path, MOST_KEYS, "keys").decode("utf-8", "replace").splitlines()
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise ValueError(f"{path}: holds no key")
    source = KEYS if path is None else path
    if any(len(key) < LEAST_KEY for key in found):
        raise ValueError(f"{source}: a key is shorter than {LEAST_KEY} characters")
    return found


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
