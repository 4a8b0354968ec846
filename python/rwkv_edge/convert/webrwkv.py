# SPDX-License-Identifier: Apache-2.0
"""The layout of web-rwkv's and Ai00's .st files: BlinkDL's tensors, some renamed, some turned.

In RWKV-6 time_maa is called time_mix; in RWKV-5 and 6 time_faaaa is called time_first, which
elsewhere means its logarithm. Low-rank matrices lie as [out, in], and states the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .._core import FormatError
from ..files.source import Tensor, by_name, turned

LOW_RANK = re.compile(r"blocks\.\d+\.att\.(?:time_maa_w|time_decay_w|[wavg])([12])")
STATE = re.compile(r"blocks\.\d+\.att\.time_state")


def original(path: Path, tensors: Mapping[str, Tensor], *, safetensors: bool) -> dict[str, Tensor]:
    """The tensors as BlinkDL has them, of a file that may or may not be an .st.

    Shapes tell whether matrices are turned; where every rank is the width of the model, only the
    names of an .st do, and that anything but a .safetensors is no .st. FormatError where matrices
    lie both ways, or nothing tells.
    """
    named = _original_names(path, tensors) if safetensors else dict(tensors)
    renamed = named.keys() != tensors.keys()
    embedding = named.get("emb.weight")
    if embedding is None or len(embedding.shape) != 2:
        return named
    lying = {
        name: _lies(tensor.shape, match[1], embedding.shape[1])
        for name, tensor in named.items()
        if (match := LOW_RANK.fullmatch(name))
    }
    examples = {how: f"{name} {list(named[name].shape)}" for name, how in lying.items()}
    if {"as in .pth", "turned"} <= examples.keys():
        raise FormatError(
            f"{path}: {examples['turned']} is transposed, {examples['as in .pth']} is not"
        )
    if safetensors and not renamed and examples.keys() == {"either"}:
        raise FormatError(
            f"{path}: {examples['either']} may or may not be transposed, and so may all like it; "
            "use the original .pth"
        )
    if "turned" not in examples and ("as in .pth" in examples or not renamed):
        return named
    return {
        name: turned(tensor) if name in lying or STATE.fullmatch(name) else tensor
        for name, tensor in named.items()
    }


def _original_names(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    v6 = any(name.endswith(".att.time_mix_w1") for name in tensors)

    def original_name(name: str, tensor: Tensor) -> str:
        if v6:
            name = name.replace(".time_mix_", ".time_maa_")
        # With a value for each channel it was a time_faaaa; an .st has no other kind.
        if name.endswith(".att.time_first") and len(tensor.shape) == 2:
            name = name.replace(".time_first", ".time_faaaa")
        return name

    return by_name(path, ((original_name(name, t), t) for name, t in tensors.items()))


def _lies(shape: tuple[int, ...], which: str, width: int) -> str:
    """How a matrix lies that is [width, rank], or [rank, width] if it is the second of its pair."""
    rows, columns = shape[-2:] if len(shape) > 1 else (0, 0)
    first, last = (rows, columns) if which == "1" else (columns, rows)
    if first == width:
        return "either" if last == width else "as in .pth"
    return "turned" if last == width else "neither"
