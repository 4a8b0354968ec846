# SPDX-License-Identifier: Apache-2.0
"""What the plans of all versions share: the tensors around the blocks, norms, hyperparameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import FormatError
from ..files.form import KEY_FIRST
from ..files.gguf_writer import Value, string, uint32
from ..files.source import F32
from .plan import Binder


def add_model(b: Binder, vocab: int, width: int, add_block: Callable[[int], None]) -> None:
    """The tensors that every version has; `add_block` adds what is a version's own."""
    b.add("token_embd.weight", "emb.weight", (vocab, width))
    add_norm(b, "token_embd_norm", "blocks.0.ln0", width)
    for i in range(b.layers):
        add_norm(b, f"blk.{i}.attn_norm", f"blocks.{i}.ln1", width)
        add_norm(b, f"blk.{i}.attn_norm_2", f"blocks.{i}.ln2", width)
        add_block(i)
    add_norm(b, "output_norm", "ln_out", width)
    b.add("output.weight", "head.weight", (vocab, width))


def hyperparameters(
    b: Binder, arch: str, version: str, *, width: int, ffn: int, head_size: int | None
) -> dict[str, Value]:
    """The keys that every version has, for an architecture as GGUF calls it."""
    values = {
        "general.architecture": string(arch),
        "rwkv_edge.version": string(version),
        f"{arch}.context_length": uint32(1 << 20),  # no limit; llama.cpp wants a number
        f"{arch}.embedding_length": uint32(width),
        f"{arch}.block_count": uint32(b.layers),
        f"{arch}.feed_forward_length": uint32(ffn),
        f"{arch}.attention.layer_norm_epsilon": Value("float32", 1e-5),
        f"{arch}.attention.head_count": uint32(0),  # llama.cpp asks for it and does not use it
    }
    if head_size is not None:
        values[f"{arch}.wkv.head_size"] = uint32(head_size)
    return values


def add_norm(b: Binder, target: str, source: str, width: int) -> None:
    for part in ("weight", "bias"):
        b.add(f"{target}.{part}", f"{source}.{part}", (width,))


def add_lerps(b: Binder, target: str, sources: list[str], width: int) -> None:
    """The vectors of a token shift, one after another, as llama.cpp fuses them."""
    shapes = {name: (width,) for name in sources}
    b.make(target, (len(sources), 1, 1, width), shapes, lambda *parts: np.concatenate(parts))


def add_gated_channel_mix(b: Binder, i: int, width: int, ffn: int, lerp: str) -> None:
    """That of versions 4 to 6; `lerp` is what they call the vectors of its token shift."""
    source, target = f"blocks.{i}.ffn.", f"blk.{i}.channel_mix_"
    for x in "kr":
        b.add(f"{target}lerp_{x}.weight", f"{source}{lerp}_{x}", (width,))
    b.add(f"{target}key.weight", f"{source}key.weight", (ffn, width))
    b.add(f"{target}receptance.weight", f"{source}receptance.weight", (width, width))
    b.add(f"{target}value.weight", f"{source}value.weight", (width, ffn))


def add_initial_state(b: Binder, arch: str, heads: int, head_size: int) -> None:
    """A state that was merged into the model; [head, value, key] in a checkpoint."""
    shape = (heads, head_size, head_size)
    names = [f"blocks.{i}.att.time_state" for i in range(b.layers)]
    if not any(name in b for name in names):
        return
    for i, name in enumerate(names):
        target = f"blk.{i}.time_mix_state.weight"
        if arch in KEY_FIRST:
            b.make(target, shape, {name: shape}, lambda state: state.transpose(0, 2, 1))
        else:
            b.add(target, name, shape)


def check_heads(b: Binder, name: str, heads: int, width: int) -> int:
    """Channels per head, where `heads` was read from the tensor `name`."""
    if heads == 0 or width % heads:
        raise FormatError(
            f"{b.path}: {name} has {heads} heads, expected a divisor of {width}, "
            "the columns of emb.weight"
        )
    return width // heads


def decay_factor(time_decay: F32) -> NDArray[Any]:
    """exp(-exp(.)), in double precision: values near one lose most of a float32's digits."""
    return np.exp(-np.exp(time_decay.astype(np.float64)))


def decay_rate(time_decay: F32) -> NDArray[Any]:
    """-exp(.), the logarithm of the decay."""
    return -np.exp(time_decay.astype(np.float64))
