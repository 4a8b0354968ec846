# SPDX-License-Identifier: Apache-2.0
"""RWKV-7 "Goose" in double precision numpy, written from the equations of its paper: the oracle.

Slow and blunt on purpose. Names are the paper's; weights are a dict of arrays under the names
of the published checkpoints, vectors as [D]. Everything for T tokens is one array [T, D];
only the recurrence walks over the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, NDArray[np.float32]]
Linear = Callable[[Array, Array], Array]  # (x [T, in], W [out, in]) -> [T, out]

LAYER_NORM_EPS = 1e-5
GROUP_NORM_EPS = 64e-5


@dataclass(frozen=True)
class State:
    """What one conversation remembers; index 0 of each array is the layer."""

    att_prev: Array  # [L, D], LN1 output of the previous token
    S: Array  # [L, H, N, N], rows are value channels, columns key channels
    ffn_prev: Array  # [L, D], LN2 output of the previous token


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


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


class Reference:
    """The model. A test may put its own rounding into the products with the large matrices."""

    def __init__(
        self,
        weights: Weights,
        linear: Linear = multiply,
        ln_eps: float = LAYER_NORM_EPS,
        gn_eps: float = GROUP_NORM_EPS,
    ) -> None:
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.linear, self.ln_eps, self.gn_eps = linear, ln_eps, gn_eps

    def forward(self, tokens: list[int], state: State | None = None) -> tuple[Array, State]:
        """Logits [T, V] after each token, and the state after the last; `state` is not changed."""
        s = self.zero_state() if state is None else state
        s = replace(s, att_prev=s.att_prev.copy(), S=s.S.copy(), ffn_prev=s.ffn_prev.copy())
        x = self._norm(self.weights["emb.weight"][tokens], "blocks.0.ln0")
        v_first: Array | None = None
        for i in range(len(s.S)):
            xx = self._norm(x, f"blocks.{i}.ln1")
            y, v_first, s.S[i] = self._time_mix(i, xx, shift(xx, s.att_prev[i]), v_first, s.S[i])
            s.att_prev[i] = xx[-1]
            x = x + y
            xx = self._norm(x, f"blocks.{i}.ln2")
            x = x + self._channel_mix(i, xx, shift(xx, s.ffn_prev[i]))
            s.ffn_prev[i] = xx[-1]
        return self._mul("head.weight", self._norm(x, "ln_out")), s

    def zero_state(self) -> State:
        layers = sum(name.endswith(".ffn.x_k") for name in self.weights)
        heads, size = self.weights["blocks.0.att.r_k"].shape
        shift = np.zeros((layers, self.weights["emb.weight"].shape[1]))
        return State(shift, np.zeros((layers, heads, size, size)), shift)

    def _time_mix(
        self, layer: int, xx: Array, prev: Array, v_first: Array | None, S: Array
    ) -> tuple[Array, Array, Array]:
        def p(name: str) -> Array:
            return self.weights[f"blocks.{layer}.att.{name}"]

        def project(name: str, x: Array) -> Array:
            return self._mul(f"blocks.{layer}.att.{name}.weight", x)

        tokens, (heads, size) = len(xx), p("r_k").shape
        x_r, x_w, x_k, x_v, x_a, x_g = (xx + (prev - xx) * p(f"x_{j}") for j in "rwkvag")
        r, k, v = project("receptance", x_r), project("key", x_k), project("value", x_v)
        w = np.exp(-np.exp(-0.5) * sigmoid(p("w0") + np.tanh(x_w @ p("w1")) @ p("w2")))
        a = sigmoid(p("a0") + x_a @ p("a1") @ p("a2"))
        g = sigmoid(x_g @ p("g1")) @ p("g2")
        kk = (k * p("k_k")).reshape(tokens, heads, size)
        kk = kk / np.maximum(np.sqrt((kk**2).sum(axis=-1, keepdims=True)), 1e-12)
        k = k * (1 + (a - 1) * p("k_a"))
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * sigmoid(p("v0") + x_v @ p("v1") @ p("v2"))

        r, w, k, v, a = (z.reshape(tokens, heads, size) for z in (r, w, k, v, a))
        y = np.empty_like(r)
        for t in range(tokens):
            removed = np.einsum("hvk,hk->hv", S, -kk[t])
            S = (
                S * w[t][:, None, :]
                + np.einsum("hv,hk->hvk", removed, kk[t] * a[t])
                + np.einsum("hv,hk->hvk", v[t], k[t])
            )
            y[t] = np.einsum("hvk,hk->hv", S, r[t])
        ones, zeros = np.ones(size), np.zeros(size)
        y = layer_norm(y, ones, zeros, self.gn_eps).reshape(tokens, -1)
        y = y * p("ln_x.weight") + p("ln_x.bias")
        bonus = (r * k * p("r_k")).sum(axis=-1, keepdims=True) * v
        return project("output", (y + bonus.reshape(tokens, -1)) * g), v_first, S

    def _channel_mix(self, layer: int, xx: Array, prev: Array) -> Array:
        x = xx + (prev - xx) * self.weights[f"blocks.{layer}.ffn.x_k"]
        k = np.maximum(self._mul(f"blocks.{layer}.ffn.key.weight", x), 0) ** 2
        return self._mul(f"blocks.{layer}.ffn.value.weight", k)

    def _norm(self, x: Array, name: str) -> Array:
        return layer_norm(
            x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.ln_eps
        )

    def _mul(self, name: str, x: Array) -> Array:
        return self.linear(x, self.weights[name])
