# SPDX-License-Identifier: Apache-2.0
"""Base files of llama-perplexity: what a model found likely in a text, to compare others with.

The file: "_logits_", u32 n_ctx, i32 n_vocab, i32 n_chunk, i32 tokens [n_chunk, n_ctx]; then for
each position from n_ctx / 2 to n_ctx - 2 of each chunk f32 scale, f32 least, u16 codes, whose
number is n_vocab rounded up to even: ln p = scale * code + least. Nothing is below e^-16 of the
likeliest token.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .._core import FormatError
from .form import open_regular
from .output import OutputFile

MAGIC = b"_logits_"
SPAN = 16.0
STEPS = 65535
MOST_WINDOW, MOST_VOCAB = 1 << 24, 1 << 24


def scored(n_ctx: int) -> tuple[int, int]:
    """The positions of a chunk whose logits such a file has: from the first, and not the second."""
    return n_ctx // 2, n_ctx - 1


def row_bytes(n_vocab: int) -> int:
    return 8 + 2 * (n_vocab + n_vocab % 2)


def is_base_file(path: Path) -> bool:
    if path.is_dir():
        return False
    with open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


class BaseReader:
    """Context manager; `rows` reads on from where it is."""

    def __init__(self, path: Path) -> None:
        """Raises FormatError where the file is no base file or is not whole."""
        self.path = path
        self._file: BinaryIO = open_regular(path)
        try:
            size = os.fstat(self._file.fileno()).st_size
            start = self._file.read(len(MAGIC) + 12)
            if len(start) < len(MAGIC) + 12 or not start.startswith(MAGIC):
                raise FormatError(f"{path}: no base file of llama-perplexity")
            self.n_ctx, self.n_vocab, chunks = struct.unpack("<Iii", start[len(MAGIC) :])
            for name, value, most in (
                ("n_ctx", self.n_ctx, MOST_WINDOW),
                ("n_vocab", self.n_vocab, MOST_VOCAB),
                ("n_chunk", chunks, size),
            ):
                if not 1 <= value <= most:
                    raise FormatError(f"{path}: {name} is {value}, expected 1 to {most}")
            first, end = scored(self.n_ctx)
            expected = len(start) + chunks * (
                4 * self.n_ctx + (end - first) * row_bytes(self.n_vocab)
            )
            if size != expected:
                raise FormatError(
                    f"{path}: {size} bytes, expected {expected} for {chunks} chunks of "
                    f"{self.n_ctx} tokens of a vocabulary of {self.n_vocab}"
                )
            self.tokens = np.frombuffer(self._file.read(4 * chunks * self.n_ctx), "<i4").reshape(
                chunks, self.n_ctx
            )
            if self.tokens.min() < 0 or self.tokens.max() >= self.n_vocab:
                raise FormatError(
                    f"{path}: tokens {self.tokens.min()} to {self.tokens.max()}, "
                    f"expected 0 to {self.n_vocab - 1}"
                )
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BaseReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rows(self, count: int) -> NDArray[np.float32]:
        """ln p of the next positions: [count, n_vocab]."""
        size = row_bytes(self.n_vocab)
        data = self._file.read(count * size)
        if len(data) != count * size:
            raise FormatError(f"{self.path}: ended before its last position")
        raw = np.frombuffer(data, "u1").reshape(count, size)
        scale, least = raw[:, :8].copy().view("<f4").T[:, :, None]
        # A damaged scale would turn a figure into NaN without a word.
        if not (np.isfinite(scale).all() and np.isfinite(least).all()):
            raise FormatError(f"{self.path}: a position whose scale is no number")
        codes = raw[:, 8:].copy().view("<u2")[:, : self.n_vocab]
        rows: NDArray[np.float32] = scale * codes.astype(np.float32) + least
        return rows


class BaseWriter:
    """Context manager: the file takes the target's place when it is whole."""

    def __init__(self, target: Path, tokens: NDArray[np.int32], n_vocab: int) -> None:
        self._file = OutputFile(target)
        chunks, n_ctx = tokens.shape
        self._header = MAGIC + struct.pack("<Iii", n_ctx, n_vocab, chunks)
        self._tokens = tokens

    def __enter__(self) -> BaseWriter:
        self._file.__enter__()
        try:
            self._file.write(self._header)
            self._file.write(self._tokens.astype("<i4").tobytes())
        except BaseException as error:
            self._file.__exit__(type(error))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, value)

    def write(self, logits: NDArray[np.float32]) -> None:
        """The next positions, from their logits [T, n_vocab]."""
        n_vocab = logits.shape[1]
        top = logits.max(axis=1, keepdims=True)
        least = np.maximum(logits.min(axis=1, keepdims=True), top - np.float32(SPAN))
        total = np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64)
        scale = (top - least) / np.float32(STEPS)
        rows = np.zeros((len(logits), row_bytes(n_vocab)), "u1")
        rows[:, :4] = scale.astype("<f4").view("u1")
        rows[:, 4:8] = (least - top - np.log(total)).astype("<f4").view("u1")
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.rint((np.maximum(logits, least) - least) / scale)
        codes[np.broadcast_to(scale == 0, codes.shape)] = 0
        rows[:, 8 : 8 + 2 * n_vocab] = codes.astype("<u2").view("u1")
        self._file.write(rows.tobytes())
