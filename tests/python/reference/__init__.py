# SPDX-License-Identifier: Apache-2.0
"""RWKV in double precision numpy, written from the equations of each version: the oracle.

Slow and blunt on purpose. Names are the papers'; weights are a dict of arrays under the names and
in the shapes of the published checkpoints. Everything for T tokens is one array [T, D]; only the
recurrences walk over the tokens.
"""

from __future__ import annotations

from typing import Any

from .common import Array, Linear, Reference, State, Weights, comparable, multiply
from .rwkv4 import Reference4
from .rwkv5 import Reference5
from .rwkv6 import Reference6
from .rwkv7 import Reference7

__all__ = ["Array", "Linear", "Reference", "State", "Weights", "comparable", "multiply", "oracle"]


def oracle(weights: Weights, **options: Any) -> Reference:
    """The oracle of the version that the weights belong to; options as of `Reference`."""
    return version_of(weights)(weights, **options)


def version_of(weights: Weights) -> type[Reference]:
    if "blocks.0.att.r_k" in weights:
        return Reference7
    if "blocks.0.att.time_maa_x" in weights:
        return Reference6
    return Reference5 if "blocks.0.att.ln_x.weight" in weights else Reference4
