# SPDX-License-Identifier: Apache-2.0
"""The .safetensors reader: the same values as the official writer's, and every lie found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints as ck
import ggml_types as ggml
import numpy as np
import pytest
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError
from rwkv_edge.files.safetensors import read_safetensors

WEIGHTS = {"a": ck.random(3, 4), "b": ck.random(1, 1, 5), "c": ck.random(7)}


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_values_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    checkpoint = read_safetensors(
        ck.write(tmp_path, ck.safetensors_of(WEIGHTS, kind, {"license": "mit"}))
    )
    assert list(checkpoint.tensors) == list(WEIGHTS)
    assert checkpoint.metadata == {"license": "mit"}
    for name, value in WEIGHTS.items():
        tensor = checkpoint.tensors[name]
        expected = ggml.decode(ggml.encode(value, kind), kind)
        assert (tensor.dtype, tensor.shape) == (kind, value.shape)
        np.testing.assert_array_equal(tensor.float32(), expected, strict=True)
        np.testing.assert_array_equal(tensor.float32(1, 3), expected[1:3], strict=True)
        raw = tensor.raw()
        assert raw is not None
        assert raw.tobytes() == ggml.encode(value, kind).tobytes()


def test_file_of_the_official_package(tmp_path: Path) -> None:
    official = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "official.safetensors"
    halves = {name: value.astype(np.float16) for name, value in WEIGHTS.items()}
    official.save_file(halves, path, metadata={"format": "pt"})
    checkpoint = read_safetensors(path)
    assert checkpoint.metadata == {"format": "pt"}
    assert set(checkpoint.tensors) == set(WEIGHTS)
    for name, value in halves.items():
        found = checkpoint.tensors[name].float32()
        np.testing.assert_array_equal(found, value.astype(np.float32), strict=True)


def test_order_of_the_header_does_not_matter(tmp_path: Path) -> None:
    header = {
        "second": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        "empty": {"dtype": "F32", "shape": [0, 3], "data_offsets": [8, 8]},
        "first": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    tensors = read_safetensors(ck.write(tmp_path, ck.safetensors(header, bytes(8)))).tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "second": (1,),
        "empty": (0, 3),
        "first": (),
    }


GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def one(**changes: Any) -> bytes:
    return ck.safetensors({"a": GOOD | changes}, bytes(24))


def two(first: list[int], second: list[int], size: int) -> bytes:
    header = {
        "a": {"dtype": "F32", "shape": [(first[1] - first[0]) // 4], "data_offsets": first},
        "b": {"dtype": "F32", "shape": [(second[1] - second[0]) // 4], "data_offsets": second},
    }
    return ck.safetensors(header, bytes(size))


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "shorter than its length": (b"\2\0\0", "header of .* bytes in a file of 3"),
    "header past the end": (
        ck.safetensors({"a": GOOD}, b"", length=10_000),
        r"a safetensors header of 10000 bytes in a file of \d+, .*; is the download complete",
    ),
    "absurd header": (ck.safetensors({}, b"", length=1 << 63), "header of 9223372036854775808"),
    "no JSON": (ck.safetensors(b"{a: 1}", b""), "no proper JSON"),
    "no UTF-8": (ck.safetensors(b'{"\xff": 1}', b""), "no proper JSON"),
    "deep JSON": (ck.safetensors(b'{"a":' + b"[" * 200_000, b""), "no proper JSON"),
    "a JSON list": (ck.safetensors(b"[1, 2]", b""), "no JSON object"),
    "name twice": (
        ck.safetensors(b'{"a": 1, "b": 2, "a": 3}', b""),
        r"no proper JSON \('a' appears twice\)",
    ),
    "no tensors": (ck.safetensors({"__metadata__": {"x": "y"}}, b""), "holds no tensors"),
    "metadata of numbers": (
        ck.safetensors({"__metadata__": {"x": 1}, "a": GOOD}, bytes(24)),
        "__metadata__ is not a JSON object of strings",
    ),
    "entry that is a number": (ck.safetensors({"a": 7}, b""), "tensor 'a': expected dtype, shape"),
    "entry without shape": (
        ck.safetensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
        "tensor 'a': expected dtype, shape and data_offsets",
    ),
    "negative dimension": (one(shape=[-2, -3]), r"impossible shape \[-2, -3\]"),
    "dimension of text": (one(shape=["2", 3]), "impossible shape"),
    "dimension that is true": (one(shape=[True, 6]), "impossible shape"),
    "too many dimensions": (one(shape=[1] * 8 + [6]), "has 9 dimensions, expected at most 8"),
    "an empty array beyond 64 bits": (
        one(shape=[0, 1 << 62, 1 << 62], data_offsets=[0, 0]),
        "impossible shape",
    ),
    "a name of half a character": (
        ck.safetensors(b'{"a\\ud800": 1}', b""),
        r"tensor 'a\\ud800' has a name that is no UTF-8",
    ),
    "a long name": (
        ck.safetensors({"model." * 200: GOOD}, bytes(24)),
        "tensor 'model.*' has a name of 1200 bytes, expected at most 1024",
    ),
    "metadata of half a character": (
        ck.safetensors(b'{"__metadata__": {"license": "\\udc80"}, "a": 1}', b""),
        "__metadata__ is not a JSON object of strings",
    ),
    "one offset": (one(data_offsets=[24]), r"impossible .* data_offsets \[24\]"),
    "offsets reversed": (one(data_offsets=[24, 0]), r"hold -24 bytes, expected 24"),
    "shape too large": (
        one(shape=[2, 4]),
        r"data_offsets \[0, 24\] hold 24 bytes, expected 32 for F32 \[2, 4\]",
    ),
    "product beyond 64 bits": (one(shape=[1 << 40, 1 << 40]), r"impossible shape \[1099511627776"),
    "overlap": (two([0, 16], [8, 24], 24), "tensor 'b' begins at byte 8, expected 16"),
    "hole": (two([0, 8], [16, 24], 24), "tensor 'b' begins at byte 16, expected 8"),
    "truncated": (two([0, 8], [8, 24], 20), r"the tensors end at byte 24 of 20; is the download"),
    "bytes left over": (two([0, 8], [8, 24], 28), "the tensors end at byte 24 of 28"),
}

UNSUPPORTED = {
    "F64": (one(dtype="F64"), "tensor 'a' is 'F64', expected F32, F16 or BF16"),
    "I8": (one(dtype="I8"), "tensor 'a' is 'I8'"),
    "F8": (one(dtype="F8_E4M3"), "tensor 'a' is 'F8_E4M3'"),
    "a list": (one(dtype=["F32"]), r"tensor 'a' is \['F32'\]"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(tmp_path: Path, case: str) -> None:
    data, message = MALFORMED[case]
    path = ck.write(tmp_path, data)
    with refuses(FormatError, path, message):
        read_safetensors(path)


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported(tmp_path: Path, case: str) -> None:
    data, message = UNSUPPORTED[case]
    path = ck.write(tmp_path, data)
    with refuses(UnsupportedError, path, message):
        read_safetensors(path)


def test_cuts_and_flips_never_escape(tmp_path: Path) -> None:
    """Whatever is damaged: it reads, or it says so. No other exception, no crash."""
    data = ck.safetensors_of(WEIGHTS)
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(2)
    refused = 0
    for i in range(600):
        broken = bytearray(data[: rng.integers(1, len(data))] if i % 4 == 0 else data)
        for at in rng.integers(0, min(len(broken), header), rng.integers(1, 4)):
            broken[at] = rng.integers(0, 256)
        try:
            for tensor in read_safetensors(ck.write(tmp_path, bytes(broken))).tensors.values():
                tensor.float32()
        except (FormatError, UnsupportedError):
            refused += 1
    assert 300 < refused < 600
