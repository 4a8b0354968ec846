# SPDX-License-Identifier: Apache-2.0
"""RWKV-7: which tensors a checkpoint has, and what llama.cpp calls them.

Names are BlinkDL's. The small matrices w1 w2 a1 a2 v1 v2 g1 g2 lie in a .pth as [in, out]; in some
.safetensors (web-rwkv's .st) and in GGUF as [out, in].
"""

from __future__ import annotations

from .._core import FormatError
from .gguf_writer import Value, uint32
from .names import Binder

LERPS = "rwkvag"  # the order inside time_mix_lerp_fused
LORAS = "wavg"  # decay, in-context learning rate, value residual, gate
MATRICES = ("receptance", "key", "value", "output")


def plan(b: Binder) -> dict[str, Value]:
    """State every tensor of the model; returns the hyperparameters for the file."""
    vocab, width = b.shape("emb.weight", 2)
    heads, head_size = b.shape("blocks.0.att.r_k", 2)
    ffn, _ = b.shape("blocks.0.ffn.key.weight", 2)
    if heads * head_size != width:
        raise FormatError(
            f"{b.path}: blocks.0.att.r_k is {[heads, head_size]}, "
            f"expected {width} values like the columns of emb.weight"
        )
    turned, ranks = _loras(b, width)
    b.add("token_embd.weight", ["emb.weight"], (vocab, width))
    _norm(b, "token_embd_norm", "blocks.0.ln0", width)
    for i in range(b.layers):
        _norm(b, f"blk.{i}.attn_norm", f"blocks.{i}.ln1", width)
        _norm(b, f"blk.{i}.attn_norm_2", f"blocks.{i}.ln2", width)
        _time_mix(b, i, heads, head_size)
        _time_mix_loras(b, i, width, ranks, turned=turned)
        _channel_mix(b, i, width, ffn)
    _norm(b, "output_norm", "ln_out", width)
    b.add("output.weight", ["head.weight"], (vocab, width))
    return {
        "rwkv7.context_length": uint32(1 << 20),  # no limit; llama.cpp wants a number
        "rwkv7.embedding_length": uint32(width),
        "rwkv7.block_count": uint32(b.layers),
        "rwkv7.feed_forward_length": uint32(ffn),
        "rwkv7.attention.layer_norm_epsilon": Value("float32", 1e-5),
        "rwkv7.wkv.head_size": uint32(head_size),
        "rwkv7.attention.decay_lora_rank": uint32(ranks["w"]),
        "rwkv7.attention.iclr_lora_rank": uint32(ranks["a"]),
        "rwkv7.attention.value_residual_mix_lora_rank": uint32(ranks["v"]),
        "rwkv7.attention.gate_lora_rank": uint32(ranks["g"]),
        "rwkv7.attention.head_count": uint32(0),  # llama.cpp asks for it and does not use it
    }


def _loras(b: Binder, width: int) -> tuple[bool, dict[str, int]]:
    """Whether the small matrices lie as [out, in], and their ranks."""
    last = f"blocks.{b.layers - 1}.att."
    # Block 0 needs no value residual; a model of one block has the dummy that llama.cpp wants.
    names = {x: x if x != "v" or b.layers > 1 else "a" for x in LORAS}
    shapes = {x: b.shape(f"{last}{name}1", 2) for x, name in names.items()}
    turned = any(shape[0] != width for shape in shapes.values())
    return turned, {x: shape[0 if turned else 1] for x, shape in shapes.items()}


def _norm(b: Binder, target: str, source: str, width: int) -> None:
    for part in ("weight", "bias"):
        b.add(f"{target}.{part}", [f"{source}.{part}"], (width,))


def _time_mix(b: Binder, i: int, heads: int, head_size: int) -> None:
    source, target, width = f"blocks.{i}.att.", f"blk.{i}.time_mix_", heads * head_size
    lerps = [f"{source}x_{x}" for x in LERPS]
    b.add(f"{target}lerp_fused.weight", lerps, (width,), target_shape=(len(LERPS), 1, 1, width))
    for name in ("k_k", "k_a"):
        b.add(f"{target}{name}.weight", [f"{source}{name}"], (width,))
    b.add(f"{target}r_k.weight", [f"{source}r_k"], (heads, head_size), target_shape=(width,))
    for name in MATRICES:
        b.add(f"{target}{name}.weight", [f"{source}{name}.weight"], (width, width))
    _norm(b, f"{target}ln", f"{source}ln_x", width)


def _time_mix_loras(b: Binder, i: int, width: int, ranks: dict[str, int], *, turned: bool) -> None:
    source, target = f"blocks.{i}.att.", f"blk.{i}.time_mix_"
    for x in LORAS:
        name, rank = x, ranks[x]
        if x == "v" and i == 0:
            # Never used; llama.cpp wants copies of a0, a1, a2 here, whatever the checkpoint has.
            for part in "012":
                b.ignore(f"{source}v{part}")
            name, rank = "a", ranks["a"]
        if x != "g":
            b.add(f"{target}{x}0.weight", [f"{source}{name}0"], (width,))
        for part, shape in (("1", (width, rank)), ("2", (rank, width))):
            stored = shape[::-1] if turned else shape
            b.add(
                f"{target}{x}{part}.weight",
                [f"{source}{name}{part}"],
                stored,
                transposed=not turned,
            )


def _channel_mix(b: Binder, i: int, width: int, ffn: int) -> None:
    source, target = f"blocks.{i}.ffn.", f"blk.{i}.channel_mix_"
    b.add(f"{target}lerp_k.weight", [f"{source}x_k"], (width,))
    b.add(f"{target}key.weight", [f"{source}key.weight"], (ffn, width))
    b.add(f"{target}value.weight", [f"{source}value.weight"], (width, ffn))
