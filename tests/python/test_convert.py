# SPDX-License-Identifier: Apache-2.0
"""`convert`: every tensor of the written file against one that the tests write on their own."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints as ck
import ggml_types as ggml
import numpy as np
import pytest
import tiny
from reference import Weights
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import convert

SMALL_MATRICES = ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2")


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(ck.VOCABULARY, "utf-8")
    return path


def is_small_matrix(name: str) -> bool:
    return any(name.endswith(f"time_mix_{x}.weight") for x in SMALL_MATRICES)


# ---- the tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_tensors_are_those_of_llama_cpp(tmp_path: Path, vocab: Path, shape: str) -> None:
    """In float32, against the tests' own GGUF writer: names, shapes and bits."""
    weights = ck.weights_of(tiny.SHAPES[shape])
    if tiny.SHAPES[shape].unused_v == "absent":
        weights = {n: v for n, v in weights.items() if not n.startswith("blocks.0.att.v")
                   or n.endswith("value.weight")}  # fmt: skip
    target = tmp_path / "out.gguf"
    convert(ck.write(tmp_path, ck.pth_of(weights)), target, type="f32", vocab=vocab)
    with_copies = dataclasses.replace(tiny.SHAPES[shape], unused_v="copy")
    model = tiny.tiny_model(with_copies, "f32", seed=5)
    expected = {e.name: ("f32", tuple(e.dims[::-1]), e.data) for e in model.file.tensors}
    assert ck.tensors_of(target) == expected


def expected_type(name: str, kind: str, head: str, embd: str) -> str:
    """By the rule of docs: what llama.cpp keeps, and otherwise the type asked for."""
    if name in ("output.weight", "token_embd.weight"):
        return head if name == "output.weight" else embd
    if re.search(r"(key|value|receptance|output)\.weight$", name):
        return kind
    if is_small_matrix(name) and not re.search(r"_w[12]\.weight$", name):
        return kind if kind in ("f32", "bf16") else "f16"
    return "f32"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("f16", "f16", "f16")),
        ({"type": "f32"}, ("f32", "f32", "f32")),
        ({"type": "bf16"}, ("bf16", "bf16", "bf16")),
        ({"type": "fp16"}, ("f16", "f16", "f16")),
        ({"type": "q8_0"}, ("q8_0", "q8_0", "q8_0")),
        ({"type": "int8"}, ("q8_0", "q8_0", "q8_0")),
        ({"type": "q4_0"}, ("q4_0", "q8_0", "q8_0")),
        ({"type": "INT4"}, ("q4_0", "q8_0", "q8_0")),
        ({"type": "q5_1", "head_type": "f16"}, ("q5_1", "f16", "q8_0")),
        ({"type": "q4_1", "embd_type": "q5_0"}, ("q4_1", "q8_0", "q5_0")),
        ({"type": "q8_0", "embd_type": "f16"}, ("q8_0", "q8_0", "f16")),
    ],
)
def test_types(
    tmp_path: Path, vocab: Path, options: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    weights = ck.weights_of()
    target = tmp_path / "out.gguf"
    path = ck.write(tmp_path, ck.pth_of(weights))
    convert(path, target, vocab=vocab, **options)
    plain = tmp_path / "plain.gguf"
    convert(path, plain, type="f32", vocab=vocab)
    full = ck.tensors_of(plain)
    for name, (kind, shape, data) in ck.tensors_of(target).items():
        assert kind == expected_type(name, *expected), name
        values = ggml.decode(np.frombuffer(full[name][2], np.uint8), "f32").reshape(shape)
        assert data == ggml.encode(values, kind).tobytes(), name
    numbers = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_1": 9, "bf16": 32}
    assert ModelFile(str(target)).get("general.file_type") == numbers[expected[0]]


def test_columns_that_fit_no_block_stay_f16(tmp_path: Path, vocab: Path) -> None:
    shape = dataclasses.replace(ck.SHAPE, ffn=360)
    weights = ck.weights_of(shape)
    target = tmp_path / "out.gguf"
    convert(ck.write(tmp_path, ck.pth_of(weights)), target, type="q4_0", vocab=vocab)
    kinds = {name: kind for name, (kind, _, _) in ck.tensors_of(target).items()}
    assert kinds["blk.1.channel_mix_value.weight"] == "f16"
    assert kinds["blk.1.channel_mix_key.weight"] == "q4_0"


def turned(weights: Weights) -> Weights:
    """The small matrices as web-rwkv's .st has them."""
    return {n: v.T.copy() if n.endswith(SMALL_MATRICES) else v for n, v in weights.items()}


def flat(weights: Weights) -> Weights:
    return {n: v.reshape(-1) if v.ndim == 3 else v for n, v in weights.items()}


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


VARIANTS: dict[str, Callable[[Weights], bytes]] = {
    "vectors without [1, 1]": lambda w: ck.pth_of(flat(w)),
    "model. prefix": lambda w: ck.pth_of(prefixed("model.", w)),
    "_forward_module.model. prefix": lambda w: ck.pth_of(prefixed("_forward_module.model.", w)),
    "another order": lambda w: ck.pth_of(dict(sorted(w.items(), reverse=True))),
    "state_dict": lambda w: ck.pth(
        {"state_dict": {n: ck.torch_tensor(str(i), v.shape) for i, (n, v) in enumerate(w.items())}},
        ck.pth_entries(w, "f32"),
    ),
    "safetensors": ck.safetensors_of,
    "safetensors as .st": lambda w: ck.safetensors_of(turned(w)),
    "transposed .pth": lambda w: ck.pth_of(turned(w)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", ["d128", "square"])
def test_variants_give_the_same_file(tmp_path: Path, vocab: Path, variant: str, shape: str) -> None:
    """ "square": one of the small matrices is as wide as the model, so its shape says nothing."""
    real = ck.SHAPE
    if shape == "square":
        real = dataclasses.replace(real, ranks=(128, 20, 12, 40))
    weights = ck.weights_of(real)
    results = []
    for data in (ck.pth_of(weights), VARIANTS[variant](weights)):
        target = tmp_path / "out.gguf"
        convert(ck.write(tmp_path, data, "same name"), target, vocab=vocab)
        results.append(hashlib.sha256(target.read_bytes()).hexdigest())
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_precision_checkpoints(tmp_path: Path, vocab: Path, kind: str) -> None:
    weights = ck.weights_of()
    rounded = {n: ggml.decode(ggml.encode(v, kind), kind) for n, v in weights.items()}
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    convert(ck.write(tmp_path, ck.pth_of(weights, kind)), first, type="f32", vocab=vocab)
    convert(ck.write(tmp_path, ck.pth_of(rounded, "f32")), second, type="f32", vocab=vocab)
    assert first.read_bytes() == second.read_bytes()


def test_one_block(tmp_path: Path, vocab: Path) -> None:
    shape = dataclasses.replace(ck.SHAPE, layers=1)
    weights = ck.weights_of(shape)
    target = tmp_path / "out.gguf"
    convert(ck.write(tmp_path, ck.pth_of(weights)), target, vocab=vocab)
    tensors = ck.tensors_of(target)
    assert tensors["blk.0.time_mix_v1.weight"] == tensors["blk.0.time_mix_a1.weight"]
    assert ModelFile(str(target)).get("rwkv7.attention.value_residual_mix_lora_rank") == 20


# ---- the metadata -------------------------------------------------------------------------------


def metadata(path: Path) -> dict[str, tuple[str, Any]]:
    file = ModelFile(str(path))
    return {key: (file.value_type(key), file.get(key)) for key in file.keys()}  # noqa: SIM118


def test_metadata(tmp_path: Path, vocab: Path) -> None:
    target = tmp_path / "out.gguf"
    convert(
        ck.write(tmp_path, ck.pth_of(ck.weights_of())), target, vocab=vocab, license="apache-2.0"
    )
    found = metadata(target)
    kind, epsilon = found.pop("rwkv7.attention.layer_norm_epsilon")
    assert (kind, epsilon) == ("float32", pytest.approx(1e-5))
    tokens = ["<s>", "a", "b\"\\'c", "\\xff\\x00", "[PAD4]", "\\n\\n", "\\xc3\\xa9\\t"]
    assert found == {
        "general.architecture": ("string", "rwkv7"),
        "general.name": ("string", "some model"),
        "general.license": ("string", "apache-2.0"),
        "general.file_type": ("uint32", 1),
        "general.quantization_version": ("uint32", 2),
        "rwkv7.context_length": ("uint32", 1048576),
        "rwkv7.embedding_length": ("uint32", 128),
        "rwkv7.block_count": ("uint32", 3),
        "rwkv7.feed_forward_length": ("uint32", 512),
        "rwkv7.wkv.head_size": ("uint32", 64),
        "rwkv7.attention.decay_lora_rank": ("uint32", 24),
        "rwkv7.attention.iclr_lora_rank": ("uint32", 20),
        "rwkv7.attention.value_residual_mix_lora_rank": ("uint32", 12),
        "rwkv7.attention.gate_lora_rank": ("uint32", 40),
        "rwkv7.attention.head_count": ("uint32", 0),
        "tokenizer.ggml.model": ("string", "rwkv"),
        "tokenizer.ggml.tokens": (
            "array[string]",
            tokens + [f"[PAD{i}]" for i in range(7, 300)],
        ),
        "tokenizer.ggml.token_type": ("array[int32]", [3, 1, 1, 1, 5, 1, 1] + [5] * 293),
        "tokenizer.ggml.bos_token_id": ("uint32", 0),
        "tokenizer.ggml.eos_token_id": ("uint32", 0),
        "tokenizer.ggml.eot_token_id": ("uint32", 5),
        "tokenizer.chat_template": ("string", "rwkv-world"),
    }


def test_licence_of_a_safetensors_file(tmp_path: Path, vocab: Path) -> None:
    said = {"license": "other", "license.name": "a licence", "license.link": "https://x", "y": "z"}
    path = ck.write(tmp_path, ck.safetensors_of(ck.weights_of(), metadata=said))
    target = tmp_path / "out.gguf"
    convert(path, target, vocab=vocab)
    found = {k: v for k, (_, v) in metadata(target).items() if "license" in k}
    assert found == {f"general.{key}": said[key] for key in said if key != "y"}
    convert(path, target, vocab=vocab, license="mit")
    assert ModelFile(str(target)).get("general.license") == "mit"


def test_the_gguf_package_reads_the_file(tmp_path: Path, vocab: Path) -> None:
    gguf = pytest.importorskip("gguf")
    target = tmp_path / "out.gguf"
    convert(ck.write(tmp_path, ck.pth_of(ck.weights_of())), target, type="q5_1", vocab=vocab)
    reader = gguf.GGUFReader(target)
    names = gguf.MODEL_TENSORS[gguf.MODEL_ARCH.RWKV7]
    known = {gguf.TENSOR_NAMES[name] for name in names}
    ours = ck.tensors_of(target)
    assert len(reader.tensors) == len(ours)
    for tensor in reader.tensors:
        kind, shape, data = ours[tensor.name]
        assert (
            re.sub(r"\.(weight|bias)$", "", re.sub(r"blk\.\d+", "blk.{bid}", tensor.name)) in known
        )
        assert tensor.tensor_type.name.lower() == kind
        assert tuple(tensor.shape[::-1]) == shape
        assert tensor.data.tobytes() == data
        assert tensor.data_offset % 32 == 0
    for key, (_, value) in metadata(target).items():
        assert reader.fields[key].contents() == value, key


# ---- how it is written --------------------------------------------------------------------------


def test_unknown_type_and_missing_files(tmp_path: Path, vocab: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    with pytest.raises(ValueError, match=r"type 'q9': expected one of f32, f16, q4_0"):
        convert(path, tmp_path / "out.gguf", type="q9", vocab=vocab)
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        convert(path, tmp_path / "nowhere" / "out.gguf", vocab=vocab)
    with pytest.raises(IsADirectoryError):
        convert(path, tmp_path, vocab=vocab)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        convert(tmp_path / "missing.pth", tmp_path / "out.gguf", vocab=vocab)
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        convert(path, tmp_path / "out.gguf", vocab=tmp_path / "missing.txt")


def test_input_is_not_overwritten(tmp_path: Path, vocab: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    before = path.read_bytes()
    link = tmp_path / "link.gguf"
    os.link(path, link)
    with pytest.raises(ValueError, match="input and output are the same file"):
        convert(path, link, vocab=vocab)
    assert path.read_bytes() == before


def test_interrupted_work_leaves_nothing(tmp_path: Path, vocab: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    target = ck.write(tmp_path, b"an older file", "out.gguf")

    def interrupt(done: int, total: int, name: str) -> None:
        assert len(list(tmp_path.glob(".out.gguf.*.part"))) == 1
        if done > total // 2:
            raise KeyboardInterrupt(name)

    with pytest.raises(KeyboardInterrupt):
        convert(path, target, vocab=vocab, progress=interrupt)
    assert target.read_bytes() == b"an older file"
    assert not list(tmp_path.glob(".*"))


def test_progress(tmp_path: Path, vocab: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    target = tmp_path / "out.gguf"
    convert(path, target, vocab=vocab, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert {call[1] for call in calls} == {done[-1]}
    assert done[-1] == sum(t.nbytes for t in ModelFile(str(target)).tensors)
    assert {call[2] for call in calls} == set(ck.tensors_of(target))


LARGE = """
import resource, sys
import rwkv_edge.convert
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
{call}
sys.stdout.write(str(peak() - before))
"""


def growth(call: str) -> int:
    """Resident memory, in KiB, that a call adds at its peak; measured in a process of its own."""
    program = [sys.executable, "-c", LARGE.format(call=call)]
    result = subprocess.run(program, capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_the_file(tmp_path: Path, vocab: Path) -> None:
    """A checkpoint of 570 MB, all of it a hole in the file, through convert and then quantize."""
    rows, width = 65536, 1024
    shape = dataclasses.replace(ck.SHAPE, width=width, layers=1)
    weights = tiny.random_weights(shape, seed=5)
    header: dict[str, Any] = {}
    end = 0
    for name, value in weights.items():
        dims = [rows, width] if name in ("emb.weight", "head.weight") else list(value.shape)
        size = 4 * int(np.prod(dims))
        header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [end, end + size]}
        end += size
    path = ck.write(tmp_path, ck.safetensors(header, b""))
    os.truncate(path, path.stat().st_size + end)
    middle, target = tmp_path / "middle.gguf", tmp_path / "out.gguf"
    calls = (
        f"rwkv_edge.convert.convert({str(path)!r}, {str(middle)!r}, vocab={str(vocab)!r})",
        f"rwkv_edge.convert.quantize({str(middle)!r}, {str(target)!r}, type='q4_0')",
    )
    for call in calls:
        assert growth(call) < 200_000, call
    assert target.stat().st_size > 2 * rows * width
