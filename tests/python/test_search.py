# SPDX-License-Identifier: Apache-2.0
"""Searched scales: never worse than ggml's quantizers. GPTQ: what the equations give."""

from __future__ import annotations

import json
import os
from typing import Any

import ggml_errors
import ggml_types as ggml
import numpy as np
import pytest
from numpy.typing import NDArray
from rwkv_edge import _core

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
MATRICES = ggml_errors.matrices()
RECORD = json.loads(ggml_errors.RECORD.read_text("utf-8"))
KINDS = ggml_errors.KINDS


# ---- the search ---------------------------------------------------------------------------------


def our_errors(x: F32, kind: str) -> list[float]:
    with_it = _core.quantize_matrix(x, kind, importance=ggml_errors.importance(x))
    return ggml_errors.errors(x, kind, _core.quantize_matrix(x, kind), with_it)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MATRICES)
def test_never_worse_than_ggml(name: str, kind: str) -> None:
    x, record = MATRICES[name], RECORD[name]
    assert ggml_errors.checksum(x) == record["crc32"], "other values: run tools/ggml_errors.py"
    ours, theirs = our_errors(x, kind), record[kind]
    assert ours[0] <= theirs[0]
    assert ours[1] <= theirs[1] * 1.001  # blocks of one sign in q3_k: the same to four digits


@pytest.mark.skipif(
    "RWKV_GGML_LIBRARY" not in os.environ,
    reason="RWKV_GGML_LIBRARY names no library of ggml (tools/ggml_errors.py)",
)
@pytest.mark.parametrize("kind", KINDS)
def test_never_worse_than_the_ggml_that_is_here(kind: str) -> None:
    theirs = ggml_errors.Ggml(os.environ["RWKV_GGML_LIBRARY"])
    for seed in range(5):
        for scale in (1e-4, 1, 100):
            x = (scale * np.random.default_rng(seed).standard_t(4, (16, 1024))).astype(np.float32)
            ours, their = our_errors(x, kind), theirs.errors(x, kind)
            assert ours[0] <= their[0]
            assert ours[1] <= their[1] * 1.001


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_read_alike_by_the_gguf_package(kind: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    for x in MATRICES.values():
        data = _core.quantize_matrix(x, kind)
        expected = quants.dequantize(data, ggml.TYPES[kind][0])
        assert _core.dequantize(data, kind).tobytes() == expected.tobytes()
        assert ggml.decode(data, kind).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_values_at_the_edges_stay_finite(kind: str) -> None:
    rng = np.random.default_rng(1)
    rows = [np.zeros(256), np.full(256, -65504.0), np.eye(256)[7] * 65504, np.full(256, 1e-44)]
    rows += [rng.normal(0, size, 256) for size in (1e-39, 1e-30, 1e-7, 1e4)]
    x = np.array(rows, np.float32).clip(-65504, 65504)
    for importance in (None, np.zeros(256, np.float32), np.float32(1e-38) + 0 * x[0],
                       np.float32(3e38) + 0 * x[0]):  # fmt: skip
        y = _core.dequantize(_core.quantize_matrix(x, kind, importance=importance), kind)
        assert np.isfinite(y).all()
        assert not y[0].any()
        # A scale of a half is exact to 2^-11; the top code of a sub-block of one value may be -4.
        np.testing.assert_allclose(y[1], x[1], rtol=2**-5)
        assert np.abs(y[7] - x[7]).max() < np.abs(x[7]).max() / 2


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_types_without_a_search_round_to_nearest(kind: str) -> None:
    x = MATRICES["normal"]
    assert _core.quantize_matrix(x, kind).tobytes() == ggml.encode(x, kind).tobytes()
    with pytest.raises(ValueError, match=f"type {kind} has no search"):
        _core.quantize_matrix(x, kind, importance=ggml_errors.importance(x))


# ---- GPTQ ---------------------------------------------------------------------------------------


def correlated(rows: int, cols: int, seed: int) -> tuple[F32, F32]:
    """Weights [rows, cols], and a Hessian [cols, cols] of inputs that go together."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(cols) + rng.normal(0, 0.15, (cols, cols))
    common = rng.normal(0, 1, (4 * cols, 8)) @ rng.normal(0, 0.3, (8, cols))
    x = (rng.normal(0, 1, (4 * cols, cols)) @ mixing + common) * rng.lognormal(0, 1, cols)
    hessian = (x.T @ x / len(x)).astype(np.float32)
    return rng.normal(0, 1, (rows, cols)).astype(np.float32), (hessian + hessian.T) / np.float32(2)


def added(hessian: F32, damp: float) -> float:
    """As it is rounded to single precision."""
    mean = np.trace(hessian.astype(np.float64)) / len(hessian)
    return float(np.float32(mean * np.float32(damp)))


def output_error(w: F32, data: NDArray[np.uint8], kind: str, hessian: F32, damp: float) -> float:
    e = ggml.decode(data, kind).astype(np.float64) - w
    return float(np.einsum("ij,jk,ik->", e, damped(hessian, damp), e))


def damped(hessian: F32, damp: float) -> F64:
    exact: F64 = hessian.astype(np.float64) + added(hessian, damp) * np.eye(len(hessian))
    return exact


class Grid:
    """Per row and sub-block: d * scale * code - dmin * min, codes counted from the zero."""

    def __init__(self, data: NDArray[np.uint8], kind: str) -> None:
        b: Any = data.reshape(-1, ggml.TYPES[kind][2]).view(ggml.RECORDS[kind])[:, 0]
        self.kind, rows = kind, len(data)
        self.block = ggml.TYPES[kind][1]
        self.sub = 16 if kind in ("q3_k", "q6_k") else 32
        self.low, self.high = {"q3_k": (-4, 3), "q6_k": (-32, 31), "q4_0": (-8, 7), "q4_1": (0, 15),
                               "q4_k": (0, 15), "q5_k": (0, 31)}[kind]  # fmt: skip
        n = self.block // self.sub
        ones = np.ones((len(b), n))
        scale, low = {
            "q4_0": lambda: (ones, 0 * ones),
            "q4_1": lambda: (ones, ones),
            "q3_k": lambda: (self._signed_scales(b["scales"]), 0 * ones),
            "q6_k": lambda: (b["scales"], 0 * ones),
        }.get(kind, lambda: ggml.six_bit_scales(b["scales"]))()
        minus = -1.0 if kind == "q4_1" else 1.0  # it adds its m
        dmin = (
            minus * b["m"].astype(np.float64) if "m" in (b.dtype.names or ()) else np.zeros(len(b))
        )
        shape = (rows, -1)
        self.scale = np.asarray(scale, np.float64).reshape(shape)
        self.min = np.asarray(low, np.float64).reshape(shape)
        self.d = np.repeat(b["d"].astype(np.float64), n).reshape(shape)
        self.dmin = np.repeat(dmin, n).reshape(shape)

    @staticmethod
    def _signed_scales(packed: NDArray[np.uint8]) -> NDArray[np.int32]:
        low = ggml.nibbles(packed[:, :8])
        top = (packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
        return low + 16 * top.reshape(-1, 16).astype(np.int32) - 32

    def step(self, column: int) -> F64:
        s = column // self.sub
        return self.d[:, s] * self.scale[:, s]

    def offset(self, column: int) -> F64:
        s = column // self.sub
        return -self.dmin[:, s] * self.min[:, s]


class Reference:
    """GPTQ, then descent and refit, in double precision, a column at a time.

    `margin` is how near a row ever came to another decision: in steps of a code, of an integer
    scale or of a half.
    """

    TILE, SWEEPS = 128, 4

    def __init__(self, w: F32, hessian: F32, damp: float, kind: str) -> None:
        self.w, self.h = w.astype(np.float64), damped(hessian, damp)
        importance = np.diag(hessian) + np.float32(added(hessian, damp))
        self.grid = Grid(_core.quantize_matrix(w, kind, importance=importance), kind)
        self.codes = np.zeros(w.shape)
        self.margin = np.full(len(w), np.inf)
        self.error = self.w.copy()
        self.rounds(np.argsort(-np.diag(hessian), kind="stable"))
        cols = w.shape[1]
        for sweep in range(self.SWEEPS):
            for first in range(0, cols, self.TILE):
                tile = range(first, min(first + self.TILE, cols))
                for j in tile:
                    self.descend(j)
                for at in range(tile.start, tile.stop, self.grid.sub):
                    if sweep + 1 < self.SWEEPS:
                        self.refit(slice(at, at + self.grid.sub))

    def decide(self, x: F64, low: float, high: float) -> F64:
        """x to the nearest integer of [low, high]."""
        inside = (x > low - 0.5) & (x < high + 0.5)
        distance = np.where(
            inside,
            0.5 - np.abs(x - np.rint(x)),
            np.minimum(np.abs(x - low + 0.5), np.abs(x - high - 0.5)),
        )
        self.margin = np.minimum(self.margin, distance)
        nearest: F64 = np.rint(x.clip(low, high))
        return nearest

    def code(self, j: int, x: F64) -> None:
        step, g = self.grid.step(j), self.grid
        safe = np.where(step == 0, np.inf, step)
        self.codes[:, j] = self.decide((x - g.offset(j)) / safe, g.low, g.high)
        self.error[:, j] = self.w[:, j] - step * self.codes[:, j] - g.offset(j)

    def rounds(self, order: NDArray[np.int64]) -> None:
        """H = M D M^T: the Cholesky factor of the reversed matrix, reversed."""
        h = self.h[np.ix_(order, order)]
        lower = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
        m = lower / np.diag(lower)
        for at, j in enumerate(order):
            before = self.error[:, order[:at]] @ m[:at, at]
            self.code(j, self.w[:, j] + before)

    def descend(self, j: int) -> None:
        value = self.w[:, j] - self.error[:, j]
        self.code(j, value + self.error @ self.h[:, j] / self.h[j, j])

    def refit(self, at: slice) -> None:
        g, s = self.grid, at.start // self.grid.sub
        c = self.codes[:, at]
        plain = g.kind in ("q4_0", "q4_1")
        products = c @ self.h[at, at]
        curvature = (products * c).sum(axis=1)
        gradient = self.error @ self.h[:, at]
        change = np.divide((gradient * c).sum(axis=1), curvature, where=curvature > 0,
                           out=np.zeros(len(c)))  # fmt: skip
        if plain:
            g.d[:, s] = self.half(g.d[:, s] + change)
        else:
            most = {"q3_k": (-32, 31), "q6_k": (-128, 127)}.get(g.kind, (0, 63))
            g.scale[:, s] = self.decide(g.scale[:, s] + change / g.d[:, s], *most)
        self.error[:, at] = (
            self.w[:, at] - g.step(at.start)[:, None] * c - g.offset(at.start)[:, None]
        )
        if g.kind in ("q4_1", "q4_k", "q5_k"):
            gradient = self.error @ self.h[:, at]
            change = -gradient.sum(axis=1) / self.h[at, at].sum()
            if plain:
                g.dmin[:, s] = self.half(g.dmin[:, s] + change)
            else:
                dmin = np.where(g.dmin[:, s] == 0, np.inf, g.dmin[:, s])
                g.min[:, s] = self.decide(g.min[:, s] + change / dmin, 0, 63)
        self.error[:, at] = (
            self.w[:, at] - g.step(at.start)[:, None] * c - g.offset(at.start)[:, None]
        )

    def half(self, x: F64) -> F64:
        near: F64 = x.astype(np.float16).astype(np.float64)
        spacing = np.spacing(near.astype(np.float16)).astype(np.float64)
        self.margin = np.minimum(self.margin, 0.5 - np.abs(x - near) / np.abs(spacing))
        return near


@pytest.mark.parametrize(
    ("kind", "cols"),
    [("q4_0", 160), ("q4_1", 96), ("q4_k", 256), ("q5_k", 256), ("q3_k", 256), ("q6_k", 256)],
)
def test_gptq_is_what_the_equations_give(kind: str, cols: int) -> None:
    w, hessian = correlated(70, cols, seed=2)
    reference = Reference(w, hessian, 0.1, kind)
    found = ggml.decode(_core.quantize_matrix(w, kind, hessian=hessian), kind)
    # Sums of `cols` products of single precision, gone through some nine times: rows that never
    # come near to another decision have the same codes and scales.
    certain = reference.margin > 2**-24 * cols * 4
    assert certain.mean() > 0.5
    expected = reference.w - reference.error
    np.testing.assert_allclose(found[certain], expected[certain], rtol=0, atol=1e-6)
    # Of the others the error is as good.
    e = found - reference.w
    errors = np.einsum("ij,jk,ik->i", e, reference.h, e)
    exact = np.einsum("ij,jk,ik->i", reference.error, reference.h, reference.error)
    assert abs(errors.sum() / exact.sum() - 1) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_gptq_takes_a_fifth_of_the_error_at_least(kind: str) -> None:
    w, hessian = correlated(64, 512, seed=3)
    importance = np.diag(hessian) + np.float32(added(hessian, 0.1))
    searched = _core.quantize_matrix(w, kind, importance=importance)
    found = _core.quantize_matrix(w, kind, hessian=hessian)
    before, after = (output_error(w, data, kind, hessian, 0.1) for data in (searched, found))
    assert after < 0.8 * before


@pytest.mark.parametrize(("kind", "cols"), [("q4_0", 416), ("q4_k", 768), ("q3_k", 512)])
def test_rows_and_threads_do_not_change_bytes(kind: str, cols: int) -> None:
    w, hessian = correlated(197, cols, seed=4)
    for options in ({}, {"importance": np.diag(hessian).copy()}, {"hessian": hessian}):
        whole = _core.quantize_matrix(w, kind, threads=1, **options)
        for threads in (2, 3, 0):
            assert (_core.quantize_matrix(w, kind, threads=threads, **options) == whole).all()
        assert (_core.quantize_matrix(w[130:140], kind, **options) == whole[130:140]).all()
        assert _core.quantize_matrix(w[:0], kind, **options).shape == (0, whole.shape[1])


def test_columns_that_no_input_reached_keep_their_weights() -> None:
    w, hessian = correlated(16, 256, seed=5)
    hessian[40:80], hessian[:, 40:80] = 0, 0
    y = ggml.decode(_core.quantize_matrix(w, "q4_k", hessian=hessian), "q4_k")
    searched = ggml.decode(_core.quantize_matrix(w, "q4_k", importance=np.diag(hessian)), "q4_k")
    dead = np.s_[:, 40:80]
    assert ((y - w)[dead] ** 2).mean() < 4 * ((searched - w)[dead] ** 2).mean()


def test_bad_requests_name_what_is_wrong() -> None:
    w, hessian = correlated(4, 256, seed=6)

    def refuse(message: str, error: type[Exception] = ValueError, **options: Any) -> None:
        with pytest.raises(error, match=message):
            _core.quantize_matrix(**{"weights": w, "type": "q4_k", **options})

    bad = np.ones(256, np.float32)
    for value in (-1, np.nan, np.inf):
        bad[7] = value
        refuse("importance of column 7 is", importance=bad)
    refuse(r"importance of 255 values, expected .* 256 columns", importance=bad[1:])
    refuse(r"hessian of 65280 values, expected \[256, 256\]", hessian=hessian[1:])
    for value in (np.nan, np.inf):
        spoiled = hessian.copy()
        spoiled[3, 5] = spoiled[5, 3] = value
        refuse(r"hessian\[3, 5\] is (nan|inf), expected finite", hessian=spoiled)
    skew = hessian.copy()
    skew[9, 2] += hessian[2, 2] + hessian[9, 9]
    refuse(r"hessian\[9, 2\] is .* symmetric", hessian=skew)
    negative = hessian.copy()
    negative[4, 4] = -1
    refuse(r"hessian\[4, 4\] is -1, expected a diagonal", hessian=negative)
    refuse("diagonal is zero, so no input", hessian=0 * hessian)
    one = np.ones((256, 256), np.float32)
    refuse(
        "not positive definite at column .* larger damp", hessian=one - 0.5 * np.eye(256), damp=0
    )
    refuse("damp -1, expected", hessian=hessian, damp=-1)
    refuse("damp nan, expected", hessian=hessian, damp=np.nan)
    refuse("importance and hessian, expected one", hessian=hessian, importance=np.diag(hessian))
    refuse("-1 threads, expected 0", threads=-1)
    refuse("3 dimensions", weights=w[None])
    refuse("q2_k", _core.UnsupportedError, type="q2_k")
    refuse(r"rows of 192 values, .* 256", weights=np.zeros((2, 192), np.float32))
    spoiled = w.copy()
    spoiled[1, 2] = 1e6
    refuse("value 258 is 1e\\+06, which is beyond the range of q4_k", weights=spoiled)
