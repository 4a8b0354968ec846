# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every version, and a GGUF writer of the tests' own.

The writer shares nothing with `rwkv_edge.convert`, puts any tensor in any type, and can be told to
write nonsense: every count, id and offset of a `Gguf` may be overridden after it was filled in.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ggml_types as ggml
import numpy as np
from numpy.typing import NDArray
from reference import Weights
from tiny_weights import SHAPES, VERSIONS, Shape, random_states, random_weights

__all__ = ["SHAPES", "VERSIONS", "Gguf", "Shape", "TinyModel", "random_states", "random_weights"]

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
FORMATS |= {U64: "Q", I64: "q", F64: "d"}


# ---- GGUF ---------------------------------------------------------------------------------------


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return string(value)
    return struct.pack("<" + FORMATS[kind], value)


def array(kind: int, values: list[Any], *, count: int | None = None) -> bytes:
    head = struct.pack("<IQ", kind, len(values) if count is None else count)
    return head + b"".join(scalar(kind, value) for value in values)


@dataclass
class Entry:
    """One tensor; `dims` in the file's order, columns first. No `offset`: where its data lie."""

    name: str | bytes
    dims: list[int]
    type_id: int
    data: bytes
    offset: int | None = None
    n_dims: int | None = None


@dataclass
class Gguf:
    magic: bytes = b"GGUF"
    version: int = 3
    keys: list[tuple[str | bytes, int, bytes]] = field(default_factory=list)
    tensors: list[Entry] = field(default_factory=list)
    alignment: int = 32
    n_keys: int | None = None
    n_tensors: int | None = None
    patches: list[tuple[int, bytes]] = field(default_factory=list)  # bytes to lay over the file

    def put(self, key: str, kind: int, value: Any) -> None:
        """Set a key; an earlier one of that name is replaced in its place."""
        entry = (key, kind, value if isinstance(value, bytes) else scalar(kind, value))
        names = [name for name, _, _ in self.keys]
        if key in names:
            self.keys[names.index(key)] = entry
        else:
            self.keys.append(entry)

    def drop(self, key: str) -> None:
        self.keys = [entry for entry in self.keys if entry[0] != key]

    def tensor(self, name: str) -> Entry:
        return next(entry for entry in self.tensors if entry.name == name)

    def header(self) -> bytes:
        """Everything before the padding that ends at the tensor data."""
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        out = [self.magic, struct.pack("<IQQ", self.version, n_tensors, n_keys)]
        out += [string(key) + struct.pack("<I", kind) + value for key, kind, value in self.keys]
        for entry, offset in zip(self.tensors, self.offsets(), strict=True):
            n_dims = len(entry.dims) if entry.n_dims is None else entry.n_dims
            out.append(string(entry.name) + struct.pack("<I", n_dims))
            out.append(struct.pack(f"<{len(entry.dims)}Q", *entry.dims))
            out.append(struct.pack("<IQ", entry.type_id, offset))
        return b"".join(out)

    def offsets(self) -> list[int]:
        return [
            place if entry.offset is None else entry.offset
            for entry, place in zip(self.tensors, self.places(), strict=True)
        ]

    def places(self) -> list[int]:
        """Where the data of each tensor lie, whatever its header says."""
        found, free = [], 0
        for entry in self.tensors:
            found.append(free)
            free = self.aligned(free + len(entry.data))
        return found

    def aligned(self, n: int) -> int:
        return -(-n // self.alignment) * self.alignment

    def to_bytes(self) -> bytes:
        out = bytearray(self.header())
        start = self.aligned(len(out))
        for entry, place in zip(self.tensors, self.places(), strict=True):
            out.extend(bytes(start + place - len(out)))
            out.extend(entry.data)
        for at, raw in self.patches:
            out[at : at + len(raw)] = raw
        return bytes(out)


# ---- models -------------------------------------------------------------------------------------


def is_quantized(name: str) -> bool:
    """The matrices that llama.cpp lets a quantizer touch, under their checkpoint names, and the
    tables of DeepEmbed."""
    matrices = ("receptance", "key", "value", "gate", "output", "s_emb", "s_emb_x")
    return name in ("emb.weight", "head.weight") or name.split(".")[-2] in matrices


GLOBAL_NAMES = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
BLOCK_NAMES = {"ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln"}


# The lerps of a layer, in the order inside time_mix_lerp_fused.
LERPS = {"4": "kvr", "5.0": "kvr", "5.1": "kvrg", "5.2": "kvrg", "6": "wkvrg", "7": "rwkvag"}
LERPS["7a"] = LERPS["7"]
LERP_PREFIX = {"4": "time_mix_", "5": "time_mix_", "6": "time_maa_", "7": "x_"}
LORA = re.compile(r"(att\.[wavg]|time_maa_w|time_decay_w|ffn\.s)[12]$")


def gguf_name(name: str) -> str:
    """Of a tensor that has a counterpart: see `put_time_mix` for the others."""
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    if part in BLOCK_NAMES:
        return f"blk.{layer}.{BLOCK_NAMES[part]}.{kind}"
    rest = rest.removesuffix(".weight")
    for old, new in RENAMED:
        rest = re.sub(old, new, rest)
    return f"blk.{layer}.{rest}.weight"


RENAMED = (
    (r"^ffn\.(x|time_mix|time_maa)_([kr])$", r"channel_mix_lerp_\2"),
    (r"^ffn\.", "channel_mix_"),
    (r"^att\.time_maa_x$", "time_mix_lerp_x"),
    (r"^att\.time_maa_", "time_mix_"),
    (r"^att\.time_(faaaa|first)$", "time_mix_first"),
    (r"^att\.time_", "time_mix_"),
    (r"^att\.", "time_mix_"),
)


@dataclass(frozen=True)
class TinyModel:
    file: Gguf
    weights: Weights  # the values the file holds, after any quantization
    kind: str


def tiny_model(shape: Shape, kind: str, seed: int, *, tuned: bool = False) -> TinyModel:
    """A model stored as `kind`, or for block types its large matrices and the rest as f32.

    With it come the weights that it then has. `tuned`: with an initial state.
    """
    weights = random_weights(shape, seed) | (random_states(shape, seed + 2) if tuned else {})
    file = Gguf()
    put_metadata(file, shape)
    rng = np.random.default_rng(seed + 1)
    small = kind if kind in ggml.PLAIN else "f32"
    fused = tuple(f".att.{LERP_PREFIX[shape.version[0]]}{j}" for j in LERPS[shape.version])
    for name, value in weights.items():
        if is_quantized(name):
            stored = store(rng, value, kind)
            weights[name] = ggml.decode(stored, kind)
            add_tensor(file, gguf_name(name), value.shape, kind, stored)
        elif shape.version[0] in "45" and name.endswith(("time_decay", "time_faaaa", "time_first")):
            add_computed(file, name, value, shape)
        elif name.endswith("time_state"):
            add_tensor(file, gguf_name(name), value.shape, "f32", state_of(value, shape))
        else:
            weights[name] = ggml.decode(ggml.encode(value, small), small).reshape(value.shape)
            if not name.endswith(fused):
                add_small(file, name, weights[name], small)
    add_lerps(file, weights, shape, small)
    if shape.version[0] == "7":
        change_unused_v(file, shape)
    return TinyModel(file, weights, kind)


def add_small(file: Gguf, name: str, value: NDArray[np.float32], kind: str) -> None:
    if LORA.search(name):
        value = value.swapaxes(-1, -2)  # in the file all matrices are [out, in]
    if name.endswith("r_k") or value.shape[:2] == (1, 1):
        value = value.reshape(-1)
    add_tensor(file, gguf_name(name), value.shape, kind, ggml.encode(value, kind))


def add_computed(file: Gguf, name: str, value: NDArray[np.float32], shape: Shape) -> None:
    """What versions 4 and 5 make of decay and u at loading: [D] whatever the checkpoint has."""
    exact = value.astype(np.float64)
    if name.endswith("time_decay"):
        exact = -np.exp(exact)
        exact = exact if shape.version == "4" else np.exp(exact)
    elif shape.version != "4" and name.endswith("time_first"):
        exact = np.exp(exact)
    spread = np.repeat(exact.reshape(-1), shape.width // exact.size).astype(np.float32)
    add_tensor(file, gguf_name(name), spread.shape, "f32", ggml.encode(spread, "f32"))


def state_of(value: NDArray[np.float32], shape: Shape) -> NDArray[np.uint8]:
    """[H, value, key], or from version 5 and 6 turned to [H, key, value]."""
    return ggml.encode(value if shape.version[0] == "7" else value.swapaxes(1, 2), "f32")


def add_lerps(file: Gguf, weights: Weights, shape: Shape, kind: str) -> None:
    prefix, lerps = LERP_PREFIX[shape.version[0]], LERPS[shape.version]
    for i in range(shape.layers):
        fused = np.stack([weights[f"blocks.{i}.att.{prefix}{j}"].reshape(-1) for j in lerps])
        name, dims = f"blk.{i}.time_mix_lerp_fused.weight", (len(lerps), 1, 1, shape.width)
        add_tensor(file, name, dims, kind, ggml.encode(fused, kind))


def change_unused_v(file: Gguf, shape: Shape) -> None:
    for j in "012" if shape.unused_v != "own" else "":
        entry = file.tensor(f"blk.0.time_mix_v{j}.weight")
        if shape.unused_v == "absent":
            file.tensors.remove(entry)
        else:
            copy = file.tensor(f"blk.0.time_mix_a{j}.weight")
            entry.dims, entry.data = copy.dims, copy.data


def store(rng: np.random.Generator, value: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    if kind in ggml.K_TYPES:
        rows, cols = value.shape
        return ggml.random_k_blocks(rng, (rows, cols), kind, float(value.std()))
    return ggml.encode(value, kind)


def add_tensor(
    file: Gguf, name: str, shape: tuple[int, ...], kind: str, data: NDArray[np.uint8]
) -> None:
    file.tensors.append(Entry(name, list(shape[::-1]), ggml.TYPES[kind][0], data.tobytes()))


def put_metadata(file: Gguf, shape: Shape) -> None:
    arch = "rwkv7a" if shape.version == "7a" else f"rwkv{shape.version[0]}"
    file.put("general.architecture", STRING, arch)
    file.put("general.name", STRING, "tiny test model")
    keys = {
        "context_length": 1 << 20,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.ffn,
        "attention.head_count": 0,
    }
    if shape.version != "4":
        keys["wkv.head_size"] = shape.head_size
    if shape.version == "6":
        keys["rescale_every_n_layers"] = 0
    for name, rank in zip(RANKS[shape.version[0]], shape.ranks, strict=True):
        keys[name] = rank
    for key, value in keys.items():
        file.put(f"{arch}.{key}", U32, value)
    file.put(f"{arch}.attention.layer_norm_epsilon", F32, 1e-5)
    if arch in ("rwkv4", "rwkv5", "rwkv7a"):
        file.put("rwkv_edge.version", STRING, shape.version)
    put_vocabulary(file, shape.vocab)


RANKS: dict[str, tuple[str, ...]] = {
    "4": (),
    "5": (),
    "6": ("time_mix_extra_dim", "time_decay_extra_dim"),
    "7": tuple(
        f"attention.{name}_lora_rank" for name in ("decay", "iclr", "value_residual_mix", "gate")
    ),
}


def put_vocabulary(file: Gguf, size: int, more: Sequence[bytes] = ()) -> None:
    """A World vocabulary: every byte, a few words and `more`, the rest unused."""
    words = [b" the", b"User", b"Assistant", b"ing", b"\n\n"]  # the last is 261, the end of a turn
    tokens = ["<s>"] + [repr(bytes([b]))[2:-1] for b in range(256)]
    tokens += [repr(word)[2:-1] for word in (*words, *more)]
    used = len(tokens)
    tokens += [f"[PAD{i}]" for i in range(used, size)]
    kinds = [3] + [1] * (used - 1) + [5] * (size - used)  # control, normal, unused
    file.put("tokenizer.ggml.model", STRING, "rwkv")
    file.put("tokenizer.ggml.tokens", ARRAY, array(STRING, tokens[:size]))
    file.put("tokenizer.ggml.token_type", ARRAY, array(I32, kinds[:size]))
    file.put("tokenizer.ggml.bos_token_id", U32, 0)
    file.put("tokenizer.ggml.eos_token_id", U32, 0)


def write(folder: Path, name: str, model: TinyModel) -> Path:
    path = folder / name
    path.write_bytes(model.file.to_bytes())
    return path
