# SPDX-License-Identifier: Apache-2.0
"""Adapters of every kind for tiny models, in files and in folders of peft."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import tiny
from numpy.typing import NDArray
from rwkv_edge.convert.open import open_checkpoint

F32 = NDArray[np.float32]
Weights = dict[str, F32]
RANK, ALPHA = 6, 16.0
MODULES = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")


def modules_of(version: str) -> list[str]:
    names = [*MODULES, *(["att.gate", "ffn.receptance"] if version == "6" else [])]
    return [f"blocks.{i}.{name}" for i in (0, 2) for name in names]


def base_of(version: str = "7") -> Weights:
    return dict(tiny.random_weights(tiny.VERSIONS[version]["d128"], 5))


def pairs_of(base: Weights, modules: list[str], seed: int = 3, prefix: str = "") -> Weights:
    rng, found = np.random.default_rng(seed), {}
    for module in modules:
        out, columns = base[f"{module}.weight"].shape
        for part, shape in (("A", (RANK, columns)), ("B", (out, RANK))):
            found[f"{module}.{prefix}lora_{part}"] = rng.normal(0, 0.3, shape).astype(np.float32)
    return found


def opened(folder: Path, base: Weights) -> Any:
    return open_checkpoint(ck.write(folder, ck.pth_of(base), "base.pth"))


def peft_folder(
    folder: Path, adapter: Weights, config: Mapping[str, Any], *, as_bin: bool = False
) -> Path:
    path = folder / "peft-adapter"
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(config))
    named = {
        f"base_model.model.{name}{'.weight' * ('lora_' in name)}": value
        for name, value in adapter.items()
    }
    if as_bin:
        ck.write(path, ck.pth_of(named), "adapter_model.bin")
    else:
        ck.write(path, ck.safetensors_of(named), "adapter_model.safetensors")
    return path


LORA = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": ["key", "value"]}


def shards_of(base: Weights, suffix: str, shape: Callable[[int, int], tuple[int, ...]]) -> Weights:
    rng = np.random.default_rng(3)
    return {
        f"{module}.{suffix}": rng.normal(0, 0.3, shape(*base[f"{module}.weight"].shape)).astype(
            "f4"
        )
        for module in modules_of("7")
    }
