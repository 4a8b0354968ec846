# SPDX-License-Identifier: Apache-2.0
"""Opening a model: a GGUF file as it is, any other checkpoint through `convert`."""

from __future__ import annotations

import os
from collections import Counter
from os import PathLike
from pathlib import Path

from ._core import ModelFile, TensorInfo, available_memory, type_block
from .files.form import BY_INPUT, amount, is_gguf

# A second thread pays where each reads at least so much for a token: with less, waiting for each
# other costs them more than the reading. On two cores that twelve other programs wanted as well,
# a token of the demo took 90 times as long with two threads as with one.
SHARE = 16 << 20
MOST_THREADS = 8  # decoding is bound by memory
LOAD = Path("/proc/loadavg")  # of Linux
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
    """What every token reads: all but the tables, of which it needs one row.

    Of the matrices of `by_input` it reads some rows only.
    """
    return [tensor for tensor in file.tensors if not tensor.name.endswith(TABLES)]


def bytes_per_token(file: ModelFile) -> int:
    """Of the weights that every token reads."""
    return sum(tensor.nbytes for tensor in weights_per_token(file))


def by_input(file: ModelFile) -> list[TensorInfo]:
    """The matrices of which a token reads only the rows of its inputs that are not zero."""
    return [tensor for tensor in file.tensors if tensor.name.endswith(BY_INPUT)]


def stamp(path: Path) -> str:
    """Size and time of a model's file, or of all files in its folder, where it has several."""
    several = path.is_dir() or (path.suffix == ".json" and path.is_file())
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.iterdir()) if several else [path]
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return repr([(name * several, info.st_size, info.st_mtime_ns) for name, info in found])


def bytes_by_type(file: ModelFile) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for tensor in file.tensors:
        sizes[tensor.type] += tensor.nbytes
    return sizes


def default_threads(needed: int) -> int:
    """How many threads run a model of which a token reads `needed` bytes.

    One for each core that this process may use and others leave idle, at most 8, and one for each
    SHARE.
    """
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(usable, cores - busy_cores(), MOST_THREADS, needed // SHARE))


def busy_cores() -> int:
    """What others run: the average of the last minute, and no more than at this moment.

    The average knows what this program ran before, which is over; the moment knows what is over
    the next moment. 0 where the system does not tell.
    """
    try:
        average, _, _, tasks, *_ = LOAD.read_text().split()
        running = int(tasks.split("/")[0]) - 1  # without this one
        return max(0, min(round(float(average)), running))
    except (OSError, ValueError):
        return 0


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
