# SPDX-License-Identifier: Apache-2.0
"""Models in the layouts of the Hugging Face hub, as its converters write them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from reference import Weights

# As transformers' own converter names RWKV-4, and those of RWKV-5 and 6 after it.
LONG_NAMES = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
# As the converter of flash-linear-attention names RWKV-7.
FLA_GLOBAL = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
FLA_PARTS = {"att": "attn", "ffn": "ffn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
FLA_ATTENTION = {
    "receptance": "r_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "ln_x": "g_norm",
}
FLA_LOW_RANK = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}


def transformers_name(name: str) -> str:
    if name == "head.weight":
        return name
    name = name.replace("emb.", "embeddings.") if name.startswith("emb.") else name
    name = name.replace("blocks.0.ln0", "blocks.0.pre_ln")
    name = re.sub(r"^(blocks\.\d+)\.att", r"\1.attention", name)
    name = re.sub(r"^(blocks\.\d+)\.ffn", r"\1.feed_forward", name)
    name = re.sub(r"time_mix_([kvrg])$", lambda match: f"time_mix_{LONG_NAMES[match[1]]}", name)
    return f"rwkv.{name}"


def fla(weights: Weights) -> Weights:
    found: Weights = {}
    for name, value in weights.items():
        if name in FLA_GLOBAL:
            found[FLA_GLOBAL[name]] = value
            continue
        if re.fullmatch(r"blocks\.0\.att\.v[012]", name):
            continue
        _, layer, part, last, *rest = name.split(".")
        x = value.squeeze() if value.shape[:-1] == (1, 1) else value
        if re.fullmatch("[wvag][012]", last):
            last = f"{last[0]}_lora.lora.{FLA_LOW_RANK[last[1]]}"
            x = x.T if x.ndim == 2 else x
        elif part == "att":
            last = FLA_ATTENTION.get(last, last)
        found[".".join(["model.layers", layer, FLA_PARTS[part], last, *rest])] = x
    return found


def hub_form(weights: Weights, version: str) -> Weights:
    if version == "7":
        return fla(weights)
    return {transformers_name(name): value for name, value in weights.items()}


def weights_of(version: str, shape: str = "d128") -> Weights:
    return tiny.random_weights(tiny.VERSIONS[version][shape], seed=6)


def save(path: Path, weights: Weights) -> None:
    whole = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    from safetensors.numpy import save_file  # optional

    save_file(whole, path, metadata={"format": "pt"})


def save_sharded(folder: Path, weights: Weights, count: int = 3) -> None:
    names = sorted(weights)
    shards = {f"model-{i + 1:05}-of-{count:05}.safetensors": names[i::count] for i in range(count)}
    for file, listed in shards.items():
        save(folder / file, {name: weights[name] for name in listed})
    weight_map = {name: file for file, listed in shards.items() for name in listed}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


CONFIGS: dict[str, dict[str, Any]] = {
    "4": {
        "model_type": "rwkv",
        "hidden_size": 128,
        "attention_hidden_size": 128,
        "num_hidden_layers": 3,
        "intermediate_size": 384,
        "vocab_size": 300,
        "layer_norm_epsilon": 1e-05,
        "rescale_every": 6,
        "tie_word_embeddings": False,
    },
    "7": {
        "model_type": "rwkv7",
        "hidden_size": 128,
        "head_dim": 64,
        "num_heads": None,
        "num_hidden_layers": 3,
        "intermediate_size": 384,
        "hidden_act": "sqrelu",
        "norm_eps": 1e-05,
        "attn": None,
        "vocab_size": 300,
        "tie_word_embeddings": False,
    },
}
CONFIGS["6"] = CONFIGS["4"] | {
    "model_type": "rwkv6",
    "head_size": 64,
    "head_size_divisor": 8,
    "intermediate_size": None,
}
CONFIGS["5.2"] = CONFIGS["6"] | {"model_type": "rwkv5"}


def folder_of(path: Path, version: str, **changes: Any) -> Path:
    save(path / "model.safetensors", hub_form(weights_of(version), version))
    (path / "config.json").write_text(json.dumps(CONFIGS[version] | changes))
    return path
