# SPDX-License-Identifier: Apache-2.0
"""Kills and interrupts the program at random moments, and looks at what it leaves behind.

    python tools/torture.py kill [TIMES]     kill -9 of what writes states and models (1000)
    python tools/torture.py ctrl-c [TIMES]   Ctrl-C in generate, convert and chat (200 in each)
    python tools/torture.py cache [TIMES]    two processes on one cache, kill -9 of one (400)
    python tools/torture.py long [TOKENS]    one chat, whose memory must not grow (100,000)

Prints counts. Where a file is torn, a text's state is wrong, memory grows, or anything else is
left, it fails.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rwkv_edge import Conversation, Model, PrefixCache, State
from rwkv_edge.convert import convert
from rwkv_edge.model import bundled_model
from rwkv_edge.state import StateShape

PROGRAM = [sys.executable, "-m", "rwkv_edge"]
INTERRUPTED = 130
SECONDS = 60  # for what should take a moment
SHAPE = StateShape("rwkv4", 4, (("aa", (1 << 15,)),))
Write = Callable[[Path], None]


def check(target: Path, allowed: set[bytes], *, parts: int) -> int:
    """The target is one of the whole files, and at most so many new ones lie beside it; returns how
    many."""
    others = [path.name for path in target.parent.iterdir() if path != target]
    assert len(others) <= parts, others
    assert all(name.startswith(f".{target.name}.") for name in others), others
    assert target.read_bytes() in allowed, f"{target} is torn"
    return len(others)


def whole_files(work: Path, writes: Sequence[Write]) -> set[bytes]:
    found = set()
    for write in writes:
        write(work / "whole")
        found.add((work / "whole").read_bytes())
    return found


# ---- kill -9 ------------------------------------------------------------------------------------


def state_writer(value: float) -> Write:
    state = State(np.full(SHAPE.n_layer * SHAPE.layer_size, value, np.float32), SHAPE)
    return state.save


def model_writer(kind: str) -> Write:
    return lambda target: convert(bundled_model(), target, type=kind)


def kill(work: Path, times: int, chance: random.Random) -> Counter[str]:
    """Kill writers at random moments; each sweeps what the one before it has left."""
    counts: Counter[str] = Counter()
    for kind, writes in (
        ("a state", [state_writer(1), state_writer(2)]),
        ("a model", [model_writer("q8_0"), model_writer("q4_0")]),
    ):
        allowed = whole_files(work, writes)
        target = work / kind / "target"
        target.parent.mkdir()
        start = time.monotonic()
        for write in writes:
            write(target)
        longest = 1.5 * (time.monotonic() - start)
        for _ in range(times // 2):
            child = os.fork()
            while child == 0:
                for write in writes:
                    write(target)
            time.sleep(chance.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            counts[f"{kind}: killed"] += 1
            counts[f"{kind}: new files left"] += check(target, allowed, parts=1)
        writes[0](target)
        counts[f"{kind}: after the next write"] += check(target, allowed, parts=0)
    return counts


# ---- a cache that processes share ---------------------------------------------------------------


def words(i: int) -> list[list[int]]:
    """The segments of text number i; every fourth begins alike."""
    return [[1 + i % 4] * 40, [10 + i] * 3]


def hammer(work: Path, times: int, chance: random.Random) -> Counter[str]:
    """Two processes read the same texts through one folder, which holds half of their states. One
    is killed again and again. Each compares every state with that of a plain session."""
    model = Model(threads=1)
    right = []
    for i in range(16):
        session = model.session()
        session.read([token for segment in words(i) for token in segment])
        right.append(session.state.data.tobytes())
    folder, tally = work / "cache", work / "tally"
    most = 12 * (len(right[0]) + 4096)

    def child(seed: int) -> int:
        """Work in a process until it is killed."""
        number = os.fork()
        if number:
            return number
        status = 1
        try:
            own = random.Random(seed)
            with tally.open("ab", buffering=0) as file:
                while True:
                    i, session = own.randrange(16), model.session()
                    cache = PrefixCache(folder, memory_bytes=0, disk_bytes=most)
                    known = cache.read(session, words(i))
                    if session.state.data.tobytes() != right[i] or session.tokens != 43:
                        file.write(b"w")
                        break
                    file.write(b"h" if known else b"m")
        finally:
            os._exit(status)

    def ended(number: int) -> None:
        os.kill(number, signal.SIGKILL)
        _, status = os.waitpid(number, 0)
        assert os.WIFSIGNALED(status), "a process found a wrong state, or an error"

    steady = child(0)
    for i in range(times):
        other = child(i + 1)
        time.sleep(chance.uniform(0, 0.3))
        ended(other)
    ended(steady)
    done = Counter(tally.read_bytes().decode())
    assert not done["w"], done
    cache = PrefixCache(folder, memory_bytes=0, disk_bytes=most)
    for i in range(16):  # whatever they left behind, it works, and is in order again
        session = model.session()
        cache.read(session, words(i))
        assert session.state.data.tobytes() == right[i]
    cache.read(model.session(), [[7, 7, 7]])
    (inner,) = folder.iterdir()
    check_cache(inner, most)
    return Counter({"killed": times, "from the cache": done["h"], "read": done["m"]})


def check_cache(inner: Path, most: int) -> None:
    """Its index and its files say the same, and keep to the budget."""
    names = {path.name for path in inner.iterdir()}
    with contextlib.closing(sqlite3.connect(inner / "index.sqlite")) as index:
        rows = {f"{key}.state" for (key,) in index.execute("SELECT key FROM states")}
        assert index.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert names == {*rows, "index.sqlite"}, names ^ rows
    assert sum((inner / name).stat().st_size for name in rows) <= most
    for name in rows:
        State.load(inner / name)


# ---- a long chat --------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def long(_work: Path, tokens: int, chance: random.Random) -> Counter[str]:
    """One chat of so many tokens: from a third on its memory grows by its text, and by less than
    1 MB beside it. Fed at once or token by token, what it has read gives the same bits."""
    model = Model(threads=1)
    chat = Conversation(model)
    words = ["the", "lamp", "and", "a", "boy", "who", "asked", "why", "it", "was", "so", "dark"]
    warm = most = text = 0
    while (read := chat.session.tokens or 0) < tokens:
        question = " ".join(chance.choices(words, k=100))
        for _ in chat.ask(question, max_tokens=100, temperature=1.5, top_p=0.9, seed=read):
            pass
        if read >= tokens / 3:
            most = max(most, resident())
            warm = warm or most
            text += len("".join(chat.turns[-1]))
    grown = most - warm
    assert grown - text < 1 << 20, f"{grown} bytes more, {text} of them text"
    at_once, one_by_one = model.session(), model.session()
    at_once.read(chat.tokens)
    for token in chat.tokens:
        one_by_one.read([token])
    for session in (at_once, one_by_one):
        for name in ("data", "output"):
            found, right = (getattr(each.state, name).tobytes() for each in (session, chat.session))
            assert found == right, name
    counts = {"tokens": read, "turns": len(chat.turns), "bytes grown": grown, "of text": text}
    return Counter(counts)


# ---- Ctrl-C -------------------------------------------------------------------------------------


def interrupt(arguments: Sequence[str], seconds: float) -> str:
    """Run a command and press Ctrl-C after a while; returns how it ended."""
    command = [*PROGRAM, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    if process.returncode == INTERRUPTED:
        assert b"Traceback" not in errors, errors
        return "interrupted"
    if process.returncode == 0:
        return "done before"
    # While Python starts and imports it says so with a traceback; at its very start and end not.
    assert process.returncode in (1, -signal.SIGINT), (process.returncode, errors)
    assert b"Traceback" not in errors or b"KeyboardInterrupt" in errors, errors
    return "before the program began, or after it"


def ctrl_c_in_generate(_work: Path, times: int, chance: random.Random) -> Counter[str]:
    """While it starts, reads a long prompt, or writes a long text."""
    wild = ["--temperature", "1000", "--top-p", "1", "-n", "1000000", "--seed", "1"]
    counts: Counter[str] = Counter()
    for i in range(times):
        prompt = "Once upon a time. " * (5000 if i % 2 else 1)
        counts[interrupt(["generate", "-p", prompt, *wild], chance.uniform(0, 2))] += 1
    return counts


def ctrl_c_in_convert(work: Path, times: int, chance: random.Random) -> Counter[str]:
    allowed = {b"old", *whole_files(work, [model_writer("q4_0")])}
    target = work / "convert" / "target"
    target.parent.mkdir()
    command = ["convert", str(bundled_model()), str(target), "--type", "q4_0"]
    start = time.monotonic()
    subprocess.run([*PROGRAM, *command], check=True, capture_output=True)
    seconds = time.monotonic() - start
    counts: Counter[str] = Counter()
    for _ in range(times):
        target.write_bytes(b"old")
        ended = interrupt(command, chance.uniform(0, seconds))
        check(target, allowed, parts=0)
        done = ended == "done before"
        assert not done or target.read_bytes() != b"old"
        seconds *= 0.8 if done else 1.1  # the machine may be busy now and idle then
        counts[ended] += 1
    return counts


def ctrl_c_in_chat(work: Path, times: int, chance: random.Random) -> Counter[str]:
    """In one conversation, which must be whole after each: its state can be saved and read."""
    path = work / "state"
    environment = {**os.environ, "TERM": "dumb", "XDG_STATE_HOME": str(work / "xdg")}
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [*PROGRAM, "chat", "--max-tokens", "1000000"], environment)
    text = ""

    def until(end: str, seconds: float) -> bool:
        nonlocal text
        deadline = time.monotonic() + seconds
        while end not in text and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                text += os.read(terminal, 1 << 16).decode("utf-8", "replace")
        return end in text

    assert until("> ", SECONDS), text
    counts: Counter[str] = Counter()
    for _ in range(times):
        text = ""
        os.write(terminal, b"Tell me a story\n")
        time.sleep(chance.uniform(0, 0.06))
        os.write(terminal, b"\x03")
        for _ in range(SECONDS):  # a late Ctrl-C drops what is typed then
            time.sleep(0.05)
            os.write(terminal, f"/save {path}\n".encode())
            if until("saved in", 1):
                break
        assert "saved in" in text, text
        at_prompt, unread = "/exit leaves" in text, "not read" in text
        counts["at the prompt" if at_prompt else "unread" if unread else "in the answer"] += 1
        assert len(State.load(path).data)
        path.unlink()
    os.write(terminal, b"/exit\n")
    assert os.waitpid(child, 0)[1] == 0
    return counts


def main(arguments: Sequence[str]) -> None:
    what = arguments[0] if arguments else ""
    known: dict[str, list[Callable[[Path, int, random.Random], Counter[str]]]] = {
        "kill": [kill],
        "ctrl-c": [ctrl_c_in_generate, ctrl_c_in_convert, ctrl_c_in_chat],
        "cache": [hammer],
        "long": [long],
    }
    if what not in known:
        sys.exit(__doc__)
    often = {"kill": 1000, "ctrl-c": 200, "cache": 400, "long": 100_000}[what]
    times = int(arguments[1]) if len(arguments) > 1 else often
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    warnings.simplefilter("ignore")  # a model is quantized again here, and numpy has threads
    chance = random.Random(1)
    for test in known[what]:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as work:
            counts = test(Path(work), times, chance)
        print(f"{test.__name__}, {times} times, {time.monotonic() - start:.0f} s:", flush=True)
        for name, count in sorted(counts.items()):
            print(f"  {name}: {count}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
