# SPDX-License-Identifier: Apache-2.0
"""Adapters of every kind, against the formulas in double precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
import tiny
from adapters import (
    ALPHA,
    F32,
    LORA,
    RANK,
    Weights,
    base_of,
    modules_of,
    opened,
    pairs_of,
    peft_folder,
    shards_of,
)
from rwkv_edge.convert import convert
from rwkv_edge.convert.adapter import apply_adapter

EPS = 2.0**-24


def product(adapter: Weights, module: str, prefix: str = "") -> tuple[Any, Any]:
    """B A in double precision, and the sum of absolute values that bounds its rounding."""
    a, b = (adapter[f"{module}.{prefix}lora_{part}"].astype(np.float64) for part in "AB")
    return b @ a, np.abs(b) @ np.abs(a)


def assert_near(tensor: Any, exact: Any, size: Any, steps: int) -> None:
    """Every value within `steps` roundings of sums of that size, whichever rows are asked for."""
    bound = steps * EPS * size + 1e-30
    assert (np.abs(tensor.float32() - exact) <= bound).all()
    middle = tensor.float32(5, 70)
    assert middle.shape == exact[5:70].shape
    assert (np.abs(middle - exact[5:70]) <= bound[5:70]).all()
    assert tensor.raw() is None


def assert_low_rank(found: Any, base: Weights, adapter: Weights, scale: float) -> None:
    for name, value in base.items():
        module = name.removesuffix(".weight")
        if f"{module}.lora_A" not in adapter:
            assert found.tensors[name].float32().tobytes() == value.tobytes()
            continue
        delta, size = product(adapter, module)
        assert np.abs(scale * delta).max() > 0.1
        # A sum of RANK products, its scaling with a rounded scale, and one more sum.
        steps = RANK + 3
        exact = value + scale * delta
        assert_near(found.tensors[name], exact, np.abs(value) + scale * size, steps)


# ---- LoRA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model._forward_module."])
def test_lora(tmp_path: Path, version: str, prefix: str) -> None:
    base = base_of(version)
    adapter = pairs_of(base, modules_of(version))
    prefixed = {prefix + name: value for name, value in adapter.items()}
    path = ck.write(tmp_path, ck.pth_of(prefixed), "lora.pth")
    found = apply_adapter(opened(tmp_path, base), path, alpha=ALPHA)
    assert_low_rank(found, base, adapter, ALPHA / RANK)


def test_lora_of_web_rwkv(tmp_path: Path) -> None:
    base = base_of()
    adapter = pairs_of(base, modules_of("7"))
    st = {
        name.replace("lora_A", "lora.0").replace("lora_B", "lora.1"): np.ascontiguousarray(
            value.T if name.endswith("A") else value
        )
        for name, value in adapter.items()
    }
    path = ck.write(tmp_path, ck.safetensors_of(st), "lora.st")
    found = apply_adapter(opened(tmp_path, base), path, alpha=ALPHA)
    assert_low_rank(found, base, adapter, ALPHA / RANK)


def test_other_tensors_take_the_place_of_the_models(tmp_path: Path) -> None:
    base = base_of("6")
    adapter = pairs_of(base, ["blocks.0.att.key"])
    whole = {
        name: ck.random(*base[name].shape) for name in ("blocks.1.ln1.bias", "head.weight")
    } | {
        "blocks.0.att.time_maa_x": ck.random(1, 1, 128),
        "blocks.2.att.key.weight": ck.random(128, 128),
    }
    path = ck.write(tmp_path, ck.pth_of({**adapter, **whole}), "lora.pth")
    found = apply_adapter(opened(tmp_path, base), path, alpha=ALPHA)
    changed = base | {name: whole[name].reshape(base[name].shape) for name in whole}
    assert_low_rank(found, changed, adapter, ALPHA / RANK)


def test_only_the_rows_that_are_asked_for_are_read(tmp_path: Path) -> None:
    base = base_of()
    path = ck.write(tmp_path, ck.pth_of(pairs_of(base, ["blocks.0.ffn.key"])), "lora.pth")
    checkpoint = opened(tmp_path, base)
    asked = []

    class Spy:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def __getattr__(self, name: str) -> Any:
            return getattr(self.tensor, name)

        def float32(self, start: int = 0, stop: int | None = None) -> F32:
            asked.append((start, stop))
            values: F32 = self.tensor.float32(start, stop)
            return values

    name = "blocks.0.ffn.key.weight"
    checkpoint.tensors[name] = Spy(checkpoint.tensors[name])
    tensor = apply_adapter(checkpoint, path, alpha=ALPHA).tensors[name]
    assert asked == []
    assert tensor.float32(10, 20).shape == (10, 128)
    assert asked == [(10, 20)]
    assert (tensor.dtype, tensor.shape) == ("f32", (384, 128))


@pytest.mark.parametrize("as_bin", [False, True])
@pytest.mark.parametrize(
    ("options", "scale"), [({}, 32 / RANK), ({"use_rslora": True}, 32 / np.sqrt(RANK))]
)
def test_a_folder_of_peft(
    tmp_path: Path, as_bin: bool, options: dict[str, Any], scale: float
) -> None:
    base = base_of()
    adapter = pairs_of(base, modules_of("7"))
    path = peft_folder(tmp_path, adapter, LORA | options, as_bin=as_bin)
    assert_low_rank(apply_adapter(opened(tmp_path, base), path), base, adapter, scale)


def test_patterns_of_peft(tmp_path: Path) -> None:
    base = base_of()
    adapter = pairs_of(base, ["blocks.0.att.key", "blocks.0.ffn.key", "blocks.2.ffn.key"])
    config = LORA | {
        "r": 99,
        "rank_pattern": {"key": RANK},
        "alpha_pattern": {"ffn.key": 5, "blocks.2.ffn.key": 1, "y": 3},
    }
    found = apply_adapter(opened(tmp_path, base), peft_folder(tmp_path, adapter, config))
    for module, alpha in (("blocks.0.att.key", 32), ("blocks.0.ffn.key", 5)):
        own = {name: value for name, value in adapter.items() if name.startswith(module)}
        name = f"{module}.weight"
        checked = type(found)(found.path, {name: found.tensors[name]})
        assert_low_rank(checked, {name: base[name]}, own, alpha / RANK)


def test_pissa(tmp_path: Path) -> None:
    base, modules = base_of(), modules_of("7")
    adapter, start = pairs_of(base, modules), pairs_of(base, modules, seed=4, prefix="init_")
    path = ck.write(tmp_path, ck.pth_of(adapter), "pissa.pth")
    named = {f"model.{name}": value for name, value in start.items()}
    init = ck.write(tmp_path, ck.pth_of(named), "init_pissa.pth")
    found = apply_adapter(opened(tmp_path, base), path, init=init)
    for module in modules:
        weight = base[f"{module}.weight"]
        (new, size), (old, old_size) = product(adapter, module), product(start, module, "init_")
        total = np.abs(weight) + size + old_size
        assert_near(found.tensors[f"{module}.weight"], weight + new - old, total, RANK + 3)


# ---- MiSS, Bone ---------------------------------------------------------------------------------


def assert_changed(
    found: Any, base: Weights, adapter: Weights, exact: Callable[[Any, Any], tuple[Any, Any]]
) -> None:
    for name, value in adapter.items():
        weight = f"{name.rpartition('.')[0]}.weight"
        double = base[weight].astype(np.float64), value.astype(np.float64)
        # Blocks are the longest sums: 16 products, and two values more.
        assert_near(found.tensors[weight], *exact(*double), 16 + 3)


def miss(weight: Any, shard: Any) -> tuple[Any, Any]:
    out, columns = weight.shape
    added = np.empty_like(weight)
    for o in range(out):
        for c in range(columns):
            added[o, c] = shard[c % len(shard), o % shard.shape[1]]
    return weight + added, np.abs(weight) + np.abs(added)


def bone(weight: Any, blocks: Any, *, by_row: bool) -> tuple[Any, Any]:
    size, result, total = blocks.shape[1], weight.copy(), np.abs(weight)
    for i in range(weight.shape[0] // size):
        for j in range(weight.shape[1] // size):
            own = np.s_[i * size : (i + 1) * size, j * size : (j + 1) * size]
            block = blocks[i if by_row else j]
            result[own] += weight[own] @ block + block
            total[own] += np.abs(weight[own]) @ np.abs(block) + np.abs(block)
    return result, total


@pytest.mark.parametrize("suffix", ["disha", "bone"])
@pytest.mark.parametrize("rank", [16, 24])  # 24 does not divide 128
def test_miss(tmp_path: Path, suffix: str, rank: int) -> None:
    base = base_of()
    adapter = shards_of(base, suffix, lambda out, _: (rank, out))
    path = ck.write(tmp_path, ck.pth_of(adapter), "miss.pth")
    assert_changed(apply_adapter(opened(tmp_path, base), path), base, adapter, miss)


@pytest.mark.parametrize("suffix", ["disha", "bone"])
def test_bone(tmp_path: Path, suffix: str) -> None:
    base = base_of()
    adapter = shards_of(base, suffix, lambda _, columns: (columns // 16, 16, 16))
    path = ck.write(tmp_path, ck.pth_of(adapter), "bone.pth")
    found = apply_adapter(opened(tmp_path, base), path)
    assert_changed(found, base, adapter, lambda w, d: bone(w, d, by_row=False))


def test_miss_from_peft(tmp_path: Path) -> None:
    base = base_of()
    config = {"peft_type": "MISS", "r": 16, "init_weights": "mini", "mini_r": 8}
    adapter = shards_of(base, "miss_block", lambda *_: (16, 8))
    path = peft_folder(tmp_path, adapter, config)
    assert_changed(apply_adapter(opened(tmp_path, base), path), base, adapter, miss)


@pytest.mark.parametrize(("kind", "suffix"), [("MISS", "miss_block"), ("BONE", "bone_block")])
def test_bone_from_peft(tmp_path: Path, kind: str, suffix: str) -> None:
    base = base_of()
    config = {"peft_type": kind, "r": 16, "init_weights": "bat"}
    adapter = shards_of(base, suffix, lambda out, _: (out // 16, 16, 16))
    path = peft_folder(tmp_path, adapter, config)
    found = apply_adapter(opened(tmp_path, base), path)
    assert_changed(found, base, adapter, lambda w, d: bone(w, d, by_row=True))


# ---- into a model -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_an_adapter_becomes_part_of_a_model(tmp_path: Path, version: str) -> None:
    base = base_of(version)
    adapter = pairs_of(base, modules_of(version))
    path = ck.write(tmp_path, ck.pth_of(adapter), "lora.pth")
    source = ck.write(tmp_path, ck.pth_of(base))
    vocab = ck.write(tmp_path, ck.VOCABULARY.encode(), "vocab.txt")
    target = tmp_path / "out.gguf"
    convert(source, target, type="f32", vocab=vocab, adapter=path, alpha=ALPHA)
    tensors = {
        name: np.frombuffer(data, "f4") for name, (_, _, data) in ck.tensors_of(target).items()
    }
    for module in modules_of(version):
        delta, size = product(adapter, module)
        exact = base[f"{module}.weight"] + ALPHA / RANK * delta
        bound = (RANK + 3) * EPS * (np.abs(base[f"{module}.weight"]) + ALPHA / RANK * size)
        found = tensors[tiny.gguf_name(f"{module}.weight")].reshape(exact.shape)
        assert (np.abs(found - exact) <= bound).all()
