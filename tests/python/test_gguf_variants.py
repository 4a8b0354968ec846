# SPDX-License-Identifier: Apache-2.0
"""RWKV-6 and 7 as llama.cpp's converter writes them today and has written them before.

An independent writer: names, keys and types come from the `gguf` package, layouts from
`conversion/rwkv.py` of llama.cpp. Whatever the variant, the logits are the same to the bit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import ggml_types as ggml
import gguf
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from reference import Weights, multiply, oracle
from rwkv_edge import Model
from tolerances import F32_BOUND, rms, rounding, worst

TOKENS = [int(token) for token in np.random.default_rng(8).integers(0, 300, 24)]
SEED = 17

NAMES = {
    "emb.weight": "TOKEN_EMBD",
    "blocks.0.ln0": "TOKEN_EMBD_NORM",
    "ln_out": "OUTPUT_NORM",
    "head.weight": "OUTPUT",
    "ln1": "ATTN_NORM",
    "ln2": "ATTN_NORM_2",
    "att.ln_x": "TIME_MIX_LN",
    "att.receptance.weight": "TIME_MIX_RECEPTANCE",
    "att.key.weight": "TIME_MIX_KEY",
    "att.value.weight": "TIME_MIX_VALUE",
    "att.gate.weight": "TIME_MIX_GATE",
    "att.output.weight": "TIME_MIX_OUTPUT",
    "ffn.receptance.weight": "CHANNEL_MIX_RECEPTANCE",
    "ffn.key.weight": "CHANNEL_MIX_KEY",
    "ffn.value.weight": "CHANNEL_MIX_VALUE",
    "att.time_maa_w1": "TIME_MIX_W1",
    "att.time_maa_w2": "TIME_MIX_W2",
    "att.time_decay": "TIME_MIX_DECAY",
    "att.time_decay_w1": "TIME_MIX_DECAY_W1",
    "att.time_decay_w2": "TIME_MIX_DECAY_W2",
    "att.time_faaaa": "TIME_MIX_FIRST",
    "ffn.time_maa_k": "CHANNEL_MIX_LERP_K",
    "ffn.time_maa_r": "CHANNEL_MIX_LERP_R",
    "ffn.x_k": "CHANNEL_MIX_LERP_K",
}
NAMES |= {f"att.time_maa_{j}": f"TIME_MIX_LERP_{j.upper()}" for j in "xwkvrg"}
NAMES |= {f"att.{j}{i}": f"TIME_MIX_{j.upper()}{i}" for j in "wav" for i in "012"}
NAMES |= {f"att.{name}": f"TIME_MIX_{name.upper()}" for name in ("g1", "g2", "k_k", "k_a", "r_k")}
# Kept in float32 by the converter and the quantizer.
KEPT = ("W1", "W2", "DECAY_W1", "DECAY_W2", "FIRST", "LERP_FUSED")


@dataclass(frozen=True)
class Variant:
    fused: bool = True  # the lerps in one tensor; version 7 never had others
    rescale: int = 0  # output and value halved once more every so many layers
    flat_r_k: bool = True
    unused_v: str = "copy"  # in block 0: "copy" of a0, a1, a2, "own" values, or "absent"
    squeezed: bool = True  # vectors as [D], not [1, 1, D]


TODAY = Variant()


def gguf_name(name: str) -> str:
    """The file's name, by the package's tables."""
    if name.startswith("blocks.") and ".ln0" not in name:
        _, block, name = name.split(".", 2)
    else:
        block = "0"
    base, _, part = name.rpartition(".")
    key, part = (base, part) if base in NAMES else (name, "weight")
    tensor = gguf.MODEL_TENSOR[NAMES[key]]
    return f"{gguf.TENSOR_NAMES[tensor].format(bid=block)}.{part}"


def laid_out(weights: Weights, variant: Variant) -> Weights:
    """Names, shapes and values as the converter gives them to its writer."""
    out: Weights = {}
    for name, value in weights.items():
        data = value.squeeze() if variant.squeezed else value
        if name.endswith(("maa_w1", "decay_w1", "decay_w2")) or (
            ".att." in name and name[-2] in "wavg" and name[-1] in "12" and "maa" not in name
        ):
            data = value.T
        elif name.endswith("maa_w2"):
            data = value.transpose(0, 2, 1)
        elif name.endswith("r_k") and variant.flat_r_k:
            data = value.reshape(-1)
        elif variant.rescale and name.endswith(("att.output.weight", "ffn.value.weight")):
            data = value / np.float32(2 ** (int(name.split(".")[1]) // variant.rescale))
        if ".att.x_" not in name:
            out[gguf_name(name)] = data
    return out


def fuse_lerps(out: Weights, weights: Weights, order: str, prefix: str) -> None:
    for i in range(sum(name.endswith("ffn.key.weight") for name in weights)):
        for j in order:
            out.pop(f"blk.{i}.time_mix_lerp_{j}.weight", None)
        rows = [weights[f"blocks.{i}.att.{prefix}{j}"].reshape(1, -1) for j in order]
        out[f"blk.{i}.time_mix_lerp_fused.weight"] = np.stack(rows)[:, None]


def converted(weights: Weights, version: str, variant: Variant) -> Weights:
    out = laid_out(weights, variant)
    if version == "7":
        fuse_lerps(out, weights, "rwkvag", "x_")
    elif variant.fused:
        fuse_lerps(out, weights, "wkvrg", "time_maa_")
    for i in "012" if version == "7" else "":
        if variant.unused_v == "copy":
            out[f"blk.0.time_mix_v{i}.weight"] = out[f"blk.0.time_mix_a{i}.weight"]
        elif variant.unused_v == "absent":
            del out[f"blk.0.time_mix_v{i}.weight"]
    return out


def add_keys(writer: gguf.GGUFWriter, shape: tiny.Shape, variant: Variant) -> None:
    writer.add_context_length(1048576)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(shape.head_size)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if shape.version == "6":
        writer.add_rescale_every_n_layers(variant.rescale)
        writer.add_time_mix_extra_dim(shape.ranks[0])
        writer.add_time_decay_extra_dim(shape.ranks[1])
    else:
        writer.add_token_shift_count(2)
        writer.add_decay_lora_rank(shape.ranks[0])
        writer.add_iclr_lora_rank(shape.ranks[1])
        writer.add_value_residual_mix_lora_rank(shape.ranks[2])
        writer.add_gate_lora_rank(shape.ranks[3])


def save(
    path: Path,
    shape: tiny.Shape,
    tensors: Weights,
    kinds: dict[str, str],
    blocks: dict[str, NDArray[np.uint8]],
    variant: Variant,
) -> Path:
    """By `kinds` of their names, else float32; `blocks` are bytes that are ready."""
    writer = gguf.GGUFWriter(path, f"rwkv{shape.version}")
    add_keys(writer, shape, variant)
    for name, value in tensors.items():
        kind = gguf.GGMLQuantizationType[kinds.get(name, "f32").upper()]
        data = blocks.get(name)
        if data is None:
            data = gguf.quants.quantize(np.ascontiguousarray(value), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(path: Path) -> NDArray[np.float32]:
    return Model(path).session().feed(TOKENS, logits="all")


def is_kept(name: str) -> bool:
    kept = tuple(f"time_mix_{end.lower()}.weight" for end in KEPT)
    return name.endswith(kept) or "norm" in name


VARIANTS: dict[str, tuple[str, Variant]] = {
    "6 as today": ("6", TODAY),
    "6 with separate lerps": ("6", Variant(fused=False)),
    "6 divided every 2 layers": ("6", Variant(rescale=2)),
    "6 divided every layer, separate": ("6", Variant(rescale=1, fused=False)),
    "6 divided every 6 layers": ("6", Variant(rescale=6)),
    "6 with vectors as [1, 1, D]": ("6", Variant(squeezed=False, fused=False)),
    "7 as today": ("7", TODAY),
    "7 with r_k as [H, N]": ("7", Variant(flat_r_k=False)),
    "7 with its own v0 in block 0": ("7", Variant(unused_v="own")),
    "7 without v0 in block 0": ("7", Variant(unused_v="absent")),
    "7 with vectors as [1, 1, D]": ("7", Variant(squeezed=False)),
}


@pytest.mark.parametrize(("version", "variant"), VARIANTS.values(), ids=VARIANTS)
def test_all_variants_give_the_same_bits(tmp_path: Path, version: str, variant: Variant) -> None:
    shape = dataclasses.replace(tiny.VERSIONS[version]["d192"], layers=5)
    weights = tiny.random_weights(shape, SEED)
    tensors = converted(weights, version, variant)
    path = save(tmp_path / "theirs.gguf", shape, tensors, {}, {}, variant)
    ours = tiny.write(tmp_path, "ours.gguf", tiny.tiny_model(shape, "f32", SEED))
    found = logits(path)
    assert found.tobytes() == logits(ours).tobytes()
    right, _ = oracle(weights).forward(TOKENS)
    assert worst(found - right)[1:].max() / right.std() < F32_BOUND


def test_a_division_that_is_not_undone_would_show(tmp_path: Path) -> None:
    """The key is what tells the two files apart."""
    shape = tiny.VERSIONS["6"]["d192"]
    weights = tiny.random_weights(shape, SEED)
    divided = converted(weights, "6", Variant(rescale=2))
    path = save(tmp_path / "silent.gguf", shape, divided, {}, {}, TODAY)
    right, _ = oracle(weights).forward(TOKENS)
    assert np.median(worst(logits(path) - right)) / right.std() > 100 * F32_BOUND


@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.parametrize("kind", [kind for kind in ggml.TYPES if kind != "f32"])
def test_every_type_gives_the_bits_of_our_own_file(tmp_path: Path, version: str, kind: str) -> None:
    """What llama.cpp keeps in float32 is so here, and there in the type if that is a plain one."""
    ggml.skip_other_rounding(kind)
    shape = tiny.VERSIONS[version]["d256"]
    made = tiny.tiny_model(shape, kind, SEED)
    weights = tiny.random_weights(shape, SEED)
    if kind in ggml.PLAIN:
        weights = made.weights
    tensors = converted(weights, version, TODAY)
    matrices = {gguf_name(name) for name in weights if tiny.is_quantized(name)}
    kinds = {
        name: kind
        for name, value in tensors.items()
        if name in matrices or (kind in ggml.PLAIN and value.ndim > 1 and not is_kept(name))
    }
    blocks = {}
    if kind in ggml.K_TYPES:  # the package cannot quantize to these
        for name in matrices:
            data = np.frombuffer(made.file.tensor(name).data, np.uint8)
            blocks[name] = data.reshape(len(tensors[name]), -1)
    path = save(tmp_path / "theirs.gguf", shape, tensors, kinds, blocks, TODAY)
    ours = tiny.write(tmp_path, "ours.gguf", made)
    assert logits(path).tobytes() == logits(ours).tobytes()


@pytest.mark.parametrize("version", ["6", "7"])
def test_types_mixed_as_a_quantizer_mixes_them(tmp_path: Path, version: str) -> None:
    """Q2_K and its like are mixtures: a better type for the head, for some of the values."""
    shape = tiny.VERSIONS[version]["d256"]
    weights = tiny.random_weights(shape, SEED)
    rng = np.random.default_rng(3)
    kinds, blocks, in_eight_bits = {}, {}, []
    for n, name in enumerate(name for name in weights if tiny.is_quantized(name)):
        kind = (*ggml.K_TYPES, "f16")[n % (len(ggml.K_TYPES) + 1)]
        value, stored = weights[name], gguf_name(name)
        kinds[stored] = kind
        if kind in ggml.ROUNDED:
            in_eight_bits.append(name)
        if kind == "f16":
            weights[name] = value.astype(np.float16).astype(np.float32)
        else:
            rows, cols = value.shape
            blocks[stored] = ggml.random_k_blocks(rng, (rows, cols), kind, float(value.std()))
            weights[name] = ggml.decode(blocks[stored], kind)
    tensors = converted(weights, version, TODAY)
    found = logits(save(tmp_path / "mixed.gguf", shape, tensors, kinds, blocks, TODAY))
    exact, _ = oracle(weights).forward(TOKENS)
    eight: set[int] = set()  # matrices of a type whose products round their inputs
    rounded = oracle(weights, linear=lambda x, W: (rounding if id(W) in eight else multiply)(x, W))
    eight |= {id(rounded.weights[name]) for name in in_eight_bits}
    right, _ = rounded.forward(TOKENS)
    # As in test_logits: seen from the unrounded model, no worse than rounding alone.
    assert rms(found - exact) < 1.25 * rms(right - exact)
    assert rms(right - exact) < 0.05 * exact.std()
