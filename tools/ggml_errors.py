# SPDX-License-Identifier: Apache-2.0
"""Record how far ggml's own quantizers are off, for the tests of ours.

    python tools/ggml_errors.py LIBRARY

LIBRARY is a shared library with ggml_quantize_chunk: libggml-base.so of llama.cpp or of the package
llama-cpp-python. The figures go to tests/python/ggml_errors.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rwkv_edge import _core

F32 = NDArray[np.float32]
RECORD = Path(__file__).parents[1] / "tests" / "python" / "ggml_errors.json"
DEMO = Path(__file__).parents[1] / "python" / "rwkv_edge" / "demo.gguf"
KINDS = ("q3_k", "q4_k", "q5_k", "q6_k", "q4_0", "q4_1", "q5_0", "q5_1")


def matrices() -> dict[str, F32]:
    """[rows, cols] by name: random, with heavy tails, with loud columns, and of the demo model."""
    rng = np.random.default_rng(5)
    loud = rng.normal(0, 1, (32, 512))
    loud[:, ::97] *= 30
    found: dict[str, NDArray[Any]] = {
        "normal": rng.normal(0, 0.02, (32, 512)),
        "Student t": rng.standard_t(3, (32, 512)),
        "Laplace": rng.laplace(0, 0.1, (32, 512)),
        "loud columns": loud,
        "one sign": rng.uniform(3, 4, (32, 512)),
    }
    file = _core.ModelFile(DEMO)
    for tensor in file.tensors:
        if tensor.name.startswith("blk.1.") and tensor.name.endswith(
            ("_key.weight", "_value.weight", "_output.weight")
        ):
            values = _core.dequantize(tensor.data, tensor.type)
            found[tensor.name] = values.reshape(-1, tensor.shape[-1])[:64]
    return {name: np.ascontiguousarray(x, np.float32) for name, x in found.items()}


def importance(x: F32) -> F32:
    """[cols], of a wide range."""
    drawn: F32 = np.random.default_rng(6).lognormal(0, 1, len(x[0])).astype(np.float32)
    return drawn


def weights(x: F32, kind: str) -> NDArray[np.float64]:
    """What the squared errors are weighted with where nothing is known of the columns."""
    exact = x.astype(np.float64)
    if kind in ("q3_k", "q6_k"):
        return exact**2
    if kind in ("q4_k", "q5_k"):
        blocks = exact.reshape(-1, 32)
        rms = np.sqrt((blocks**2).mean(axis=1, keepdims=True))
        loud: NDArray[np.float64] = rms + np.abs(blocks)
        return loud.reshape(x.shape)
    return np.ones(x.shape)


def errors(x: F32, kind: str, plain: NDArray[np.uint8], with_it: NDArray[np.uint8]) -> list[float]:
    """Weighted squared errors of blocks made without and with the importance of the columns."""
    square = [(_core.dequantize(b, kind).astype(np.float64) - x) ** 2 for b in (plain, with_it)]
    return [
        float((weights(x, kind) * square[0]).sum()),
        float((importance(x).astype(np.float64) * square[1]).sum()),
    ]


def checksum(x: F32) -> int:
    return zlib.crc32(x.tobytes())


class Ggml:
    def __init__(self, library: str) -> None:
        self._quantize = ctypes.CDLL(library, mode=os.RTLD_LAZY).ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]

    def quantize(self, x: F32, kind: str, importance: F32 | None) -> NDArray[np.uint8]:
        values, size = _core.type_block(kind)
        rows, cols = x.shape
        out = np.empty((rows, cols // values * size), np.uint8)
        columns = None if importance is None else importance.ctypes.data
        number = _core.type_id(kind)
        self._quantize(number, x.ctypes.data, out.ctypes.data, 0, rows, cols, columns)
        return out

    def errors(self, x: F32, kind: str) -> list[float]:
        plain, with_it = (self.quantize(x, kind, i) for i in (None, importance(x)))
        return errors(x, kind, plain, with_it)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    ggml = Ggml(parser.parse_args().library)
    record = {
        name: {"crc32": checksum(x), **{kind: ggml.errors(x, kind) for kind in KINDS}}
        for name, x in matrices().items()
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
