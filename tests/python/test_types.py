# SPDX-License-Identifier: Apache-2.0
"""The engine's codecs against numpy ones written apart from them: same bytes, same values."""

from __future__ import annotations

import ggml_types as ggml
import numpy as np
import pytest
from numpy.typing import NDArray
from rwkv_edge import _core

WRITABLE = [kind for kind in ggml.TYPES if kind not in ggml.K_TYPES]


def awkward_rows() -> NDArray[np.float32]:
    """Normal data and what quantizers stumble over: zeros, peaks, ties, signs, wide ranges."""
    rng = np.random.default_rng(1)
    rows = [rng.normal(0, 10.0 ** rng.uniform(-3, 2), 256) for _ in range(400)]
    rows += [np.zeros(256), np.full(256, 0.25), np.full(256, -3.0), np.arange(256.0) - 128]
    rows += [np.eye(256)[5] * sign for sign in (2.0, -2.0)]
    rows += [np.tile([1.0, -1.0], 128), np.tile([-1.0, 1.0], 128)]  # which peak is the first?
    for codes in (127, 8, 16, 15, 31):  # values half-way between two codes
        ties = np.tile((np.arange(32) % (codes + 1)) + 0.5, 8)
        ties[::32] = -codes
        rows.append(ties)
    rows.append(rng.uniform(0, 1, 256))
    rows.append(rng.normal(0, 1e-5, 256))  # the scale is a subnormal half
    rows.append(rng.normal(0, 1e4, 256))
    return np.array(rows, np.float32)


@pytest.mark.parametrize("kind", WRITABLE)
def test_quantized_bytes_are_those_of_the_reference(kind: str) -> None:
    x = awkward_rows()
    found = _core.quantize(x, kind)
    expected = ggml.encode(x, kind)
    assert found.shape == expected.shape
    wrong = np.flatnonzero((found != expected).any(axis=1))
    assert not wrong.size, f"rows {wrong[:5]}"


@pytest.mark.parametrize("kind", WRITABLE)
def test_written_values_are_read_alike(kind: str) -> None:
    data = ggml.encode(awkward_rows(), kind)
    assert _core.dequantize(data, kind).tobytes() == ggml.decode(data, kind).tobytes()


@pytest.mark.parametrize("kind", ggml.K_TYPES)
def test_k_blocks_of_any_bytes_are_read_alike(kind: str) -> None:
    rng = np.random.default_rng(2)
    data = ggml.random_k_blocks(rng, (64, 512), kind, std=1.0)
    expected = ggml.decode(data, kind)
    assert 0.5 < expected.std() < 2  # the generator makes sense
    assert _core.dequantize(data, kind).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", [kind for kind in ggml.TYPES if kind not in ggml.PLAIN])
def test_blocks_of_any_bytes_are_read_as_the_gguf_package_does(kind: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    number, _, size = ggml.TYPES[kind]
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, (300, size), np.uint8)
    scales = data.view(ggml.RECORDS[kind])
    for field in ("d", "m"):  # no infinities, no NaN
        if field in (scales.dtype.names or ()):
            scales[field] = rng.normal(0, 1, scales.shape)
    expected = quants.dequantize(data, number)
    assert _core.dequantize(data, kind).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", list(ggml.TYPES))
def test_a_type_knows_its_id_and_its_block(kind: str) -> None:
    number, values, size = ggml.TYPES[kind]
    assert _core.type_id(kind) == number
    assert _core.type_block(kind) == (values, size)
    assert set(_core.TYPE_NAMES) == set(ggml.TYPES)


def test_any_leading_shape_is_kept() -> None:
    x = awkward_rows()[:24].reshape(2, 3, 4, 256)
    data = _core.quantize(x, "q4_0")
    assert data.shape == (2, 3, 4, 256 // 32 * 18)
    assert _core.dequantize(data, "q4_0").shape == x.shape
    assert _core.quantize(x[0, 0, 0], "q4_0").shape == (144,)
    assert _core.quantize(x[:0], "q4_0").shape == (0, 3, 4, 144)


def test_bad_requests_say_what_is_wrong() -> None:
    x = np.zeros((2, 48), np.float32)
    with pytest.raises(ValueError, match=r"q9_9.*q8_0"):
        _core.type_id("q9_9")
    with pytest.raises(ValueError, match="q9_9"):
        _core.quantize(x, "q9_9")
    with pytest.raises(ValueError, match=r"48.*32"):
        _core.quantize(x, "q4_0")
    with pytest.raises(_core.UnsupportedError, match="q4_k"):
        _core.quantize(np.zeros((1, 256), np.float32), "q4_k")
    with pytest.raises(ValueError, match=r"35.*34"):
        _core.dequantize(np.zeros((1, 35), np.uint8), "q8_0")
