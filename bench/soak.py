# SPDX-License-Identifier: Apache-2.0
"""Abuse a server for some minutes, and check that it does not mind.

    python bench/soak.py                         15 minutes with the demo model
    python bench/soak.py MODEL.gguf --minutes 60

At the same time: chats, completions and embeddings, streamed or not; conversations that go on
from stored states, forks too; storms of clients that go away; clients that read slowly; halves of
headers and of bodies; garbage. In between the server is killed with SIGKILL and started again,
--kills times; at the end it gets SIGTERM.

It must hold that each answer is that of the model alone, that each request is answered unless the
server that got it was killed, that states of before the kill give what they gave, that connections
with half a request are closed, that /health answers within --health milliseconds, and that memory
beside stored states and caches does not grow where few requests are under way. The program ends
with 1 where something does not.

A process of its own asks for /health, because the one with all the clients is late itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import serve
from rwkv_edge import Conversation, Model

START_SECONDS = 120.0
SETTLED = 60.0  # seconds until caches are full and everything has been allocated once
PORTS = (20000, 30000)  # none that a client gets, which would then talk to itself
GROWTH = 1.02  # of memory, what is kept set aside, from the first to the last third after that
LEAST = 0.1  # of the looks of a third: the least memory that these found is compared
WATCH = 0.25  # seconds between two looks
HALVES_END = 30.0  # seconds; the server gives a header 20
NARROW = 4096  # bytes that a slow reader has room for
CHAT, COMPLETIONS, STATES = "/v1/chat/completions", "/v1/completions", "/v1/states"
NAMES = ("Anna", "Tom", "Mia", "Ben", "Lea", "Max")
QUESTIONS = ("What is the capital of France?", "Hello!", "Tell me a story.", "What is 3 plus 4?")
Found = tuple[int, bytes]


class Look(NamedTuple):
    """One at the server's health, and at its metrics after it."""

    began: float
    """By the clock that all processes share."""
    seconds: float
    status: int
    """0 where there was no answer."""
    found: str
    """The metrics, or what was wrong."""


def watch(port: int, to: Connection) -> None:
    """Send what there is to see, for ever."""
    while True:
        time.sleep(WATCH)
        began = time.monotonic()
        try:
            status, _ = get(port, "/health")
            seconds = time.monotonic() - began
            look = Look(began, seconds, status, get(port, "/metrics")[1])
        except (OSError, http.client.HTTPException) as error:
            look = Look(began, 0.0, 0, repr(error))
        to.send(look)


def get(port: int, path: str) -> tuple[int, str]:
    """The status and the body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Soak:
    """A server under load, and what was seen of it."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.port = random.randrange(*PORTS)
        self.process: subprocess.Popen[bytes] | None = None
        self.down = asyncio.Event()
        """Set while it is being killed and started: then connections may break."""
        self.done = Counter[str]()
        self.wrong: list[str] = []
        self.health: list[float] = []
        self.load: list[float] = []
        self.memory: list[tuple[int, float, int, int]] = []
        """Which of the server's lives, seconds since its beginning, bytes of the process, and bytes
        of them that it keeps on purpose: states and beginnings, within their budgets."""
        self.lives = 0
        self.born = 0.0
        self.states: dict[str, tuple[str, str]] = {}
        """Of an id: a question, and what is answered to it there."""
        self.expected: dict[tuple[str, ...], str] = {}

    # ---- the server -----------------------------------------------------------------------------

    async def start(self) -> None:
        options = self.options
        model = [str(options.model)] if options.model else []
        folders = ["--state-dir", self.folder / "states", "--cache-dir", self.folder / "cache"]
        sizes = ["--cache-memory", "8", "--cache-disk", "64", "--state-memory", "8"]
        limits = ["--state-disk", "256", "--max-queue", "64", "--max-sessions", "16"]
        command = [sys.executable, "-m", "rwkv_edge", "serve", *model, "-t", options.threads]
        command += [*folders, *sizes, *limits, "--port", self.port]
        log = self.folder / "log"
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [str(each) for each in command], stdout=subprocess.DEVNULL, stderr=file
            )
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if (await self.ask("GET", "/health"))[0] == 200:
                    break
            if time.monotonic() > until or self.process.poll() is not None:
                said = log.read_text("utf-8", "replace")[-1000:]
                raise RuntimeError(f"the server did not start: {said}")
            await asyncio.sleep(0.05)
        self.lives += 1
        self.born = time.monotonic()

    async def kill(self) -> None:
        """In the middle of everything; then it must know what it knew."""
        assert self.process is not None
        self.down.set()
        known = dict(self.states)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        await self.start()
        status, data = await self.ask("GET", STATES)
        there = {each["id"] for each in json.loads(data)["data"]} if status == 200 else set()
        self.note(known.keys() <= there, f"{len(known.keys() - there)} states are gone")
        for id in sorted(known):
            await self.go_on(id, known[id])
        self.down.clear()

    def note(self, right: bool, text: str) -> None:
        if not right:
            self.wrong.append(f"{time.monotonic() - self.born:.0f} s: {text}")
            print("WRONG", self.wrong[-1], flush=True)

    # ---- requests -------------------------------------------------------------------------------

    async def open(
        self, data: bytes, room: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which `data` was sent, with `room` for bytes that nobody has read."""
        end = socket.socket()
        end.setblocking(False)
        if room is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        try:
            await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", self.port))
        except BaseException:
            end.close()
            raise
        reader, writer = await asyncio.open_connection(sock=end, limit=room or 1 << 16)
        writer.write(data)
        await writer.drain()
        return reader, writer

    async def ask(self, method: str, path: str, body: Any = None) -> Found:
        """The status and the body of an answer."""
        reader, writer = await self.open(request(method, path, body))
        try:
            return parsed(await reader.read())
        finally:
            writer.close()

    async def told(self, body: dict[str, Any], stream: bool) -> tuple[str, str | None] | None:
        """The text of a chat's answer and its state; None where the queue is full."""
        status, data = await self.ask("POST", CHAT, {**body, "stream": stream})
        if status == 429:
            self.done["refused"] += 1
            return None
        self.note(status == 200, f"{status} {data[:200]!r}")
        if status != 200:
            return None
        if not stream:
            found = json.loads(data)
            return found["choices"][0]["message"]["content"], found.get("state")
        events = [x[6:] for x in data.split(b"\n\n") if x.startswith(b"data: ")]
        whole = bool(events) and events[-1] == b"[DONE]"
        self.note(whole, f"a stream without its end: {data[-300:]!r}")
        if not whole:
            return None
        chunks = [json.loads(event) for event in events[:-1]]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        return text, chunks[-1].get("state")

    # ---- what clients do ------------------------------------------------------------------------

    async def talk(self, rng: random.Random) -> None:
        question = rng.choice(QUESTIONS)
        found = await self.told(chat(question), rng.random() < 0.5)
        if found is not None:
            self.note(found[0] == self.expected[(question,)], f"{question}: {found[0]!r}")
            self.done["chats"] += 1

    async def store(self, rng: random.Random) -> None:
        told, asked = f"My name is {rng.choice(NAMES)}.", "What is my name?"
        found = await self.told({**chat(told), "store": True}, rng.random() < 0.5)
        if found is None:
            return
        self.note(found[0] == self.expected[(told,)], f"{told}: {found[0]!r}")
        id = found[1]
        self.note(id is not None, "no state")
        if id is not None:
            self.states[id] = (asked, self.expected[(told, asked)])
            self.done["stored"] += 1
            while len(self.states) > 20:  # the budget of the disk has room for more
                old = rng.choice(sorted(self.states))
                del self.states[old]
                await self.ask("DELETE", f"{STATES}/{old}")

    async def go_on(self, id: str, state: tuple[str, str]) -> None:
        """From a state, by two at once."""
        question, answer = state
        for found in await asyncio.gather(
            *(self.told({**chat(question), "state": id}, stream) for stream in (False, True))
        ):
            if found is not None:
                self.note(found[0] == answer, f"{id} {question}: {found[0]!r}, not {answer!r}")
                self.done["went on"] += 1

    async def come_back(self, rng: random.Random) -> None:
        if self.states:
            id = rng.choice(sorted(self.states))
            state = self.states.pop(id)  # nobody deletes it meanwhile
            try:
                await self.go_on(id, state)
            finally:
                self.states[id] = state

    async def embed(self, rng: random.Random) -> None:
        status, _ = await self.ask("POST", "/v1/embeddings", {"input": rng.choice(QUESTIONS) * 9})
        self.note(status in (200, 429), f"embeddings: {status}")
        self.done["vectors"] += 1

    async def storm(self, rng: random.Random) -> None:
        """Many who go away: before, while and after the first words come."""

        async def one(stream: bool, seconds: float) -> None:
            body = {"prompt": "word " * rng.randrange(1, 300), "max_tokens": 4000,
                    "ignore_eos": True, "stream": stream}  # fmt: skip
            reader, writer = await self.open(request("POST", COMPLETIONS, body))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(400), seconds)
            writer.transport.abort()

        count = rng.choice((24, 100))  # more than may wait
        await asyncio.gather(*(one(rng.random() < 0.5, rng.random()) for _ in range(count)))
        self.done["gone away"] += count
        await asyncio.sleep(5 * rng.random())

    async def read_slowly(self, rng: random.Random) -> None:
        """Until all buffers on the way are full. Then go away, or take the rest at once: that is
        all of it, or says why not."""
        body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        reader, writer = await self.open(request("POST", COMPLETIONS, body), room=NARROW)
        try:
            data = b""
            for _ in range(rng.randrange(1000)):
                data += await reader.read(16)
                await asyncio.sleep(0.02)
            if rng.random() < 0.5:
                status, told = parsed(data + await reader.read())
                end = told.rstrip().rpartition(b"data: ")[2]
                late = b"not taken in time" in end
                self.note(
                    status == 429 or end == b"[DONE]" or late,
                    f"a slow reader: {status} {told[-300:]!r}",
                )
                self.done["too slow readers"] += late
        finally:
            writer.close()
        self.done["slow readers"] += 1

    async def half(self, rng: random.Random) -> None:
        """Of a request, whose sender then says nothing for long."""
        whole = request("POST", CHAT, chat("Hello!"))
        data = whole[: rng.randrange(len(whole))]
        reader, writer = await self.open(data)
        try:
            seconds = HALVES_END * rng.choice((rng.random(), 1.0))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(), seconds)
            if seconds == HALVES_END and b"\r\n\r\n" not in data:
                self.note(reader.at_eof(), f"{data!r} keeps a connection")
                self.done["halves were closed"] += 1
        finally:
            writer.close()
        self.done["halves"] += 1

    async def garbage(self, rng: random.Random) -> None:
        data = bytearray(json.dumps(chat("Hello!")).encode())
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        status, found = await self.ask("POST", CHAT, bytes(data))
        self.note(status in (200, 400, 404, 429), f"garbage: {status} {found[:200]!r}")
        self.done["garbage"] += 1

    # ---- all of it ------------------------------------------------------------------------------

    async def repeat(self, work: Callable[[random.Random], Awaitable[None]], seed: object) -> None:
        rng = random.Random(str(seed))
        while True:
            while self.down.is_set():
                await asyncio.sleep(0.1)
            life = self.lives
            try:
                await work(rng)
            except (OSError, ValueError) as error:
                self.note(self.killed(life), f"{work.__name__}: {error!r}")
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.1 * rng.random())

    def watched(self, looks: Connection) -> None:
        """What the watching process has seen since it was asked last."""
        while looks.poll():
            look: Look = looks.recv()
            if self.down.is_set() or look.began < self.born:
                continue
            self.note(look.status == 200, f"/health: {look.status} {look.found!r}")
            if look.status != 200:
                continue
            self.health.append(look.seconds)
            self.load.append(os.getloadavg()[0])
            assert self.process is not None
            text = Path(f"/proc/{self.process.pid}/status").read_text()
            (used,) = re.findall(r"^RssAnon:\s+(\d+) kB$", text, re.M)
            kept = re.findall(r"^rwkv_edge_(?:state|cache)_bytes (\d+)$", look.found, re.M)
            at = time.monotonic() - self.born
            self.memory.append((self.lives, at, int(used) << 10, sum(map(int, kept))))

    def killed(self, life: int) -> bool:
        """Whether that server is, or is about to be checked after the last kill."""
        return self.down.is_set() or self.lives > life

    def answer_alone(self) -> None:
        model = Model(self.options.model, threads=1)
        talks = [(question,) for question in QUESTIONS]
        named = [f"My name is {name}." for name in NAMES]
        for told in [*talks, *((name, "What is my name?") for name in named)]:
            chat = Conversation(model)
            for i, question in enumerate(told):
                text = "".join(chat.ask(question, temperature=0, max_tokens=60))
                self.expected[told[: i + 1]] = text

    async def run(self) -> None:
        self.answer_alone()
        await self.start()
        works = [self.talk] * 3 + [self.store, self.come_back, self.come_back, self.embed]
        works += [self.storm, self.read_slowly, self.read_slowly, self.garbage] + [self.half] * 4
        tasks = [asyncio.create_task(self.repeat(work, i)) for i, work in enumerate(works)]
        looks, to = multiprocessing.Pipe(duplex=False)
        watcher = multiprocessing.Process(target=watch, args=(self.port, to), daemon=True)
        watcher.start()
        asyncio.get_running_loop().add_reader(looks.fileno(), self.watched, looks)
        life = 60 * self.options.minutes / (self.options.kills + 1)
        for _ in range(self.options.kills):
            await asyncio.sleep(life)
            await self.kill()
        await asyncio.sleep(life)
        self.down.set()
        watcher.terminate()
        asyncio.get_running_loop().remove_reader(looks.fileno())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self.process.wait, 60)
        self.note(code in (0, -signal.SIGTERM), f"it ended with {code}")

    def report(self) -> None:
        print(", ".join(f"{count} {name}" for name, count in sorted(self.done.items())))
        ordered = sorted(1000 * x for x in self.health)
        print(
            f"/health in ms: median {statistics.median(ordered):.1f}, "
            f"p99 {serve.quantile(ordered, 0.99):.1f}, longest {ordered[-1]:.1f}; "
            f"the machine's load: median {statistics.median(self.load):.1f}, "
            f"most {max(self.load):.1f}"
        )
        late = sum(x > self.options.health for x in ordered)
        self.note(late == 0, f"/health was late {late} times of {len(ordered)}")
        for life in range(1, self.lives + 1):
            found = [x for x in self.memory if x[0] == life and x[1] > SETTLED]
            third = len(found) // 3
            if third < 10:
                continue
            # Beside what is kept, and where few requests were under way.
            first, last = (
                serve.quantile([(used - kept) / 1e6 for _, _, used, kept in part], LEAST)
                for part in (found[:third], found[-third:])
            )
            print(f"memory of life {life}: {first:.1f} MB beside what is kept, then {last:.1f} MB")
            self.note(last < first * GROWTH, f"memory grows by {last - first:.2f} MB")
        log = (self.folder / "log").read_text("utf-8", "replace")
        print(log[-2000:])
        self.note("Traceback" not in log, "a traceback in the log")
        print(f"{len(self.wrong)} wrong")


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 60}


def request(method: str, path: str, body: Any = None) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
    return f"{head}\r\n".encode() + data


def parsed(data: bytes) -> Found:
    """The status and the body of a whole answer."""
    head, _, rest = data.partition(b"\r\n\r\n")
    chunked = b"transfer-encoding: chunked" in head.lower()
    if not head or (chunked and not rest.endswith(b"0\r\n\r\n")):
        raise ConnectionResetError(f"an answer was cut off at {data[-100:]!r}")
    return int(head.split()[1]), unchunked(rest) if chunked else rest


def unchunked(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        parts.append(data[:count])
        data = data[count + 2 :]
    return b"".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--health", type=float, default=100.0, help="milliseconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(options, Path(folder))
        try:
            asyncio.run(soak.run())
        finally:
            if soak.process is not None and soak.process.poll() is None:
                soak.process.kill()
        soak.report()
    if soak.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
