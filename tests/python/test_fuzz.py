# SPDX-License-Identifier: Apache-2.0
"""The fuzzer notices what it is for, in readers with planted bugs, and its inputs are of use."""

from __future__ import annotations

import os
import random
import re
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest
from fuzz import Files, Reader
from fuzz_readers import READERS
from rwkv_edge import FormatError


def make(rng: random.Random) -> Files:
    return {"a": rng.randbytes(rng.randrange(1, 100))}


def planted(bug: Callable[[Path], object]) -> Reader:
    """A reader that refuses most of its inputs, and whose bug one in eight meets."""

    def use(path: Path) -> None:
        if path.read_bytes()[0] % 8 == 0:
            bug(path)
        raise FormatError(f"{path}: no file of ours")

    return Reader("planted", make, [use])


def hang(_: Path) -> None:
    while True:
        pass


def sleep(_: Path) -> None:
    time.sleep(1000)


def recurse(path: Path) -> None:
    recurse(path)


def allocate(_: Path) -> None:
    bytearray(1 << 31)


def allocate_slowly(_: Path) -> None:
    held = []
    while True:
        held.append(b"x" * (1 << 24))


def crash(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(_: Path) -> None:
    os._exit(0)


def key_error(_: Path) -> None:
    raise KeyError("a")


def no_path(_: Path) -> None:
    raise FormatError("the file is bad")


def no_text(_: Path) -> None:
    "\ud800".encode()


def warn(_: Path) -> None:
    warnings.warn("overflow", RuntimeWarning, stacklevel=1)


BUGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a hang": (hang, "more than 0.5 seconds"),
    "a wait": (sleep, "more than 0.5 seconds"),
    "a recursion": (recurse, "RecursionError"),
    "an allocation": (allocate, "MemoryError"),
    "many allocations": (allocate_slowly, "MemoryError|more memory than"),
    "a crash": (crash, "killed by signal SIGSEGV"),
    "an exit": (leave, "ended with 0"),
    "another error": (key_error, "KeyError: 'a'"),
    "a message without the path": (no_path, "FormatError: the file is bad"),
    "an error of text": (no_text, "UnicodeEncodeError"),
    "a warning": (warn, "RuntimeWarning: overflow"),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bug, what = BUGS[name]
    reader = planted(bug)
    budget = 0.5 if what.endswith("0.5 seconds") else 30
    report = fuzz.fuzz(reader, 7, 60, budget=budget, memory=300 << 20, most_failures=2)
    assert len(report.failures) == 2
    assert report.inputs > 0
    monkeypatch.setattr(fuzz, "FINDINGS", tmp_path)
    for failure in report.failures:
        assert re.search(what, failure.what)
        folder = fuzz.keep(reader, 7, failure)
        assert (folder / "a").read_bytes()[0] % 8 == 0  # that input, and no other
        assert re.search(what, (folder / "error.txt").read_text())


def test_memory_that_is_only_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under AddressSanitizer, where addresses cannot be limited."""
    monkeypatch.setattr(fuzz, "sanitized", lambda: True)
    reader = planted(allocate_slowly)
    report = fuzz.fuzz(reader, 7, 60, budget=30, memory=300 << 20, most_failures=1)
    assert "more memory than" in report.failures[0].what


def test_a_reader_without_bugs() -> None:
    report = fuzz.fuzz(planted(lambda _: None), 7, 1)
    assert not report.failures
    assert report.inputs > 10
    assert report.accepted == 0


@pytest.mark.parametrize("name", READERS)
def test_inputs(name: str, tmp_path: Path) -> None:
    """The same number gives the same input; some are accepted by every use, some are refused.
    A history has no form that could be wrong, so all of them are accepted."""
    reader = READERS[name]
    if reader.lacks is not None:
        pytest.skip(f"needs {reader.lacks} (tools/run_tests.py)")
    wanted = {True} if name == "history" else {True, False}
    assert fuzz.input_of(reader, 1, 2) == fuzz.input_of(reader, 1, 2)
    assert fuzz.input_of(reader, 1, 2) != fuzz.input_of(reader, 1, 3)
    found = set()
    for number in range(300):
        with fuzz.written(fuzz.input_of(reader, 1, number), tmp_path) as path:
            accepted, error = fuzz.read(reader, path, tmp_path)
        assert error is None, number
        found.add(accepted)
        if found == wanted:
            return
    raise AssertionError(f"all inputs were {found}")
