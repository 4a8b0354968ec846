# SPDX-License-Identifier: Apache-2.0
"""Tiny random RWKV-7 models, and a GGUF writer of the tests' own.

The writer shares nothing with `rwkv_edge.convert`, puts any tensor in any type, and can be told to
write nonsense: every count, id and offset of a `Gguf` may be overridden after it was filled in.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ggml_types as ggml
import numpy as np
from numpy.typing import NDArray
from reference import Weights

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


@dataclass(frozen=True)
class Shape:
    width: int
    head_size: int
    layers: int
    ffn: int
    vocab: int
    ranks: tuple[int, int, int, int]  # of w, a, v, g: all different
    # What the file holds for the value residual of block 0, which no one uses: llama.cpp's
    # converter puts copies of a0, a1, a2 there, others their own or nothing.
    unused_v: Literal["own", "copy", "absent"]

    @property
    def heads(self) -> int:
        return self.width // self.head_size


SHAPES = {
    "d128": Shape(128, 64, 3, 384, 300, (24, 20, 12, 40), "absent"),
    "d192": Shape(192, 32, 3, 416, 307, (40, 16, 28, 36), "copy"),
    "d256": Shape(256, 64, 3, 512, 300, (32, 24, 20, 56), "own"),
}


def random_weights(shape: Shape, seed: int) -> Weights:
    """Scales at which every tensor counts, and a residual small enough to show the norms' eps."""
    rng = np.random.default_rng(seed)
    width, ffn = shape.width, shape.ffn

    def matrix(rows: int, cols: int, gain: float = 1.0) -> NDArray[np.float64]:
        return rng.normal(0, gain / np.sqrt(cols), (rows, cols))

    def norm(name: str, gain: float = 1.0) -> dict[str, NDArray[np.float64]]:
        return {
            f"{name}.weight": rng.uniform(0.7 * gain, 1.3 * gain, width),
            f"{name}.bias": rng.normal(0, 0.1 * gain, width),
        }

    w: dict[str, NDArray[np.float64]] = {"emb.weight": rng.normal(0, 0.1, (shape.vocab, width))}
    w |= norm("blocks.0.ln0", 0.2) | norm("ln_out") | {"head.weight": matrix(shape.vocab, width)}
    for i in range(shape.layers):
        att, ffn_name = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        w |= norm(f"blocks.{i}.ln1") | norm(f"blocks.{i}.ln2") | norm(f"{att}ln_x")
        w |= {f"{att}x_{j}": rng.uniform(0, 1, width) for j in "rwkvag"}
        for j, rank in zip("wavg", shape.ranks, strict=True):
            w[f"{att}{j}1"] = matrix(rank, width).T
            w[f"{att}{j}2"] = matrix(width, rank).T
            if j != "g":
                w[f"{att}{j}0"] = rng.normal(-1 if j == "w" else 0, 1, width)
        w[f"{att}k_k"] = rng.uniform(0.5, 1.2, width)
        w[f"{att}k_a"] = rng.uniform(0.6, 1.2, width)
        w[f"{att}r_k"] = rng.normal(0, 0.2, (shape.heads, shape.head_size))
        for name, gain in (("receptance", 1.0), ("key", 0.7), ("value", 1.0), ("output", 0.2)):
            w[f"{att}{name}.weight"] = matrix(width, width, gain)
        w[f"{ffn_name}x_k"] = rng.uniform(0, 1, width)
        w[f"{ffn_name}key.weight"] = matrix(ffn, width)
        w[f"{ffn_name}value.weight"] = matrix(width, ffn, 0.2)
    return {name: value.astype(np.float32) for name, value in w.items()}


def is_quantized(name: str) -> bool:
    """The matrices that llama.cpp lets a quantizer touch, under their checkpoint names."""
    matrices = ("receptance", "key", "value", "output")
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


def gguf_name(name: str) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    if part in BLOCK_NAMES:
        return f"blk.{layer}.{BLOCK_NAMES[part]}.{kind}"
    rest = rest.removesuffix(".weight")
    if rest == "ffn.x_k":
        return f"blk.{layer}.channel_mix_lerp_k.weight"
    rest = rest.replace("att.", "time_mix_").replace("ffn.", "channel_mix_")
    return f"blk.{layer}.{rest}.weight"


@dataclass(frozen=True)
class TinyModel:
    file: Gguf
    weights: Weights  # the values the file holds, after any quantization
    kind: str


LORA = re.compile(r"[wavg][12]$")


def tiny_model(shape: Shape, kind: str, seed: int) -> TinyModel:
    """A model stored as `kind`, or for block types its large matrices and the rest as f32.

    With it come the weights that it then has.
    """
    weights = random_weights(shape, seed)
    file = Gguf()
    put_metadata(file, shape)
    rng = np.random.default_rng(seed + 1)
    small = kind if kind in ggml.PLAIN else "f32"
    for name, value in weights.items():
        if is_quantized(name):
            stored = store(rng, value, kind)
            weights[name] = ggml.decode(stored, kind)
            add_tensor(file, gguf_name(name), value.shape, kind, stored)
        else:
            weights[name] = ggml.decode(ggml.encode(value, small), small)
            if ".att.x_" not in name:
                add_small(file, name, weights[name], small)
    for i in range(shape.layers):
        fused = np.stack([weights[f"blocks.{i}.att.x_{j}"] for j in "rwkvag"])
        name = f"blk.{i}.time_mix_lerp_fused.weight"
        add_tensor(file, name, (6, 1, 1, shape.width), small, ggml.encode(fused, small))
    for j in "012" if shape.unused_v != "own" else "":
        entry = file.tensor(f"blk.0.time_mix_v{j}.weight")
        if shape.unused_v == "absent":
            file.tensors.remove(entry)
        else:
            copy = file.tensor(f"blk.0.time_mix_a{j}.weight")
            entry.dims, entry.data = copy.dims, copy.data
    return TinyModel(file, weights, kind)


def add_small(file: Gguf, name: str, value: NDArray[np.float32], kind: str) -> None:
    if LORA.search(name):
        value = value.T  # in the file all matrices are [out, in]
    if name.endswith("r_k"):
        value = value.reshape(-1)
    add_tensor(file, gguf_name(name), value.shape, kind, ggml.encode(value, kind))


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
    file.put("general.architecture", STRING, "rwkv7")
    file.put("general.name", STRING, "tiny test model")
    for key, value in {
        "context_length": 1 << 20,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.ffn,
        "wkv.head_size": shape.head_size,
        "attention.head_count": 0,
        "attention.decay_lora_rank": shape.ranks[0],
        "attention.iclr_lora_rank": shape.ranks[1],
        "attention.value_residual_mix_lora_rank": shape.ranks[2],
        "attention.gate_lora_rank": shape.ranks[3],
    }.items():
        file.put(f"rwkv7.{key}", U32, value)
    file.put("rwkv7.attention.layer_norm_epsilon", F32, 1e-5)
    put_vocabulary(file, shape.vocab)


def put_vocabulary(file: Gguf, size: int) -> None:
    """A World vocabulary: every byte, a few words, the rest unused."""
    words = [" the", "User", "Assistant", "ing", "\n\n"]  # the last is 261, the end of a turn
    tokens = ["<s>"] + [repr(bytes([b]))[2:-1] for b in range(256)]
    tokens += [repr(word.encode())[2:-1] for word in words]
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
