# SPDX-License-Identifier: Apache-2.0
"""What `quantize --calibrate --type q4_k` of random RWKV-7 models takes, by one layer of each.

    python bench/calibrating.py [--size 0.1b,0.4b,1.5b,7.2b] [--tokens 2048] [--threads 2]

A model of two layers of the real shape is made. The second layer reads a text, the sums of x x^T of
its matrices are taken, and some rows of each are quantized. Seconds are those of all threads'
processors, so that other work on the machine counts little; divided by the number of threads they
are what a quiet machine takes. `of the peak` is the share of the f32 multiply-adds that one thread
can do, measured beside it. Whole models are layers times that, and the head.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rwkv_edge import Model, _core
from rwkv_edge.convert.policy import Types
from rwkv_edge.convert.write import tensor_of
from rwkv_edge.files.source import F32
from rwkv_edge.quantization.calibrate import DAMP, TOKENS_PER_COLUMN
from rwkv_edge.quantization.collect import Section, collect, matrices_of
from rwkv_edge.quantization.text import Windows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from make_random_model import SIZES, write_gguf

WINDOW = 512
LEAST_TOKENS = 1 << 16
FEW_ROWS, MORE_ROWS = 64, 1024  # of a matrix, from whose times that of all follows
VOCABULARY = 1024  # of the model of two layers
SWEEPS = 4  # of gptq.cpp


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def gptq_seconds(values: F32, hessian: F32, rows: int, threads: int) -> float:
    """Of a matrix [rows, columns], of which these are some rows."""

    def taken(count: int) -> float:
        some = values[:count]
        return seconds(lambda: _core.quantize_matrix(some, "q4_k", None, hessian, DAMP, threads))

    few, more = taken(FEW_ROWS), taken(len(values))
    return few + (more - few) / (len(values) - FEW_ROWS) * (rows - FEW_ROWS)


def measure(name: str, folder: Path, tokens: int, threads: int) -> None:
    size = SIZES["7"][name]
    path = folder / f"{name}.gguf"
    write_gguf(
        path,
        dataclasses.replace(size, layers=2, vocab=VOCABULARY),
        1,
        Types.choose("f16", None, None),
    )
    model = Model(path, threads=threads)
    peaks = [_core.float_peak(1)]
    rng = np.random.default_rng(1)
    windows: Windows = rng.integers(1, VOCABULARY, (tokens // WINDOW, WINDOW)).astype(np.int32)
    names = [name for name in matrices_of(model) if name.startswith("blk.1.")]
    with Section(model, folder, 0, 1, kept=True) as section:
        collect(model, windows, [], section=section)

    def reading(wanted: list[str]) -> tuple[float, float]:
        """Seconds for all the tokens, and those that their number does not matter for."""
        times = []
        for part in (windows[: len(windows) // 2], windows):
            with Section(model, folder, 1, 2, kept=True) as section:
                times.append(seconds(partial(collect_sums, section, part, wanted)))
        spent = (times[1] - times[0]) * len(windows) / (len(windows) - len(windows) // 2)
        return spent, times[1] - spent

    def collect_sums(section: Section, part: Windows, wanted: list[str]) -> None:
        sums = collect(model, part, wanted, hessians=True, section=section)
        found.update({name: inputs.hessian() for name, inputs in sums.items()})

    found: dict[str, F32] = {}
    forward, _ = reading([])
    both, once = reading(names)
    sums = both - forward
    weights = sum(int(np.prod(matrices_of(model)[name])) for name in names)
    squares = sum(len(found[name]) ** 2 for name in names)
    tensors = {tensor.name: tensor for tensor in model._file.tensors}
    known: dict[tuple[int, int], float] = {}
    gptq = operations = 0.0
    for matrix in names:
        rows, columns = matrices_of(model)[matrix]
        if (rows, columns) not in known:
            values = tensor_of(model._file, tensors[matrix]).float32(0, min(rows, MORE_ROWS))
            known[rows, columns] = gptq_seconds(values, found[matrix], rows, threads)
        gptq += known[rows, columns]
        operations += 2 * rows * columns**2 * (0.5 + SWEEPS) + columns**3 / 3
    head = known[4 * size.width, size.width] * size.vocab / (4 * size.width)
    needed = max(LEAST_TOKENS, TOKENS_PER_COLUMN * 4 * size.width)

    peaks += [_core.float_peak(1) for _ in range(4)]  # one beside other work may be far too low

    def share(ops: float, spent: float) -> str:
        return f"{100 * ops / spent / 1e9 / max(peaks):.0f} % of the peak"

    scale = needed / windows.size
    total = size.layers * (both * scale + once + gptq) + head
    say(
        f"{name}: a layer reads {needed} tokens in {forward * scale:.0f} s "
        f"({share(2 * weights * windows.size, forward)}), sums in {sums * scale + once:.0f} s "
        f"({share(squares * windows.size, sums)}), GPTQ {gptq:.0f} s "
        f"({share(operations, gptq)}); head {head:.0f} s; "
        f"{size.layers} layers {total / 60:.0f} min of processors, "
        f"{total / 60 / threads:.0f} min on {threads}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="0.1b,0.4b,1.5b,7.2b")
    parser.add_argument("--tokens", type=int, default=2048, help="that are read to measure")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for name in args.size.split(","):
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder), args.tokens, args.threads)


if __name__ == "__main__":
    main()
