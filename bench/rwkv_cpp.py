# SPDX-License-Identifier: Apache-2.0
"""rwkv.cpp's library beside the one that stands in for it, by the same calls, in turn.

    python bench/rwkv_cpp.py RWKV-4.pth THEIRS/librwkv.so build/release/librwkv.so

Both read the same .bin file in FP16, which is made of the checkpoint. Then each reads it in Q4_0:
rwkv.cpp what its own quantizer makes, and ours a GGUF file, because blocks of version 100 had
another layout. A version of rwkv.cpp that reads no sequences gets a prompt token by token.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rwkv_edge.convert import convert
from rwkv_edge.convert.open import open_checkpoint

Floats = NDArray[np.float32]
GGML_Q4_0 = 2


def write_bin(source: Path, target: Path) -> None:
    """An RWKV-4 checkpoint as rwkv.cpp's converter writes it in float16."""
    tensors = {name: tensor.float32() for name, tensor in open_checkpoint(source).tensors.items()}
    vocab, width = tensors["emb.weight"].shape
    layers = sum(name.endswith("ln1.weight") for name in tensors)
    with target.open("wb") as file:
        file.write(struct.pack("<6i", 0x67676D66, 100, vocab, width, layers, 1))
        for name, found in tensors.items():
            x = found.squeeze() if ".time_" in name else found
            if name.endswith("time_decay"):
                x = -np.exp(x)
            x = np.ascontiguousarray(x, np.float32 if x.ndim == 1 else np.float16)
            raw = name.encode()
            file.write(struct.pack("<3i", x.ndim, len(raw), int(x.ndim > 1)))
            file.write(struct.pack(f"<{x.ndim}i", *reversed(x.shape)) + raw + x.tobytes())


class Library:
    def __init__(self, path: Path) -> None:
        self.calls = ctypes.CDLL(str(path.resolve()))
        self.calls.rwkv_init_from_file.restype = ctypes.c_void_p
        self.calls.rwkv_eval.restype = self.calls.rwkv_quantize_model_file.restype = ctypes.c_bool

    def quantize(self, source: Path, target: Path) -> None:
        names = str(source).encode(), str(target).encode()
        if not self.calls.rwkv_quantize_model_file(*names, GGML_Q4_0):
            raise SystemExit(f"{source}: not quantized")


class Model:
    """A file in a library."""

    def __init__(self, library: Library, path: Path, threads: int) -> None:
        self.calls = library.calls
        # Old versions do not look at the third argument.
        found = self.calls.rwkv_init_from_file(str(path).encode(), threads, 0)
        if not found:
            raise SystemExit(f"{path}: not opened")
        self.pointer = ctypes.c_void_p(found)
        counts = [
            getattr(self.calls, f"rwkv_get_{what}_buffer_element_count")(self.pointer)
            for what in ("state", "logits")
        ]
        self.state, self.logits = (np.zeros(count, np.float32) for count in counts)

    def eval(self, token: int, *, begin: bool) -> None:
        self._checked(self.calls.rwkv_eval(self.pointer, token, *self._buffers(begin)))

    def read(self, tokens: list[int]) -> float:
        """Seconds for a prompt, from the beginning."""
        start = time.perf_counter()
        if hasattr(self.calls, "rwkv_eval_sequence"):
            self.calls.rwkv_eval_sequence.restype = ctypes.c_bool
            ids = (ctypes.c_int32 * len(tokens))(*tokens)
            size = ctypes.c_size_t(len(tokens))
            call = self.calls.rwkv_eval_sequence
            self._checked(call(self.pointer, ids, size, *self._buffers(begin=True)))
        else:
            for i, token in enumerate(tokens):
                self.eval(token, begin=not i)
        return time.perf_counter() - start

    def write(self, count: int) -> float:
        """Seconds for so many tokens, the same ones each time."""
        start = time.perf_counter()
        for token in range(count):
            self.eval(token, begin=False)
        return time.perf_counter() - start

    def _buffers(self, begin: bool) -> list[Any]:
        state, logits = (ctypes.c_void_p(x.ctypes.data) for x in (self.state, self.logits))
        return [None if begin else state, state, logits]

    @staticmethod
    def _checked(good: bool) -> None:
        if not good:
            raise SystemExit("a call failed")


def error(one: Floats, other: Floats) -> float:
    """The length of the difference as a share of the length."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


def compare(name: str, theirs: Model, ours: Model, args: argparse.Namespace) -> None:
    prompt = list(range(100, 100 + args.prompt))
    times: list[list[float]] = []
    for _ in range(args.runs + 1):
        times.append([model.read(prompt) for model in (theirs, ours)])
        times[-1] += [model.write(args.tokens) for model in (theirs, ours)]
    columns = list(zip(*times[1:], strict=True))  # the first run brings the weights into memory
    for what, count, i in (("prompt", args.prompt, 0), ("decode", args.tokens, 2)):
        pairs = list(zip(columns[i], columns[i + 1], strict=True))
        ratios = sorted(a / b for a, b in pairs)
        rates = [count / statistics.median(column) for column in columns[i : i + 2]]
        print(
            f"{name} {what}: rwkv.cpp {rates[0]:.1f} tokens/s, ours {rates[1]:.1f}, "
            f"{statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    print(f"{name}: logits differ by {error(theirs.logits, ours.logits):.1e} of their length")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="RWKV-4, a .pth")
    parser.add_argument("theirs", type=Path)
    parser.add_argument("ours", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="to decode")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    theirs, ours = Library(args.theirs), Library(args.ours)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        f16, q4_0, gguf = (folder / file for file in ("f16.bin", "q4_0.bin", "q4_0.gguf"))
        write_bin(args.checkpoint, f16)
        theirs.quantize(f16, q4_0)
        convert(f16, gguf, type="q4_0")
        for kind, one, other in (("FP16", f16, f16), ("Q4_0", q4_0, gguf)):
            print(f"{kind}: {one.stat().st_size >> 20} and {other.stat().st_size >> 20} MiB")
            models = Model(theirs, one, args.threads), Model(ours, other, args.threads)
            compare(kind, *models, args)


if __name__ == "__main__":
    main()
