# SPDX-License-Identifier: Apache-2.0
"""The .st files of web-rwkv and Ai00: what their converter makes of BlinkDL's tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from reference import Weights

# What the converter of Ai00 does, by parts of names: first it renames, then it turns.
RENAMES = {"time_faaaa": "time_first", "time_maa": "time_mix"}
TURNED = ("w1", "w2", "a1", "a2", "g1", "g2", "v1", "v2", "time_state")


def as_st(weights: Weights) -> Weights:
    found: Weights = {}
    for name, value in weights.items():
        for old, new in RENAMES.items():
            name = name.replace(old, new)  # noqa: PLW2901
        turned = any(part in name for part in TURNED)
        found[name.lower()] = value.swapaxes(-1, -2) if turned else value
    return found


def save(folder: Path, weights: Weights) -> Path:
    path = folder / "model.st"
    whole = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    from safetensors.numpy import save_file  # optional

    save_file(whole, path, metadata={"format": "pt"})
    return path
