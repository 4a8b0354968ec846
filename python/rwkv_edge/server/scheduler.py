# SPDX-License-Identifier: Apache-2.0
"""One thread that owns the engine, and lets many programs share its steps.

Each step takes one token of everyone who speaks, and of prompts as many tokens as the time for a
step allows. Nobody waits for a long prompt of another: of a step's prompt tokens, one prompt gets
at most half where others wait. Callers take turns at being admitted, and each caller's requests
come in their order.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from .. import _core
from .fields import Refused
from .program import Ended, Feed, Program, Rows, Steps, Vector
from .request import Event

log = logging.getLogger("rwkv_edge.server")

STEP = 64  # tokens, where nobody speaks
LEAST = 4  # tokens of prompts in a step, however slow the machine is
MOST_WAITING = 1000  # events that a slow reader may leave
RETRY_MOST = 60  # seconds

Item = Event | Ended | Vector | Exception


class Mailbox:
    """Where the events of one or several jobs arrive, in an event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._items: deque[tuple[int, Item]] = deque()
        self._news = asyncio.Event()
        self._full = False

    def deliver(self, number: int, items: Sequence[Item]) -> bool:
        """In the loop's thread. False: nobody takes them, so there shall be no more."""
        if len(self._items) > MOST_WAITING:
            if not self._full:
                self._full = True
                self._items.append((number, Refused(503, "the answer was not taken in time")))
            return False
        self._items.extend((number, item) for item in items)
        self._news.set()
        return True

    async def next(self) -> tuple[int, Item]:
        while not self._items:
            self._news.clear()
            await self._news.wait()
        return self._items.popleft()


@dataclass(eq=False)
class Job:
    """A program in the scheduler's hands, and who gets its events."""

    program: Program
    caller: str
    deadline: float
    mailbox: Mailbox
    number: int
    """That of its events in the mailbox."""
    began: float
    cancelled: bool = False
    """Whether nobody wants it any more."""
    steps: Steps | None = None
    feed: Feed | None = None
    fed: int = 0
    """Tokens of `feed` that were fed."""

    def deliver(self, items: Sequence[Item]) -> None:
        if not self.mailbox.deliver(self.number, items):
            self.cancelled = True


@dataclass
class Counts:
    """What was done since the start."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0
    step_seconds: float = 0.0


class Scheduler:
    """Runs programs; any thread may submit and cancel."""

    def __init__(
        self,
        *,
        max_sessions: int = 32,
        max_queue: int = 128,
        step_seconds: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `max_sessions` run, and `max_queue` wait. A step in which somebody speaks should
        take `step_seconds` at most."""
        self.max_sessions, self.max_queue = max_sessions, max_queue
        self.counts = Counts()
        self._step_seconds, self._clock = step_seconds, clock
        self._room = float(STEP // 4)  # tokens of prompts beside those who speak
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._queued = 0
        self._active: list[Job] = []
        self._stopping = False
        self._until = float("inf")
        self._took = 1.0  # seconds of a request, on average
        self._thread = threading.Thread(target=self._run, name="rwkv-edge engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._active)

    @property
    def queued(self) -> int:
        return self._queued

    @property
    def oldest(self) -> float:
        """Seconds that the first of the waiting has waited."""
        with self._changed:
            began = [jobs[0].began for jobs in self._waiting.values() if jobs]
        return max(0.0, self._clock() - min(began)) if began else 0.0

    def submit(
        self,
        program: Program,
        caller: str,
        timeout: float,
        mailbox: Mailbox,
        number: int = 0,
        *,
        more: bool = False,
    ) -> Job:
        """Raises Refused where the queue is full, unless it is `more` of what was admitted, and
        while the server stops."""
        now = self._clock()
        job = Job(program, caller, now + timeout, mailbox, number, now)
        with self._changed:
            self.check(more=more)
            self._waiting.setdefault(caller, deque()).append(job)
            self._queued += 1
            self.counts.requests += 1
            self._changed.notify()
        return job

    def check(self, *, more: bool = False) -> None:
        """Raises Refused where `submit` would: before a program is made, which may take long."""
        if self._stopping or not self._thread.is_alive():
            raise Refused(503, "the server is stopping", kind="server_error")
        if self._queued >= self.max_queue and not more:
            self.counts.refused += 1
            raise Refused(
                429,
                f"{self._queued} requests are waiting already; try again later",
                kind="rate_limit_error",
                code="queue_full",
                retry_after=self._retry_after(),
            )

    def _retry_after(self) -> int:
        return min(RETRY_MOST, max(1, round(self._took * self._queued / self.max_sessions)))

    def cancel(self, job: Job) -> None:
        """Nothing of it runs after the present step."""
        job.cancelled = True
        with self._changed:
            jobs = self._waiting.get(job.caller, ())
            if job in jobs:
                self._take(job)
                self.counts.cancelled += 1
            self._changed.notify()

    def _take(self, job: Job) -> None:
        """Out of the queue; the caller's next one comes after those of the others."""
        jobs = self._waiting.pop(job.caller)
        jobs.remove(job)
        self._queued -= 1
        if jobs:
            self._waiting[job.caller] = jobs

    def stop(self, seconds: float) -> None:
        """Take no more, let what runs end in so many seconds, and end the thread."""
        with self._changed:
            self._stopping = True
            self._until = self._clock() + seconds
            self._changed.notify()

    def join(self, seconds: float) -> None:
        if self._thread.is_alive():
            self._thread.join(seconds)

    # ---- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and not self._active and not self._queued:
                    self._changed.wait()
            if self._stopping and (self._clock() >= self._until or not self._wanted()):
                self._drop_all()
                return
            try:
                self._turn()
            except Exception as error:  # the thread outlives any one request
                report(error)
                for job in list(self._active):
                    self._fail(job, error)

    def _wanted(self) -> bool:
        return bool(self._queued) or any(not job.program.idle for job in self._active)

    def _turn(self) -> None:
        for job in [job for job in self._active if job.cancelled]:
            self._end(job)
            self.counts.cancelled += 1
        now = self._clock()
        for job in self._active:
            if now > job.deadline:
                job.program.expired = True
        for job in [job for job in self._active if job.feed is None]:
            self._advance(job, None)
        while (new := self._next()) is not None:
            new.program.expired = now > new.deadline
            self._active.append(new)
            new.steps = new.program.steps()
            self._advance(new, None)
        if parts := self._plan():
            self._step(parts)
        self._tell(self._active)

    def _next(self) -> Job | None:
        """Who begins now: nobody whose text is being read by another, for then it will soon be in
        the cache."""
        with self._changed:
            reading = {key for job in self._active for key in job.program.reads}
            found = next(
                (jobs[0] for jobs in self._waiting.values() if not jobs[0].program.reads & reading),
                None,
            )
            if found is None:
                return None
            if len(self._active) >= self.max_sessions:
                idle = next((job for job in self._active if job.program.idle), None)
                if idle is None:
                    return None
                self._end(idle)
            self._take(found)
        return found

    def _plan(self) -> list[tuple[Job, list[int]]]:
        """What to feed in the next step."""
        active = [job for job in self._active if job.feed is not None]
        speaking = [job for job in active if job.feed is not None and job.feed.speaking]
        reading = [job for job in active if job not in speaking and not job.program.idle]
        if not speaking and not reading:
            reading = active[:1]  # what nobody waits for
        parts = [(job, job.feed.tokens) for job in speaking if job.feed is not None]
        room = int(self._room) if speaking else STEP
        shares = dict.fromkeys(range(len(reading)), 0)
        most = max(1, room // 2) if len(reading) > 1 else room
        for limit in (most, room):  # what nobody else needs goes to the first again
            for i, job in enumerate(reading):
                assert job.feed is not None
                left = len(job.feed.tokens) - job.fed - shares[i]
                whole = job.feed.logits == _core.Logits.all  # its rows are wanted together
                more = min(left, room) if not whole else left if room > 0 else 0
                if not whole:
                    more = min(more, max(0, limit - shares[i]))
                shares[i] += more
                room -= more
        for i, job in enumerate(reading):
            if shares[i] > 0 and job.feed is not None:
                parts.append((job, job.feed.tokens[job.fed : job.fed + shares[i]]))
        return parts

    def _step(self, parts: list[tuple[Job, list[int]]]) -> None:
        began = time.perf_counter()
        try:
            logits = self._fed(parts)
        except Exception as error:
            if len(parts) == 1:
                report(error)
                self._fail(parts[0][0], error)
                return
            for part in parts:  # one of them cannot be fed
                self._step([part])
            return
        row = 0
        spoke = False
        for job, tokens in parts:
            assert job.feed is not None
            job.fed += len(tokens)
            if job.feed.speaking:
                spoke = True
                self.counts.generated_tokens += len(tokens)
            else:
                self.counts.prompt_tokens += len(tokens)
            if job.fed < len(job.feed.tokens):
                continue
            mode = job.feed.logits
            rows = None if mode == _core.Logits.none else Rows(logits, row)
            row += {_core.Logits.none: 0, _core.Logits.last: 1}.get(mode, len(tokens))
            if not job.cancelled:
                self._advance(job, rows)
        seconds = time.perf_counter() - began
        self.counts.steps += 1
        self.counts.step_seconds += seconds
        if spoke and any(job.feed is not None and not job.feed.speaking for job, _ in parts):
            self._adapt(seconds)

    def _fed(self, parts: list[tuple[Job, list[int]]]) -> bytearray:
        found = []
        for job, tokens in parts:
            assert job.feed is not None
            last = job.fed + len(tokens) == len(job.feed.tokens)
            found.append((job.feed.session, tokens, job.feed.logits if last else _core.Logits.none))
        return _core.feed_together(found)

    def _adapt(self, seconds: float) -> None:
        """Find how many tokens of prompts fit into a step beside those who speak."""
        if seconds > self._step_seconds:
            self._room = max(float(LEAST), self._room * 0.8)
        elif seconds < 0.8 * self._step_seconds:
            self._room = min(float(STEP), self._room * 1.1)

    def _advance(self, job: Job, rows: Rows | None) -> None:
        """Let a program go on to what it wants fed next."""
        assert job.steps is not None
        try:
            # A program that wants nothing fed lets others go first.
            job.feed, job.fed = job.steps.send(rows), 0
        except StopIteration:
            self._end(job)
        except Exception as error:
            report(error)
            self._fail(job, error)

    def _tell(self, jobs: Iterable[Job]) -> None:
        """Hand events over, all of a step in one call for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, list[Item]]]] = {}
        for job in jobs:
            if job.program.events:
                news: list[Item] = [*job.program.events]
                by_loop.setdefault(job.mailbox.loop, []).append((job, news))
                job.program.events.clear()
        for loop, mail in by_loop.items():
            call(loop, partial(deliver, mail))

    def _end(self, job: Job) -> None:
        self._active.remove(job)
        if job.steps is not None:
            job.steps.close()
        job.feed = job.steps = None
        self._took += 0.1 * (self._clock() - job.began - self._took)
        self._tell([job])

    def _fail(self, job: Job, error: Exception) -> None:
        self.counts.failed += 1
        job.program.events.clear()
        call(job.mailbox.loop, partial(deliver, [(job, [error])]))
        if job in self._active:
            self._end(job)

    def _drop_all(self) -> None:
        with self._changed:
            waiting = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
            self._queued = 0
        for job in [*self._active, *waiting]:
            self._fail(job, Refused(503, "the server is stopping", kind="server_error"))


def deliver(mail: Iterable[tuple[Job, list[Item]]]) -> None:
    for job, items in mail:
        job.deliver(items)


def call(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """In the loop's thread, if it still runs."""
    with suppress(RuntimeError):  # closed
        loop.call_soon_threadsafe(function)


def report(error: BaseException) -> None:
    """Where something went wrong, without what it was about: that may be somebody's text."""
    if isinstance(error, Refused):
        return
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames[-6:]))
    log.error("a request failed: %s at %s", type(error).__name__, where)
