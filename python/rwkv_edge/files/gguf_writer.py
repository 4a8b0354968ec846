# SPDX-License-Identifier: Apache-2.0
"""Writer of GGUF v3 files that never holds more than a piece of one tensor.

The file: magic, version, counts; the metadata; name, shape, type and offset of every tensor; then
the tensors' bytes, each from a multiple of 32. The header comes first, so all shapes and types are
known before the first value is written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._core import type_block, type_id
from .output import OutputFile

Progress = Callable[[int, int, str], None]  # bytes written, bytes in all, name of the tensor

ALIGNMENT = 32
MAX_DIMS = 4
STRING_ID, ARRAY_ID = 8, 9
NUMBERS = {
    "uint8": (0, "B"),
    "int8": (1, "b"),
    "uint16": (2, "H"),
    "int16": (3, "h"),
    "uint32": (4, "I"),
    "int32": (5, "i"),
    "float32": (6, "f"),
    "bool": (7, "?"),
    "uint64": (10, "Q"),
    "int64": (11, "q"),
    "float64": (12, "d"),
}


class Value(NamedTuple):
    """A value of the metadata with GGUF's name of its type: "uint32", "array[string]" ..."""

    kind: str
    data: Any


def uint32(number: int) -> Value:
    return Value("uint32", number)


def string(text: str) -> Value:
    return Value("string", text)


class TensorPlan(NamedTuple):
    """A tensor to be written; the shape in numpy's order, columns last."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def nbytes(self) -> int:
        values, size = type_block(self.type)
        if self.shape[-1] % values:
            raise ValueError(
                f"tensor {self.name}: {self.shape[-1]} columns are not whole blocks of {self.type}"
            )
        return math.prod(self.shape) // values * size


class GGUFWriter:
    """Context manager: the header is written on entry, then each tensor in the planned order.

    The target is replaced when all is written, as an `OutputFile` does it. `inputs` are files that
    must not be overwritten; `mode` is that of a new file.
    """

    def __init__(
        self,
        target: Path,
        metadata: Mapping[str, Value],
        tensors: Sequence[TensorPlan],
        *,
        inputs: Iterable[Path] = (),
        mode: int = 0o666,
        progress: Progress | None = None,
    ) -> None:
        for path in inputs:
            if target.exists() and path.exists() and target.samefile(path):
                raise ValueError(f"{target}: input and output are the same file")
        self.file = OutputFile(target, mode=mode)
        start = header(metadata, tensors)
        self.header = start + bytes(-len(start) % ALIGNMENT)
        self.tensors = tensors
        self.total = sum(tensor.nbytes for tensor in tensors)
        self.done = self.written = 0
        self.progress = progress

    def __enter__(self) -> GGUFWriter:
        self.file.__enter__()
        try:
            self.file.write(self.header)
        except BaseException as error:
            self.file.__exit__(type(error))
            raise
        return self

    def tensor(self, name: str, pieces: Iterable[NDArray[np.uint8] | bytes]) -> None:
        """Write the next tensor of the plan from pieces of its bytes."""
        planned = self.tensors[self.written]
        if planned.name != name:
            raise ValueError(f"tensor {name} written where {planned.name} was planned")
        count = 0
        for piece in pieces:
            data = (
                piece if isinstance(piece, bytes) else np.ascontiguousarray(piece).reshape(-1).data
            )
            self.file.write(data)
            count += len(data)
            if self.progress is not None:
                self.progress(self.done + count, self.total, name)
        if count != planned.nbytes:
            raise ValueError(f"tensor {name}: {count} bytes written, planned {planned.nbytes}")
        self.file.write(bytes(-count % ALIGNMENT))
        self.done += count
        self.written += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.written != len(self.tensors):
            self.file.__exit__(ValueError)
            raise ValueError(f"{self.written} of {len(self.tensors)} tensors written")
        self.file.__exit__(kind)


def header(metadata: Mapping[str, Value], tensors: Sequence[TensorPlan]) -> bytes:
    """All of a file that comes before the tensors' bytes, without the padding between them."""
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise ValueError("two tensors of one name")
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    out += [_string(key) + _value(key, value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]  # the file has the columns first
        if not 1 <= len(dims) <= MAX_DIMS:
            raise ValueError(f"tensor {tensor.name}: {len(dims)} dimensions")
        out.append(_string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        out.append(struct.pack("<IQ", type_id(tensor.type), offset))
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    return b"".join(out)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Value) -> bytes:
    kind, data = value
    try:
        if kind == "string":
            return struct.pack("<I", STRING_ID) + _string(data)
        if kind == "array[string]":
            head = struct.pack("<IIQ", ARRAY_ID, STRING_ID, len(data))
            return head + b"".join(_string(text) for text in data)
        if kind.startswith("array["):
            number, code = NUMBERS[kind[6:-1]]
            head = struct.pack("<IIQ", ARRAY_ID, number, len(data))
            return head + struct.pack(f"<{len(data)}{code}", *data)
        number, code = NUMBERS[kind]
        return struct.pack(f"<I{code}", number, data)
    except (KeyError, struct.error, AttributeError, TypeError) as error:
        raise ValueError(f"key {key}: cannot be written as {kind} ({error})") from None
