# SPDX-License-Identifier: Apache-2.0
"""What the matrices of a model multiply, against the oracle's products."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tiny
from conftest import GetModel
from reference import Array, oracle
from rwkv_edge import Model
from rwkv_edge.convert.policy import is_quantizable
from rwkv_edge.model import inputs_by_name
from tolerances import F32_BOUND, wrong_by

TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 300, 150)]


def multiplied(model: Model) -> list[str]:
    return [
        tensor.name
        for tensor in model._file.tensors
        if is_quantizable(tensor.name, tensor.shape)
        and not tensor.name.endswith(("token_embd.weight", "channel_mix_s_emb.weight"))
    ]


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_inputs_are_the_oracles(tiny_model: GetModel, version: str) -> None:
    path, made = tiny_model("f32", "d128", version)
    model = Model(path)
    reference = oracle(made.weights)
    expected: dict[str, Array] = {}
    product = reference.product

    def recorded(name: str, x: Array) -> Array:
        expected[tiny.gguf_name(name)] = x
        return product(name, x)

    reference.product = recorded  # type: ignore[method-assign]
    reference.forward(TOKENS)
    names = multiplied(model)
    assert set(names) == set(expected)
    assert len(names) > 5 * model.n_layer
    session, plain = model.session(), model.session()
    found = session.inputs(TOKENS, names)
    assert list(found) == names
    for name in names:
        assert found[name].shape == expected[name].shape
        assert wrong_by(found[name], expected[name]) < F32_BOUND, name
    # The session has read the tokens, as without anybody looking.
    plain.read(TOKENS)
    assert session.state.data.tobytes() == plain.state.data.tobytes()
    assert session.tokens == len(TOKENS)
    alone = model.session()
    parts = [alone.inputs(TOKENS[i : i + 50], names[3:4])[names[3]] for i in (0, 50, 100)]
    assert np.array_equal(np.concatenate(parts), found[names[3]])


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_layer_by_layer(tiny_model: GetModel, version: str) -> None:
    model = Model(tiny_model("f32", "d128", version)[0])
    names, last = multiplied(model), model.n_layer
    expected = model.session().inputs(TOKENS, names)
    plain, session = model.session(), model._core.session()
    plain.read(TOKENS)
    residual = np.zeros((len(TOKENS), model.n_embd), np.float32)
    carry = np.zeros((len(TOKENS), model._core.carry_width), np.float32)
    for begin, end in ((0, 1), (1, last - 1), (last - 1, last - 1), (last - 1, last)):
        layers = tuple(f"blk.{layer}." for layer in range(begin, end))
        here = [name for name in names if name.startswith(layers)]
        if begin == last - 1 < end:
            before, here = residual.copy(), [*here, "output.weight"]
        raw = session.section_inputs(TOKENS, here, begin, end, residual, carry)
        for name, found in inputs_by_name(model, raw, here, len(TOKENS)).items():
            assert np.array_equal(found, expected[name]), name
    assert session.get_state() == plain.state.data.tobytes()
    assert np.array_equal(residual, plain.model.session().hidden(TOKENS, [-1])[0])
    # The head alone; and tokens in parts, which go on where the last ones ended.
    after = residual.copy()
    raw = session.section_inputs(TOKENS, ["output.weight"], last, last, residual, carry)
    assert raw == expected["output.weight"].tobytes()
    assert np.array_equal(residual, after)
    parts = model._core.session()
    for rows in (slice(0, 70), slice(70, None)):
        parts.section_inputs(TOKENS[rows], [], last - 1, last, before[rows], carry[rows])
    assert np.array_equal(before, after)


def test_sections_that_are_refused(tiny_model: GetModel) -> None:
    model = Model(tiny_model("f32", "d128", "7")[0])
    session = model._core.session()
    residual, carry = np.zeros((2, 2, 128), np.float32)
    fixed = residual.copy()
    fixed.setflags(write=False)
    for begin, end in ((-1, 1), (2, 1), (0, 4), (4, 4)):
        with pytest.raises(ValueError, match=f"layers {begin} to {end}, expected some of 0 to 3"):
            session.section_inputs([1, 2], [], begin, end, residual, carry)
    for rows, more, text in (
        (residual[:1], carry, r"residual, expected \[2, 128\]"),
        (residual, carry[:, :64], r"carry, expected \[2, 128\]"),
        (residual[0], carry, "residual, expected"),
        (np.asfortranarray(residual), carry, "residual, .* can be written"),
        (residual, fixed, "carry, .* can be written"),
    ):
        with pytest.raises(ValueError, match=text):
            session.section_inputs([1, 2], [], 0, 1, rows, more)
    with pytest.raises(TypeError):
        session.section_inputs([1, 2], [], 0, 1, residual.astype(float), carry)
    with pytest.raises(ValueError, match=r"no product on cpu .* reads the matrix 'output\.weight'"):
        session.section_inputs([1, 2], ["output.weight"], 0, 2, residual, carry)
    assert session.tokens == 0


def test_what_has_no_inputs(tiny_model: GetModel) -> None:
    model = Model(tiny_model("f32", "d128", "6")[0])
    session = model.session()
    for name, text in (
        ("blk.9.x", "no matrix 'blk.9.x'"),
        ("output_norm.weight", "no matrix"),
        ("token_embd.weight", "no product on cpu .* reads the matrix 'token_embd.weight'"),
        ("blk.0.time_mix_w2.weight", "no .*'blk.0.time_mix_w2.weight'"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(str(model.path))}: {text}"):
            session.inputs(TOKENS, [name])
        assert session.tokens == 0
    with pytest.raises(ValueError, match="found none"):
        session.inputs([], [])
    assert session.inputs(TOKENS, []) == {}
