# SPDX-License-Identifier: Apache-2.0
"""Opening a model: a GGUF file as it is, any other checkpoint through `convert`."""

from __future__ import annotations

from collections import Counter
from os import PathLike
from pathlib import Path

from ._core import ModelFile, TensorInfo, available_memory, type_block
from .files.form import amount, is_gguf

# A token needs one row of these at most.
TABLES = ("token_embd.weight", "channel_mix_s_emb.weight", "time_mix_state.weight")


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
    if not is_gguf(path):
        from .convert.assemble import assemble

        return assemble(path, vocab)
    if vocab is not None:
        raise ValueError(f"{path}: a GGUF file has its vocabulary inside, so {vocab} is unused")
    return ModelFile(path)


def weights_per_token(file: ModelFile) -> list[TensorInfo]:
    """What every token reads: all but the tables, of which it needs one row."""
    return [tensor for tensor in file.tensors if not tensor.name.endswith(TABLES)]


def bytes_per_token(file: ModelFile) -> int:
    """Of the weights that every token reads."""
    return sum(tensor.nbytes for tensor in weights_per_token(file))


def bytes_by_type(file: ModelFile) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for tensor in file.tensors:
        sizes[tensor.type] += tensor.nbytes
    return sizes


def hint(file: ModelFile) -> str | None:
    """What would make a file faster on this machine; None where nothing is known to."""
    name, needed, memory = Path(file.path).name, bytes_per_token(file), available_memory()
    if needed > memory:
        return (
            f"{name}: each token reads {amount(needed)} of weights, and there is memory for "
            f"{amount(memory)}, so they come from the disk each time; "
            "a smaller model or type would be much faster"
        )
    if any(tensor.offset >= 0 for tensor in file.tensors):
        return None
    kind = bytes_by_type(file).most_common(1)[0][0]
    if type_block(kind)[0] > 1:
        return None
    return (
        f"the weights of {name} are used as they lie there, in {kind}; "
        f"`rwkv-edge convert {file.path} OUT.gguf --type q4_0` makes it smaller and faster"
    )
