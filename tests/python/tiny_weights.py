# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every version, as trainers save them: BlinkDL's names and shapes.

Scales are such that every tensor counts, and the residual is small enough to show the norms' eps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from reference import Weights


@dataclass(frozen=True)
class Shape:
    width: int
    head_size: int  # 0 in version 4
    layers: int
    ffn: int
    vocab: int
    ranks: tuple[int, ...] = ()  # v6: of the lerps and the decay; v7: of w, a, v, g
    # What the file holds for the value residual of block 0, which no one uses: llama.cpp's
    # converter puts copies of a0, a1, a2 there, others their own or nothing.
    unused_v: Literal["own", "copy", "absent"] = "own"
    version: str = "7"
    u_name: Literal["time_faaaa", "time_first"] = "time_faaaa"  # v5: as it is, or its logarithm
    peak_key: float = 0  # v4: scale of every fourth row of the keys, where a plain exp overflows

    @property
    def heads(self) -> int:
        return self.width // self.head_size


SHAPES = {
    "d128": Shape(128, 64, 3, 384, 300, (24, 20, 12, 40), "absent"),
    "d192": Shape(192, 32, 3, 416, 307, (40, 16, 28, 36), "copy"),
    "d256": Shape(256, 64, 3, 512, 300, (32, 24, 20, 56), "own"),
}
# Every version; only the d256 shapes are made of whole blocks of 256.
VERSIONS: dict[str, dict[str, Shape]] = {
    "4": {
        "d128": Shape(128, 0, 3, 384, 300, version="4", peak_key=40),
        "d192": Shape(192, 0, 3, 416, 307, version="4"),
        "d256": Shape(256, 0, 3, 768, 300, version="4"),
    },
    "5.0": {
        "d128": Shape(128, 64, 3, 384, 300, version="5.0", u_name="time_first"),
        "d192": Shape(192, 32, 3, 416, 307, version="5.0"),
        "d256": Shape(256, 64, 3, 768, 300, version="5.0", u_name="time_first"),
    },
    "5.1": {
        "d128": Shape(128, 64, 3, 384, 300, version="5.1"),
        "d192": Shape(192, 32, 3, 416, 307, version="5.1", u_name="time_first"),
        "d256": Shape(256, 64, 3, 768, 300, version="5.1"),
    },
    "5.2": {
        "d128": Shape(128, 64, 3, 384, 300, version="5.2"),
        "d192": Shape(192, 32, 3, 416, 307, version="5.2", u_name="time_first"),
        "d256": Shape(256, 64, 3, 768, 300, version="5.2"),
    },
    "6": {
        "d128": Shape(128, 64, 3, 384, 300, (12, 20), version="6"),
        "d192": Shape(192, 32, 3, 416, 307, (20, 12), version="6"),
        "d256": Shape(256, 64, 3, 768, 300, (16, 28), version="6"),
    },
    "7": SHAPES,
    "7a": {
        "d128": Shape(128, 64, 3, 384, 300, (24, 20, 12, 40), version="7a"),
        "d192": Shape(192, 32, 3, 416, 307, (40, 16, 28, 36), version="7a"),
        "d256": Shape(256, 64, 3, 512, 300, (36, 24, 20, 56), version="7a"),
    },
}

Values = dict[str, NDArray[np.float64]]


class Draw:
    """Random numbers in the shapes that weights have."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.rng = shape, np.random.default_rng(seed)

    def matrix(self, rows: int, cols: int, gain: float = 1.0) -> NDArray[np.float64]:
        return self.rng.normal(0, gain / np.sqrt(cols), (rows, cols))

    def square(self, gain: float = 1.0) -> NDArray[np.float64]:
        return self.matrix(self.shape.width, self.shape.width, gain)

    def norm(self, name: str, gain: float = 1.0) -> Values:
        width = self.shape.width
        return {
            f"{name}.weight": self.rng.uniform(0.7 * gain, 1.3 * gain, width),
            f"{name}.bias": self.rng.normal(0, 0.1 * gain, width),
        }

    def between(self, low: float, high: float) -> NDArray[np.float64]:
        return self.rng.uniform(low, high, (1, 1, self.shape.width))

    def around(self, mean: float, deviation: float) -> NDArray[np.float64]:
        return self.rng.normal(mean, deviation, (1, 1, self.shape.width))


def random_weights(shape: Shape, seed: int) -> Weights:
    draw, width = Draw(shape, seed), shape.width
    w: Values = {"emb.weight": draw.rng.normal(0, 0.1, (shape.vocab, width))}
    w |= draw.norm("blocks.0.ln0", 0.2) | draw.norm("ln_out")
    w["head.weight"] = draw.matrix(shape.vocab, width)
    time_mix, channel_mix = MIXES[shape.version[0]]
    for i in range(shape.layers):
        w |= draw.norm(f"blocks.{i}.ln1") | draw.norm(f"blocks.{i}.ln2")
        if shape.version != "4":
            w |= draw.norm(f"blocks.{i}.att.ln_x")
        w |= {f"blocks.{i}.att.{name}": value for name, value in time_mix(draw).items()}
        w |= {f"blocks.{i}.ffn.{name}": value for name, value in channel_mix(draw).items()}
    return {name: value.astype(np.float32) for name, value in w.items()}


def random_states(shape: Shape, seed: int) -> Weights:
    """A tuned initial state, from version 5 on: [H, value, key] whatever the version."""
    rng, size = np.random.default_rng(seed), (shape.heads, shape.head_size, shape.head_size)
    return {
        f"blocks.{i}.att.time_state": rng.normal(0, 0.1, size).astype(np.float32)
        for i in range(shape.layers)
    }


def time_mix_4(draw: Draw) -> Values:
    width = draw.shape.width
    w = {f"time_mix_{j}": draw.between(0, 1) for j in "kvr"}
    w["time_decay"] = draw.rng.uniform(-6, 1, width)
    w["time_first"] = draw.rng.normal(0.5, 1, width)
    for name, gain in (("receptance", 1.0), ("key", 1.0), ("value", 1.0), ("output", 0.3)):
        w[f"{name}.weight"] = draw.square(gain)
    if draw.shape.peak_key:
        w["key.weight"][::4] *= draw.shape.peak_key
    return w


def time_mix_5(draw: Draw) -> Values:
    shape, gated = draw.shape, draw.shape.version != "5.0"
    size = (shape.heads, shape.head_size) if shape.version == "5.2" else (shape.heads,)
    w = {f"time_mix_{j}": draw.between(0, 1) for j in ("kvrg" if gated else "kvr")}
    w["time_decay"] = draw.rng.uniform(-8, 1, size)  # the decay itself: up to 0.9997
    w[shape.u_name] = draw.rng.normal(-0.5, 0.7, size)
    return w | matrices_with_state(draw, gated)


def time_mix_6(draw: Draw) -> Values:
    width, (mix, decay) = draw.shape.width, draw.shape.ranks
    w = {f"time_maa_{j}": draw.between(0, 1) for j in "xwkvrg"}
    w["time_maa_w1"] = draw.matrix(5 * mix, width).T
    w["time_maa_w2"] = draw.rng.normal(0, 0.5 / np.sqrt(mix), (5, mix, width))
    w["time_decay"] = draw.between(-7, 0)
    w["time_decay_w1"] = draw.matrix(decay, width).T
    w["time_decay_w2"] = draw.matrix(width, decay).T
    w["time_faaaa"] = draw.rng.normal(0, 0.7, (draw.shape.heads, draw.shape.head_size))
    return w | matrices_with_state(draw, gated=True)


def matrices_with_state(draw: Draw, gated: bool) -> Values:
    """Of v5 and v6. Small keys and values: the norm of the heads shall show its eps."""
    gains = {"receptance": 1.0, "key": 0.1, "value": 0.3} | ({"gate": 1.0} if gated else {})
    return {f"{name}.weight": draw.square(gain) for name, gain in (gains | {"output": 0.2}).items()}


def gated_channel_mix(draw: Draw) -> Values:
    """Of v4, v5, v6."""
    width, ffn = draw.shape.width, draw.shape.ffn
    mix = "time_maa" if draw.shape.version == "6" else "time_mix"
    w = {f"{mix}_{j}": draw.between(0, 1) for j in "kr"}
    w["key.weight"], w["receptance.weight"] = draw.matrix(ffn, width), draw.square()
    w["value.weight"] = draw.matrix(width, ffn, 0.3)
    return w


def time_mix_7(draw: Draw) -> Values:
    shape = draw.shape
    w = {f"x_{j}": draw.between(0, 1) for j in "rwkvag"}
    for j, rank in zip("wavg", shape.ranks, strict=True):
        w[f"{j}1"] = draw.matrix(rank, shape.width).T
        w[f"{j}2"] = draw.matrix(shape.width, rank).T
        if j != "g":
            w[f"{j}0"] = draw.around(-1 if j == "w" else 0, 1)
    w["k_k"], w["k_a"] = draw.between(0.5, 1.2), draw.between(0.6, 1.2)
    w["r_k"] = draw.rng.normal(0, 0.2, (shape.heads, shape.head_size))
    for name, gain in (("receptance", 1.0), ("key", 0.7), ("value", 1.0), ("output", 0.2)):
        w[f"{name}.weight"] = draw.square(gain)
    return w


def channel_mix_7(draw: Draw) -> Values:
    width, ffn = draw.shape.width, draw.shape.ffn
    w = {"x_k": draw.between(0, 1), "key.weight": draw.matrix(ffn, width)}
    w["value.weight"] = draw.matrix(width, ffn, 0.2)
    return w | deep_embed(draw) if draw.shape.version == "7a" else w


def deep_embed(draw: Draw) -> Values:
    shape = draw.shape
    return {
        "s_emb.weight": draw.rng.normal(0, 0.15, (shape.vocab, 1024)),
        "s_emb_x.weight": draw.matrix(1024, shape.width, 0.5),
        "s1": draw.matrix(32, shape.width).T,
        "s2": draw.matrix(shape.ffn, 32, 0.7).T,
        "s0": draw.rng.normal(1, 0.3, (1, 1, shape.ffn)),
    }


MIXES: dict[str, tuple[Callable[[Draw], Values], Callable[[Draw], Values]]] = {
    "4": (time_mix_4, gated_channel_mix),
    "5": (time_mix_5, gated_channel_mix),
    "6": (time_mix_6, gated_channel_mix),
    "7": (time_mix_7, channel_mix_7),
}
