# SPDX-License-Identifier: Apache-2.0
"""--sparse-ffn: ffn.value transposed, in `convert`, `quantize`, `info` and `bench`."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints as ck
import ggml_types as ggml
import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from conftest import GetModel
from reference import oracle
from refusal import refuses
from rwkv_edge import FormatError, Model, UnsupportedError, cli
from rwkv_edge._core import ModelFile
from rwkv_edge.bench import Work
from rwkv_edge.convert import convert, quantize
from tolerances import F32_BOUND, rms, rounding, wrong_by

VALUE, BY_INPUT = "channel_mix_value.weight", "channel_mix_value_t.weight"
TOKENS = np.random.default_rng(3).integers(0, 250, 40).tolist()


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(ck.VOCABULARY, "utf-8")
    return path


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_a_converted_checkpoint_agrees_with_the_oracle(
    tmp_path: Path, vocab: Path, version: str
) -> None:
    """As closely as a dense file does, which differs in the order of sums only."""
    weights = tiny.tiny_model(tiny.VERSIONS[version]["d128"], "f32", seed=5).weights
    source, target = ck.write(tmp_path, ck.pth_of(weights)), tmp_path / "out.gguf"
    convert(source, target, type="f32", vocab=vocab, sparse_ffn=True)
    tokens = [token % len(weights["emb.weight"]) for token in TOKENS]
    right, _ = oracle(weights).forward(tokens)
    names = {name.split(".", 2)[-1] for name in ck.tensors_of(target)}
    assert BY_INPUT in names
    assert VALUE not in names
    assert wrong_by(Model(target).session().feed(tokens, logits="all"), right) < F32_BOUND


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q5_1"])
def test_its_activations_are_not_rounded(tmp_path: Path, tiny_model: GetModel, kind: str) -> None:
    """So what remains is the rounding before the other matrices: no more than with a dense file."""
    path, model = tiny_model("f32", "d128")
    target = tmp_path / "out.gguf"
    quantize(path, target, type=kind, head_type="f32", embd_type="f32", sparse_ffn=True)
    weights = dict(model.weights)
    for name, value in model.weights.items():
        if tiny.is_quantized(name) and name not in ("emb.weight", "head.weight"):
            is_transposed = name.endswith("ffn.value.weight")
            rows = np.ascontiguousarray(value.T if is_transposed else value)
            data = np.frombuffer(ck.written(rows, kind), np.uint8).reshape(len(rows), -1)
            back = ggml.decode(data, kind)
            weights[name] = back.T if is_transposed else back
    tokens = [token % len(weights["emb.weight"]) for token in TOKENS]
    exact, _ = oracle(weights).forward(tokens)
    rounded, _ = oracle(weights, linear=rounding).forward(tokens)
    found = Model(target).session().feed(tokens, logits="all")
    assert rms(found - exact) < 1.25 * rms(rounded - exact)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_1"])
def test_quantize_transposes_and_changes_nothing_else(
    tmp_path: Path, tiny_model: GetModel, kind: str
) -> None:
    path, model = tiny_model("f16", "d128")
    usual, sparse, again = (tmp_path / f"{name}.gguf" for name in ("usual", "sparse", "again"))
    quantize(path, usual, type=kind)
    quantize(path, sparse, type=kind, sparse_ffn=True)
    expected = {
        name.replace(VALUE, BY_INPUT): tensor for name, tensor in ck.tensors_of(usual).items()
    }
    for name, value in model.weights.items():
        if name.endswith("ffn.value.weight"):
            target = f"blk.{name.split('.')[1]}.{BY_INPUT}"
            rows = np.ascontiguousarray(value.T)
            expected[target] = (kind, rows.shape, ck.written(rows, kind))
    assert ck.tensors_of(sparse) == expected
    quantize(sparse, again, type=kind, sparse_ffn=True)  # what lies so already is copied
    assert ck.tensors_of(again) == expected


def test_blocks_are_transposed_by_convert_alone(tmp_path: Path, tiny_model: GetModel) -> None:
    path, model = tiny_model("q8_0", "d128")
    target = tmp_path / "out.gguf"
    message = r"tensor blk\.0\.channel_mix_value\.weight is q8_0 already, and blocks cannot be"
    with refuses(UnsupportedError, path, message):
        quantize(path, target, type="q8_0", sparse_ffn=True)
    with refuses(UnsupportedError, path, message):
        convert(path, target, sparse_ffn=True)
    assert not target.exists()
    with pytest.warns(UserWarning, match="3 tensors are transposed and quantized a second time"):
        convert(path, target, type="q8_0", sparse_ffn=True)
    rows = np.ascontiguousarray(model.weights["blocks.1.ffn.value.weight"].T)
    kind, shape, data = ck.tensors_of(target)[f"blk.1.{BY_INPUT}"]
    assert (kind, shape, data) == ("q8_0", rows.shape, ggml.encode(rows, "q8_0").tobytes())


def test_what_has_both_forms_or_another_shape(tmp_path: Path) -> None:
    model = tiny.tiny_model(tiny.SHAPES["d128"], "f32", seed=1)
    entry = model.file.tensor(f"blk.1.{VALUE}")
    twin = tiny.Entry(f"blk.1.{BY_INPUT}", entry.dims[::-1], entry.type_id, entry.data)
    model.file.tensors.append(twin)
    path = tiny.write(tmp_path, "both.gguf", model)
    message = r"tensors blk\.1\.channel_mix_value\.weight and \S+ are the same matrix"
    with refuses(FormatError, path, message):
        quantize(path, tmp_path / "out.gguf", type="f16", sparse_ffn=True)
    with refuses(FormatError, path, r"'blk\.1\.channel_mix_value_t\.weight' are the same matrix"):
        Model(path)
    model.file.tensors.remove(twin)
    entry.dims = [*entry.dims, 1, 1]
    path = tiny.write(tmp_path, "deep.gguf", model)
    with refuses(FormatError, path, r"value\.weight is \[1, 1, \d+, \d+\], expected two dim"):
        quantize(path, tmp_path / "out.gguf", type="f16", sparse_ffn=True)


def test_info_and_bench_name_it(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f16", "d128")
    target = tmp_path / "out.gguf"
    command = ["quantize", str(path), str(target), "--type", "q8_0", "--sparse-ffn"]
    assert CliRunner().invoke(cli.main, command).exit_code == 0
    text = CliRunner().invoke(cli.main, ["info", str(target)]).stdout
    assert "ffn.value of every layer lies by input" in text
    assert "by input" not in CliRunner().invoke(cli.main, ["info", str(path)]).stdout

    file = ModelFile(str(target))
    size = sum(tensor.nbytes for tensor in file.tensors if tensor.name.endswith(BY_INPUT))
    bench = ["bench", str(target), "-t", "1", "-p", "0", "-n", "2", "-r", "1"]
    assert "weights lie by input" in CliRunner().invoke(cli.main, bench).stdout
    found = json.loads(CliRunner().invoke(cli.main, [*bench, "--json"]).stdout)
    assert found["bytes_by_input"] == size > 0
    values = sum(np.prod(t.shape) for t in file.tensors if t.name.endswith(BY_INPUT))
    assert Work.of(file).layers[0] >= 2 * values  # in floats, not in 8 bits
