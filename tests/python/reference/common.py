# SPDX-License-Identifier: Apache-2.0
"""What all versions have in common: embedding, layers, norms, head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, NDArray[np.float32]]
# What one conversation remembers: parts by the engine's names, each [L, ...].
State = dict[str, Array]
Linear = Callable[[Array, Array], Array]  # (x [T, in], W [out, in]) -> [T, out]

LAYER_NORM_EPS = 1e-5
GROUP_NORM_EPS = 64e-5


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def relu2(z: Array) -> Array:
    square: Array = np.maximum(z, 0) ** 2
    return square


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    y: Array = centred / deviation * weight + bias
    return y


def shift(x: Array, prev: Array) -> Array:
    """The same rows one token earlier; `prev` stands before the first."""
    return np.concatenate([prev[None], x[:-1]])


def multiply(x: Array, W: Array) -> Array:
    y: Array = x @ W.T
    return y


def plain(value: NDArray[np.float32]) -> Array:
    """In double precision, and [1, 1, D] as [D]."""
    flat = value.ndim == 3 and value.shape[:2] == (1, 1)
    return value.astype(np.float64).reshape(-1 if flat else value.shape)


def comparable(state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The same, but for version 4 the average and the logarithm of its denominator: which share of
    the exponent lies in pp, and which in aa and bb, is for each program's roundings to say."""
    if "pp" not in state:
        return dict(state)
    others = {part: values for part, values in state.items() if part not in ("aa", "bb", "pp")}
    average, exponent = state["aa"] / state["bb"], state["pp"] + np.log(state["bb"])
    return {"average": average, "exponent": exponent, **others}


class Reference(ABC):
    """A model. A test may put its own rounding into the products with the large matrices."""

    def __init__(
        self,
        weights: Weights,
        linear: Linear = multiply,
        ln_eps: float = LAYER_NORM_EPS,
        gn_eps: float = GROUP_NORM_EPS,
    ) -> None:
        self.weights = {name: plain(value) for name, value in weights.items()}
        self.linear, self.ln_eps, self.gn_eps = linear, ln_eps, gn_eps
        self.layers = sum(name.endswith(".ffn.key.weight") for name in self.weights)
        self.width = self.weights["emb.weight"].shape[1]
        # Of the pass under way, for the versions that look at them in every layer.
        self.tokens: list[int] = []
        self.embedding = np.empty((0, self.width))  # [T, D], normalised
        self.residuals: list[Array] = []  # [T, D] before the first layer and after each

    def forward(self, tokens: list[int], state: State | None = None) -> tuple[Array, State]:
        """Logits [T, V] after each token, and the state after the last; `state` is not changed."""
        state = self.start() if state is None else state
        state = {part: values.copy() for part, values in state.items()}
        x = self.norm(self.weights["emb.weight"][tokens], "blocks.0.ln0")
        self.tokens, self.embedding, self.residuals = tokens, x, [x]
        for i in range(self.layers):
            memory = {part: values[i] for part, values in state.items()}  # views
            xx = self.norm(x, f"blocks.{i}.ln1")
            x = x + self.time_mix(i, xx, shift(xx, memory["att_shift"]), memory)
            memory["att_shift"][:] = xx[-1]
            xx = self.norm(x, f"blocks.{i}.ln2")
            x = x + self.channel_mix(i, xx, shift(xx, memory["ffn_shift"]))
            memory["ffn_shift"][:] = xx[-1]
            self.residuals.append(x)
        return self.product("head.weight", self.norm(x, "ln_out")), state

    def start(self) -> State:
        """The state before the first token, in the engine's order of parts."""
        zeros = np.zeros((self.layers, self.width))
        return {"att_shift": zeros, **self.start_of_recurrence(), "ffn_shift": zeros}

    @abstractmethod
    def start_of_recurrence(self) -> State: ...

    @abstractmethod
    def time_mix(self, layer: int, xx: Array, prev: Array, memory: State) -> Array:
        """Of xx [T, D], and prev the same one token earlier; sets the recurrence in `memory`."""

    @abstractmethod
    def channel_mix(self, layer: int, xx: Array, prev: Array) -> Array: ...

    def norm(self, x: Array, name: str) -> Array:
        return layer_norm(
            x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.ln_eps
        )

    def norm_of_heads(self, y: Array, name: str) -> Array:
        """y [T, H, N], each head by itself -> [T, D]."""
        size = y.shape[-1]
        y = layer_norm(y, np.ones(size), np.zeros(size), self.gn_eps).reshape(len(y), -1)
        return y * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def product(self, name: str, x: Array) -> Array:
        return self.linear(x, self.weights[name])


def with_shift(cur: Array, prev: Array, mix: Array) -> Array:
    """As versions 4 and 5 write it: all of `cur` where mix is 1."""
    return cur * mix + prev * (1 - mix)


class GatedChannelMix(Reference):
    """The channel mix of versions 4 and 5; version 6 names its lerps the other way."""

    def channel_mix(self, layer: int, xx: Array, prev: Array) -> Array:
        ffn = f"blocks.{layer}.ffn."
        x_k, x_r = (with_shift(xx, prev, self.channel_lerp(ffn, j)) for j in "kr")
        k = relu2(self.product(f"{ffn}key.weight", x_k))
        r = sigmoid(self.product(f"{ffn}receptance.weight", x_r))
        return r * self.product(f"{ffn}value.weight", k)

    def channel_lerp(self, ffn: str, name: str) -> Array:
        """The share of the current token."""
        return self.weights[f"{ffn}time_mix_{name}"]
