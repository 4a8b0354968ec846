# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files made byte by byte: .pth as torch.save writes it, .safetensors, and rwkv.cpp's.

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
from rwkv_edge import _core
from rwkv_edge._core import ModelFile
from rwkv_edge.convert.open import open_checkpoint

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


def random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)


def weights_of(shape: tiny.Shape = SHAPE) -> Weights:
    """Those of tests/python/tiny.py with the shapes that a trainer saves: [1, 1, D]."""
    lerps = tuple(f".x_{x}" for x in "rwkvag")
    wide = (".w0", ".a0", ".v0", ".k_k", ".k_a", *lerps)
    weights = tiny.random_weights(shape, seed=5)
    return {n: v.reshape(1, 1, -1) if n.endswith(wide) else v for n, v in weights.items()}


def squeezed(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, tuple[Any, bytes]]:
    """Names, shapes without dimensions of one, and bits: what makes two sets of weights equal."""
    shapes = {name: tuple(n for n in value.shape if n != 1) for name, value in weights.items()}
    return {name: (shapes[name], value.tobytes()) for name, value in weights.items()}


def opened(path: Path) -> dict[str, tuple[Any, bytes]]:
    """What a checkpoint holds, in the form of `squeezed`."""
    tensors = open_checkpoint(path).tensors
    return squeezed({name: tensor.float32() for name, tensor in tensors.items()})


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


# ---- rwkv.cpp -----------------------------------------------------------------------------------

GGMF_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 7, "q5_1": 8, "q8_0": 9}
GGMF_VECTORS = (".time_", ".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0")
LOW_RANK_6 = ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2")
LOW_RANK_7 = ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2")
GGMF_UNQUANTIZED = tuple(f"att.{x}" for x in LOW_RANK_7)


@dataclass
class GgmfTensor:
    name: bytes
    dims: list[int]  # in the file's order, columns first
    type_id: int
    data: bytes

    def to_bytes(self) -> bytes:
        numbers = (len(self.dims), len(self.name), self.type_id, *self.dims)
        return struct.pack(f"<{len(numbers)}i", *numbers) + self.name + self.data


@dataclass
class Ggmf:
    """A file of rwkv.cpp; the header is magic, version, vocabulary, width, layers, type."""

    header: list[int]
    tensors: list[GgmfTensor] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        header = struct.pack("<6i", *self.header)
        return header + b"".join(tensor.to_bytes() for tensor in self.tensors)

    def tensor(self, name: str) -> GgmfTensor:
        return next(tensor for tensor in self.tensors if tensor.name == name.encode())


def ggmf_of(weights: Mapping[str, NDArray[np.float32]], kind: str = "f32") -> Ggmf:
    """As rwkv.cpp's converter writes it in f32 and f16, and its quantizer in a block type."""
    vocab, width = weights["emb.weight"].shape
    layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    file = Ggmf([0x67676D66, 101, vocab, width, layers, GGMF_TYPES[kind]])
    for name, value in in_rwkv_cpp(weights).items():
        stored = ggmf_type(name, value.shape, kind)
        data = ggml.encode(np.ascontiguousarray(value), stored).tobytes()
        dims = list(value.shape[::-1])
        file.tensors.append(GgmfTensor(name.encode(), dims, GGMF_TYPES[stored], data))
    return file


def ggmf_type(name: str, shape: tuple[int, ...], kind: str) -> str:
    """Vectors and small matrices stay f32; a block type is only for what the quantizer takes."""
    small = len(shape) == 1 or any(part in name for part in GGMF_VECTORS)
    # The quantizer goes by names of its own, and the small matrices of RWKV-6 are not among them.
    fixed = name in ("emb.weight", "head.weight") or name.endswith((*GGMF_UNQUANTIZED, ".r_k"))
    if kind not in ("f32", "f16") and len(shape) == 2 and shape[1] % 32 == 0 and not fixed:
        return kind
    return "f32" if small or kind == "f32" else "f16"


# The best float32, where torch gives one of the two nearest; so equal bits can be asked for.
def exp(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.exp(x.astype(np.float64)).astype(np.float32)


def decay_factor(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.exp(-np.exp(x.astype(np.float64))).astype(np.float32)


def in_rwkv_cpp(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    v7 = "blocks.0.att.k_k" in weights
    v6 = "blocks.0.att.time_maa_x" in weights
    v5 = "blocks.0.att.ln_x.weight" in weights and not (v6 or v7)
    gated = "blocks.0.att.gate.weight" in weights
    found: dict[str, NDArray[np.float32]] = {}
    for name, value in weights.items():
        x = value.squeeze() if ".time_" in name else value
        block, _, last = name.rpartition(".")
        if v7 and ".att.x_" in name:
            fused = found.get(f"{block}.x_rwkvag")
            found[f"{block}.x_rwkvag"] = x if fused is None else np.concatenate([fused, x])
            continue
        if (v7 and last in LOW_RANK_7) or (v6 and last in LOW_RANK_6):
            x = x.swapaxes(-1, -2)
        elif v6 and last == "time_decay":
            x = x.reshape(len(weights["blocks.0.att.time_faaaa"]), -1, 1)
        elif v5 and last == "time_decay":
            x = decay_factor(x)
            x = x[..., None] if gated else x.reshape(-1, 1, 1)
        elif v5 and last == "time_first":
            x = exp(x).reshape(-1, 1, 1)
        elif last == "time_faaaa":
            x = x[..., None]
        elif last == "time_decay":
            x = -exp(x)
        found[name] = x
    return found


def written(values: NDArray[np.float32], kind: str) -> bytes:
    """What a file holds of values [rows, columns]: ggml's own rounding, or what a search found, of
    which test_search.py tells whether it is good."""
    if kind in ggml.PLAIN or kind == "q8_0":
        return ggml.encode(values, kind).tobytes()
    return _core.quantize_matrix(values, kind).tobytes()
