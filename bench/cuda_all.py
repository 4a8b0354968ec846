# SPDX-License-Identifier: Apache-2.0
"""Everything that is to be known of a GPU, in one run of at most ten minutes.

    pip install '.[test]' -Ccmake.define.RWKV_EDGE_CUDA=ON && python bench/cuda_all.py RESULTS

RESULTS is a folder for the logs, the tables (`report.md`) and the models. What matters most comes
first: the tests on the card; 1,000 steps twice, to the bit; tg and pp of random
models, with their shares of the card's read bandwidth and of its tensor cores; compute-sanitizer's
four tools on a tiny model; the CPU kernels of the machine. What no longer fits into --seconds is
named as left out. The status is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_cuda.py", "test_batch.py", "test_versions.py", "test_states.py", "test_generate.py")
MODELS = [
    (size, kind) for size in ("0.1b", "1.5b", "0.4b", "7.2b") for kind in ("f16", "q4_0", "q8_0")
]
SESSIONS = "1,8,32,128"

TWICE = """
import sys
import numpy as np
from rwkv_edge import Model

def steps(model):
    session = model.session()
    session.feed(range(1, 40))
    token, rows = 7, []
    for _ in range(1000):
        logits = session.feed([token])
        token = int(logits.argmax())
        rows.append(logits)
    return np.array(rows).tobytes() + session.state.data.tobytes()

path = sys.argv[1] if len(sys.argv) > 1 else None
assert steps(Model(path, device="cuda")) == steps(Model(path, device="cuda")), "other bits"
print("1,000 steps twice: the same bits")
"""
TINY = """
from rwkv_edge import Model
model = Model(device="cuda")
sessions = [model.session() for _ in range(3)]
for tokens in ([[1], [2, 3], [4] * 40], [[5], [6], [7]], [[5], [6], [7]], [[5], [6], [7]]):
    model.batch(sessions).feed(tokens)
print("fed")
"""


class Run:
    """Commands, one after the other, within a time."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.end = folder, time.monotonic() + seconds
        self.report: list[str] = []
        self.failed = False

    def left(self) -> float:
        return self.end - time.monotonic()

    def note(self, line: str) -> None:
        print(line, flush=True)
        self.report.append(line)
        (self.folder / "report.md").write_text("\n".join(self.report) + "\n", "utf-8")

    def command(
        self, name: str, command: Sequence[str], seconds: float, *, must: bool = False, **env: str
    ) -> str | None:
        """What it printed; None where it failed, took too long or no time was left for it."""
        limit = min(seconds, self.left())
        if limit < 5:
            self.note(f"- {name}: left out, no time")
            return None
        start = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **env},
                capture_output=True,
                text=True,
                check=False,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            self.note(f"- {name}: stopped after {limit:.0f} s")
            self.failed |= must
            return None
        text = done.stdout + done.stderr
        (self.folder / f"{name.replace(' ', '-').replace('/', '-')}.log").write_text(text, "utf-8")
        last = text.strip().splitlines()[-1] if text.strip() else ""
        word = "ok" if done.returncode == 0 else f"FAILED ({done.returncode})"
        self.note(f"- {name}: {word} in {time.monotonic() - start:.0f} s: {last[:150]}")
        self.failed |= must and done.returncode != 0
        return done.stdout if done.returncode == 0 else None


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rwkv_edge", *arguments]


def measure(run: Run, size: str, kind: str) -> None:
    """tg at several numbers of sessions, pp512 and pp4096."""
    model = run.folder / f"random-{size}-{kind}.gguf"
    made = [sys.executable, "tools/make_random_model.py", "--size", size, "--type", kind]
    if not model.exists() and run.command(f"make {size} {kind}", [*made, str(model)], 120) is None:
        return
    common = ["bench", str(model), "--device", "cuda", "--json", "-r", "2"]
    for name, options in (
        ("tg and pp512", ["-n", "64", "-p", "512", "--sessions", SESSIONS]),
        ("pp4096", ["-n", "0", "-p", "4096"]),
    ):
        found = run.command(f"{size} {kind} {name}", program(*common, *options), 60)
        for row in json.loads(found)["results"] if found else ():
            run.note(
                f"  | {size} | {kind} | {row['test']} | {row['sessions']} | "
                f"{row['tokens_per_second']:.1f} tok/s | {row['share']:.1%} of "
                f"{row['limits']['bandwidth_gb']:.0f} GB/s or {row['limits']['float_gops']:.0f} "
                "GOPS |"
            )
    model.unlink()  # the disk may be small


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=590)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.folder.resolve(), arguments.seconds)
    if run.command("devices", program("info"), 60, must=True) is None:
        return 1
    if (smi := shutil.which("nvidia-smi")) is not None:
        query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit"
        run.command("card", [smi, query, "--format=csv,noheader"], 20)
    tests = [f"tests/python/{name}" for name in TESTS]
    pytest = [sys.executable, "-m", "pytest", "-q", "-x"]
    run.command("tests", [*pytest, *tests], 150, must=True, RWKV_EDGE_DEVICE="cuda")
    run.command("steps twice", [sys.executable, "-c", TWICE], 60, must=True)
    for size, kind in MODELS[:6]:
        measure(run, size, kind)
    if (sanitizer := shutil.which("compute-sanitizer")) is not None:
        for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
            command = [
                sanitizer,
                "--tool",
                tool,
                "--error-exitcode",
                "9",
                sys.executable,
                "-c",
                TINY,
            ]
            run.command(tool, command, 40, must=True)
    else:
        run.note("- compute-sanitizer: not found")
    run.command("cpu", program("bench", "-t", "1,2,4,8,16", "-p", "128", "-n", "32"), 60)
    for size, kind in MODELS[6:]:
        measure(run, size, kind)
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main())
