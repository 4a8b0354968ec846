# SPDX-License-Identifier: Apache-2.0
"""Run by `test_faults` with faults.cpp loaded: whatever call fails, no file of ours is torn.

Every writer runs once to count its calls, and then once for each call and each way to fail. Of the
writes, of which a model takes a hundred, that is done to a few, or to all with `all` as the second
argument. Prints as JSON how many of which calls failed, for each writer.
"""

from __future__ import annotations

import ctypes
import errno
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import checkpoints as ck
import numpy as np
from rwkv_edge import Model, State
from rwkv_edge.cli import lines
from rwkv_edge.convert import convert, quantize
from rwkv_edge.model import bundled_model
from rwkv_edge.state import StateShape

FAULTS = ctypes.CDLL(None)  # faults.cpp, which is loaded before all others
FAULTS.fault_calls.restype = ctypes.c_char_p
HALF = -1
# How a call fails, and whether all calls after it do so too, as on a disk that stays full.
WAYS = (
    (errno.ENOSPC, False),
    (errno.ENOSPC, True),
    (errno.EIO, False),
    (errno.EIO, True),
    (errno.EINTR, False),
    (HALF, False),
    (HALF, True),
)
Act = Callable[[Path], object]
ALL = "all" in sys.argv


def run(act: Act, target: Path, folder: Path, call: int, way: tuple[int, bool]) -> list[str]:
    """Do something with a file; returns the calls made in a folder, of which one failed."""
    FAULTS.fault_arm(str(folder).encode(), call, *map(int, way))
    error = None
    try:
        act(target)
    except OSError as raised:
        error = raised
    calls = bytes(FAULTS.fault_calls()).decode().split()
    FAULTS.fault_arm(b"", 0, 0, 0)
    name = calls[call - 1]
    if error is not None:
        named = target.parent if calls[-1] == "mkdir" else target
        assert (error.filename, bool(error.strerror)) == (str(named), True), (call, way, error)
    # What was interrupted is done again, and the rest of what was written by half. A folder that
    # exists need not be made.
    elif call and not (name == "mkdir" and target.exists()):
        assert way[0] in (errno.EINTR, HALF), (name, way)
    return calls


def each_fault(work: Path, act: Act, name: str, old: bytes | None) -> Counter[str]:
    """Let every call of a writer fail, in every way."""
    folder = work / "folder"

    def fresh() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        target = folder / name
        (target.parent if old is not None else folder).mkdir(parents=True)
        if old is not None:
            target.write_bytes(old)
        return target

    def found(target: Path) -> bytes | None:
        files = [path for path in folder.rglob("*") if not path.is_dir()]
        assert files in ([], [target]), files
        return target.read_bytes() if files else None

    target = fresh()
    calls = run(act, target, folder, 0, (0, False))
    new = found(target)
    assert new not in (None, old)
    failed: Counter[str] = Counter()
    writes = [number for number, call in enumerate(calls, 1) if call == "write"]
    some = {*writes[:2], *writes[:: 1 + len(writes) // 3], writes[-1]}
    for number, call in enumerate(calls, 1):
        for way in WAYS if ALL or call != "write" or number in some else ():
            target = fresh()
            run(act, target, folder, number, way)
            assert found(target) in (old, new), (call, number, way)
            if way[0] == HALF and call == "write":
                assert found(target) == new
            failed[call] += 1
    return failed


def state(value: float) -> State:
    shape = StateShape("rwkv4", 2, (("aa", (300,)), ("bb", (7,))))
    return State(np.full(614, value, np.float32), shape)


def save_state(target: Path) -> None:
    state(2).save(target)


def add_history(target: Path) -> None:
    lines.add_to_history(target, ["a line", "two\nlines"])


def open_model(target: Path) -> None:
    Model(target, threads=1)


def main(work: Path) -> None:
    vocab = work / "vocab.txt"
    vocab.write_text(ck.VOCABULARY, "utf-8")
    source = ck.write(work, ck.pth_of(ck.weights_of()))
    f32 = work / "f32.gguf"
    convert(source, f32, vocab=vocab, type="f32")
    state(1).save(work / "old state")
    writers: dict[str, tuple[Act, str, bytes]] = {
        "save": (save_state, "state", (work / "old state").read_bytes()),
        "convert": (lambda target: convert(source, target, vocab=vocab), "out.gguf", b"old"),
        "quantize": (lambda target: quantize(f32, target, type="q8_0"), "out.gguf", b"old"),
        "history": (add_history, "rwkv-edge/history", b"an older line\n"),
    }
    report = {
        name: each_fault(work, act, target, old) + each_fault(work, act, target, None)
        for name, (act, target, old) in writers.items()
    }
    folder = work / "folder"
    shutil.rmtree(folder)
    folder.mkdir()
    model = folder / "model.gguf"
    shutil.copy(bundled_model(), model)
    report["open a model"] = Counter()
    for number, call in enumerate(run(open_model, model, folder, 0, (0, False)), 1):
        for code in (errno.EIO, errno.ENOMEM, errno.EACCES, errno.ENODEV):
            run(open_model, model, folder, number, (code, False))
            report["open a model"][call] += 1
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
