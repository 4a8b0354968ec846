# SPDX-License-Identifier: Apache-2.0
"""From the start of a process to its first token, several times, and the memory that it held then.

python bench/first_token.py MODEL [THREADS [PROGRAM]]

PROGRAM, such as build/release/bench_first_token, does the same in C and runs in turn with Python;
its time is that of the whole process.

The file is read once before, so that the page cache is warm, and a first process compiles what a
checkout has not compiled yet. Memory: the peak, and what exceeds the weights that one token touches
(all tensors but the embedding) plus the state.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

RUNS = 5


def first_token(path: str, threads: int) -> None:
    """The measured process; the other one wants more of the package than a first token does."""
    from rwkv_edge import Model

    session = Model(path, threads=threads).session()
    next(session.generate("The", max_tokens=1, temperature=0), "")
    now = time.time()

    from memory import peak_memory

    print(now, peak_memory(), session.state.data.nbytes)


def main() -> None:
    import statistics
    import subprocess

    from rwkv_edge.bench import Work
    from rwkv_edge.model_file import open_model_file

    path, threads = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "1"
    with Path(path).open("rb") as file:
        while file.read(1 << 24):
            pass
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, __file__, path, threads, "--measured"]
    seconds, others = [], []
    for _ in range(1 + RUNS):
        start = time.time()
        out = subprocess.check_output(command, text=True, env=environment)
        end, peak, state = map(float, out.split())
        seconds.append(end - start)
        if len(sys.argv) > 3:
            start = time.time()
            subprocess.check_call([sys.argv[3], path, threads])
            others.append(time.time() - start)
    del seconds[0]
    rest = peak - state - Work.of(open_model_file(path)).bytes_per_token
    runs = " ".join(f"{s:.3f}" for s in seconds)
    print(f"start to first token: {statistics.median(seconds):.2f} s (runs: {runs})")
    if others:
        runs = " ".join(f"{s:.3f}" for s in others[1:])
        print(f"the process in C: {statistics.median(others[1:]):.3f} s (runs: {runs})")
    print(f"peak memory {peak / 1e6:.0f} MB")
    print(f"{rest / 1e6:.1f} MB of it beyond the weights touched and the state")


if __name__ == "__main__":
    if "--measured" in sys.argv:
        first_token(sys.argv[1], int(sys.argv[2]))
    else:
        main()
