# SPDX-License-Identifier: Apache-2.0
"""Reader of .safetensors files.

Eight bytes with the length of a JSON header, the header, then the tensors' bytes, row-major:
    {"__metadata__": {str: str}, name: {"dtype": "BF16", "shape": [...], "data_offsets": [a, b]}}
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from .._core import FormatError, UnsupportedError
from .form import read_bytes, shown
from .source import Checkpoint, MappedFile, MappedTensor, check_names, check_shape

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write half of a character
DTYPES = {"F32": ("f32", 4), "F16": ("f16", 2), "BF16": ("bf16", 2)}
MAX_JSON = 1 << 24  # bytes; the header of a model of 14 billion weights has 200,000


def read_safetensors(path: Path) -> Checkpoint:
    """Open a .safetensors file. No value is read yet; the tensors are views of the mapped file.

    Raises FormatError where the file is damaged, UnsupportedError for tensors that are not
    float32, float16 or bfloat16, OSError where it cannot be opened.
    """
    file = MappedFile(path)
    length = int.from_bytes(file.read(0, 8), "little")
    if file.size < 8 or not 2 <= length <= min(MAX_JSON, file.size - 8):
        raise FormatError(
            f"{path}: a safetensors header of {length} bytes in a file of {file.size}, "
            f"expected at most {MAX_JSON}; is the download complete?"
        )
    header = json_object(f"{path}: the safetensors header", file.read(8, length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, metadata.values())):
        raise FormatError(f"{path}: __metadata__ is not a JSON object of strings")
    if not header:
        raise FormatError(f"{path}: holds no tensors")
    check_names(path, header)
    ranges = {name: _range(f"{path}: tensor {name!r}", info) for name, info in header.items()}
    _check_coverage(path, ranges, file.size - 8 - length)
    tensors = {}
    for name, info in header.items():
        dtype, _ = DTYPES[info["dtype"]]
        data = file.view(dtype, 8 + length + ranges[name][0], tuple(info["shape"]))
        tensors[name] = MappedTensor(name, dtype, data, file)
    return Checkpoint(path, tensors, metadata)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; FormatError for anything else, OSError where it is not read."""
    return json_object(f"{path}: the file", read_bytes(path, MAX_JSON, "JSON of ours"))


def json_object(where: str, text: bytes) -> dict[str, Any]:
    """The JSON object in `text`; FormatError, beginning with `where`, for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{shown(name)} appears twice")
            found[name] = value
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is no proper JSON ({error})") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where} is no JSON object")
    return value


def _range(where: str, info: Any) -> tuple[int, int]:
    """First byte and end of a tensor, counted from the end of the header."""
    if not isinstance(info, dict) or {"dtype", "shape", "data_offsets"} - info.keys():
        raise FormatError(f"{where}: expected dtype, shape and data_offsets")
    shape, offsets = info["shape"], info["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise FormatError(
            f"{where}: impossible shape {shown(shape)} or data_offsets {shown(offsets)}"
        )
    check_shape(where, tuple(shape))
    if not isinstance(info["dtype"], str) or info["dtype"] not in DTYPES:
        raise UnsupportedError(f"{where} is {shown(info['dtype'])}, expected F32, F16 or BF16")
    expected = math.prod(shape) * DTYPES[info["dtype"]][1]
    if offsets[1] - offsets[0] != expected:
        raise FormatError(
            f"{where}: data_offsets {shown(offsets)} hold {shown(offsets[1] - offsets[0])} bytes, "
            f"expected {expected} for {info['dtype']} {shape}"
        )
    return offsets[0], offsets[1]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not SURROGATE.search(value)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_coverage(path: Path, ranges: dict[str, tuple[int, int]], size: int) -> None:
    """The tensors must fill the data without holes and without overlaps."""
    end = 0
    for name, (first, last) in sorted(ranges.items(), key=lambda item: item[1]):
        if first != end:
            raise FormatError(
                f"{path}: tensor {name!r} begins at byte {shown(first)}, expected {shown(end)}"
            )
        end = last
    if end != size:
        raise FormatError(
            f"{path}: the tensors end at byte {shown(end)} of {size}; is the download complete?"
        )
