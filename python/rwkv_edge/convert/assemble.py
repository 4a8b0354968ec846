# SPDX-License-Identifier: Apache-2.0
"""Opening any checkpoint in place: a GGUF header in memory, the weights where they lie."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._core import ModelFile
from ..files.gguf_writer import TensorPlan, header
from .names import plan_model
from .open import open_checkpoint
from .plan import Output
from .policy import Types, pieces, plan_types
from .vocab import find_vocabulary


def assemble(path: Path, vocab: str | PathLike[str] | None) -> ModelFile:
    """Open a checkpoint as `open_model_file` does."""
    checkpoint = open_checkpoint(path)
    metadata, outputs = plan_model(checkpoint)
    plans = plan_types(path, outputs, Types.choose(None, None, None))
    metadata |= find_vocabulary(checkpoint.folder, outputs[0].shape[0], vocab)
    arrays = [_bytes(path, o, plan) for o, plan in zip(outputs, plans, strict=True)]
    return ModelFile.assemble(path, header(metadata, plans), arrays)


def _bytes(path: Path, output: Output, plan: TensorPlan) -> NDArray[np.uint8]:
    raw = output.tensor.raw()
    if raw is not None and plan.type == output.tensor.dtype:
        return raw
    whole = np.empty(plan.nbytes, np.uint8)
    start = 0
    for piece in pieces(path, output, plan.type):
        whole[start : start + len(piece)] = piece
        start += len(piece)
    return whole
