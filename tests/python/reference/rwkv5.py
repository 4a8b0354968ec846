# SPDX-License-Identifier: Apache-2.0
"""RWKV-5 "Eagle": 5.0 (no gate), 5.1 (a decay per head), 5.2 (a decay per channel)."""

from __future__ import annotations

import numpy as np

from .common import Array, GatedChannelMix, State, sigmoid, with_shift


class Reference5(GatedChannelMix):
    """A matrix per head, whose rows are key channels and whose columns are value channels."""

    def heads(self) -> int:
        return len(self.weights["blocks.0.att.time_decay"])

    def start_of_recurrence(self) -> State:
        heads = self.heads()
        size = self.width // heads
        wkv = np.zeros((self.layers, heads, size, size))
        for layer in range(self.layers):
            tuned = self.weights.get(f"blocks.{layer}.att.time_state")
            if tuned is not None:  # [H, value, key]
                wkv[layer] = tuned.transpose(0, 2, 1)
        return {"wkv": wkv}

    def time_mix(self, layer: int, xx: Array, prev: Array, memory: State) -> Array:
        att = f"blocks.{layer}.att."
        gated = f"{att}gate.weight" in self.weights

        def project(name: str, mix: str) -> Array:
            x = with_shift(xx, prev, self.weights[f"{att}time_mix_{mix}"])
            return self.product(f"{att}{name}.weight", x)

        r, k, v = project("receptance", "r"), project("key", "k"), project("value", "v")
        decay = self.weights[f"{att}time_decay"].reshape(self.heads(), -1)  # [H, 1] or [H, N]
        if f"{att}time_faaaa" in self.weights:
            u = self.weights[f"{att}time_faaaa"]
        else:
            u = np.exp(self.weights[f"{att}time_first"])
        w = np.exp(-np.exp(decay)) + np.zeros((len(xx), self.heads(), self.width // self.heads()))
        y = self.recurrence(r, k, v, w, u.reshape(self.heads(), -1), memory["wkv"])
        y = self.norm_of_heads(y, f"{att}ln_x")
        if gated:
            g = project("gate", "g")
            y = y * g * sigmoid(g)
        return self.product(f"{att}output.weight", y)

    def recurrence(self, r: Array, k: Array, v: Array, w: Array, u: Array, S: Array) -> Array:
        """r, k, v [T, D], w [T, H, N] -> [T, H, N]; S [H, key, value] is changed."""
        r, k, v = (z.reshape(w.shape) for z in (r, k, v))
        y = np.empty_like(r)
        for t in range(len(r)):
            kv = np.einsum("hk,hv->hkv", k[t], v[t])
            y[t] = np.einsum("hk,hkv->hv", r[t], u[:, :, None] * kv + S)
            S[:] = kv + w[t][:, :, None] * S
        return y
