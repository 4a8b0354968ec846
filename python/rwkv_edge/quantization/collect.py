# SPDX-License-Identifier: Apache-2.0
"""What the matrices of a model multiply on a text: how large each input is, and how the inputs of
a matrix go together.

A quantized matrix is wrong by tr(dW H dW^T) on a text, where H = sum of x x^T over its inputs x.
The diagonal of H is llama.cpp's "importance matrix".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._core import add_outer_products
from ..convert.policy import is_quantizable
from ..files.form import BY_INPUT
from ..model import Model
from ..model_file import TABLES
from .text import Windows

MOST_BYTES = 1 << 27  # of inputs at once
PANEL = 1024  # columns of H that are turned at once

F32 = NDArray[np.float32]
Progress = Callable[[int, int], object]  # tokens read, and in all


@dataclass
class Inputs:
    """Of one matrix, summed over the tokens read."""

    squares: NDArray[np.float64]
    """[columns]: of x^2."""
    products: F32 | None
    """[columns, columns]: of x x^T. Only what lies right of the diagonal is filled in before
    `hessian` is called."""
    tokens: int = 0

    def add(self, x: F32, threads: int) -> None:
        """Add the rows of x, [T, columns]."""
        self.squares += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        self.tokens += len(x)
        if self.products is None:
            return
        add_outer_products(self.products, x, threads)

    def scale(self, t: F32) -> None:
        """Make these the sums of t o x."""
        self.squares *= t.astype(np.float64) ** 2
        if self.products is not None:
            self.products *= t
            self.products *= t[:, None]

    def importance(self) -> F32:
        """The mean of x^2: [columns]."""
        return (self.squares / max(self.tokens, 1)).astype(np.float32)

    def hessian(self) -> F32:
        """The mean of x x^T, [columns, columns], in the memory of `products`."""
        assert self.products is not None
        for start in range(0, len(self.products), PANEL):
            end = min(start + PANEL, len(self.products))
            self.products[end:, start:end] = self.products[start:end, end:].T
            square = self.products[start:end, start:end]
            square[:] = np.triu(square) + np.triu(square, 1).T
        self.products *= np.float32(1 / max(self.tokens, 1))
        return self.products


def matrices_of(model: Model) -> dict[str, tuple[int, ...]]:
    """The matrices that quantization can know the inputs of, and their shapes: all but tables, and
    those that lie transposed."""
    return {
        tensor.name: tensor.shape
        for tensor in model._file.tensors
        if is_quantizable(tensor.name, tensor.shape)
        and not tensor.name.endswith((*TABLES, BY_INPUT))
    }


def groups_of(shapes: Mapping[str, tuple[int, ...]], memory: int) -> list[list[str]]:
    """Matrices whose H fit into so many bytes together, in the order of the file.

    Raises ValueError where the largest does not fit.
    """
    groups: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        need = 4 * shape[-1] ** 2
        if need > memory:
            raise ValueError(f"tensor {name} needs {need} bytes of memory, found {memory}")
        if need > room or not groups:
            groups.append([])
            room = memory
        groups[-1].append(name)
        room -= need
    return groups


def collect(
    model: Model,
    windows: Windows,
    names: Sequence[str],
    *,
    hessians: bool = False,
    progress: Progress | None = None,
) -> dict[str, Inputs]:
    """Read each window from the zero state and sum up the inputs of these matrices.

    Raises ValueError for an input that is not a finite number, which names the matrix.
    """
    shapes = matrices_of(model)
    found = {}
    for name in names:
        n = shapes[name][-1]
        products = np.zeros((n, n), np.float32) if hessians else None
        found[name] = Inputs(np.zeros(n), products)
    step = max(1, MOST_BYTES // (4 * sum(shapes[name][-1] for name in names)))
    if "output.weight" in names:
        step = min(step, 64)  # its logits are computed too
    for number, window in enumerate(windows):
        session = model.session()
        for start, ids in pieces(window.tolist(), step):
            for name, x in session.inputs(ids, names).items():
                found[name].add(x, model.threads)
            if progress is not None:
                progress(number * len(window) + start + len(ids), windows.size)
    for name in sorted(found, key=lambda name: not name.startswith("blk.")):  # the head is last
        if not np.isfinite(found[name].squares).all():
            raise ValueError(f"{model.path}: tensor {name} multiplies NaN or infinity on this text")
    return found


def pieces(ids: list[int], step: int) -> Iterator[tuple[int, list[int]]]:
    for start in range(0, len(ids), step):
        yield start, ids[start : start + step]
