# SPDX-License-Identifier: Apache-2.0
"""Which RWKV version a set of tensors is, and the plan of that version."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .._core import UnsupportedError
from ..files.gguf_writer import Value
from ..files.source import Checkpoint, Tensor
from . import rwkv4, rwkv5, rwkv6, rwkv7
from .plan import Binder, Output

# Wrappers of training frameworks that end up in front of every name.
PREFIXES = ("_forward_module.", "module.", "model.")

# The first pattern that occurs in any name decides; a file of one block is recognised like any.
# What is no version of a checkpoint we can run has a sentence that says what it is instead.
EXPERIMENT = "an RWKV experiment (version 1 to 4b) that no released model uses"
VERSIONS = (
    (
        r"\.(lora|init_lora)_[ABM](\.|$)|\.lora\.[AB01]$|\.(disha|bone|miss)$",
        "an adapter, not a model; `rwkv-edge convert MODEL OUT --adapter FILE` merges it into one",
    ),
    (r"(gate_w1|time_maa_rkvw_w1)$", "RWKV x060a/b/c, an experiment that was never released"),
    (r"(^|\.)(head_q|tiny_q|pos_emb)|\.att\.time_(mix_qq|mix_kk|alpha|gamma|w$)", EXPERIMENT),
    (r"\.ffn\.enn\.weight$", "RWKV-8, which has no released format yet"),
    (r"\.qkv\.qq\.weight$", "RWKV-7b (DeepEmbed with attention), which keeps every past token"),
    (r"\.ffn\.s(_emb|_emb_x|0|1|2)(\.weight)?$", "7a"),
    (r"\.att\.(r_k|k_k|x_r)$", "7"),
    (r"\.att\.time_maa", "6"),
    (r"\.att\.ln_x\.weight$", "5"),
    (r"\.att\.time_decay(_rate)?$", "4"),
    (
        r"\.att\.time_state$",
        "an initial state, not a model; `rwkv-edge chat MODEL --state FILE` begins with it",
    ),
)


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the prefixes that all of their names share."""
    found = dict(tensors)
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in found)), None):
        if prefix in found or not found:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def detect(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """The RWKV version of a whole set of names: "4", "5", "6", "7" or "7a".

    Raises UnsupportedError for any other, with a sentence that says what it is.
    """
    for pattern, version in VERSIONS:
        if any(re.search(pattern, name) for name in tensors):
            if version[0].isdigit():
                return version
            raise UnsupportedError(f"{path}: this is {version}")
    some = ", ".join(repr(name) for name in list(tensors)[:3])
    raise UnsupportedError(
        f"{path}: no RWKV model; its {len(tensors)} tensors begin with {some or 'nothing'}"
    )


# What states the tensors of a version, by the version that `detect` finds.
ARCHITECTURES: dict[str, Callable[[Binder], dict[str, Value]]] = {
    "4": rwkv4.plan,
    "5": rwkv5.plan,
    "6": rwkv6.plan,
    "7": rwkv7.plan,
    "7a": rwkv7.plan_7a,
}


def plan_model(checkpoint: Checkpoint) -> tuple[dict[str, Value], list[Output]]:
    """The hyperparameters and the tensors that a checkpoint makes up, the embedding first."""
    plan = ARCHITECTURES[detect(checkpoint.path, checkpoint.tensors)]
    binder = Binder(checkpoint.path, checkpoint.tensors)
    metadata = plan(binder)
    return metadata, binder.finish()
