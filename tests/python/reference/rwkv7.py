# SPDX-License-Identifier: Apache-2.0
"""RWKV-7 "Goose", and 7a: with DeepEmbed, a table per layer that scales the channel mix."""

from __future__ import annotations

import numpy as np

from .common import Array, Reference, State, relu2, sigmoid


class Reference7(Reference):
    """A matrix per head, whose rows are value channels and whose columns are key channels."""

    def start_of_recurrence(self) -> State:
        heads, size = self.weights["blocks.0.att.r_k"].shape
        wkv = np.zeros((self.layers, heads, size, size))
        for layer in range(self.layers):
            wkv[layer] += self.weights.get(f"blocks.{layer}.att.time_state", 0)
        return {"wkv": wkv}

    def time_mix(self, layer: int, xx: Array, prev: Array, memory: State) -> Array:
        def p(name: str) -> Array:
            return self.weights[f"blocks.{layer}.att.{name}"]

        def project(name: str, x: Array) -> Array:
            return self.product(f"blocks.{layer}.att.{name}.weight", x)

        tokens, (heads, size) = len(xx), p("r_k").shape
        x_r, x_w, x_k, x_v, x_a, x_g = (xx + (prev - xx) * p(f"x_{j}") for j in "rwkvag")
        r, k, v = project("receptance", x_r), project("key", x_k), project("value", x_v)
        w = np.exp(-np.exp(-0.5) * sigmoid(p("w0") + np.tanh(x_w @ p("w1")) @ p("w2")))
        a = sigmoid(p("a0") + x_a @ p("a1") @ p("a2"))
        g = sigmoid(x_g @ p("g1")) @ p("g2")
        kk = (k * p("k_k")).reshape(tokens, heads, size)
        kk = kk / np.maximum(np.sqrt((kk**2).sum(axis=-1, keepdims=True)), 1e-12)
        k = k * (1 + (a - 1) * p("k_a"))
        if layer == 0:
            self.v_first = v
        else:
            v = v + (self.v_first - v) * sigmoid(p("v0") + x_v @ p("v1") @ p("v2"))

        r, w, k, v, a = (z.reshape(tokens, heads, size) for z in (r, w, k, v, a))
        y, S = np.empty_like(r), memory["wkv"].copy()
        for t in range(tokens):
            removed = np.einsum("hvk,hk->hv", S, -kk[t])
            S = (
                S * w[t][:, None, :]
                + np.einsum("hv,hk->hvk", removed, kk[t] * a[t])
                + np.einsum("hv,hk->hvk", v[t], k[t])
            )
            y[t] = np.einsum("hvk,hk->hv", S, r[t])
        memory["wkv"][:] = S
        y = self.norm_of_heads(y, f"blocks.{layer}.att.ln_x")
        bonus = (r * k * p("r_k")).sum(axis=-1, keepdims=True) * v
        return project("output", (y + bonus.reshape(tokens, -1)) * g)

    def channel_mix(self, layer: int, xx: Array, prev: Array) -> Array:
        ffn = f"blocks.{layer}.ffn."
        k = relu2(self.product(f"{ffn}key.weight", xx + (prev - xx) * self.weights[f"{ffn}x_k"]))
        if f"{ffn}s_emb.weight" in self.weights:
            k = k * self.deep_embed(ffn, xx)
        return self.product(f"{ffn}value.weight", k)

    def deep_embed(self, ffn: str, xx: Array) -> Array:
        table = self.weights[f"{ffn}s_emb.weight"][self.tokens]
        table = table + self.product(f"{ffn}s_emb_x.weight", self.embedding)
        inner = np.einsum("ti,tij->tj", xx @ self.weights[f"{ffn}s1"], table.reshape(-1, 32, 32))
        scale: Array = inner @ self.weights[f"{ffn}s2"] + self.weights[f"{ffn}s0"]
        return scale
