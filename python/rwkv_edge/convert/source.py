# SPDX-License-Identifier: Apache-2.0
"""What every reader of checkpoints gives: named tensors whose values are read when asked for."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._core import FormatError

F32 = NDArray[np.float32]

# How the values of a tensor lie in a file; bfloat16 is the upper half of a float32.
NUMPY_TYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


class Tensor(Protocol):
    """A tensor of a checkpoint, row-major. Asking for rows is what costs memory, nothing else."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """ "f32", "f16" or "bf16"."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        """A copy of the rows [start, stop) of the first axis."""


class MappedFile:
    """A whole file, mapped for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.size = file.seek(0, 2)
            if self.size == 0:
                raise FormatError(f"{path}: the file is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`; the caller has checked that the file has them."""
        return self._map[offset : offset + count]

    def view(
        self, kind: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """An array in the file itself: `kind` of NUMPY_TYPES, strides in values (default: dense).

        The caller has checked that all of it lies inside the file.
        """
        dtype = np.dtype(NUMPY_TYPES[kind])
        steps = None if strides is None else tuple(n * dtype.itemsize for n in strides)
        view: NDArray[Any] = np.ndarray(shape, dtype, self._map, offset, steps)
        return view

    def forget(self) -> None:
        """Give back the pages read so far, so that reading 14 GB does not look like using it."""
        if hasattr(self._map, "madvise"):  # not on Windows
            self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class MappedTensor:
    """A `Tensor` whose values lie in a mapped file, with any strides."""

    name: str
    dtype: str
    raw: NDArray[Any]
    file: MappedFile

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        part = self.raw[start:stop]
        if self.dtype == "bf16":
            values: F32 = (part.astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            values = part.astype(np.float32)
        self.file.forget()
        return values


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, under the names they have there, and what it says about itself."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
