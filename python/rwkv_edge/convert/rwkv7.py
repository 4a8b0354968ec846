# SPDX-License-Identifier: Apache-2.0
"""RWKV-7 and 7a (DeepEmbed): which tensors a checkpoint has, and what they are called in GGUF.

The names of RWKV-7 are llama.cpp's; those of the embedding tables of 7a are ours. The small
matrices w1 w2 a1 a2 v1 v2 g1 g2, s1 s2 lie in a checkpoint as [in, out] and in GGUF as [out, in].
"""

from __future__ import annotations

import numpy as np

from .._core import FormatError
from ..files.gguf_writer import Value, uint32
from .common import add_initial_state, add_lerps, add_model, add_norm, hyperparameters
from .plan import Binder

LERPS = "rwkvag"  # the order inside time_mix_lerp_fused
LORAS = "wavg"  # decay, in-context learning rate, value residual, gate
MATRICES = ("receptance", "key", "value", "output")
DEEP_EMBED = 32  # the table has a matrix of 32 x 32 for every token


def plan(b: Binder) -> dict[str, Value]:
    """State every tensor of the model; returns the hyperparameters for the file."""
    return _plan(b, deep_embed=False)


def plan_7a(b: Binder) -> dict[str, Value]:
    """As `plan`, with the tables that the channel mix of 7a looks its tokens up in."""
    return _plan(b, deep_embed=True)


def _plan(b: Binder, *, deep_embed: bool) -> dict[str, Value]:
    vocab, width = b.shape("emb.weight", 2)
    heads, head_size = b.shape("blocks.0.att.r_k", 2)
    ffn, _ = b.shape("blocks.0.ffn.key.weight", 2)
    if heads * head_size != width:
        raise FormatError(
            f"{b.path}: blocks.0.att.r_k is {[heads, head_size]}, "
            f"expected {width} values like the columns of emb.weight"
        )
    # Block 0 needs no value residual; a model of one block has the dummy that llama.cpp wants.
    last = f"blocks.{b.layers - 1}.att."
    names = {x: x if x != "v" or b.layers > 1 else "a" for x in LORAS}
    ranks = {x: b.shape(f"{last}{name}1", 2)[1] for x, name in names.items()}

    def add_block(i: int) -> None:
        _time_mix(b, i, heads, head_size)
        _time_mix_loras(b, i, width, ranks)
        _channel_mix(b, i, width, ffn)
        if deep_embed:
            _deep_embed(b, i, vocab, width, ffn)

    add_model(b, vocab, width, add_block)
    arch, version = ("rwkv7a", "7a") if deep_embed else ("rwkv7", "7")
    add_initial_state(b, arch, heads, head_size)
    return hyperparameters(b, arch, version, width=width, ffn=ffn, head_size=head_size) | {
        f"{arch}.attention.decay_lora_rank": uint32(ranks["w"]),
        f"{arch}.attention.iclr_lora_rank": uint32(ranks["a"]),
        f"{arch}.attention.value_residual_mix_lora_rank": uint32(ranks["v"]),
        f"{arch}.attention.gate_lora_rank": uint32(ranks["g"]),
    }


def _time_mix(b: Binder, i: int, heads: int, head_size: int) -> None:
    source, target, width = f"blocks.{i}.att.", f"blk.{i}.time_mix_", heads * head_size
    lerps = [f"{source}x_{x}" for x in LERPS]
    add_lerps(b, f"{target}lerp_fused.weight", lerps, width)
    for name in ("k_k", "k_a"):
        b.add(f"{target}{name}.weight", f"{source}{name}", (width,))
    b.add(f"{target}r_k.weight", f"{source}r_k", (heads, head_size), (width,))
    for name in MATRICES:
        b.add(f"{target}{name}.weight", f"{source}{name}.weight", (width, width))
    add_norm(b, f"{target}ln", f"{source}ln_x", width)


def _time_mix_loras(b: Binder, i: int, width: int, ranks: dict[str, int]) -> None:
    source, target = f"blocks.{i}.att.", f"blk.{i}.time_mix_"
    for x in LORAS:
        name, rank = x, ranks[x]
        if x == "v" and i == 0:
            # Never used; llama.cpp wants copies of a0, a1, a2 here, whatever the checkpoint has.
            for part in "012":
                b.ignore(f"{source}v{part}")
            name, rank = "a", ranks["a"]
        if x != "g":
            b.add(f"{target}{x}0.weight", f"{source}{name}0", (width,))
        for part, shape in (("1", (rank, width)), ("2", (width, rank))):
            stored = {f"{source}{name}{part}": shape[::-1]}
            b.make(f"{target}{x}{part}.weight", shape, stored, np.transpose)


def _channel_mix(b: Binder, i: int, width: int, ffn: int) -> None:
    source, target = f"blocks.{i}.ffn.", f"blk.{i}.channel_mix_"
    b.add(f"{target}lerp_k.weight", f"{source}x_k", (width,))
    b.add(f"{target}key.weight", f"{source}key.weight", (ffn, width))
    b.add(f"{target}value.weight", f"{source}value.weight", (width, ffn))


def _deep_embed(b: Binder, i: int, vocab: int, width: int, ffn: int) -> None:
    source, target, n = f"blocks.{i}.ffn.", f"blk.{i}.channel_mix_", DEEP_EMBED
    # The engine adds s_emb_x . LN0(emb) for the tokens it meets, so the table stays on disk.
    b.add(f"{target}s_emb.weight", f"{source}s_emb.weight", (vocab, n * n))
    b.add(f"{target}s_emb_x.weight", f"{source}s_emb_x.weight", (n * n, width))
    for name, shape in (("s1", (n, width)), ("s2", (ffn, n))):
        b.make(f"{target}{name}.weight", shape, {f"{source}{name}": shape[::-1]}, np.transpose)
    b.add(f"{target}s0.weight", f"{source}s0", (ffn,))
