# SPDX-License-Identifier: Apache-2.0
"""How far the engine may lie from the double-precision oracle, and how that is measured."""

from __future__ import annotations

import ggml_types as ggml
import numpy as np
from numpy.typing import NDArray
from reference import Array, multiply

# A share of the logits' spread, from the second token on. Single precision accumulates some
# 2^-24 * sqrt(steps) ~ 4e-6 here; a layer norm with eps 1e-6 for 1e-5 is already 1e-3 away.
F32_BOUND = 5e-5


def rounding(x: Array, W: Array) -> Array:
    """As the engine multiplies by block types: with the inputs rounded to 8 bits."""
    return multiply(ggml.round_activations(x), W)


def worst(difference: Array) -> Array:
    """The largest deviation of each token's logits: [T]."""
    largest: Array = np.abs(difference).max(axis=-1)
    return largest


def rms(difference: Array) -> float:
    return float(np.sqrt((difference**2).mean()))


def wrong_by(found: NDArray[np.float32], right: Array) -> float:
    """From the second token on, as a share of the logits' spread."""
    return float(worst(found - right)[1:].max() / right.std())
