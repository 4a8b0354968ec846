# SPDX-License-Identifier: Apache-2.0
"""tg of files by input beside the dense ones, at chosen shares of zeros.

    python bench/sparse.py --size 0.4b,1.5b --type f16,q8_0,q4_0 --zeros 0.5,0.88 --folder FOLDER

Makes random models in FOLDER where they are not there yet. The two files of a pair write tokens in
turn; the ratio is the median over the pairs of runs, and the shares are of the time per token.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rwkv_edge import Model, _core
from rwkv_edge.model import Session

MAKE = Path(__file__).parent.parent / "tools" / "make_random_model.py"


def model_file(folder: Path, size: str, kind: str, zeros: float, *, sparse: bool) -> Path:
    path = folder / f"random-{size}-{kind}-{zeros:g}{'-sparse' * sparse}.gguf"
    if not path.exists():
        options = ["--size", size, "--type", kind, "--ffn-zeros", str(zeros)]
        options += ["--sparse-ffn"] * sparse
        subprocess.run([sys.executable, str(MAKE), *options, str(path)], check=True)
    return path


def seconds(session: Session, tokens: int) -> float:
    """For each of some tokens, the likeliest after the one before."""
    logits = session.feed([1])
    start = time.perf_counter()
    for _ in range(tokens):
        logits = session.feed([int(logits.argmax())])
    return (time.perf_counter() - start) / tokens


def compare(
    dense: Path, sparse: Path, threads: int, tokens: int, runs: int
) -> tuple[float, float, float]:
    """Tokens per second of both, and the median ratio."""
    models = [Model(path, threads=threads) for path in (dense, sparse)]
    times: list[list[float]] = []
    for run in range(runs + 1):
        pair = [seconds(model.session(), tokens) for model in models]
        if run > 0:  # the first brings the weights into memory
            times.append(pair)
    dense_rate, sparse_rate = (1 / statistics.median(pair[i] for pair in times) for i in (0, 1))
    return dense_rate, sparse_rate, statistics.median(pair[0] / pair[1] for pair in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="0.4b")
    parser.add_argument("--type", default="f16,q8_0,q4_0")
    parser.add_argument("--zeros", default="0.5,0.88")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16, help="in a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    print(f"{_core.isa()}, {args.threads} threads, {args.runs} runs of {args.tokens} tokens")
    print("| model | type | zeros asked for | dense tg | sparse tg | ratio |")
    print("|---|---|---|---|---|---|")
    for size in args.size.split(","):
        for kind in args.type.split(","):
            for zeros in map(float, args.zeros.split(",")):
                dense, sparse = (
                    model_file(args.folder, size, kind, zeros, sparse=is_sparse)
                    for is_sparse in (False, True)
                )
                found = compare(dense, sparse, args.threads, args.tokens, args.runs)
                rates = "{:.1f} | {:.1f} | {:.2f}".format(*found)
                print(f"| {size} | {kind} | {zeros:.0%} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
