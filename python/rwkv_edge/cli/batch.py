# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge batch`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import click

from .. import _core
from ..batch import Counts, problem_body, run, shard
from ..files.form import printable, shown
from .options import FILE, device_option, open_model, vocab_option
from .terminal import Progress

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/scores")
NEEDS = "batch needs a package: pip install 'rwkv-edge[server]'"
LONG = 1e9  # seconds: nobody waits


@click.command()
@click.argument("source", metavar="IN", type=FILE)
@click.argument("target", metavar="OUT", type=FILE)
@click.option(
    "--model",
    type=FILE,
    metavar="MODEL",
    help="A file or a name such as g1:0.4b. Default: the demo model.",
)
@click.option(
    "-t", "--threads", type=click.IntRange(min=1), help="Threads. Default: one for each idle core."
)
@device_option
@vocab_option
@click.option(
    "--sessions",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    metavar="N",
    help="Lines that are answered together. Each step reads the weights once for all of them.",
)
@click.option(
    "--shard",
    "part",
    default="1/1",
    metavar="I/N",
    help="Answer a part of the lines: 2/4 takes lines 2, 6, 10 and so on.",
)
def batch(
    source: Path,
    target: Path,
    *,
    model: Path | None,
    threads: int | None,
    device: str | None,
    vocab: Path | None,
    sessions: int,
    part: str,
) -> None:
    """Answer a file of requests, each a line of OpenAI's batch form (docs/batch.md).

    Answers are added to OUT as they are ready. Lines that OUT has answered already are left out, so
    the same command goes on after Ctrl-C. A line that cannot be answered gets an error there.
    """
    try:
        import starlette  # noqa: F401
    except ImportError:
        raise _core.UnsupportedError(NEEDS) from None
    from ..server.app import create_app
    from ..server.inside import post
    from ..server.service import Options, Service

    try:
        lines = shard(part)
    except ValueError as error:
        raise click.UsageError(f"--shard: {error}") from None
    opened = open_model(model, vocab, threads, device)
    service = Service(opened, Options(timeout=LONG, max_sessions=sessions, max_queue=2 * sessions))
    app = create_app(service)

    async def answer(url: str, body: Any) -> tuple[int, dict[str, Any]]:
        if url not in URLS:
            text = f"url: found {shown(url)}, expected {', '.join(URLS)}"
            return 404, problem_body(text)
        if isinstance(body, dict) and body.get("stream"):
            return 400, problem_body("stream: an answer in a file is no stream")
        return await post(app, url, body)

    started = time.monotonic()
    with Progress("answering") as bar:
        work = run(source, target, answer, together=sessions, part=lines, progress=bar)
        service.start()
        try:
            counts = asyncio.run(ended_by_signals(work))
        finally:
            service.stop(0)
    seconds = time.monotonic() - started
    click.echo(f"{printable(str(target))}: {told(counts)}, {seconds:.1f} s", err=True)
    if counts.failed:
        raise click.exceptions.Exit(1)


async def ended_by_signals(work: Any) -> Counts:
    """A signal ends the work first. Where it is raised in the middle of the event loop, as Python
    3.10 does it with Ctrl-C, tasks stay behind."""
    from . import HANG_UP, Ended

    task: asyncio.Task[Counts] = asyncio.ensure_future(work)
    ended: list[int] = []

    def end(number: int) -> None:
        ended.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, HANG_UP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(NotImplementedError):  # on Windows
                loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not ended:
            raise
        raise KeyboardInterrupt if ended[0] == signal.SIGINT else Ended(ended[0]) from None


def told(counts: Counts) -> str:
    parts = [f"{counts.answered} answered"]
    if counts.refused:
        parts.append(f"{counts.refused} errors")
    if counts.failed:
        parts.append(f"{counts.failed} failed, which the same command asks again")
    if counts.skipped:
        parts.append(f"{counts.skipped} there before")
    return ", ".join(parts)
