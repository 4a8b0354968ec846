# SPDX-License-Identifier: Apache-2.0
"""The ggml tensor types once more, in numpy and written apart from the engine's own codecs.

Blocks are described as numpy record types; `decode` and `encode` work on whole arrays of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Block = NDArray[Any]  # a record array, one record per block

# name -> (id in a GGUF file, values per block, bytes per block)
TYPES: dict[str, tuple[int, int, int]] = {
    "f32": (0, 1, 4),
    "f16": (1, 1, 2),
    "bf16": (30, 1, 2),
    "q4_0": (2, 32, 18),
    "q4_1": (3, 32, 20),
    "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34),
    "q2_k": (10, 256, 84),
    "q3_k": (11, 256, 110),
    "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210),
}
PLAIN = ("f32", "f16", "bf16")
K_TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
# Types whose dot product sees the activations rounded to 8 bits.
ROUNDED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k")

RECORDS = {
    "q4_0": np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    "q4_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]),
    "q5_0": np.dtype([("d", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)]),
    "q5_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)]),
    "q8_0": np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    "q2_k": np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("m", "<f2")]),
    "q3_k": np.dtype([("qh", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")]),
    "q4_k": np.dtype([("d", "<f2"), ("m", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    "q5_k": np.dtype(
        [("d", "<f2"), ("m", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]
    ),
    "q6_k": np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
}


def row_bytes(kind: str, cols: int) -> int:
    _, values, size = TYPES[kind]
    assert cols % values == 0, f"{kind}: {cols} columns are not whole blocks"
    return cols // values * size


def f32_column(x: Any) -> F32:
    return np.asarray(x, np.float32)[:, None]


# ---- decoding ---------------------------------------------------------------------------------


def nibbles(qs: Bytes) -> NDArray[np.int32]:
    """[n, k] bytes -> [n, 2k]: all low halves, then all high halves."""
    return np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int32)


def fifth_bits(qh: NDArray[np.uint32]) -> NDArray[np.int32]:
    return ((qh[:, None] >> np.arange(32, dtype=np.uint32)) & 1).astype(np.int32)


def six_bit_scales(packed: Bytes) -> tuple[F32, F32]:
    """The eight scales and eight minima that K blocks pack into twelve bytes: [n, 8] each."""
    low, high, mixed = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([low & 63, (mixed & 15) | (low >> 6 << 4)], axis=1)
    minimum = np.concatenate([high & 63, (mixed >> 4) | (high >> 6 << 4)], axis=1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def two_bit_codes(qs: Bytes) -> NDArray[np.int32]:
    """[n, 64] bytes -> [n, 256]: two halves, each of four layers of two bits over 32 bytes."""
    layers = (qs.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    return layers.reshape(-1, 256).astype(np.int32)


def decode_q2_k(b: Block) -> F32:
    q = two_bit_codes(b["qs"]).reshape(-1, 16, 16).astype(np.float32)
    scale = f32_column(b["d"]) * (b["scales"] & 15).astype(np.float32)
    minimum = f32_column(b["m"]) * (b["scales"] >> 4).astype(np.float32)
    y: F32 = scale[:, :, None] * q - minimum[:, :, None]
    return y.reshape(-1, 256)


def decode_q3_k(b: Block) -> F32:
    # 16 scales: the low four bits in eight bytes (low halves first), the top two in four bytes.
    low = nibbles(b["scales"][:, :8])
    top = (b["scales"][:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    scale = (low + 16 * top.reshape(-1, 16).astype(np.int32) - 32).astype(np.float32)
    third = (b["qh"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    q = two_bit_codes(b["qs"]) + 4 * third.reshape(-1, 256).astype(np.int32) - 4
    y: F32 = (f32_column(b["d"]) * scale)[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32)
    return y.reshape(-1, 256)


def decode_4_5_k(b: Block) -> F32:
    scale, minimum = six_bit_scales(b["scales"])
    # Four groups of 32 bytes; each gives 32 low halves, then 32 high halves.
    groups = b["qs"].reshape(-1, 4, 32)
    q = np.stack([groups & 15, groups >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    if "qh" in (b.dtype.names or ()):
        bits = (b["qh"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
        q += 16 * bits.astype(np.float32)
    d, m = f32_column(b["d"]), f32_column(b["m"])
    y: F32 = (d * scale)[:, :, None] * q - (m * minimum)[:, :, None]
    return y.reshape(-1, 256)


def decode_q6_k(b: Block) -> F32:
    ql, qh = b["ql"].reshape(-1, 2, 2, 32), b["qh"].reshape(-1, 2, 1, 32)
    low = np.concatenate([ql & 15, ql >> 4], axis=2)  # [n, 2, 4, 32]
    high = (qh >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    q = (low | (high << 4)).astype(np.float32) - 32
    scale = f32_column(b["d"]) * b["scales"].astype(np.float32)  # [n, 16], 16 values each
    y: F32 = scale[:, :, None] * q.reshape(-1, 16, 16)
    return y.reshape(-1, 256)


DECODERS: dict[str, Callable[[Block], F32]] = {
    "q8_0": lambda b: f32_column(b["d"]) * b["qs"].astype(np.float32),
    "q4_0": lambda b: f32_column(b["d"]) * (nibbles(b["qs"]) - 8).astype(np.float32),
    "q4_1": lambda b: f32_column(b["d"]) * nibbles(b["qs"]).astype(np.float32) + f32_column(b["m"]),
    "q5_0": lambda b: (
        f32_column(b["d"]) * (nibbles(b["qs"]) + 16 * fifth_bits(b["qh"]) - 16).astype(np.float32)
    ),
    "q5_1": lambda b: (
        f32_column(b["d"]) * (nibbles(b["qs"]) + 16 * fifth_bits(b["qh"])).astype(np.float32)
        + f32_column(b["m"])
    ),
    "q2_k": decode_q2_k,
    "q3_k": decode_q3_k,
    "q4_k": decode_4_5_k,
    "q5_k": decode_4_5_k,
    "q6_k": decode_q6_k,
}


def decode(data: Bytes, kind: str) -> F32:
    """Bytes [..., row_bytes] of whole blocks -> float32 [..., cols]."""
    data = np.ascontiguousarray(data)
    lead = data.shape[:-1]
    if kind == "f32":
        y = data.view("<f4")
    elif kind == "f16":
        y = data.view("<f2").astype(np.float32)
    elif kind == "bf16":
        y = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        y = DECODERS[kind](data.reshape(-1, TYPES[kind][2]).view(RECORDS[kind])[:, 0])
    return y.reshape(*lead, -1).astype(np.float32)


# ---- encoding: round to nearest, as the reference quantizer of ggml does ------------------------


def inverse(d: F32) -> F32:
    out = np.zeros_like(d)
    np.divide(np.float32(1), d, out=out, where=d != 0)
    return out


def pack_nibbles(q: NDArray[np.int32]) -> Bytes:
    return (q[:, :16] | (q[:, 16:] << 4)).astype(np.uint8)


def pack_fifth_bits(q: NDArray[np.int32]) -> NDArray[np.uint32]:
    bits = (q >> 4 & 1).astype(np.uint32) << np.arange(32, dtype=np.uint32)
    packed: NDArray[np.uint32] = np.bitwise_or.reduce(bits, axis=1)
    return packed


def encode_symmetric(x: F32, kind: str, half: int) -> Block:
    """q4_0, q5_0: the value of largest magnitude becomes -half exactly."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    largest += np.float32(0)  # no -0.0
    d = largest / np.float32(-half)
    q = np.minimum(2 * half - 1, (x * inverse(d) + np.float32(half + 0.5)).astype(np.int32))
    return fill(kind, q, d[:, 0], None)


def encode_affine(x: F32, kind: str, top: int) -> Block:
    """q4_1, q5_1: from the smallest value up in `top` steps."""
    m = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - m) / np.float32(top)
    q = np.minimum(top, ((x - m) * inverse(d) + np.float32(0.5)).astype(np.int32))
    return fill(kind, q, d[:, 0], m[:, 0])


def fill(kind: str, q: NDArray[np.int32], d: F32, m: F32 | None) -> Block:
    b = np.zeros(len(q), RECORDS[kind])
    b["d"], b["qs"] = d.astype("<f2"), pack_nibbles(q & 15)
    if m is not None:
        b["m"] = m.astype("<f2")
    if "qh" in (b.dtype.names or ()):
        b["qh"] = pack_fifth_bits(q)
    return b


def encode_q8_0(x: F32) -> Block:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    z = x * inverse(d)
    b = np.zeros(len(x), RECORDS["q8_0"])
    b["d"] = d[:, 0].astype("<f2")
    b["qs"] = np.trunc(z + np.copysign(np.float64(0.5), z)).astype(np.int8)  # halves go outwards
    return b


ENCODERS: dict[str, Callable[[F32], Block]] = {
    "q8_0": encode_q8_0,
    "q4_0": lambda x: encode_symmetric(x, "q4_0", 8),
    "q5_0": lambda x: encode_symmetric(x, "q5_0", 16),
    "q4_1": lambda x: encode_affine(x, "q4_1", 15),
    "q5_1": lambda x: encode_affine(x, "q5_1", 31),
}


def bf16_bits(x: F32) -> NDArray[np.uint16]:
    """Round to nearest, ties to even; finite values only."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def encode(x: F32, kind: str) -> Bytes:
    """float32 [..., cols] -> bytes [..., row_bytes]; not for the K types."""
    x = np.ascontiguousarray(x, np.float32)
    if kind == "f32":
        y = x.view(np.uint8)
    elif kind == "f16":
        y = x.astype("<f2").view(np.uint8)
    elif kind == "bf16":
        y = bf16_bits(x).view(np.uint8)
    else:
        y = ENCODERS[kind](x.reshape(-1, 32)).view(np.uint8)
    return y.reshape(*x.shape[:-1], row_bytes(kind, x.shape[-1]))


def random_k_blocks(
    rng: np.random.Generator, shape: tuple[int, int], kind: str, std: float
) -> Bytes:
    """Valid bytes of a K type, decoding to values of about that deviation: [rows, row_bytes]."""
    rows, cols = shape
    raw: Bytes = (
        np.frombuffer(rng.bytes(rows * row_bytes(kind, cols)), np.uint8).reshape(rows, -1).copy()
    )
    b = raw.view(RECORDS[kind])
    # The deviation of scale times quant, and the quant in the middle: the mean is to be about zero.
    unit, middle = {
        "q2_k": (14, 1.5),
        "q3_k": (43, None),
        "q4_k": (260, 7.5),
        "q5_k": (530, 15.5),
        "q6_k": (1370, None),
    }[kind]
    d = std / unit * rng.uniform(0.8, 1.2, b.shape)
    b["d"] = d
    if middle is not None:
        b["m"] = d * middle
    return raw


def round_activations(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the integer dot products see: blocks of 32, one scale each, 8 bits."""
    blocks = x.astype(np.float32).reshape(-1, 32)
    peak = np.abs(blocks).max(axis=1, keepdims=True)
    q = np.rint(blocks * (np.float32(127) * inverse(peak))).astype(np.float64)
    rounded: NDArray[np.float64] = q * (peak / np.float32(127))
    return rounded.reshape(x.shape)


def skip_other_rounding(kind: str) -> None:
    """Skip a test that compares bytes of the gguf package where it rounds otherwise."""
    if kind in {"q4_0", "q5_0"} and np.__version__.startswith("1."):
        pytest.skip("with numpy 1 the gguf package gives other q4_0 and q5_0 than with numpy 2")
