# SPDX-License-Identifier: Apache-2.0
"""Every format of checkpoints, opened as one: the tensors that BlinkDL's .pth would have."""

from __future__ import annotations

from pathlib import Path

from .._core import FormatError
from ..files.form import Form, form_of
from ..files.ggmf import read_ggmf
from ..files.pth import read_pth
from ..files.safetensors import read_safetensors
from ..files.source import Checkpoint
from . import huggingface, webrwkv
from .names import canonical


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint by its content: .pth, .safetensors, .st, rwkv.cpp's .bin, or a folder or
    an index of the Hugging Face hub. No values are read yet.

    Tensors, orientation and values are those that `Checkpoint` documents, whatever the format.
    Raises FormatError for a damaged or unknown file and for parts that do not fit together,
    UnsupportedError for what is recognised and cannot be read, OSError where it cannot be opened.
    """
    file = huggingface.model_file(path)
    form = form_of(file)
    if form is Form.GGMF:
        return read_ggmf(file)
    index = form in (Form.HUB, Form.TOKENIZER)  # any JSON; what it lacks is said
    read = huggingface.read_index(file, _read) if index else _read(file)
    tensors = canonical(read.tensors)
    named = huggingface.original_names(file, tensors)
    if path.is_dir() or index or named.keys() != tensors.keys():
        config = file.with_name(huggingface.CONFIG)
        tensors = huggingface.checked(config, named) if config.is_file() else named
    else:
        tensors = webrwkv.original(file, tensors, safetensors=form is Form.SAFETENSORS)
    return Checkpoint(path, tensors, read.metadata)


def checkpoint_size(path: Path) -> int:
    """Bytes of the files that a checkpoint consists of; `path` is what `open_checkpoint` takes."""
    file = huggingface.model_file(path)
    index = form_of(file) in (Form.HUB, Form.TOKENIZER)
    files = map(file.with_name, huggingface.shards(file)) if index else [file]
    return sum(part.stat().st_size for part in files)


def _read(path: Path) -> Checkpoint:
    form = form_of(path)
    if form is Form.PTH:
        return read_pth(path)
    if form is Form.SAFETENSORS:
        return read_safetensors(path)
    if form is Form.EMPTY:
        raise FormatError(f"{path}: the file is empty")
    if form is Form.GGUF:
        raise FormatError(f"{path}: a GGUF file already; `quantize` changes its types")
    if form in (Form.HUB, Form.TOKENIZER, Form.GGMF):
        raise FormatError(f"{path}: expected a .pth or .safetensors file")
    raise FormatError(
        f"{path}: neither a GGUF, a .pth (torch 1.6 or newer), a .safetensors nor an rwkv.cpp file"
    )
