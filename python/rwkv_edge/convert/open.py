# SPDX-License-Identifier: Apache-2.0
"""Every format of checkpoints, opened as one: the tensors that BlinkDL's .pth would have."""

from __future__ import annotations

from pathlib import Path

from .._core import FormatError, UnsupportedError
from . import ggmf, huggingface, webrwkv
from .names import canonical
from .pth import LEGACY_MAGIC, read_pth
from .safetensors import read_safetensors
from .source import Checkpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint by its content: .pth, .safetensors, .st, rwkv.cpp's .bin, or a folder or
    an index of the Hugging Face hub. No values are read yet.

    Tensors, orientation and values are those that `Checkpoint` documents, whatever the format.
    Raises FormatError for a damaged or unknown file and for parts that do not fit together,
    UnsupportedError for what is recognised and cannot be read, OSError where it cannot be opened.
    """
    file = huggingface.model_file(path)
    kind = _kind(file)
    if kind == "ggmf":
        return ggmf.read_ggmf(file)
    read = huggingface.read_index(file, _read) if kind == "index" else _read(file)
    tensors = canonical(read.tensors)
    named = huggingface.original_names(file, tensors)
    if path.is_dir() or kind == "index" or named.keys() != tensors.keys():
        config = file.with_name(huggingface.CONFIG)
        tensors = huggingface.checked(config, named) if config.is_file() else named
    else:
        tensors = webrwkv.original(file, tensors, safetensors=kind == "safetensors")
    return Checkpoint(path, tensors, read.metadata)


def _kind(path: Path) -> str:
    """ "pth", "safetensors", "ggmf" or "index", by what the file begins with."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise FormatError(f"{path}: the file is empty")
    if start.startswith((b"PK\3\4", LEGACY_MAGIC)):
        return "pth"
    if start.startswith(ggmf.MAGIC):
        return "ggmf"
    if start.startswith(b"{") and b"\0" not in start:
        return "index"
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith(b"GGUF"):
        raise FormatError(f"{path}: a GGUF file already; `quantize` changes its types")
    if start.startswith(ggmf.MAGIC[::-1]):
        raise UnsupportedError(f"{path}: a big-endian file of rwkv.cpp")
    raise FormatError(
        f"{path}: neither a GGUF, a .pth (torch 1.6 or newer), a .safetensors nor an rwkv.cpp file"
    )


def _read(path: Path) -> Checkpoint:
    kind = _kind(path)
    if kind not in ("pth", "safetensors"):
        raise FormatError(f"{path}: expected a .pth or .safetensors file")
    return read_pth(path) if kind == "pth" else read_safetensors(path)
