# SPDX-License-Identifier: Apache-2.0
"""tools/make_random_model.py: the shapes of the released models, and weights that behave."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rwkv_edge import Model, Session
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import convert
from rwkv_edge.convert.pth import read_pth
from rwkv_edge.convert.quantize import Types

TOOL = Path(__file__).parents[2] / "tools" / "make_random_model.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_random_model", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("size", "millions"),
    [("0.1b", 191), ("0.4b", 450), ("1.5b", 1527), ("2.9b", 2948), ("7.2b", 7199)],
)
def test_number_of_parameters(tool: ModuleType, size: str, millions: int) -> None:
    """As published for the World models; the 7.2B by its name."""
    tensors = tool.random_tensors(tool.SIZES[size], seed=1)
    count = sum(int(np.prod(t.shape)) for t in tensors.values())
    assert round(count / 1e6) == pytest.approx(millions, rel=0.01)


def test_rows_do_not_depend_on_how_they_are_asked_for(tool: ModuleType) -> None:
    tensor = tool.RandomTensor("x", (700, 3), 1, 0.5, 2.0)
    whole = tensor.float32()
    parts = [tensor.float32(a, b) for a, b in ((0, 1), (1, 300), (300, 512), (512, 700))]
    np.testing.assert_array_equal(np.concatenate(parts), whole, strict=True)
    assert whole.mean() == pytest.approx(0.5, abs=0.2)
    assert whole.std() == pytest.approx(2.0, rel=0.1)
    other = tool.RandomTensor("x", (700, 3), 2, 0.5, 2.0).float32()
    assert not np.array_equal(whole, other)


def test_pth_and_gguf_are_one_model(tool: ModuleType, tmp_path: Path) -> None:
    size = tool.Size(2, 128, (32, 32, 32, 64), vocab=300)
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
def test_torch_reads_the_pth(tool: ModuleType, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tool.write_pth(tmp_path / "model.pth", tool.Size(2, 128, (32, 32, 32, 64), vocab=300), 7)
    theirs = torch.load(tmp_path / "model.pth", weights_only=True, mmap=True)
    ours = read_pth(tmp_path / "model.pth").tensors
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        assert tensor.dtype == torch.bfloat16
        np.testing.assert_array_equal(ours[name].float32(), tensor.float().numpy())


def largest(session: Session) -> float:
    return max(float(np.abs(part).max()) for part in session.state.numpy().values())


def test_nothing_blows_up_in_a_thousand_tokens(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    size = tool.Size(6, 256, (32, 32, 32, 64), vocab=300)
    tool.write_gguf(path, size, 7, Types.choose("f16", None, None))
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
