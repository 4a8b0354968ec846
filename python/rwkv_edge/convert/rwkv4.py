# SPDX-License-Identifier: Apache-2.0
"""RWKV-4: which tensors a checkpoint has, and what they are called in our GGUF files."""

from __future__ import annotations

from ..files.gguf_writer import Value
from .common import add_gated_channel_mix, add_lerps, add_model, decay_rate, hyperparameters
from .plan import Binder

LERPS = "kvr"  # the order inside time_mix_lerp_fused
MATRICES = ("receptance", "key", "value", "output")


def plan(b: Binder) -> dict[str, Value]:
    """State every tensor of the model; returns the hyperparameters for the file."""
    vocab, width = b.shape("emb.weight", 2)
    ffn, _ = b.shape("blocks.0.ffn.key.weight", 2)

    def add_block(i: int) -> None:
        _time_mix(b, i, width)
        add_gated_channel_mix(b, i, width, ffn, "time_mix")

    add_model(b, vocab, width, add_block)
    return hyperparameters(b, "rwkv4", "4", width=width, ffn=ffn, head_size=None)


def _time_mix(b: Binder, i: int, width: int) -> None:
    source, target = f"blocks.{i}.att.", f"blk.{i}.time_mix_"
    lerps = [f"{source}time_mix_{x}" for x in LERPS]
    add_lerps(b, f"{target}lerp_fused.weight", lerps, width)
    b.add(f"{target}first.weight", f"{source}time_first", (width,))
    if f"{source}time_decay_rate" in b:
        b.add(f"{target}decay.weight", f"{source}time_decay_rate", (width,))
    else:
        shapes = {f"{source}time_decay": (width,)}
        b.make(f"{target}decay.weight", (width,), shapes, decay_rate)
    for name in MATRICES:
        b.add(f"{target}{name}.weight", f"{source}{name}.weight", (width, width))
