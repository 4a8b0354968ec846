# SPDX-License-Identifier: Apache-2.0
"""What the server does, for any dialect: answers, vectors, tokens, states."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .. import _core
from ..chat.templates import Template
from ..generation import Choosing
from ..model import Model
from ..prefix_cache import Entry, PrefixCache, Text
from ..state import State
from .compose import Composer
from .fields import Refused
from .program import TAIL, Embedding, Ended, KeepOnDisk, Program, Reading, Vector, Writing
from .request import MOST_TOKENS, Caller, Event, Finish, Request
from .scheduler import Item, Job, Mailbox, Scheduler, log
from .states import Kept, States

MAKERS = 2
"""Threads that read requests: texts to tokens, grammars. More would keep Python from the thread of
the connections."""
AT_ONCE = 16
"""Of one call's requests, so many are in the scheduler's hands."""
MOST_UNWRITTEN = 8  # states that wait to be written to disk
WARN_EACH = 60.0  # seconds in which a slow disk is told of once
GRACE = 30.0  # seconds in which answers may end when the server stops


@dataclass(frozen=True)
class Options:
    """Of a server. Sizes are bytes, times are seconds."""

    alias: str | None = None
    """What the model is called; None: the name of its file, without the ending."""
    template: Template | None = None
    paragraphs: bool = False
    """Whether answers may have several, whatever the template says."""
    think: str = "off"
    think_tokens: int = 2048
    sampling: Choosing | None = None
    """For requests that say nothing."""
    max_tokens: int = 1024
    """Of an answer, where the request says nothing."""
    max_prompt: int = 1 << 17
    """Tokens."""
    timeout: float = 600.0
    """Of a request, waiting included."""
    strict_model: bool = False
    """Whether a request for another model is refused."""
    max_sessions: int = 32
    max_queue: int = 128
    cache_memory: int = 512 << 20
    cache_dir: Path | None = None
    cache_disk: int = 4 << 30
    state_memory: int = 1 << 30
    state_dir: Path | None = None
    state_disk: int = 16 << 30


class Service:
    """A model that serves."""

    def __init__(self, model: Model, options: Options | None = None) -> None:
        """Raises OSError for folders that cannot be used, FormatError for a model without a
        tokenizer."""
        self.model = model
        self.options = options = options or Options()
        self.name = options.alias or model.path.stem
        self.started = time.time()
        self.composer = Composer(
            model,
            options.template,
            sampling=options.sampling,
            think=options.think,
            paragraphs=options.paragraphs,
        )
        self.scheduler = Scheduler(max_sessions=options.max_sessions, max_queue=options.max_queue)
        self.cache = PrefixCache(
            options.cache_dir, memory_bytes=options.cache_memory, disk_bytes=options.cache_disk
        )
        self.states = States(
            model,
            options.state_dir,
            memory_bytes=options.state_memory,
            disk_bytes=options.state_disk,
        )
        self._unwritten: queue.Queue[tuple[Text, int, Entry, State] | None] = queue.Queue(
            MOST_UNWRITTEN
        )
        self._unkept, self._warned = 0, float("-inf")
        self._disk = threading.Thread(target=self._write, name="rwkv-edge disk", daemon=True)
        self._making = ThreadPoolExecutor(MAKERS, "rwkv-edge maker")

    def start(self) -> None:
        self.scheduler.start()
        if self.options.cache_dir is not None:
            self._disk.start()

    def stop(self, seconds: float = GRACE) -> None:
        """Let answers end, and take no more requests; blocks until then."""
        self.scheduler.stop(seconds)
        self.scheduler.join(seconds + 5.0)
        if self._disk.is_alive():
            self._unwritten.put(None)
            self._disk.join(5.0)
        self._making.shutdown(wait=False)

    @property
    def ready(self) -> bool:
        return self.scheduler.alive

    # ---- the cache on disk ----------------------------------------------------------------------

    @property
    def _on_disk(self) -> KeepOnDisk | None:
        return None if self.options.cache_dir is None else self._keep_on_disk

    def _keep_on_disk(self, text: Text, number: int, entry: Entry, state: State) -> None:
        """A disk may be slow: the engine does not wait for it."""
        try:
            self._unwritten.put_nowait((text, number, entry, state))
        except queue.Full:
            self._unkept += 1
            now = time.monotonic()
            if now - self._warned >= WARN_EACH:
                log.warning(
                    "the disk is slow: %d states were not kept, and may be read again", self._unkept
                )
                self._warned, self._unkept = now, 0

    def _write(self) -> None:
        while (found := self._unwritten.get()) is not None:
            if self.cache.keep_on_disk(*found) is not None:
                log.warning("a state could not be kept on disk, and may be read again")

    # ---- answers --------------------------------------------------------------------------------

    async def make(self, maker: Callable[[], Program]) -> Program:
        """A program, made in another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._making, maker)

    def _program(self, request: Request, caller: Caller) -> Program:
        """Raises Refused for a request that cannot be done."""
        start = self._start(request, caller)
        prompt = self.composer.prompt(request, start, salt_of(caller))
        self._check_length(len(prompt.text.tokens))
        most = min(request.sampling.get("max_tokens", self.options.max_tokens), MOST_TOKENS)
        constraint = None
        form = request.form
        if request.must_call and request.tools is not None:
            form = ("grammar", request.tools.grammar)
        if form is not None:
            try:
                constraint = self.model._grammars.constraint(*form)
            except (ValueError, TypeError, _core.UnsupportedError) as error:
                raise Refused(400, str(error), param="response_format") from None
        think = self.options.think_tokens if request.think_tokens is None else request.think_tokens
        return Writing(
            self.composer,
            request,
            prompt,
            self.composer.answer(request, most, constraint),
            cache=self.cache,
            keep_on_disk=self._on_disk,
            think_tokens=think,
            max_tokens=most,
        )

    async def submit(self, requests: Sequence[Request], caller: Caller) -> Answers:
        """Begin to answer. Raises Refused where that cannot be done, or not now."""
        makers = [partial(self._program, request, caller) for request in requests]
        batch = Batch(self, makers, caller)
        await batch.begin(requests[0].timeout)
        return Answers(batch)

    async def embed(self, texts: Sequence[str], caller: Caller) -> list[Vector]:
        """A vector of length 1 for each text. Raises Refused."""
        batch = Batch(self, [partial(self._embedding, text) for text in texts], caller)
        await batch.begin()
        found: dict[int, Vector] = {}
        try:
            async for number, item in batch:
                assert isinstance(item, Vector)
                found[number] = item
        finally:
            batch.close()
        return [found[i] for i in range(len(texts))]

    def _embedding(self, text: str) -> Program:
        ids = self.composer.encode(text)
        if not ids:
            raise Refused(400, "input: found an empty text, expected some", param="input")
        self._check_length(len(ids))
        return Embedding(self.model, ids)

    def _check_length(self, tokens: int) -> None:
        if tokens > self.options.max_prompt:
            raise Refused(
                400,
                f"found a text of {tokens} tokens, expected at most {self.options.max_prompt}",
                code="context_length_exceeded",
            )

    # ---- states ---------------------------------------------------------------------------------

    async def read_state(
        self, request: Request, caller: Caller, *, name: str | None, ttl: float | None
    ) -> Kept:
        """Store the state behind a prompt or a conversation, which may be none. Raises Refused."""
        batch = Batch(self, [partial(self._reading, request, caller)], caller)
        await batch.begin(request.timeout)
        try:
            _, item = await anext(batch)
        finally:
            batch.close()
        assert isinstance(item, Ended)
        assert item.state is not None
        text = request.prompt if isinstance(request.prompt, str) else ""
        if request.messages:
            text = request.messages[-1].text
        return await asyncio.to_thread(
            self.states.put,
            caller.id,
            item.state,
            tail=text[-TAIL:],
            parent=request.state,
            name=name,
            ttl=ttl,
        )

    def _reading(self, request: Request, caller: Caller) -> Program:
        start = self._start(request, caller)
        prompt = self.composer.told(request, start, salt_of(caller))
        self._check_length(len(prompt.text.tokens))
        return Reading(self.model, prompt, self.cache, self._on_disk)

    def _start(self, request: Request, caller: Caller) -> State | None:
        if request.state is None:
            return None
        return self.states.get(caller.id, request.state)[1]


class Batch(AsyncIterator[tuple[int, Item]]):
    """Programs of one call in the scheduler's hands, a few at a time; what they emit, with their
    numbers. Each ends with one item, of the kinds `last`."""

    last: tuple[type, ...] = (Ended, Vector)

    def __init__(
        self, service: Service, makers: Sequence[Callable[[], Program]], caller: Caller
    ) -> None:
        """`makers` may raise Refused; `Service.make` runs them."""
        self.service, self.caller = service, caller
        self._makers = makers
        self._mailbox = Mailbox()
        self._jobs: dict[int, Job] = {}
        self._begun = self._ended = 0

    async def begin(self, timeout: float | None = None) -> None:
        """Raises Refused where it cannot be done, or not now."""
        most = self.service.options.timeout
        self._timeout = most if timeout is None else min(timeout, most)
        for _ in self._makers[:AT_ONCE]:
            await self._next_job()

    async def _next_job(self) -> None:
        number = self._begun
        self._begun += 1
        try:
            self.service.scheduler.check(more=number > 0)
            program = await self.service.make(self._makers[number])
            self._jobs[number] = self.service.scheduler.submit(
                program, self.caller.id, self._timeout, self._mailbox, number, more=number > 0
            )
        except BaseException:
            self.close()
            raise

    async def __anext__(self) -> tuple[int, Item]:
        if self._ended == len(self._makers):
            raise StopAsyncIteration
        number, item = await self._mailbox.next()
        if isinstance(item, Exception):
            self.close()
            raise shown_error(item)
        if isinstance(item, self.last):
            self._ended += 1
            del self._jobs[number]  # what it still does, nobody waits for
            if self._begun < len(self._makers):
                await self._next_job()
        return number, item

    def close(self) -> None:
        """Nobody wants the rest."""
        for job in self._jobs.values():
            self.service.scheduler.cancel(job)
        self._jobs.clear()


class Answers(AsyncIterator[tuple[int, Event]]):
    """Events with the numbers of their requests. Each request's last one is a Finish."""

    def __init__(self, batch: Batch) -> None:
        """For `Service.submit`."""
        self._batch = batch

    async def __anext__(self) -> tuple[int, Event]:
        number, item = await anext(self._batch)
        if isinstance(item, Ended):
            return number, await self._finished(item)
        assert not isinstance(item, (Vector, Exception))
        return number, item

    async def _finished(self, ended: Ended) -> Finish:
        if ended.state is None:
            return ended.finish
        kept = await asyncio.to_thread(
            self._batch.service.states.put,
            self._batch.caller.id,
            ended.state,
            tail=ended.tail,
            parent=ended.finish.parent,
            id=ended.id,
        )
        return dataclasses.replace(ended.finish, state=kept.id)

    def close(self) -> None:
        """Nobody wants the rest."""
        self._batch.close()


def salt_of(caller: Caller) -> bytes:
    """Nobody can tell by the time of an answer what another caller has said."""
    return hashlib.sha256(b"rwkv-edge cache " + caller.id.encode()).digest()


def shown_error(error: Exception) -> Refused:
    """What a client may know of an error."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ValueError) and not isinstance(error, _core.FormatError):
        return Refused(400, str(error))
    if isinstance(error, MemoryError):
        return Refused(503, "the server has too little memory", kind="server_error")
    return Refused(500, "the server failed", kind="server_error")
