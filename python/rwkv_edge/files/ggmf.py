# SPDX-License-Identifier: Apache-2.0
"""Reader of rwkv.cpp's .bin files ("ggmf"), and the way back from what its converter changes.

Six int32: magic, version, vocabulary, width, layers, type. Then to the end of the file, without
padding, for each tensor: three int32 (dimensions, bytes of the name, type), its sizes as int32,
columns first, the name, the data.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .._core import FormatError, UnsupportedError, type_block
from .form import GGMF_MAGIC
from .source import (
    Checkpoint,
    MappedFile,
    MappedTensor,
    Tensor,
    by_name,
    rearranged,
    split,
    turned,
)

HEADER = struct.Struct("<4s5i")
TENSOR = struct.Struct("<3i")
TYPES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    7: "q5_0",
    8: "q5_1",
    9: "q8_0",
    11: "q2_k",
    12: "q3_k",
    13: "q4_k",
    14: "q5_k",
    15: "q6_k",
}
OTHER_TYPES = {4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3", 10: "Q8_1", 16: "Q8_K"}
MAX_NAME = 256
MAX_TENSORS = 1 << 16
LERPS = "rwkvag"  # the order inside att.x_rwkvag
LAYER_NAME = re.compile(r"blocks\.(\d{1,6})\.(.+)")


def read_ggmf(path: Path) -> Checkpoint:
    """Open a .bin file of rwkv.cpp, version 100 or 101. The tensors are views of the mapped file,
    under BlinkDL's names and in his orientation.

    Raises FormatError where the file is damaged or its tensors do not fit its header,
    UnsupportedError for other versions and for types that were removed from rwkv.cpp, OSError
    where it cannot be opened.
    """
    file = MappedFile(path)
    if file.read(0, 4) == GGMF_MAGIC[::-1]:
        raise UnsupportedError(f"{path}: a big-endian file of rwkv.cpp")
    if file.size < HEADER.size:
        raise FormatError(f"{path}: {file.size} bytes, a header of rwkv.cpp has {HEADER.size}")
    _, version, vocab, width, layers, _ = HEADER.unpack(file.read(0, HEADER.size))
    if version not in (100, 101):
        raise UnsupportedError(f"{path}: rwkv.cpp file version {version}, expected 100 or 101")
    tensors: dict[str, MappedTensor] = {}
    at = HEADER.size
    while at < file.size:
        tensor, at = _tensor(file, at)
        if tensor.name in tensors:
            raise FormatError(f"{path}: tensor {tensor.name!r} appears twice")
        tensors[tensor.name] = tensor
        if len(tensors) > MAX_TENSORS:
            raise FormatError(f"{path}: more than {MAX_TENSORS} tensors")
        if version == 100 and tensor.dtype not in ("f32", "f16"):
            raise UnsupportedError(
                f"{path}: tensor {tensor.name!r} is {tensor.dtype} of file version 100, whose "
                "blocks had another layout; quantize the FP16 file again"
            )
    _check_sizes(path, tensors, (vocab, width), layers)
    return Checkpoint(path, _canonical(path, tensors))


def _tensor(file: MappedFile, at: int) -> tuple[MappedTensor, int]:
    """The tensor whose header begins at byte `at`, and where it ends."""

    def skip(count: int, what: str) -> None:
        nonlocal at
        if count > file.size - at:
            raise FormatError(
                f"{file.path}: {what} has {count} bytes from byte {at}, but the file ends at byte "
                f"{file.size}; is the download complete?"
            )
        at += count

    def take(count: int, what: str) -> bytes:
        skip(count, what)
        return file.read(at - count, count)

    where = f"{file.path}: the tensor at byte {at}"
    dims, length, type_id = TENSOR.unpack(take(TENSOR.size, "the header of a tensor"))
    if not 1 <= dims <= 3 or not 1 <= length <= MAX_NAME:
        raise FormatError(
            f"{where} has {dims} dimensions and a name of {length} bytes, "
            f"expected 1 to 3 and 1 to {MAX_NAME}"
        )
    shape = struct.unpack(f"<{dims}i", take(4 * dims, "the shape of a tensor"))[::-1]
    try:
        name = take(length, "the name of a tensor").decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{where} has a name that is no UTF-8") from None
    where = f"{file.path}: tensor {name!r}"
    if type_id in OTHER_TYPES:
        raise UnsupportedError(
            f"{where} is {OTHER_TYPES[type_id]}, which rwkv.cpp no longer reads either; "
            "quantize the FP16 file again"
        )
    if type_id not in TYPES:
        raise FormatError(f"{where} has the unknown type {type_id}")
    values, size = type_block(TYPES[type_id])
    if min(shape) < 1 or shape[-1] % values:
        raise FormatError(
            f"{where} has the impossible shape {list(shape)} for blocks of {values} values"
        )
    start = at
    skip(math.prod(shape) // values * size, f"tensor {name!r}")
    data = file.view(TYPES[type_id], start, shape)
    return MappedTensor(name, TYPES[type_id], data, file), at


def _check_sizes(
    path: Path, tensors: Mapping[str, Tensor], embedding: tuple[int, int], layers: int
) -> None:
    if "emb.weight" not in tensors:
        raise FormatError(f"{path}: no tensor 'emb.weight'; is the download complete?")
    if tensors["emb.weight"].shape != embedding:
        raise FormatError(
            f"{path}: tensor 'emb.weight' is {list(tensors['emb.weight'].shape)}, "
            f"the header says {list(embedding)}"
        )
    found = {int(match[1]) for name in tensors if (match := LAYER_NAME.fullmatch(name))}
    if len(found) != layers:
        raise FormatError(
            f"{path}: tensors of {len(found)} layers, the header says {layers}; "
            "is the download complete?"
        )


# ---- back to BlinkDL's names, orientation and values ---------------------------------------------

Change = Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _flat(tensor: Tensor) -> Tensor:
    return rearranged(tensor, lambda values: values.reshape(-1))


def _heads(tensor: Tensor) -> Tensor:
    """[H, 1, 1] -> [H], [H, N, 1] -> [H, N]."""

    def change(values: NDArray[Any]) -> NDArray[Any]:
        while values.ndim > 1 and values.shape[-1] == 1:
            values = values[..., 0]
        return values

    return rearranged(tensor, change)


# What becomes of a tensor of the time mix, by its name there: another name, another order.
VERSION_4: dict[str, tuple[str, Change]] = {"time_decay": ("time_decay_rate", _same)}
VERSION_5: dict[str, tuple[str, Change]] = {
    "time_decay": ("time_decay_factor", _heads),
    "time_faaaa": ("time_faaaa", _heads),
}
VERSION_6: dict[str, tuple[str, Change]] = {
    "time_decay": ("time_decay", _flat),
    "time_faaaa": ("time_faaaa", _heads),
    **{name: (name, turned) for name in ("time_maa_w1", "time_maa_w2")},
    **{name: (name, turned) for name in ("time_decay_w1", "time_decay_w2")},
}
VERSION_7: dict[str, tuple[str, Change]] = {x + i: (x + i, turned) for x in "wavg" for i in "12"}


def _canonical(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    changes = _changes(tensors)

    def renamed() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            block, att, last = name.rpartition(".att.")
            if last == "x_rwkvag" and tensor.shape[0] == len(LERPS):
                for letter, lerp in zip(LERPS, split(tensor), strict=True):
                    yield f"{block}.att.x_{letter}", lerp
            else:
                new, change = changes.get(last, (last, _same)) if att else (last, _same)
                yield f"{block}{att}{new}", change(tensor)

    return by_name(path, renamed())


def _changes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, Change]]:
    """By the keys: the versions that rwkv.cpp itself names are not BlinkDL's ("5.1" is 5.0)."""
    if "blocks.0.att.r_k" in tensors:
        return VERSION_7
    if "blocks.0.att.time_maa_x" in tensors:
        return VERSION_6
    if "blocks.0.att.ln_x.weight" not in tensors:
        return VERSION_4
    decay = tensors.get("blocks.0.att.time_decay")

    def first(tensor: Tensor) -> Tensor:
        """As _heads; [H * N, 1, 1] -> [H, N] like the decay."""
        if decay is None or math.prod(tensor.shape) != math.prod(decay.shape):
            return _heads(tensor)
        return _heads(rearranged(tensor, lambda values: values.reshape(decay.shape)))

    return VERSION_5 | {"time_first": ("time_faaaa", first)}
