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
