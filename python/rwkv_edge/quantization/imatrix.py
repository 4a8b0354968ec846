# SPDX-License-Identifier: Apache-2.0
"""Importance matrices in llama.cpp's files: how large the inputs of every matrix are.

The new form is a GGUF file. general.type is "imatrix"; for each matrix NAME it has the tensors
NAME.in_sum2, [1, columns] f32, the sum of x^2, and NAME.counts, [1, 1] f32, the number of tokens.
The old form, .dat: i32 entries; for each i32 length, name, i32 calls, i32 columns, f32 [columns]
that are calls times the mean of x^2; then i32 chunks, i32 length, the name of the text.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..files.form import is_gguf, read_bytes, shown
from ..files.gguf_writer import GGUFWriter, TensorPlan, Value, string, uint32

MOST_BYTES = 1 << 30  # of an old file
MOST_NAME = 1 << 10
SUMS, COUNTS = ".in_sum2", ".counts"

F32 = NDArray[np.float32]


class Sums(NamedTuple):
    squares: NDArray[np.float64]  # [columns]
    tokens: int


@dataclass(frozen=True)
class Imatrix:
    """The mean of x^2 of the inputs of each matrix, [columns]."""

    path: Path
    means: Mapping[str, F32]

    def check(self, where: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError, which names both files, where it was made of another model."""
        known = [name for name in shapes if name in self.means]
        if not known:
            some = ", ".join(list(map(shown, self.means))[:2])
            raise ValueError(
                f"{self.path}: an imatrix of another model: it has {some}, and no matrix of {where}"
            )
        for name in known:
            if len(self.means[name]) != shapes[name][-1]:
                raise ValueError(
                    f"{self.path}: an imatrix of another model: {name} has "
                    f"{len(self.means[name])} columns, expected {shapes[name][-1]} as in {where}"
                )


def read_imatrix(path: Path) -> Imatrix:
    """Read a file of either form. Raises FormatError where it is neither, or damaged."""
    means = _read_gguf(path) if is_gguf(path) else _read_old(path)
    if not means:
        raise _core.FormatError(f"{path}: an imatrix without entries")
    for name, values in means.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise _core.FormatError(
                f"{path}: entry {shown(name)} holds what is no mean of squares: NaN, infinity or "
                "a negative number"
            )
    return Imatrix(path, means)


def _read_gguf(path: Path) -> dict[str, F32]:
    file = _core.ModelFile(path)
    kind = file.get("general.type")
    if kind != "imatrix":
        raise _core.FormatError(f"{path}: general.type is {shown(kind)}, expected 'imatrix'")
    tensors = {tensor.name: tensor for tensor in file.tensors}
    means = {}
    for name, tensor in tensors.items():
        if not name.endswith(SUMS):
            continue
        matrix = name.removesuffix(SUMS)
        counts = tensors.get(matrix + COUNTS)
        if counts is None:
            raise _core.FormatError(f"{path}: tensor {shown(matrix + COUNTS)} is missing")
        for each in (tensor, counts):
            if each.type != "f32":
                raise _core.FormatError(
                    f"{path}: tensor {shown(each.name)} is {each.type}, expected f32"
                )
        sums, number = tensor.data.view("<f4"), counts.data.view("<f4")
        if number.size != 1 or sums.size != tensor.shape[-1]:
            raise _core.FormatError(
                f"{path}: tensor {shown(name)} is {list(tensor.shape)}, expected one row of sums"
            )
        if number[0] != 0:  # a matrix that no token reached
            with np.errstate(all="ignore"):  # checked where all are read
                means[matrix] = sums / number[0]
    return means


class _Bytes:
    """Reads numbers of a file that may end anywhere."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, read_bytes(path, MOST_BYTES, "an imatrix"), 0

    def take(self, count: int, what: str) -> bytes:
        if count < 0 or count > len(self.data) - self.at:
            raise _core.FormatError(
                f"{self.path}: no imatrix: {what} takes {count} bytes at byte {self.at}, "
                f"{len(self.data) - self.at} are left"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, what: str, most: int) -> int:
        (found,) = struct.unpack("<i", self.take(4, what))
        if not 0 <= found <= most:
            raise _core.FormatError(
                f"{self.path}: no imatrix: {what} is {found}, expected 0 to {most}"
            )
        return int(found)


def _read_old(path: Path) -> dict[str, F32]:
    data = _Bytes(path)
    means: dict[str, F32] = {}
    for _ in range(data.number("the number of entries", 1 << 20)):
        name = data.take(data.number("the length of a name", MOST_NAME), "a name")
        text = name.decode("utf-8", "surrogateescape")
        calls = data.number("the number of calls", (1 << 31) - 1)
        columns = data.number("the number of columns", (1 << 31) - 1)
        sums = np.frombuffer(data.take(4 * columns, f"entry {shown(text)}"), "<f4")
        if calls and columns:
            with np.errstate(all="ignore"):
                means[text] = sums / np.float32(calls)
    return means  # what follows says where it comes from


def write_imatrix(
    path: Path, sums: Mapping[str, Sums], *, text: str, windows: int, size: int
) -> None:
    """Write the new form, which llama-quantize reads: from `windows` windows of `size` tokens."""
    metadata = {
        "general.type": string("imatrix"),
        "imatrix.datasets": Value("array[string]", [text]),
        "imatrix.chunk_count": uint32(windows),
        "imatrix.chunk_size": uint32(size),
    }
    plans, data = [], []
    for name, (squares, tokens) in sums.items():
        plans.append(TensorPlan(name + SUMS, (1, len(squares)), "f32"))
        plans.append(TensorPlan(name + COUNTS, (1, 1), "f32"))
        data += [squares, np.array([tokens])]
    with GGUFWriter(path, metadata, plans) as writer:
        for plan, values in zip(plans, data, strict=True):
            writer.tensor(plan.name, [values.astype("<f4").tobytes()])
