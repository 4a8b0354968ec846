# SPDX-License-Identifier: Apache-2.0
"""What the matrices of a model multiply on a text: how large each input is, and how the inputs of
a matrix go together.

A quantized matrix is wrong by tr(dW H dW^T) on a text, where H = sum of x x^T over its inputs x.
The diagonal of H is llama.cpp's "importance matrix".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import add_outer_products
from ..convert.policy import is_quantizable
from ..files.form import BY_INPUT
from ..files.output import OutputFile
from ..model import Model, inputs_by_name
from ..model_file import TABLES
from .text import Windows

MOST_BYTES = 1 << 27  # of inputs at once
PANEL = 1024  # columns of H that are turned at once
CARRY = "carry"

F32 = NDArray[np.float32]
Progress = Callable[[int, int], object]  # tokens read, and in all


@dataclass
class Inputs:
    """Of one matrix, summed over the tokens read."""

    squares: NDArray[np.float64]
    """[columns]: of x^2; the diagonal of `products` where these are summed."""
    products: F32 | None
    """[columns, columns]: of x x^T. Only what lies right of the diagonal is filled in before
    `hessian` is called."""
    tokens: int = 0

    def add(self, x: F32, threads: int) -> None:
        """Add the rows of x, [T, columns]."""
        self.tokens += len(x)
        if self.products is None:
            self.squares += np.einsum("ij,ij->j", x, x, dtype=np.float64)
            return
        add_outer_products(self.products, x, threads)
        self.squares[:] = self.products.diagonal()

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


class Section:
    """Context manager: the layers of a model from `begin` to before `end`, on a text. With n_layer
    as the end the head is among them.

    Files in `folder` hold what lies between layers, for all tokens: `residual.N` [tokens, n_embd]
    what layer N reads, `carry` [tokens, carry_width] what layer 0 leaves to all others; float32.
    A section that begins later reads them, and one that is `kept` writes those that `end` needs.
    """

    def __init__(self, model: Model, folder: Path, begin: int, end: int, *, kept: bool) -> None:
        self.model, self.begin, self.end = model, begin, end
        paths = folder / CARRY, residual(folder, begin)
        self._sources = paths if begin > 0 else ()
        # The residual comes last: where it is, the carry is.
        targets = residual(folder, end), folder / CARRY
        self._targets = () if not kept else targets[:1] if begin > 0 else targets

    def __enter__(self) -> Section:
        with ExitStack() as files:
            self._read: list[BufferedReader] = [
                files.enter_context(path.open("rb")) for path in self._sources
            ]
            self._written = [files.enter_context(OutputFile(path)) for path in self._targets]
            self._files = files.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def read(self, tokens: int) -> tuple[F32, F32]:
        """The residual and the carry of the next tokens."""
        widths = self.model.n_embd, self.model._core.carry_width
        residual, carry = (np.zeros((tokens, width), np.float32) for width in widths)
        for file, values in zip(self._read, (carry, residual), strict=False):
            if file.readinto(values.reshape(-1).view(np.uint8).data) != values.nbytes:
                raise ValueError(f"{file.name}: it ends early")
        return residual, carry

    def write(self, residual: F32, carry: F32) -> None:
        for file, values in zip(self._written, (residual, carry), strict=False):
            file.write(values.reshape(-1).view(np.uint8).data)


def residual(folder: Path, layer: int) -> Path:
    return folder / f"residual.{layer}"


def collect(
    model: Model,
    windows: Windows,
    names: Sequence[str],
    *,
    hessians: bool = False,
    section: Section | None = None,
    progress: Progress | None = None,
) -> dict[str, Inputs]:
    """Read each window from the zero state and sum up the inputs of these matrices.

    A `section` runs only its layers, which must have these matrices.

    Raises ValueError for an input that is not a finite number, which names the matrix.
    """
    shapes = matrices_of(model)
    found = {}
    for name in names:
        n = shapes[name][-1]
        products = np.zeros((n, n), np.float32) if hessians else None
        found[name] = Inputs(np.zeros(n), products)
    step = max(1, MOST_BYTES // (4 * sum(shapes[name][-1] for name in names) + 4))
    if "output.weight" in names:
        step = min(step, 64)  # there is room for its logits
    for number, window in enumerate(windows):
        session = model.session()
        between = None if section is None else section.read(len(window))
        for start, ids in pieces(window.tolist(), step):
            if section is None or between is None:
                inputs = session.inputs(ids, names)
            else:
                rows = (values[start : start + len(ids)] for values in between)
                raw = session._writable.section_inputs(
                    ids, list(names), section.begin, section.end, *rows
                )
                inputs = inputs_by_name(model, raw, names, len(ids))
            for name, x in inputs.items():
                found[name].add(x, model.threads)
            if progress is not None:
                progress(number * len(window) + start + len(ids), windows.size)
        if section is not None and between is not None:
            section.write(*between)
    for name in sorted(found, key=lambda name: not name.startswith("blk.")):  # the head is last
        if not np.isfinite(found[name].squares).all():
            raise ValueError(f"{model.path}: tensor {name} multiplies NaN or infinity on this text")
    return found


def pieces(ids: list[int], step: int) -> Iterator[tuple[int, list[int]]]:
    for start in range(0, len(ids), step):
        yield start, ids[start : start + step]
