# SPDX-License-Identifier: Apache-2.0
"""Column scalings change nothing, in double precision; and are chosen only where they help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import GetModel
from numpy.typing import NDArray
from reference import Weights, oracle
from rwkv_edge import FormatError, Model
from rwkv_edge.convert import quantize
from rwkv_edge.convert.policy import Known, Scale
from rwkv_edge.quantization.calibrate import calibration
from rwkv_edge.quantization.fold import Folding, combined, equalise, foldings, near
from rwkv_edge.quantization.perplexity import score

TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 300, 20)]


def scaled(weights: Weights, scales: dict[str, Scale]) -> Weights:
    """Checkpoint weights; their low-rank matrices lie the other way than in a GGUF file."""
    found: Weights = {}
    for name, value in weights.items():
        scale = scales.pop(tiny.gguf_name(name), Scale())
        rows, columns = scale.rows, scale.columns
        if tiny.LORA.search(name):
            rows, columns = columns, rows
        factors = np.ones(value.shape)
        if columns is not None:
            factors *= columns
        if rows is not None:
            factors *= rows.reshape(-1, *[1] * (value.ndim - 1))
        found[name] = value * factors  # type: ignore[assignment]
    assert not scales
    return found


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_every_folding_is_exact(tiny_model: GetModel, version: str) -> None:
    path, made = tiny_model("f32", "d128", version)
    model = Model(path)
    tensors = {tensor.name: tensor for tensor in model._file.tensors}
    sizes = {name: tensor.shape[-1] for name, tensor in tensors.items()}
    right, _ = oracle(made.weights).forward(TOKENS)
    rng = np.random.default_rng(7)
    all_of = foldings(model.arch, set(tensors))
    assert len(all_of) == 1 + 4 * model.n_layer
    everything = {}
    for folding in all_of:
        # Powers of two, so that 1 / t is no rounded number either.
        t = np.exp2(rng.integers(-3, 4, sizes[folding.columns[0]])).astype(np.float32)
        everything[folding] = t
        found, _ = oracle(scaled(made.weights, combined({folding: t}))).forward(TOKENS)
        assert np.abs(found - right).max() < 1e-10 * right.std(), folding
        # Without what makes up for it, the same scaling is no small thing.
        half = {name: Scale(columns=(1 / t).astype(np.float32)) for name in folding.columns[:1]}
        wrong, _ = oracle(scaled(made.weights, half)).forward(TOKENS)
        assert np.abs(wrong - right).max() > 1e-3 * right.std(), folding
    found, _ = oracle(scaled(made.weights, combined(everything))).forward(TOKENS)
    assert np.abs(found - right).max() < 1e-10 * right.std()


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7", "7a"])
def test_files_are_scaled(tmp_path: Path, tiny_model: GetModel, version: str) -> None:
    """In float32 powers of two round nothing: the engine gives what it gave, nearly to the bit."""
    path, _ = tiny_model("f32", "d128", version)
    model = Model(path)
    tensors = {tensor.name: tensor for tensor in model._file.tensors}
    rng = np.random.default_rng(7)
    everything = {
        folding: np.exp2(rng.integers(-3, 4, tensors[folding.columns[0]].shape[-1])).astype("f4")
        for folding in foldings(model.arch, set(tensors))
    }
    other = tmp_path / "other.gguf"
    quantize(path, other, type="f32", known=Known(scales=combined(everything)))
    windows = np.random.default_rng(2).integers(0, 300, (1, 60)).astype(np.int32)
    found = score(Model(other), windows, base=model)
    assert found.kl is not None
    assert np.abs(found.kl).max() < 1e-9
    # A state has the scaled values inside, so it belongs to one of the files.
    session = model.session()
    session.read(TOKENS)
    with pytest.raises(FormatError, match="of another model"):
        Model(other).session(session.state)


def test_foldings_are_chosen_where_the_error_falls() -> None:
    rng = np.random.default_rng(3)
    smooth = rng.normal(0, 1, (64, 256)).astype(np.float32)
    t = np.exp(rng.normal(0, 1.5, 256)).astype(np.float32)
    values = {"smooth": smooth, "rough": smooth / t, "dead": smooth * 0}
    importance = {"smooth": np.ones(256, np.float32), "rough": t**2, "dead": t * 0}
    all_of = [Folding((name,)) for name in values]
    types = dict.fromkeys(values, "q4_k")

    def values_of(name: str, rows: int) -> NDArray[np.float32]:
        return values[name][:rows]

    inputs = {
        name: (rng.normal(0, 1, (16, 256)) * np.sqrt(a)).astype(np.float32)
        for name, a in importance.items()
    }
    found = equalise(all_of, types, importance, values_of, inputs)
    assert list(found) == [all_of[1]]
    # The factors undo those of the matrix, to the next power of two.
    ratio = np.log2(found[all_of[1]] * t)
    assert np.abs(ratio - np.median(ratio)).max() < 1
    assert equalise(all_of, {"rough": "f16"}, importance, values_of, inputs) == {}
    # In 8 bits too. But where large columns have large inputs, these become more uneven than the
    # columns were, and rounding them costs more than a matrix in 8 bits gains.
    eight = {"rough": "q8_0"}
    assert list(equalise(all_of, eight, importance, values_of, inputs)) == [all_of[1]]
    large = {"rough": inputs["smooth"] / t}
    assert equalise(all_of, eight, {"rough": t**-2}, values_of, large) == {}
    assert near(np.array([0.0, 4.0, 4.0, 64.0]), 2).tolist() == [1, 1, 1, 4]


@pytest.mark.parametrize("kind", ["q4_k", "q8_0"])
def test_a_rough_model_is_quantized_as_well_as_a_smooth_one(
    tmp_path: Path, tiny_model: GetModel, kind: str
) -> None:
    smooth, _ = tiny_model("f32", "d256", "7")
    model = Model(smooth)
    tensors = {tensor.name: tensor for tensor in model._file.tensors}
    rng = np.random.default_rng(7)
    factors = {
        folding: np.exp2(rng.normal(0, 2, tensors[folding.columns[0]].shape[-1]).round()).astype(
            np.float32
        )
        for folding in foldings(model.arch, set(tensors))
    }
    rough = tmp_path / "rough.gguf"
    quantize(smooth, rough, type="f32", known=Known(scales=combined(factors)))
    text = tmp_path / "text"
    text.write_text("Some text, and more text of the same kind. " * 60)
    windows = np.random.default_rng(2).integers(1, 250, (2, 200)).astype(np.int32)

    def kl(path: Path, equal: bool) -> float:
        target = tmp_path / "out.gguf"
        plan = calibration(path, target, [text], type=kind, window=64, tokens=4096, equal=equal)
        assert bool(plan.scales) == (equal and path == rough)
        plan.run()
        return score(Model(target), windows, base=model).divergence().mean

    best = kl(smooth, True)
    assert kl(rough, False) > 4 * best
    assert kl(rough, True) < 1.5 * best
