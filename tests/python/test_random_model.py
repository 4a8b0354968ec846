# SPDX-License-Identifier: Apache-2.0
"""tools/make_random_model.py: the shapes of the released models, and weights that behave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import make_random_model as tool
import numpy as np
import pytest
from rwkv_edge import Model, Session
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import convert
from rwkv_edge.convert.policy import Types
from rwkv_edge.files.pth import read_pth

PARAMETERS = {
    "4": {"0.1b": 193, "0.4b": 461, "1.5b": 1577, "3b": 3062, "7b": 7518, "14b": 14148},
    "5": {"0.4b": 461, "1.5b": 1577, "3b": 3062, "7b": 7518},
    "6": {"1.6b": 1600, "3b": 3100, "7b": 7635, "14b": 14070},
    "7": {"tiny": 0.59, "0.1b": 191, "0.4b": 450, "1.5b": 1527, "2.9b": 2948, "7.2b": 7199},
    "7a": {"0.1b": 191 + 817},  # 12 tables, and what belongs to them
}


@pytest.mark.parametrize("version", PARAMETERS)
def test_number_of_parameters(version: str) -> None:
    """As published, in millions; the 14B of version 6 and the 7.2B by their names."""
    found = {}
    for name, size in tool.SIZES[version].items():
        tensors = tool.random_tensors(size, seed=1)
        found[name] = sum(int(np.prod(t.shape)) for t in tensors.values()) / 1e6
    assert found == pytest.approx(PARAMETERS[version], rel=0.01)


def small(version: str, layers: int, width: int) -> Any:
    """The shape of a real model, made small."""
    ranks = {"6": (16, 24), "7": (32, 32, 32, 64), "7a": (32, 32, 32, 64)}.get(version, ())
    return tool.Size(layers, width, ranks, version, vocab=300)


def test_rows_do_not_depend_on_how_they_are_asked_for() -> None:
    tensor = tool.RandomTensor("x", (700, 3), 1, 0.5, 2.0)
    whole = tensor.float32()
    parts = [tensor.float32(a, b) for a, b in ((0, 1), (1, 300), (300, 512), (512, 700))]
    np.testing.assert_array_equal(np.concatenate(parts), whole, strict=True)
    assert whole.mean() == pytest.approx(0.5, abs=0.2)
    assert whole.std() == pytest.approx(2.0, rel=0.1)
    other = tool.RandomTensor("x", (700, 3), 2, 0.5, 2.0).float32()
    assert not np.array_equal(whole, other)


@pytest.mark.parametrize("version", PARAMETERS)
def test_pth_and_gguf_are_one_model(tmp_path: Path, version: str) -> None:
    size = small(version, 2, 128)
    tool.write_gguf(tmp_path / "direct.gguf", size, 7, Types.choose("q4_0", None, None))
    tool.write_pth(tmp_path / "model.pth", size, 7)
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("1 'a' 1\n")
    convert(tmp_path / "model.pth", tmp_path / "by_way.gguf", type="q4_0", vocab=vocab)
    direct, by_way = (ModelFile(str(tmp_path / n)) for n in ("direct.gguf", "by_way.gguf"))
    for a, b in zip(direct.tensors, by_way.tensors, strict=True):
        assert (a.name, a.type, a.shape, bytes(a.data)) == (b.name, b.type, b.shape, bytes(b.data))
    assert "single bytes" in direct.get("general.description")
    assert direct.get("tokenizer.ggml.tokens")[1:3] == ["\\x00", "\\x01"]


@pytest.mark.torch
def test_torch_reads_the_pth(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tool.write_pth(tmp_path / "model.pth", tool.Size(2, 128, (32, 32, 32, 64), vocab=300), 7)
    theirs = torch.load(tmp_path / "model.pth", weights_only=True, mmap=True)
    ours = read_pth(tmp_path / "model.pth").tensors
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        assert tensor.dtype == torch.bfloat16
        np.testing.assert_array_equal(ours[name].float32(), tensor.float().numpy())


def largest(session: Session) -> float:
    """Of the numbers in a state; an exponent that stands for an empty sum is none."""
    parts = session.state.numpy().values()
    return max(float(np.abs(part[part > -1e30]).max()) for part in parts)


@pytest.mark.parametrize("version", PARAMETERS)
def test_nothing_blows_up_in_a_thousand_tokens(tmp_path: Path, version: str) -> None:
    path = tmp_path / "model.gguf"
    tool.write_gguf(path, small(version, 6, 256), 7, Types.choose("f16", None, None))
    model = Model(path)
    session = model.session()
    tokens = np.random.default_rng(1).integers(0, 300, 1000).tolist()
    early = session.feed(tokens[:200])
    state = largest(session)
    late = session.feed(tokens[200:])
    assert np.isfinite(late).all()
    assert 0.3 < late.std() / early.std() < 3
    assert largest(session) < 3 * state
    # The state decays: another beginning makes hardly any difference any more.
    other = model.session()
    other.feed(tokens[100:200])
    np.testing.assert_allclose(other.feed(tokens[200:]), late, atol=5e-2 * late.std())
