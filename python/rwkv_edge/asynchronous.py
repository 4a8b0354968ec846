# SPDX-License-Identifier: Apache-2.0
"""Generation for asyncio: other tasks of the event loop run while the engine works."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from . import _core
from .generation import Details, Piece, Stream, Work, flow


class Stopped(Exception):
    """Raised in the middle of work that nobody waits for any more."""


async def run(streams: Sequence[Stream], n_vocab: int) -> AsyncGenerator[Piece, None]:
    """The pieces of a flow, whose work is done in other threads.

    Where the task is cancelled, work that has begun is ended or undone first: after a step at most.
    """
    loop = asyncio.get_running_loop()
    cancelled = threading.Event()

    def check(_tokens: int) -> None:
        if cancelled.is_set():
            raise Stopped

    steps = flow(streams, n_vocab, check)
    result = None
    try:
        while True:
            found = steps.send(result)
            if isinstance(found, tuple):
                result = None
                yield found
                continue
            # A future and not a task: when the loop ends, it cancels all tasks.
            for stream in streams:
                stream.busy = True
            future = loop.run_in_executor(None, done, found, streams)
            try:
                # Unlike shield, it has nothing to say of a future that fails after the cancelling.
                await asyncio.wait([future])
            except asyncio.CancelledError:
                cancelled.set()
                # However often it is cancelled: the session is not free before.
                while not future.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([future])
                future.exception()  # Stopped, which is no news
                raise
            result = future.result()
    except StopIteration:
        return
    finally:
        steps.close()


def done(work: Work, streams: Sequence[Stream]) -> bytearray | _core.KeptLogits | None:
    """Do the work, after which the streams are free."""
    try:
        return work()
    finally:
        for stream in streams:
            stream.busy = False


class AsyncGeneration(AsyncIterator[str]):
    """A text as it comes: its pieces, and the facts about it."""

    def __init__(self, stream: Stream, n_vocab: int) -> None:
        """For `Session.agenerate`."""
        self._stream = stream
        self._pieces = run([stream], n_vocab)

    async def __anext__(self) -> str:
        return (await self._pieces.__anext__())[1]

    async def aclose(self) -> None:
        """End the text where it stands."""
        await self._pieces.aclose()
        self._stream.settle()  # where it had not begun

    @property
    def details(self) -> Details:
        """Of the pieces so far; of the whole text when there are no more."""
        return self._stream.details()


class AsyncBatchGeneration(AsyncIterator[Piece]):
    """Several texts as they come: numbers and pieces, and the facts about each."""

    def __init__(self, streams: Sequence[Stream], n_vocab: int) -> None:
        """For `Batch.agenerate`."""
        self._streams = streams
        self._pieces = run(streams, n_vocab)

    async def __anext__(self) -> Piece:
        return await self._pieces.__anext__()

    async def aclose(self) -> None:
        """End all texts where they stand."""
        await self._pieces.aclose()
        for stream in self._streams:
            stream.settle()

    @property
    def details(self) -> list[Details]:
        """Of each text so far."""
        return [stream.details() for stream in self._streams]
