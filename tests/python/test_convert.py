# SPDX-License-Identifier: Apache-2.0
"""`convert`: every tensor of the written file against one that the tests write on their own."""

from __future__ import annotations

import dataclasses
import hashlib
import re
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
from rwkv_edge.convert.chat_template import WORLD

SMALL_MATRICES = ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2", "s1", "s2")


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(ck.VOCABULARY, "utf-8")
    return path


MODELS = [
    (version, shape, tuned)
    for version in tiny.VERSIONS
    for shape in tiny.VERSIONS[version]
    for tuned in (False, True)
    if version != "4" or not tuned  # whose state is no matrix that could be tuned
]


# ---- the tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "shape", "tuned"), MODELS)
def test_tensors_are_those_of_an_independent_writer(
    tmp_path: Path, vocab: Path, version: str, shape: str, tuned: bool
) -> None:
    """In float32, against the tests' own GGUF writer: names, shapes and bits."""
    real = tiny.VERSIONS[version][shape]
    with_copies = dataclasses.replace(real, unused_v="copy")
    model = tiny.tiny_model(with_copies, "f32", seed=5, tuned=tuned)
    weights = model.weights
    if real.unused_v == "absent":
        unused = {f"blocks.0.att.v{i}" for i in range(3)}
        weights = {name: value for name, value in weights.items() if name not in unused}
    target = tmp_path / "out.gguf"
    convert(ck.write(tmp_path, ck.pth_of(weights)), target, type="f32", vocab=vocab)
    expected = {e.name: ("f32", tuple(e.dims[::-1]), e.data) for e in model.file.tensors}
    assert ck.tensors_of(target) == expected


def expected_type(name: str, kind: str, head: str, embd: str) -> str:
    """By the rule of docs: what llama.cpp keeps, and otherwise the type asked for."""
    if name in ("output.weight", "token_embd.weight"):
        return head if name == "output.weight" else embd
    if re.search(r"(key|value|receptance|gate|output|s_emb|s_emb_x)\.weight$", name):
        return kind
    if re.search(r"time_mix_[avg][12]\.weight$|channel_mix_s[12]\.weight$", name):
        return kind if kind in ("f32", "bf16") else "f16"
    return "f32"


@pytest.mark.parametrize("version", tiny.VERSIONS)
@pytest.mark.parametrize("kind", ["f16", "bf16", "q4_0"])
def test_types_of_every_version(tmp_path: Path, vocab: Path, version: str, kind: str) -> None:
    weights = ck.weights_of(tiny.VERSIONS[version]["d192"])
    weights |= {} if version == "4" else tiny.random_states(tiny.VERSIONS[version]["d192"], 1)
    target = tmp_path / "out.gguf"
    convert(ck.write(tmp_path, ck.pth_of(weights)), target, vocab=vocab, type=kind)
    ends = "q8_0" if kind == "q4_0" else kind
    for name, (found, _, _) in ck.tensors_of(target).items():
        assert found == expected_type(name, kind, ends, ends), name


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
        assert data == ck.written(values, kind), name
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


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_one_block_of_every_version(tmp_path: Path, vocab: Path, version: str) -> None:
    shape = dataclasses.replace(tiny.VERSIONS[version]["d128"], layers=1)
    target = tmp_path / "out.gguf"
    convert(ck.write(tmp_path, ck.pth_of(ck.weights_of(shape))), target, vocab=vocab)
    assert ModelFile(str(target)).get("rwkv_edge.version") == version


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2"])
def test_decay_and_u_of_version_5_in_every_form(tmp_path: Path, vocab: Path, version: str) -> None:
    """Per head or per channel, with or without exp, transformed already: the file is the same."""
    shape = dataclasses.replace(tiny.VERSIONS[version]["d128"], u_name="time_faaaa")
    weights = ck.weights_of(shape)
    heads = {n: v for n, v in weights.items() if n.endswith(("time_decay", "time_faaaa"))}
    size = shape.head_size
    spread = {
        n: np.repeat(v.reshape(2, -1), size // (v.size // 2), axis=1) for n, v in heads.items()
    }
    u = [n for n in heads if n.endswith("faaaa")]
    logarithms = {n.replace("faaaa", "first"): np.log(np.abs(weights[n])) for n in u}
    positive = {
        n: np.exp(np.log(np.abs(weights[n])).astype(np.float64)).astype(np.float32) for n in u
    }
    factors = {
        n + "_factor": np.exp(-np.exp(v.astype(np.float64))).astype(np.float32)
        for n, v in heads.items()
        if n.endswith("decay")
    }

    def converted(changed: Weights) -> dict[str, Any]:
        target = tmp_path / "out.gguf"
        convert(ck.write(tmp_path, ck.pth_of(changed)), target, type="f32", vocab=vocab)
        return ck.tensors_of(target)

    def without(ends: str) -> Weights:
        return {n: v for n, v in weights.items() if not n.endswith(ends)}

    plain = converted(weights)
    assert converted(weights | spread) == plain
    assert converted(without("time_decay") | factors) == plain
    assert converted(without("time_faaaa") | logarithms) == converted(weights | positive)


def test_one_head(tmp_path: Path, vocab: Path) -> None:
    """[1, N] is one head of N channels, not N heads."""
    shape = dataclasses.replace(tiny.VERSIONS["5.2"]["d128"], head_size=128)
    target = tmp_path / "out.gguf"
    convert(ck.write(tmp_path, ck.pth_of(ck.weights_of(shape))), target, vocab=vocab)
    assert ModelFile(str(target)).get("rwkv5.wkv.head_size") == 128


def test_decay_rate_of_version_4(tmp_path: Path, vocab: Path) -> None:
    weights = ck.weights_of(tiny.VERSIONS["4"]["d128"])
    rates = {
        n + "_rate": -np.exp(v.astype(np.float64)).astype(np.float32)
        for n, v in weights.items()
        if n.endswith("time_decay")
    }
    others = {n: v for n, v in weights.items() if not n.endswith("time_decay")}
    found = []
    for changed in (weights, others | rates):
        target = tmp_path / "out.gguf"
        convert(ck.write(tmp_path, ck.pth_of(changed)), target, type="f32", vocab=vocab)
        found.append(ck.tensors_of(target))
    assert found[0] == found[1]


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
        "rwkv_edge.version": ("string", "7"),
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
        "tokenizer.chat_template": ("string", WORLD),
    }


SIZES = {
    "context_length": 1048576,
    "embedding_length": 192,
    "block_count": 3,
    "feed_forward_length": 416,
    "attention.head_count": 0,
}
V7_RANKS = {
    "attention.decay_lora_rank": 40,
    "attention.iclr_lora_rank": 16,
    "attention.value_residual_mix_lora_rank": 28,
    "attention.gate_lora_rank": 36,
}


@pytest.mark.parametrize(
    ("version", "arch", "more"),
    [
        ("4", "rwkv4", {}),
        ("5.0", "rwkv5", {"wkv.head_size": 32}),
        ("5.1", "rwkv5", {"wkv.head_size": 32}),
        ("5.2", "rwkv5", {"wkv.head_size": 32}),
        (
            "6",
            "rwkv6",
            {
                "wkv.head_size": 32,
                "rescale_every_n_layers": 0,
                "time_mix_extra_dim": 20,
                "time_decay_extra_dim": 12,
            },
        ),
        ("7", "rwkv7", {"wkv.head_size": 32, **V7_RANKS}),
        ("7a", "rwkv7a", {"wkv.head_size": 32, **V7_RANKS}),
    ],
)
def test_hyperparameters(
    tmp_path: Path, vocab: Path, version: str, arch: str, more: dict[str, int]
) -> None:
    target = tmp_path / "out.gguf"
    weights = ck.weights_of(tiny.VERSIONS[version]["d192"])
    convert(ck.write(tmp_path, ck.pth_of(weights)), target, vocab=vocab)
    found = metadata(target)
    assert found.pop("general.architecture") == ("string", arch)
    assert found.pop("rwkv_edge.version") == ("string", version)
    assert found.pop(f"{arch}.attention.layer_norm_epsilon")[0] == "float32"
    sizes = {key: value for key, value in found.items() if key.startswith("rwkv")}
    assert sizes == {f"{arch}.{key}": ("uint32", n) for key, n in (SIZES | more).items()}


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
