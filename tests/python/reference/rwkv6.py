# SPDX-License-Identifier: Apache-2.0
"""RWKV-6 "Finch": the recurrence of version 5, its lerps and decay made from the input."""

from __future__ import annotations

import numpy as np

from .common import Array, State, sigmoid
from .rwkv5 import Reference5


class Reference6(Reference5):
    def heads(self) -> int:
        return len(self.weights["blocks.0.att.time_faaaa"])

    def time_mix(self, layer: int, xx: Array, prev: Array, memory: State) -> Array:
        def p(name: str) -> Array:
            return self.weights[f"blocks.{layer}.att.{name}"]

        def project(name: str, x: Array) -> Array:
            return self.product(f"blocks.{layer}.att.{name}.weight", x)

        sx = prev - xx
        lora = np.tanh((xx + sx * p("time_maa_x")) @ p("time_maa_w1")).reshape(len(xx), 5, -1)
        x_w, x_k, x_v, x_r, x_g = (
            xx + sx * (p(f"time_maa_{j}") + lora[:, n] @ p("time_maa_w2")[n])
            for n, j in enumerate("wkvrg")
        )
        decay = p("time_decay") + np.tanh(x_w @ p("time_decay_w1")) @ p("time_decay_w2")
        w = np.exp(-np.exp(decay)).reshape(len(xx), *p("time_faaaa").shape)
        r, k, v = project("receptance", x_r), project("key", x_k), project("value", x_v)
        g = project("gate", x_g)
        y = self.recurrence(r, k, v, w, p("time_faaaa"), memory["wkv"])
        y = self.norm_of_heads(y, f"blocks.{layer}.att.ln_x") * g * sigmoid(g)
        return project("output", y)

    def channel_lerp(self, ffn: str, name: str) -> Array:
        return 1 - self.weights[f"{ffn}time_maa_{name}"]
