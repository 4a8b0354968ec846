# SPDX-License-Identifier: Apache-2.0
"""From the start of a process to its first token, several times, and the memory that it holds then.

python bench/first_token.py MODEL [THREADS]

The file is read once before, so that the page cache is warm. Memory: the peak, and what exceeds the
weights that one token touches (all tensors but the embedding) plus the state.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rwkv_edge import Model
from rwkv_edge.bench import weight_bytes_per_token

RUNS = 5


def first_token(path: str, threads: int) -> None:
    """The measured process."""
    model = Model(path, threads=threads)
    session = model.session()
    next(session.generate("The", max_tokens=1, temperature=0), "")
    touched = weight_bytes_per_token(model._file)
    state = 4 * model._core.state_size
    session.feed([1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{peak / 1e6:.0f} {(peak - touched - state) / 1e6:.0f} {time.time()}")


def main() -> None:
    path, threads = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "1"
    with Path(path).open("rb") as file:
        while file.read(1 << 24):
            pass
    seconds = []
    for _ in range(RUNS):
        start = time.time()
        command = [sys.executable, __file__, path, threads, "--measured"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak, rest, end = out.split()
        seconds.append(float(end) - start)
    runs = " ".join(f"{s:.2f}" for s in seconds)
    print(f"start to first token: {statistics.median(seconds):.2f} s (runs: {runs})")
    print(f"peak memory {peak} MB, {rest} MB beyond the weights touched and the state")


if __name__ == "__main__":
    if "--measured" in sys.argv:
        first_token(sys.argv[1], int(sys.argv[2]))
    else:
        main()
