# SPDX-License-Identifier: Apache-2.0
"""Threads that outlive the interpreter, and processes that are forked while threads feed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import GetModel
from program import SECONDS

# A daemon thread works without end while the program ends.
EXIT = """
import sys, threading, time
from rwkv_edge import Model

path, kind, seconds = sys.argv[1:]
model = Model(path, threads=2)
begun = threading.Event()

def work():
    while True:
        if kind == "open":
            Model(path, threads=2)
            begun.set()
        elif kind == "feed":
            model.session().feed([1] * 3000, progress=lambda *_: begun.set())
        else:
            for _ in model.session().generate("the", max_tokens=9999, stop="zzz"):
                begun.set()

threading.Thread(target=work, daemon=True).start()
begun.wait()
time.sleep(float(seconds))
"""


@pytest.mark.parametrize("kind", ["open", "feed", "generate"])
def test_a_program_ends_while_a_daemon_thread_works(tiny_model: GetModel, kind: str) -> None:
    path = str(tiny_model("q4_0", "d192")[0])
    for i in range(8):
        command = [sys.executable, "-c", EXIT, path, kind, str(i / 200)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert (done.returncode, done.stderr) == (0, ""), i


# Forks before, while and after a thread reads tokens. Each child prints what its calls give.
FORK = """
import os, sys, threading, warnings
from rwkv_edge import Model

warnings.simplefilter("ignore")  # Python 3.12 warns of every fork with threads
model = Model(sys.argv[1], threads=2)
session, other = model.session(), model.session()
session.feed([1])
other.feed([1])
CALLS = {
    "feed": lambda: session.feed([1]),
    "state": lambda: session.state,
    "generate": lambda: list(session.generate(max_tokens=2)),
    "reset": lambda: session.reset(),
    "feed another": lambda: other.feed([1]),
    "state of another": lambda: other.state,
    "open again": lambda: Model(sys.argv[1], threads=2).session().feed([1]),
}

def fork(when):
    sys.stdout.flush()
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    for name, call in CALLS.items():
        try:
            call()
            print(when, name, "ok", sep=": ")
        except Exception as error:
            print(when, name, type(error).__name__, error, sep=": ")
    sys.stdout.flush()
    os._exit(0)

inside, go_on = threading.Event(), threading.Event()

def wait(*_):
    inside.set()
    go_on.wait()

fork("before")
thread = threading.Thread(target=lambda: session.feed([1] * 100, progress=wait))
thread.start()
inside.wait()
fork("while")
go_on.set()
thread.join()
fork("after")
"""


@pytest.mark.posix("fork")
def test_forked_processes_never_hang(tiny_model: GetModel) -> None:
    path = str(tiny_model("q4_0", "d192")[0])
    command = [sys.executable, "-c", FORK, path]
    out = subprocess.check_output(command, text=True, timeout=SECONDS)
    busy = (
        "RuntimeError: this session, or another one of its model, was busy in another thread "
        "when this process was forked: open the model again in the new process"
    )
    calls = ["feed", "state", "generate", "reset", "feed another", "state of another", "open again"]
    expected = {f"{when}: {call}": "ok" for when in ("before", "while", "after") for call in calls}
    # The model's scratch memory is in use, so no session of it can go on.
    expected |= {f"while: {call}": busy for call in calls[:5]}
    found = (line.split(": ", 2) for line in out.splitlines())
    assert {f"{when}: {call}": result for when, call, result in found} == expected


ASK = """
import sys, threading
from rwkv_edge import Model

session = Model(sys.argv[1], threads=1).session()
begun = threading.Event()
feed = lambda: session.feed([1] * 500, progress=lambda *_: begun.set())
thread = threading.Thread(target=feed)
thread.start()
begun.wait()
print(session._engine.tokens)
thread.join()
"""


def test_whoever_waits_for_a_session_lets_its_progress_run(tiny_model: GetModel) -> None:
    command = [sys.executable, "-c", ASK, str(tiny_model("q4_0", "d192")[0])]
    assert subprocess.check_output(command, text=True, timeout=SECONDS) == "500\n"


FILES_AND_FORKS = """
import sys, threading
from rwkv_edge import Model, _core

sys.setswitchinterval(1e-6)
session = Model(sys.argv[1], threads=1).session()
opened = threading.Event()

def open_files():
    for _ in range(100000):
        _core.MappedFile(sys.argv[1])

def fork():
    while not opened.is_set():
        forks = [session.fork() for _ in range(20)]

forking = threading.Thread(target=fork)
opening = [threading.Thread(target=open_files) for _ in range(3)]
for thread in [forking, *opening]:
    thread.start()
for thread in opening:
    thread.join()
opened.set()
forking.join()
print("done")
"""


def test_files_are_opened_while_sessions_come_and_go(tiny_model: GetModel) -> None:
    # pybind11 keeps a table of all objects, which only the GIL guards.
    command = [sys.executable, "-c", FILES_AND_FORKS, str(tiny_model("q4_0", "d192")[0])]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")
