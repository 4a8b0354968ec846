# SPDX-License-Identifier: Apache-2.0
"""What every reader of checkpoints gives: named tensors whose values are read when asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import FormatError, ModelFile, dequantize, type_block
from .form import shown

F32 = NDArray[np.float32]

# How the values of plain types lie in a file; bfloat16 is the upper half of a float32.
NUMPY_TYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}

# What a file may have at most (docs/security.md); cpp/io/model_file.h has the same for GGUF.
MAX_TENSORS = 1 << 16
MAX_NAME = 1024  # bytes of a tensor's name
MAX_DIMS = 8
MAX_VALUES = 1 << 56  # of a tensor: numpy counts bytes in 63 bits


def check_names(path: Path, names: Collection[str]) -> None:
    """FormatError where tensors are too many, or a name is too long or no Unicode."""
    if len(names) > MAX_TENSORS:
        raise FormatError(f"{path}: {len(names)} tensors, expected at most {MAX_TENSORS}")
    for name in names:
        try:
            length = len(name.encode("utf-8"))
        except UnicodeEncodeError:
            raise FormatError(f"{path}: tensor {shown(name)} has a name that is no UTF-8") from None
        if length > MAX_NAME:
            raise FormatError(
                f"{path}: tensor {shown(name)} has a name of {length} bytes, "
                f"expected at most {MAX_NAME}"
            )


def check_shape(where: str, shape: tuple[int, ...]) -> None:
    """FormatError, beginning with `where`, for a shape that no array can have."""
    if len(shape) > MAX_DIMS:
        raise FormatError(f"{where} has {len(shape)} dimensions, expected at most {MAX_DIMS}")
    if any(n < 0 for n in shape) or math.prod(n or 1 for n in shape) > MAX_VALUES:
        raise FormatError(f"{where} has the impossible shape {shown(list(shape))}")


class Tensor(Protocol):
    """A tensor of a checkpoint, row-major. Asking for rows is what costs memory, nothing else."""

    @property
    def name(self) -> str:
        """Its name in the file, for messages; the checkpoint may list it under another one."""

    @property
    def dtype(self) -> str:
        """A type's name, "f16" or "q4_0"."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        """A copy of the rows [start, stop) of the first axis."""

    def raw(self) -> NDArray[np.uint8] | None:
        """All bytes, in place; None where the file does not have them in this order."""


class MappedFile(_core.MappedFile):
    """A whole file, mapped for reading."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path, self.bytes = path, self.data
        self.size = self.bytes.size

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`; the caller has checked that the file has them."""
        return self.bytes[offset : offset + count].tobytes()

    def view(
        self, kind: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """An array in the file itself; strides count values (default: dense).

        Of a block type it holds bytes, in place of the values of the last axis.
        The caller has checked that all of it lies inside the file.
        """
        if kind not in NUMPY_TYPES:
            values, size = type_block(kind)
            shape = (*shape[:-1], shape[-1] // values * size)
        dtype = np.dtype(NUMPY_TYPES.get(kind, "u1"))
        steps = None if strides is None else tuple(n * dtype.itemsize for n in strides)
        view: NDArray[Any] = np.ndarray(shape, dtype, self.bytes, offset, steps)
        return view


@dataclass(frozen=True)
class MappedTensor:
    """A `Tensor` whose values lie in a mapped file, with any strides."""

    name: str
    dtype: str
    data: NDArray[Any]  # as MappedFile.view has it
    file: MappedFile | ModelFile

    @property
    def shape(self) -> tuple[int, ...]:
        if self.dtype in NUMPY_TYPES:
            return self.data.shape
        values, size = type_block(self.dtype)
        return (*self.data.shape[:-1], self.data.shape[-1] // size * values)

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        part = self.data[start:stop]
        if self.dtype == "bf16":
            values: F32 = (part.astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif self.dtype in NUMPY_TYPES:
            values = part.astype(np.float32)
        else:
            values = dequantize(np.ascontiguousarray(part), self.dtype)
        self.file.forget()
        return values

    def raw(self) -> NDArray[np.uint8] | None:
        return self.data.reshape(-1).view(np.uint8) if self.data.flags.c_contiguous else None


@dataclass(frozen=True)
class MadeTensor:
    """A `Tensor` whose rows a function makes when they are asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: Callable[[int, int | None], F32]

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        return self.rows(start, stop)

    def raw(self) -> None:
        """Nothing lies in a file as it is."""


def rearranged(tensor: Tensor, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Tensor:
    """`tensor` after `change`, which makes one view of an array out of another."""
    if isinstance(tensor, MappedTensor) and tensor.dtype in NUMPY_TYPES:
        return replace(tensor, data=change(tensor.data))
    shape = change(np.broadcast_to(np.float32(0), tensor.shape)).shape

    def rows(start: int, stop: int | None) -> F32:
        values: F32 = change(tensor.float32())[start:stop].copy()
        return values

    return MadeTensor(tensor.name, "f32", shape, rows)


def turned(tensor: Tensor) -> Tensor:
    """`tensor` with its last two axes exchanged; a vector stays as it is."""
    if len(tensor.shape) < 2:
        return tensor
    return rearranged(tensor, lambda values: values.swapaxes(-1, -2))


def split(tensor: Tensor) -> list[Tensor]:
    """The parts of `tensor` along its first axis."""
    return [rearranged(tensor, itemgetter(i)) for i in range(tensor.shape[0])]


def by_name(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by their new names; FormatError where two would have the same."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name in found:
            raise FormatError(f"{path}: {found[name].name!r} and {tensor.name!r} are both {name}")
        found[name] = tensor
    return found


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file or folder, and what it says about itself.

    A reader gives them the names they have there; `open_checkpoint` makes those BlinkDL's, and
    orientation and values those of his .pth files. What a file holds only in a transformed form,
    which cannot be undone without losing bits, has a name of its own:
    time_decay_factor = exp(-exp(time_decay)) of RWKV-5 and time_decay_rate = -exp(time_decay) of
    RWKV-4, both float32. An RWKV-5 u that a file holds as exp(time_first) is a time_faaaa.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the files that belong to it lie, such as a vocabulary."""
        return self.path if self.path.is_dir() else self.path.parent
