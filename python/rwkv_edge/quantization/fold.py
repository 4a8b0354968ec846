# SPDX-License-Identifier: Apache-2.0
"""Column scalings that leave what a model computes as it is, so that quantization errs less.

The columns of a matrix are divided by t, and what makes its inputs is multiplied by t: the gain and
bias of a norm, or the rows of another matrix. Factors are powers of two, so nothing is rounded.
Where some columns of a block are far smaller than others, a 4-bit scale loses them; divided by
their size, they are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..convert.policy import SEARCHED, Scale

BLOCKS = (*SEARCHED, "q8_0")  # types whose blocks share a scale
INPUT_BLOCK = 32
MOST_ROWS = 4096  # of a matrix, to decide by
LEAST_GAIN = 0.05  # of the error, for a change

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Folding:
    """One vector t that scales several tensors, by their names in a GGUF file."""

    columns: tuple[str, ...]
    """Matrices whose columns are divided by t^power,"""
    vectors: tuple[str, ...] = ()
    """vectors that are multiplied by t,"""
    rows: tuple[str, ...] = ()
    """and matrices whose rows are."""
    power: int = 1

    def scales(self, t: F32) -> Iterator[tuple[str, Scale]]:
        for name in self.columns:
            yield name, Scale(columns=(1 / t**self.power).astype(np.float32))
        for name in self.vectors:
            yield name, Scale(columns=t)
        for name in self.rows:
            yield name, Scale(rows=t)


def foldings(arch: str, names: set[str]) -> list[Folding]:
    """Those of a model, each by itself."""

    def found(prefix: str, parts: str) -> tuple[str, ...]:
        return tuple(name for part in parts.split() if (name := prefix + part + ".weight") in names)

    def norm(name: str) -> tuple[str, str]:
        return f"{name}.weight", f"{name}.bias"

    all_of = [Folding(("output.weight",), norm("output_norm"))]
    layer = 0
    while f"blk.{layer}.attn_norm.weight" in names:
        blk = f"blk.{layer}."
        time, channel = f"{blk}time_mix_", f"{blk}channel_mix_"
        products = "receptance key value gate w1 a1 g1 decay_w1"
        if layer > 0:  # in the first layer v1 is not used, and may have any shape
            products += " v1"
        all_of.append(Folding(found(time, products), norm(f"{blk}attn_norm")))
        output = (f"{time}output.weight",)
        # In RWKV-7 the gate is linear in g2 and comes last; a bonus stands after the norm. RWKV-4
        # has no norm there, and its recurrence is linear in v.
        if arch.startswith("rwkv7"):
            all_of.append(Folding(output, rows=(f"{time}g2.weight",)))
        elif arch == "rwkv4":
            all_of.append(Folding(output, rows=(f"{time}value.weight",)))
        else:
            all_of.append(Folding(output, norm(f"{time}ln")))
        all_of.append(Folding(found(channel, "key receptance s1"), norm(f"{blk}attn_norm_2")))
        # relu(s z)^2 = s^2 relu(z)^2
        value = found(channel, "value")
        if value:
            all_of.append(Folding(value, rows=(f"{channel}key.weight",), power=2))
        layer += 1
    return all_of


def combined(folded: Mapping[Folding, F32]) -> dict[str, Scale]:
    """What becomes of each tensor, which two foldings may scale."""
    scales: dict[str, Scale] = {}
    for folding, t in folded.items():
        for name, scale in folding.scales(t):
            old = scales.get(name, Scale())
            scales[name] = Scale(
                scale.rows if old.rows is None else old.rows,
                scale.columns if old.columns is None else old.columns,
            )
    return scales


def equalise(
    all_of: list[Folding],
    types: Mapping[str, str],
    importance: Mapping[str, F32],
    values_of: Callable[[str, int], F32],
    inputs: Mapping[str, F32],
) -> dict[Folding, F32]:
    """The foldings that let the output of their matrices err less, and their t.

    t is the power of two next to the root mean square of each column. `values_of(name, rows)` gives
    up to so many rows of a matrix, and `inputs` are some of what each multiplies, [tokens,
    columns]. The error is that of rounding the weights, sum of importance * (weight - value)^2, and
    that of rounding the inputs to 8 bits, which scaled columns make uneven in their turn.
    """
    chosen = {}
    for folding in all_of:
        names = [n for n in folding.columns if types.get(n) in BLOCKS and n in importance]
        if not names:
            continue
        values = {name: values_of(name, MOST_ROWS) for name in names}
        squares = sum((v.astype(np.float64) ** 2).mean(axis=0) for v in values.values())
        t = near(np.sqrt(squares), folding.power)
        if (t == 1).all():
            continue
        before = after = 0.0
        for name, v in values.items():
            energy = (v.astype(np.float64) ** 2).sum(axis=0)
            x, a = inputs[name], importance[name]
            scale = (t**folding.power).astype(np.float32)
            before += error(v, types[name], a) + error_of_inputs(x, energy)
            after += error(v / scale, types[name], a * scale**2)
            after += error_of_inputs(x * scale, energy / scale**2)
        if after < (1 - LEAST_GAIN) * before:
            chosen[folding] = t
    return chosen


def near(sizes: NDArray[np.float64], power: int) -> F32:
    """Powers of two whose `power` is near the sizes, up to a common factor; 1 for a size of 0."""
    alive = sizes > 0
    logs = np.zeros_like(sizes)
    if alive.any():
        logs[alive] = np.log2(sizes[alive])
        logs[alive] -= np.median(logs[alive])
    t: F32 = np.exp2(np.rint(logs / power)).astype(np.float32)
    return t


def error(values: F32, kind: str, importance: F32) -> float:
    """Of the values of a matrix in a type."""
    given = importance if kind in SEARCHED else None
    blocks = _core.quantize_matrix(np.ascontiguousarray(values), kind, given)
    wrong = (values - _core.dequantize(blocks, kind)).astype(np.float64)
    return float((wrong**2 @ importance.astype(np.float64)).sum())


def error_of_inputs(x: F32, energy: NDArray[np.float64]) -> float:
    """The mean over rows of inputs, which a matrix in blocks rounds to 8 bits."""
    blocks = x.reshape(len(x), -1, INPUT_BLOCK).astype(np.float64)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127
    step[step == 0] = 1
    wrong = (blocks - np.rint(blocks / step) * step).reshape(x.shape)
    return float((wrong**2 @ energy).mean())
