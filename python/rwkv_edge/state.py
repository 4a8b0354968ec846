# SPDX-License-Identifier: Apache-2.0
"""The recurrent state: all that a session remembers, as one array of fixed size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import _core
from .convert.gguf_writer import GGUFWriter, TensorPlan, string, uint32

KEY = "rwkv_edge.state"
TENSOR = "state"


@dataclass(frozen=True)
class StateShape:
    """What a state and a model must agree on."""

    arch: str
    n_layer: int
    n_embd: int
    head_size: int

    @property
    def layer_size(self) -> int:
        """Values per layer: two token shifts, and a head_size square per head."""
        return self.n_embd * (2 + self.head_size)

    def __str__(self) -> str:
        return (
            f"{self.arch} with {self.n_layer} layers, width {self.n_embd}, "
            f"heads of {self.head_size}"
        )


@dataclass(frozen=True, eq=False)
class State:
    """A copy of a session's memory; any session of a model of that shape can go on from it.

    `data` is float32 [n_layer * n_embd * (2 + head_size)], `source` names where it came from.
    """

    data: NDArray[np.float32]
    shape: StateShape
    source: str = "this state"

    def __post_init__(self) -> None:
        expected = (self.shape.n_layer * self.shape.layer_size,)
        if self.data.dtype != np.float32 or self.data.shape != expected:
            raise ValueError(
                f"a state of {self.shape} is float32 {list(expected)}, "
                f"found {self.data.dtype} {list(self.data.shape)}"
            )

    def numpy(self) -> dict[str, NDArray[np.float32]]:
        """Views of `data`, which write through to it:

        att_shift [n_layer, n_embd]: the last token's input of the time mix, after its norm;
        wkv [n_layer, n_head, head_size, head_size]: rows are values, columns keys;
        ffn_shift [n_layer, n_embd]: the last token's input of the channel mix, after its norm.
        """
        layers, width, size = self.shape.n_layer, self.shape.n_embd, self.shape.head_size
        rows = self.data.reshape(layers, self.shape.layer_size)
        return {
            "att_shift": rows[:, :width],
            "wkv": rows[:, width:-width].reshape(layers, width // size, size, size),
            "ffn_shift": rows[:, -width:],
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state as a GGUF file. Raises OSError where that cannot be done."""
        metadata = {
            f"{KEY}.arch": string(self.shape.arch),
            f"{KEY}.n_layer": uint32(self.shape.n_layer),
            f"{KEY}.n_embd": uint32(self.shape.n_embd),
            f"{KEY}.head_size": uint32(self.shape.head_size),
        }
        plan = TensorPlan(TENSOR, self.data.shape, "f32")
        with GGUFWriter(Path(path), metadata, [plan]) as writer:
            writer.tensor(TENSOR, [self.data.astype("<f4").tobytes()])

    @classmethod
    def load(cls, path: str | PathLike[str]) -> State:
        """Read what `save` wrote.

        Raises FormatError for a file that is damaged or no state, OSError where it cannot be read.
        """
        file = _core.ModelFile(fspath(path))
        arch = file.get(f"{KEY}.arch")
        if not isinstance(arch, str):
            raise _core.FormatError(f"{path}: not a saved state (key {KEY}.arch is missing)")
        shape = StateShape(
            arch, *(_size(file, name) for name in ("n_layer", "n_embd", "head_size"))
        )
        if shape.n_embd % shape.head_size:
            raise _core.FormatError(
                f"{path}: {KEY}.n_embd is {shape.n_embd}, "
                f"expected a multiple of {KEY}.head_size {shape.head_size}"
            )
        size = shape.n_layer * shape.layer_size
        tensor = next((t for t in file.tensors if t.name == TENSOR), None)
        if tensor is None or tensor.type != "f32" or math.prod(tensor.shape) != size:
            found = "none" if tensor is None else f"{tensor.type} {list(tensor.shape)}"
            raise _core.FormatError(
                f"{path}: tensor {TENSOR}: found {found}, expected f32 [{size}] for {shape}"
            )
        return cls(tensor.data.view("<f4").astype(np.float32), shape, str(path))

    def check_fits(self, shape: StateShape, model: str) -> None:
        """Raises FormatError unless a model of that shape can go on from this state."""
        if self.shape != shape:
            raise _core.FormatError(
                f"{self.source}: a state of {self.shape} does not fit {model}: {shape}"
            )


def _size(file: _core.ModelFile, name: str) -> int:
    value = file.get(f"{KEY}.{name}")
    if not isinstance(value, int) or value <= 0:
        raise _core.FormatError(
            f"{file.path}: {KEY}.{name}: found {value!r}, expected a positive whole number"
        )
    return value
