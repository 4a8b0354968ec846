# SPDX-License-Identifier: Apache-2.0
"""RWKV-6: which tensors a checkpoint has, and what llama.cpp calls them.

The small matrices time_maa_w1, time_decay_w1, time_decay_w2 lie in a checkpoint as [in, out] and in
GGUF as [out, in]; so do the five of time_maa_w2.
"""

from __future__ import annotations

import numpy as np

from ..files.gguf_writer import Value, uint32
from .common import (
    add_gated_channel_mix,
    add_initial_state,
    add_lerps,
    add_model,
    add_norm,
    check_heads,
    hyperparameters,
)
from .plan import Binder

LERPS = "wkvrg"  # the order inside time_mix_lerp_fused, time_mix_w1 and time_mix_w2
MATRICES = ("receptance", "key", "value", "gate", "output")


def plan(b: Binder) -> dict[str, Value]:
    """State every tensor of the model; returns the hyperparameters for the file."""
    vocab, width = b.shape("emb.weight", 2)
    ffn, _ = b.shape("blocks.0.ffn.key.weight", 2)
    first = "blocks.0.att.time_faaaa"
    heads, _ = b.shape(first, 2)
    head_size = check_heads(b, first, heads, width)
    # Ranks of the low-rank functions of the token shift and of the decay.
    mix_rank = b.shape("blocks.0.att.time_maa_w2", 3)[1]
    decay_rank = b.shape("blocks.0.att.time_decay_w2", 2)[0]

    def add_block(i: int) -> None:
        _time_mix(b, i, heads, head_size)
        _low_rank(b, i, width, mix_rank, decay_rank)
        add_gated_channel_mix(b, i, width, ffn, "time_maa")

    add_model(b, vocab, width, add_block)
    add_initial_state(b, "rwkv6", heads, head_size)
    return hyperparameters(b, "rwkv6", "6", width=width, ffn=ffn, head_size=head_size) | {
        "rwkv6.rescale_every_n_layers": uint32(0),
        "rwkv6.time_mix_extra_dim": uint32(mix_rank),
        "rwkv6.time_decay_extra_dim": uint32(decay_rank),
    }


def _time_mix(b: Binder, i: int, heads: int, head_size: int) -> None:
    source, target, width = f"blocks.{i}.att.", f"blk.{i}.time_mix_", heads * head_size
    b.add(f"{target}lerp_x.weight", f"{source}time_maa_x", (width,))
    lerps = [f"{source}time_maa_{x}" for x in LERPS]
    add_lerps(b, f"{target}lerp_fused.weight", lerps, width)
    b.add(f"{target}first.weight", f"{source}time_faaaa", (heads, head_size))
    b.add(f"{target}decay.weight", f"{source}time_decay", (width,))
    for name in MATRICES:
        b.add(f"{target}{name}.weight", f"{source}{name}.weight", (width, width))
    add_norm(b, f"{target}ln", f"{source}ln_x", width)


def _low_rank(b: Binder, i: int, width: int, mix_rank: int, decay_rank: int) -> None:
    source, target, n = f"blocks.{i}.att.", f"blk.{i}.time_mix_", len(LERPS)
    for name, shape, stored in (
        ("w1", (n * mix_rank, width), "time_maa_w1"),
        ("decay_w1", (decay_rank, width), "time_decay_w1"),
        ("decay_w2", (width, decay_rank), "time_decay_w2"),
    ):
        b.make(f"{target}{name}.weight", shape, {f"{source}{stored}": shape[::-1]}, np.transpose)
    b.make(
        f"{target}w2.weight",
        (n, width, mix_rank),
        {f"{source}time_maa_w2": (n, mix_rank, width)},
        lambda matrices: matrices.transpose(0, 2, 1),
    )
