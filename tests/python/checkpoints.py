# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files made byte by byte: .pth as torch.save writes it, and .safetensors.

Nothing here is shared with `rwkv_edge.convert`, and every field can be told to lie.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ggml_types as ggml
import numpy as np
import tiny
from numpy.typing import NDArray
from reference import Weights
from rwkv_edge._core import ModelFile

STORAGE_NAMES = {"f32": "FloatStorage", "f16": "HalfStorage", "bf16": "BFloat16Storage"}
SAFETENSORS_NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


SHAPE = tiny.Shape(128, 64, 3, 512, 300, ranks=(24, 20, 12, 40), unused_v="own")

VOCABULARY = r"""1 'a' 1
2 'b"\'c' 4
3 b'\xff\x00' 2
5 '\n\n' 2
6 '\u00e9\t' 3
"""


def write(folder: Path, data: bytes, name: str = "some model.pth") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def weights_of(shape: tiny.Shape = SHAPE) -> Weights:
    """Those of tests/python/tiny.py with the shapes that a trainer saves: [1, 1, D]."""
    lerps = tuple(f".x_{x}" for x in "rwkvag")
    wide = (".w0", ".a0", ".v0", ".k_k", ".k_a", *lerps)
    weights = tiny.random_weights(shape, seed=5)
    return {n: v.reshape(1, 1, -1) if n.endswith(wide) else v for n, v in weights.items()}


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor of a GGUF file."""
    tensors = ModelFile(str(path)).tensors
    return {t.name: (t.type, tuple(t.shape), bytes(t.data)) for t in tensors}


# ---- pickle, protocol 2 -------------------------------------------------------------------------


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass(frozen=True)
class Call:
    function: Global
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Persistent:
    value: tuple[Any, ...]


@dataclass(frozen=True)
class Ordered:
    """An OrderedDict, with attributes if any."""

    items: Mapping[Any, Any]
    attributes: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


ORDERED_DICT = Call(Global("collections", "OrderedDict"), ())


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + push(value) + b"."


def push(value: Any) -> bytes:
    """The opcodes that leave one value on the stack."""
    return WRITERS[type(value)](value)


def push_text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def push_all(values: Iterable[Any]) -> bytes:
    return b"".join(map(push, values))


def push_ordered(value: Ordered) -> bytes:
    attributes = b"" if value.attributes is None else push(dict(value.attributes)) + b"b"
    return push(ORDERED_DICT) + push_items(value.items) + attributes


def push_int(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def push_items(items: Mapping[Any, Any]) -> bytes:
    return b"(" + b"".join(push(key) + push(value) for key, value in items.items()) + b"u"


WRITERS: dict[type, Callable[[Any], bytes]] = {
    Raw: lambda value: value.opcodes,
    type(None): lambda _: b"N",
    bool: lambda value: b"\x88" if value else b"\x89",
    int: push_int,
    str: push_text,
    tuple: lambda value: b"(" + push_all(value) + b"t",
    list: lambda value: b"](" + push_all(value) + b"e",
    dict: lambda value: b"}" + push_items(value),
    Global: lambda value: f"c{value.module}\n{value.name}\n".encode(),
    Call: lambda value: push(value.function) + push(value.args) + b"R",
    Persistent: lambda value: push(value.value) + b"Q",
    Ordered: push_ordered,
}


def torch_tensor(
    key: str,
    shape: tuple[int, ...],
    *,
    kind: str = "f32",
    numel: int | None = None,
    offset: int = 0,
    strides: tuple[int, ...] | None = None,
    location: str = "cpu",
) -> Call:
    """A tensor as it stands in data.pkl; dense and filling its storage unless told otherwise."""
    storage = Global("torch", STORAGE_NAMES.get(kind, kind))
    if numel is None:
        numel = int(np.prod(shape))
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    persistent = Persistent(("storage", storage, key, location, numel))
    args = (persistent, offset, shape, strides, False, ORDERED_DICT)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)


# ---- the zip archive ----------------------------------------------------------------------------


@dataclass
class Zip:
    """Stored entries as torch's writer lays them out: sizes only behind the data and in the
    directory, every entry's bytes from a multiple of 64, always a Zip64 end record."""

    entries: dict[str, bytes] = field(default_factory=dict)
    root: str = "archive"
    with_crc: bool = True
    method: int = 0
    alignment: int = 64

    def to_bytes(self) -> bytes:
        out, directory = bytearray(), bytearray()
        for name, data in self.entries.items():
            path = f"{self.root}/{name}".encode()
            crc = zlib.crc32(data) if self.with_crc else 0
            header_at = len(out)
            padding = -(header_at + 30 + len(path) + 4) % self.alignment
            extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            # version, flags (UTF-8, sizes follow), method, time, date, crc, sizes, lengths
            out += b"PK\3\4" + struct.pack("<5H3I2H", 0, 0x808, self.method, 0, 0, 0, 0, 0,
                                           len(path), len(extra))  # fmt: skip
            out += path + extra + data
            out += b"PK\7\x08" + struct.pack("<3I", crc, len(data), len(data))
            directory += b"PK\1\2" + struct.pack("<6H3I5H2I", 0, 0, 0x808, self.method, 0, 0, crc,
                                                 len(data), len(data), len(path), 0, 0, 0, 0, 0,
                                                 header_at) + path  # fmt: skip
        return bytes(out + directory) + end_records(len(self.entries), len(directory), len(out))


def end_records(count: int, size: int, start: int) -> bytes:
    zip64 = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 30, 45, 0, 0, count, count, size, start)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, start + size, 1)
    return zip64 + locator + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, count, count, size, start, 0)


def pth_entries(weights: Mapping[str, NDArray[np.float32]], kind: str) -> dict[str, bytes]:
    """The storages of dense tensors, keys "0", "1" ... in order."""
    return {f"data/{i}": ggml.encode(v, kind).tobytes() for i, v in enumerate(weights.values())}


def pth(top: Any, storages: Mapping[str, bytes], **options: Any) -> bytes:
    """A .pth whose pickle holds `top`."""
    entries = {"data.pkl": pickled(top), ".format_version": b"1", ".storage_alignment": b"64"}
    entries |= {"byteorder": b"little", **storages, "version": b"3\n"}
    return Zip(entries, **options).to_bytes()


def pth_of(weights: Mapping[str, NDArray[np.float32]], kind: str = "f32", **options: Any) -> bytes:
    """A plain dict of dense tensors, as the trainers save it."""
    tensors = {
        name: torch_tensor(str(i), value.shape, kind=kind)
        for i, (name, value) in enumerate(weights.items())
    }
    return pth(tensors, pth_entries(weights, kind), **options)


# ---- safetensors --------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors_of(
    weights: Mapping[str, NDArray[np.float32]],
    kind: str = "f32",
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, value in weights.items():
        raw = ggml.encode(value, kind).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        entry = {"dtype": SAFETENSORS_NAMES[kind], "shape": value.shape, "data_offsets": offsets}
        header[name] = entry
        data += raw
    return safetensors(header, data)
