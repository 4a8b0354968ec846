# SPDX-License-Identifier: Apache-2.0
"""RWKV-4 "Dove", with numerator and denominator of its average scaled by exp(-pp)."""

from __future__ import annotations

import numpy as np

from .common import Array, GatedChannelMix, State, sigmoid, with_shift


class Reference4(GatedChannelMix):
    def start_of_recurrence(self) -> State:
        zeros = np.zeros((self.layers, self.width))
        return {"aa": zeros, "bb": zeros, "pp": zeros - 1e30}

    def time_mix(self, layer: int, xx: Array, prev: Array, memory: State) -> Array:
        att = f"blocks.{layer}.att."
        x_k, x_v, x_r = (with_shift(xx, prev, self.weights[f"{att}time_mix_{j}"]) for j in "kvr")
        r = sigmoid(self.product(f"{att}receptance.weight", x_r))
        k, v = self.product(f"{att}key.weight", x_k), self.product(f"{att}value.weight", x_v)
        u, w = self.weights[f"{att}time_first"], -np.exp(self.weights[f"{att}time_decay"])

        aa, bb, pp = memory["aa"].copy(), memory["bb"].copy(), memory["pp"].copy()
        y = np.empty_like(v)
        for t in range(len(xx)):
            q = np.maximum(pp, u + k[t])
            past, now = np.exp(pp - q), np.exp(u + k[t] - q)
            y[t] = (past * aa + now * v[t]) / (past * bb + now)
            q = np.maximum(pp + w, k[t])
            past, now = np.exp(pp + w - q), np.exp(k[t] - q)
            aa, bb, pp = past * aa + now * v[t], past * bb + now, q
        memory["aa"][:], memory["bb"][:], memory["pp"][:] = aa, bb, pp
        return self.product(f"{att}output.weight", r * y)
