# SPDX-License-Identifier: Apache-2.0
"""Opening any checkpoint in place: a GGUF header in memory, the weights where they lie."""

from __future__ import annotations

from collections import Counter
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._core import ModelFile
from .convert import plan_model, plan_types, vocabulary_of
from .gguf_writer import TensorPlan, header
from .names import Output
from .open import open_checkpoint
from .quantize import CHUNK_VALUES, FLOAT_TYPES, Types, encode, is_gguf


def open_model_file(
    path: str | PathLike[str], *, vocab: str | PathLike[str] | None = None
) -> ModelFile:
    """Open a GGUF file, or any checkpoint that `convert` takes as if it had been converted.

    The matrices of a checkpoint are used in place, in the file's own precision; vectors, and what
    lies turned or in pieces, are put together in memory. `vocab` is the vocabulary of a checkpoint;
    without it one is looked for beside the model, and where none fits, the file has none.

    Raises what `convert` raises, and ValueError for a vocabulary beside a GGUF file, which has one.
    """
    path = Path(path)
    if is_gguf(path):
        if vocab is not None:
            raise ValueError(f"{path}: a GGUF file has its vocabulary inside, so {vocab} is unused")
        return ModelFile(str(path))
    checkpoint = open_checkpoint(path)
    metadata, outputs = plan_model(checkpoint)
    plans = plan_types(path, outputs, Types.choose(None, None, None))
    metadata |= vocabulary_of(checkpoint, vocab, outputs[0].shape[0])
    arrays = [_bytes(path, o, plan) for o, plan in zip(outputs, plans, strict=True)]
    return ModelFile.assemble(str(path), header(metadata, plans), arrays)


def hint(file: ModelFile) -> str | None:
    """What would make a file that was opened in place faster; None where nothing would."""
    if any(tensor.offset >= 0 for tensor in file.tensors):
        return None
    sizes: Counter[str] = Counter()
    for tensor in file.tensors:
        sizes[tensor.type] += tensor.nbytes
    kind = sizes.most_common(1)[0][0]
    if kind not in FLOAT_TYPES:
        return None
    return (
        f"the weights of {Path(file.path).name} are used as they lie there, in {kind}; "
        f"`rwkv-edge convert {file.path} OUT.gguf --type q4_0` makes it smaller and faster"
    )


def _bytes(path: Path, output: Output, plan: TensorPlan) -> NDArray[np.uint8]:
    raw = output.tensor.raw()
    if raw is not None and plan.type == output.tensor.dtype:
        return raw
    whole = np.empty(plan.nbytes, np.uint8)
    start = 0
    for values in output.chunks(CHUNK_VALUES):
        piece = encode(values, plan.type, f"{path}: tensor {plan.name}").reshape(-1)
        whole[start : start + piece.size] = piece
        start += piece.size
    return whole
