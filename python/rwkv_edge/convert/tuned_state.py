# SPDX-License-Identifier: Apache-2.0
"""Tuned states: where a training (RWKV-PEFT's "state tuning") put the beginning of every text.

A file has `blocks.N.att.time_state` [n_head, value, key] for every layer. In a .pth it lies so; the
.st files of web-rwkv and Ai00 have the last two axes exchanged, as all that their converter writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from .._core import FormatError, ModelFile, dequantize
from ..files.form import ARCH_KEY, TUNED, Form, form_of, shown
from ..files.source import F32, Checkpoint, MadeTensor, Tensor
from .adapter import read_tensors

NAME = re.compile(r"blocks\.(\d{1,6})\.att\.time_state")


def read_tuned_state(path: Path) -> F32:
    """The values of a tuned state, as trained or as saved: float32 [n_layer, n_head, value, key].

    Raises FormatError for a file that is damaged or something else, UnsupportedError for tensors
    of a type that is not read, OSError where it cannot be read.
    """
    form = form_of(path)
    if form is Form.GGUF:
        return _saved(ModelFile(path))
    values = _stacked(path, read_tensors(path, "a tuned state, or one that was saved"))
    return values if form is Form.PTH else values.swapaxes(2, 3).copy()


def _saved(file: ModelFile) -> F32:
    arch = file.get(ARCH_KEY)
    if arch != TUNED:
        found = "a GGUF file that is no state" if arch is None else f"a state of {shown(arch)}"
        use = "" if arch is None else " (`chat` and `generate` begin with any)"
        raise FormatError(f"{file.path}: {found}, expected a tuned state{use}")
    names, first = [tensor.name for tensor in file.tensors], file.tensors[:1]
    shape = first[0].shape if first else ()
    square = len(shape) == 4 and shape[2] == shape[3] and first[0].type in ("f32", "f16")
    if names != [TUNED] or not square:
        raise FormatError(
            f"{file.path}: a tuned state of {shown(names)} {list(shape)}, "
            f"expected one tensor {TUNED}, f32 or f16 [layers, heads, size, size]"
        )
    return _finite(file.path, dequantize(first[0].data, first[0].type).reshape(shape))


def _stacked(path: Path, tensors: Mapping[str, Tensor]) -> F32:
    layers: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise FormatError(
                f"{path}: no state; it holds {name}, expected blocks.N.att.time_state"
            )
        layers[int(match[1])] = tensor
    missing = next((i for i in range(len(layers)) if i not in layers), None)
    if missing is not None:
        raise FormatError(f"{path}: no blocks.{missing}.att.time_state of {len(layers)} layers")
    shape = layers[0].shape
    for i, tensor in layers.items():
        square = len(tensor.shape) == 3 and tensor.shape[1] == tensor.shape[2]
        if not square or tensor.shape != shape or 0 in shape:
            raise FormatError(
                f"{path}: blocks.{i}.att.time_state is {list(tensor.shape)}, "
                f"expected {list(shape) if i else '[heads, size, size]'}"
            )
    return _finite(path, np.stack([layers[i].float32() for i in range(len(layers))]))


def _finite(path: str | Path, values: F32) -> F32:
    if not np.isfinite(values).all():
        raise FormatError(f"{path}: the state holds NaN or infinity")
    return values


def merge_state(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint of a model with a tuned state as its beginning, whatever it had before.

    Raises FormatError where the state is of another model, and what `read_tuned_state` raises.
    """
    values = read_tuned_state(path)
    layers = len({name.split(".")[1] for name in checkpoint.tensors if name.startswith("blocks.")})
    embedding = checkpoint.tensors.get("emb.weight")
    width = embedding.shape[-1] if embedding is not None else 0
    recurrent = "blocks.0.att.ln_x.weight" in checkpoint.tensors  # from RWKV-5 on
    if not recurrent or values.shape[0] != layers or values.shape[1] * values.shape[2] != width:
        raise FormatError(
            f"{path}: a tuned state of {len(values)} layers with {values.shape[1]} heads of "
            f"{values.shape[2]} does not fit {checkpoint.path}: "
            + (f"{layers} layers of width {width}" if recurrent else "not RWKV-5, 6 or 7")
        )

    def layer(i: int) -> Tensor:
        name = f"blocks.{i}.att.time_state"
        return MadeTensor(name, "f32", values.shape[1:], lambda a, b: values[i, a:b].copy())

    merged = {tensor.name: tensor for tensor in map(layer, range(layers))}
    return replace(checkpoint, tensors={**checkpoint.tensors, **merged})
