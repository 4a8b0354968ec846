# SPDX-License-Identifier: Apache-2.0
"""RWKV-5: which tensors a checkpoint has, and what they are called in our GGUF files.

5.0 has no gate. Decay and bonus u are one number per head up to 5.1, one per channel in 5.2; u is
`time_faaaa` as it is or `time_first` before exp. Any combination is taken, and the file has one
form: both per channel, neither to be put through exp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.gguf_writer import Value
from ..files.source import F32
from .common import (
    add_gated_channel_mix,
    add_initial_state,
    add_lerps,
    add_model,
    add_norm,
    check_heads,
    decay_factor,
    hyperparameters,
)
from .plan import Binder

LERPS = "kvrg"  # the order inside time_mix_lerp_fused; no g in 5.0
MATRICES = ("receptance", "key", "value", "output")


def plan(b: Binder) -> dict[str, Value]:
    """State every tensor of the model; returns the hyperparameters for the file."""
    vocab, width = b.shape("emb.weight", 2)
    ffn, _ = b.shape("blocks.0.ffn.key.weight", 2)
    decay = _decay_name(b, 0)
    heads = b.first_dimension(decay)
    head_size = check_heads(b, decay, heads, width)
    gated = "blocks.0.att.gate.weight" in b

    def add_block(i: int) -> None:
        _time_mix(b, i, heads, head_size, gated=gated)
        add_gated_channel_mix(b, i, width, ffn, "time_mix")

    add_model(b, vocab, width, add_block)
    add_initial_state(b, "rwkv5", heads, head_size)
    version = "5.0" if not gated else "5.1" if b.count(decay) == heads else "5.2"
    return hyperparameters(b, "rwkv5", version, width=width, ffn=ffn, head_size=head_size)


def _decay_name(b: Binder, i: int) -> str:
    factor = f"blocks.{i}.att.time_decay_factor"
    return factor if factor in b else f"blocks.{i}.att.time_decay"


def _time_mix(b: Binder, i: int, heads: int, head_size: int, *, gated: bool) -> None:
    source, target, width = f"blocks.{i}.att.", f"blk.{i}.time_mix_", heads * head_size
    lerps = [f"{source}time_mix_{x}" for x in (LERPS if gated else LERPS[:3])]
    add_lerps(b, f"{target}lerp_fused.weight", lerps, width)

    def add_per_channel(name: str, source: str, function: Callable[[F32], NDArray[Any]]) -> None:
        """A vector of one value per channel, repeated where the checkpoint has one per head."""
        repeats = head_size if b.count(source) == heads else 1
        shape = (heads,) if repeats > 1 else (heads, head_size)
        b.make(
            f"{target}{name}.weight",
            (width,),
            {source: shape},
            lambda values: np.repeat(function(values).reshape(-1), repeats),
        )

    decay = _decay_name(b, i)
    add_per_channel("decay", decay, _same if decay.endswith("factor") else decay_factor)
    if f"{source}time_first" in b and f"{source}time_faaaa" not in b:
        add_per_channel("first", f"{source}time_first", _exp)
    else:
        add_per_channel("first", f"{source}time_faaaa", _same)
    for name in (*MATRICES, "gate") if gated else MATRICES:
        b.add(f"{target}{name}.weight", f"{source}{name}.weight", (width, width))
    add_norm(b, f"{target}ln", f"{source}ln_x", width)


def _same(values: F32) -> NDArray[Any]:
    return values


def _exp(values: F32) -> NDArray[Any]:
    return np.exp(values.astype(np.float64))
