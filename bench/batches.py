# SPDX-License-Identifier: Apache-2.0
"""Sessions that write together, for each type of weights: a table for RESULTS.md.

    python bench/batches.py --size 0.4b --type q4_0,q8_0,f16 --threads 1

The models are random ones of the real shape. Within a run the numbers of sessions take turns. A
cell holds the tokens per second of all sessions, and how many times that is the rate of the same
sessions one after the other, which is that of one session.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from rwkv_edge import _core
from rwkv_edge.bench import measure

MAKER = str(Path(__file__).resolve().parent.parent / "tools" / "make_random_model.py")


def row(path: Path, threads: int, sessions: list[int], tokens: int, repeats: int) -> list[str]:
    results = list(
        measure(
            path,
            [threads],
            prompt=512,
            generated=tokens,
            sessions=sessions,
            repeats=repeats,
            progress=lambda *_: None,
        )
    )
    prompt, *written = results
    alone = next(r.tokens_per_second for r in written if r.sessions == 1)
    cells = [f"{r.tokens_per_second:.1f} ({r.tokens_per_second / alone:.2f})" for r in written]
    return [*cells, f"{prompt.tokens_per_second / alone:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="0.4b")
    parser.add_argument("--type", default="q4_0,q8_0,f16", help="comma-separated")
    parser.add_argument("--sessions", default="1,2,4,8,16,32", help="comma-separated, with 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16, help="that each session writes in a run")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sessions = [int(count) for count in options.sessions.split(",")]
    if 1 not in sessions:
        parser.error(f"--sessions: found {options.sessions}, expected 1 among them")
    print(f"{_core.isa()} kernels, {options.threads} threads, median of {options.repeats}")
    print("| file |", " | ".join(map(str, sessions)), "| pp512 / tg |")
    print("|---|" + "---:|" * (len(sessions) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.type.split(","):
            path = Path(folder) / f"{options.size}-{kind}.gguf"
            subprocess.run(
                [sys.executable, MAKER, "--size", options.size, "--type", kind, str(path)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            cells = row(path, options.threads, sessions, options.tokens, options.repeats)
            print(f"| {path.stem} |", " | ".join(cells), "|", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
