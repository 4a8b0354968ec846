# SPDX-License-Identifier: Apache-2.0
"""Checkpoints opened without a conversion: the logits of the converted file, weights in place."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints as ck
import numpy as np
import pytest
import tiny
from hub import hub_form, save_sharded
from numpy.typing import NDArray
from reference import Weights
from refusal import refuses
from rwkv_edge import FormatError, Model, UnsupportedError
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import convert
from rwkv_edge.model_file import open_model_file
from web_rwkv import as_st, save

TOKENS = [1, 299, 5, 5, 0, 77, 12, 250]
MODELS = [(version, tuned) for version in tiny.VERSIONS for tuned in (False, version != "4")]


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(ck.VOCABULARY, "utf-8")
    return path


def logits(path: Path) -> NDArray[np.float32]:
    return Model(path, threads=1).session().feed(TOKENS, logits="all")


def weights_of(version: str, *, tuned: bool = False) -> Weights:
    shape = tiny.VERSIONS[version]["d128"]
    weights = ck.weights_of(shape)
    return weights | (tiny.random_states(shape, 7) if tuned else {})


# ---- the same model -----------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "tuned"), MODELS)
def test_every_format_gives_the_same_bits(
    tmp_path: Path, vocab: Path, version: str, tuned: bool
) -> None:
    weights = weights_of(version, tuned=tuned)
    pth = ck.write(tmp_path, ck.pth_of(weights), "model.pth")
    st = ck.write(tmp_path, ck.safetensors_of(weights), "model.safetensors")
    convert(pth, tmp_path / "model.gguf", type="f32", vocab=vocab)
    tokens = "tokenizer.ggml.tokens"
    found = Model(pth, vocab=vocab).metadata[tokens]
    assert found == Model(tmp_path / "model.gguf").metadata[tokens]
    expected = logits(tmp_path / "model.gguf")
    assert np.ptp(expected) > 0.1
    for path in (pth, st):
        np.testing.assert_array_equal(logits(path), expected)


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_formats_of_the_hub_and_of_web_rwkv(tmp_path: Path, version: str) -> None:
    pytest.importorskip("safetensors")
    weights = weights_of(version)
    expected = logits(ck.write(tmp_path, ck.pth_of(weights), "model.pth"))
    np.testing.assert_array_equal(logits(save(tmp_path, as_st(weights))), expected)
    folder = tmp_path / "hub"
    folder.mkdir()
    save_sharded(folder, hub_form(weights, version))
    np.testing.assert_array_equal(logits(folder), expected)


@pytest.mark.parametrize("version", tiny.VERSIONS)
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_precision(tmp_path: Path, vocab: Path, version: str, kind: str) -> None:
    """The matrices keep the type they have, so nothing is rounded a second time."""
    path = ck.write(tmp_path, ck.pth_of(weights_of(version), kind), "model.pth")
    convert(path, tmp_path / "model.gguf", type=kind, vocab=vocab)
    np.testing.assert_array_equal(logits(path), logits(tmp_path / "model.gguf"))
    converted = {n: (k, s, d) for n, (k, s, d) in ck.tensors_of(tmp_path / "model.gguf").items()}
    for tensor in open_model_file(path).tensors:
        found, shape, data = converted[tensor.name]
        assert tensor.shape == shape
        if tensor.type == found:
            assert bytes(tensor.data) == data
        else:  # a small matrix that lies turned in a .pth
            assert (tensor.type, tensor.name.endswith(("1.weight", "2.weight"))) == ("f32", True)


@pytest.mark.parametrize("version", tiny.VERSIONS)
@pytest.mark.parametrize("kind", ["f32", "f16", "q4_0", "q5_1", "q8_0"])
def test_files_of_rwkv_cpp(tmp_path: Path, vocab: Path, version: str, kind: str) -> None:
    """Nothing is rounded again, neither in place nor by `convert` without a type."""
    weights = weights_of(version)
    path = ck.write(tmp_path, ck.ggmf_of(weights, kind).to_bytes(), "model.bin")
    convert(path, tmp_path / "model.gguf", vocab=vocab, type="f32" if kind == "f32" else None)
    found = logits(path)
    np.testing.assert_array_equal(found, logits(tmp_path / "model.gguf"))
    if kind == "f32":
        pth = ck.write(tmp_path, ck.pth_of(weights), "model.pth")
        np.testing.assert_array_equal(found, logits(pth))


def test_blocks_are_copied(tmp_path: Path, vocab: Path) -> None:
    """Of a quantized .bin; what it has in floats stays so, and the file says what it is."""
    file = ck.ggmf_of(weights_of("6"), "q5_0")
    path = ck.write(tmp_path, file.to_bytes(), "model.bin")
    target = tmp_path / "model.gguf"
    convert(path, target, vocab=vocab)
    tensors = ck.tensors_of(target)
    kind, _, data = tensors["blk.1.time_mix_gate.weight"]
    assert (kind, data) == ("q5_0", file.tensor("blocks.1.att.gate.weight").data)
    assert tensors["output.weight"][0] == "f16"
    assert tensors["blk.1.time_mix_decay_w1.weight"][0] == "f32"
    assert ModelFile(str(target)).get("general.file_type") == 8
    convert(path, target, vocab=vocab, head_type="q8_0")
    assert ck.tensors_of(target)["output.weight"][0] == "q8_0"
    with pytest.warns(UserWarning, match="24 tensors from q5_0 to q4_0: this loses more than"):
        convert(path, target, vocab=vocab, type="q4_0")
    assert ck.tensors_of(target)["blk.1.time_mix_gate.weight"][0] == "q4_0"


# ---- in place -----------------------------------------------------------------------------------


def test_turned_matrices_keep_their_precision(tmp_path: Path) -> None:
    """As the strides of a .pth may have it: put into order in memory, in the type of the file."""
    weights = weights_of("7")
    plain = ck.write(tmp_path, ck.pth_of(weights, "bf16"), "plain.pth")
    name = "blocks.1.att.key.weight"
    tensors = {
        n: ck.torch_tensor(str(i), v.shape, kind="bf16", strides=(1, 128) if n == name else None)
        for i, (n, v) in enumerate(weights.items())
    }
    stored = weights | {name: np.ascontiguousarray(weights[name].T)}
    path = ck.write(tmp_path, ck.pth(tensors, ck.pth_entries(stored, "bf16")), "turned.pth")
    one, other = open_model_file(plain).tensors, open_model_file(path).tensors
    assert [(t.name, t.type, bytes(t.data)) for t in one] == [
        (t.name, t.type, bytes(t.data)) for t in other
    ]


def test_what_is_assembled_lives_on_its_own(tmp_path: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(weights_of("7")))
    file = open_model_file(path)
    assert all(tensor.offset == -1 for tensor in file.tensors)
    model = Model(path)
    expected = model.session().feed(TOKENS)
    data = file.tensors[0].data
    before = data.tobytes()
    del file
    gc.collect()
    assert data.tobytes() == before
    session = model.session()
    del model
    gc.collect()
    np.testing.assert_array_equal(session.feed(TOKENS), expected)


GROWTH = """
import resource, sys, rwkv_edge
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
rwkv_edge.Model({path!r}, vocab={vocab!r}, threads=1).session().feed([1, 2, 3])
sys.stdout.write(str(peak() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_tables_stay_in_the_file(tmp_path: Path, vocab: Path) -> None:
    """DeepEmbed tables of 490 MB, a hole in the file: only the rows of the tokens are touched."""
    weights = ck.weights_of(dataclasses.replace(tiny.VERSIONS["7a"]["d128"], layers=2))
    rows, header, end = 60_000, {}, 0
    for name, value in weights.items():
        tall = name.endswith(("emb.weight", "head.weight"))
        dims = [rows, value.shape[1]] if tall else list(value.shape)
        size = 4 * int(np.prod(dims))
        header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    padded = text + b" " * (-len(text) % 8)  # as the reference implementation has it
    path = ck.write(tmp_path, ck.safetensors(padded, b""), "model.safetensors")
    os.truncate(path, path.stat().st_size + end)
    assert end > 500_000_000
    program = [sys.executable, "-c", GROWTH.format(path=str(path), vocab=str(vocab))]
    result = subprocess.run(program, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 120_000  # of KiB, 30,000 of them the head


# ---- vocabulary, hint, errors -------------------------------------------------------------------


def test_vocabulary_of_a_checkpoint(tmp_path: Path, vocab: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(weights_of("7")), "model.pth")
    with refuses(FormatError, path, r"model\.pth: no tokenizer.*--vocab FILE"):
        Model(path).tokenizer.encode("a")
    assert Model(path, vocab=vocab).tokenizer.encode("a\n\n") == [1, 5]
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        Model(path, vocab=tmp_path / "missing.txt")
    convert(path, tmp_path / "model.gguf", vocab=vocab)
    with refuses(ValueError, tmp_path / "model.gguf", "a GGUF file has its vocabulary inside"):
        Model(tmp_path / "model.gguf", vocab=vocab)


def test_hint(tmp_path: Path, vocab: Path) -> None:
    weights = weights_of("6")
    for name, data, kind in (
        ("model.pth", ck.pth_of(weights, "bf16"), "bf16"),
        ("model.st", ck.safetensors_of(weights, "f16"), "f16"),
        ("model.bin", ck.ggmf_of(weights, "f32").to_bytes(), "f32"),
    ):
        path = ck.write(tmp_path, data, name)
        hint = Model(path).hint
        assert hint is not None
        assert f"{name} are used as they lie there, in {kind}; `rwkv-edge convert {path}" in hint
    assert Model(ck.write(tmp_path, ck.ggmf_of(weights, "q4_0").to_bytes())).hint is None
    convert(path, tmp_path / "model.gguf", vocab=vocab)
    assert Model(tmp_path / "model.gguf").hint is None


BROKEN: dict[str, tuple[Callable[[], bytes], type[Exception], str]] = {
    "text": (lambda: b"hello, this is text", FormatError, r"neither a GGUF"),
    "nothing": (lambda: b"", FormatError, r"the file is empty"),
    "another model": (
        lambda: ck.pth_of({"wte": np.zeros((2, 3), np.float32)}),
        UnsupportedError,
        r"no RWKV model",
    ),
    "a tensor too few": (
        lambda: ck.pth_of({n: v for n, v in weights_of("4").items() if n != "ln_out.bias"}),
        FormatError,
        r"missing ln_out\.bias, expected \[128\]",
    ),
    "half a file": (
        lambda: ck.pth_of(weights_of("4"))[:100_000],
        FormatError,
        r"is the download complete",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_no_model(tmp_path: Path, case: str) -> None:
    make, error, message = BROKEN[case]
    path = ck.write(tmp_path, make(), "model.pth")
    with refuses(error, path, message):
        Model(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        Model(tmp_path / "missing.pth")
