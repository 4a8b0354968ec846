# SPDX-License-Identifier: Apache-2.0
"""Speed of quantization: python bench/quantizing.py [--threads 2] [--gptq 2048x2048,2048x8192]

First each type's search, in millions of weights per second; then GPTQ with the arithmetic it does
as a share of what the CPU can, measured beside it.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from rwkv_edge import _core

KINDS = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q3_k", "q4_k", "q5_k", "q6_k")
SWEEPS = 4  # of gptq.cpp


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def best_time(work: object, runs: int = 3) -> float:
    assert callable(work)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gptq", default="2048x2048,2048x8192", metavar="ROWSxCOLS,...")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.02, (512, 2048)).astype(np.float32)
    importance = rng.lognormal(0, 1, 2048).astype(np.float32)
    for kind in KINDS:
        columns = None if kind == "q8_0" else importance
        seconds = best_time(
            lambda kind=kind, columns=columns: _core.quantize_matrix(
                x, kind, importance=columns, threads=args.threads
            )
        )
        say(f"{kind}: {x.size / seconds / 1e6:.0f} million weights/s on {args.threads} threads")
    for shape in args.gptq.split(","):
        rows, cols = map(int, shape.split("x"))
        w = rng.normal(0, 0.02, (rows, cols)).astype(np.float32)
        inputs = rng.normal(0, 1, (cols // 8, cols)).astype(np.float32)
        hessian = inputs.T @ inputs
        hessian = (hessian + hessian.T) / np.float32(2 * len(inputs))
        seconds = best_time(
            lambda w=w, hessian=hessian: _core.quantize_matrix(
                w, "q4_k", hessian=hessian, threads=args.threads
            ),
            1 if cols > 4096 else 3,
        )
        # Products and sums of rounding, of the sweeps' gradients, and of the factor.
        operations = 2 * rows * cols**2 * (0.5 + SWEEPS) + cols**3 / 3
        share = operations / seconds / 1e9 / _core.float_peak(args.threads)
        say(f"GPTQ q4_k {rows} x {cols}: {seconds:.2f} s, {100 * share:.0f} % of the peak")


if __name__ == "__main__":
    main()
