# SPDX-License-Identifier: Apache-2.0
"""Sums over the inputs of matrices, against numpy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import GetModel
from rwkv_edge import Model, _core
from rwkv_edge.quantization.collect import collect, groups_of, matrices_of


@pytest.mark.parametrize("columns", [1, 32, 64, 96, 416])
def test_outer_products(columns: int) -> None:
    rng = np.random.default_rng(columns)
    x = rng.normal(0, 1, (150, columns)).astype(np.float32)
    start = rng.normal(0, 1, (columns, columns)).astype(np.float32)
    sums = start.copy()
    _core.add_outer_products(sums, x)
    exact = start + x.T.astype(float) @ x.astype(float)
    # A chain of 150 products and sums, each rounded to half of 2^-23 of what is summed so far.
    bound = 151 * 2**-24 * (np.abs(start) + np.abs(x.T).astype(float) @ np.abs(x))
    upper = np.triu_indices(columns)
    assert (np.abs(sums - exact)[upper] <= bound[upper]).all()
    parts = start.copy()
    for low, high, threads in ((0, 1, 2), (1, 1, 1), (1, 70, 3), (70, 150, 1)):
        _core.add_outer_products(parts, x[low:high], threads)
    assert np.array_equal(parts[upper], sums[upper])


def test_outer_products_of_other_shapes() -> None:
    sums, x = np.zeros((4, 4), np.float32), np.zeros((2, 4), np.float32)
    fixed = sums.copy()
    fixed.setflags(write=False)
    for wrong, rows, text in (
        (sums[:3], x, "expected"),
        (sums, x[:, :3], "expected"),
        (sums.T[::-1], x, "can be written"),
        (fixed, x, "can be written"),
    ):
        with pytest.raises(ValueError, match=text):
            _core.add_outer_products(wrong, rows)
    with pytest.raises(ValueError, match="0 threads"):
        _core.add_outer_products(sums, x, 0)
    with pytest.raises(TypeError):
        _core.add_outer_products(sums.astype(float), x)


@pytest.mark.parametrize("version", ["4", "7"])
def test_sums_are_those_of_the_inputs(tiny_model: GetModel, version: str) -> None:
    model = Model(tiny_model("f32", "d128", version)[0], threads=2)
    windows = np.random.default_rng(1).integers(0, 300, (3, 70)).astype(np.int32)
    names = list(matrices_of(model))
    assert "output.weight" in names
    assert "token_embd.weight" not in names
    seen: list[tuple[int, int]] = []
    found = collect(model, windows, names, hessians=True, progress=lambda *done: seen.append(done))
    assert seen[-1] == (210, 210)
    for name in names:
        rows = [model.session().inputs(window.tolist(), [name])[name] for window in windows]
        x = np.concatenate(rows).astype(float)
        mean = x.T @ x / len(x)
        # Of each sum: a chain of 210 products, as above.
        bound = 212 * 2**-24 * (np.abs(x.T) @ np.abs(x)) / len(x)
        assert (np.abs(found[name].importance() - np.diag(mean)) <= np.diag(bound)).all()
        hessian = found[name].hessian()
        assert (np.abs(hessian - mean) <= bound).all()
        assert np.array_equal(hessian, hessian.T)
    alone = collect(model, windows, names[:1])[names[0]]
    assert alone.products is None
    assert alone.squares == pytest.approx(found[names[0]].squares, rel=1e-5)


def test_what_is_no_number_is_named(tiny_model: GetModel) -> None:
    path, _ = tiny_model("f32", "d128", "7")
    model = Model(path)
    norm = next(t for t in model._file.tensors if t.name == "blk.1.attn_norm.weight")
    data = bytearray(path.read_bytes())
    data[norm.offset : norm.offset + 4] = np.float32("nan").tobytes()
    bad = path.with_name("bad.gguf")
    bad.write_bytes(data)
    windows = np.zeros((1, 5), np.int32)
    with pytest.raises(ValueError, match=r"bad.gguf: tensor blk\.1\..* multiplies NaN"):
        collect(Model(bad), windows, list(matrices_of(model)))


def test_groups_fit_into_memory() -> None:
    shapes = {"a": (9, 10), "b": (9, 10), "c": (9, 20), "d": (9, 10)}
    assert groups_of(shapes, 2000) == [["a", "b"], ["c", "d"]]
    assert groups_of(shapes, 1600) == [["a", "b"], ["c"], ["d"]]
    assert groups_of(shapes, 10000) == [list(shapes)]
    with pytest.raises(ValueError, match="tensor c needs 1600 bytes of memory, found 1599"):
        groups_of(shapes, 1599)
