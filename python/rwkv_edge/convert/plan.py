# SPDX-License-Identifier: Apache-2.0
"""The tools with which the file of a version (`rwkv7.py` ...) states its plan: what its tensors are
called and how they lie in a GGUF file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import FormatError
from ..files.source import F32, MadeTensor, Tensor

MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Output:
    """A tensor of the file to be written: the values of `tensor`, in their order, as `shape`."""

    name: str
    shape: tuple[int, ...]
    tensor: Tensor

    def chunks(self, values: int) -> Iterator[F32]:
        """All values as float32 [rows, columns], about `values` of them at a time."""
        count = self.tensor.shape[0]
        step = max(1, values * count // math.prod(self.shape))
        for start in range(0, count, step):
            part = self.tensor.float32(start, min(start + step, count))
            yield part.reshape(-1, self.shape[-1])


class Binder:
    """Takes tensors by name and expected shape, and remembers everything that does not fit."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path = path
        self.outputs: list[Output] = []
        self._tensors = tensors
        self._unused = dict(tensors)
        self._problems: list[str] = []
        self.layers = self._count_layers()

    def _count_layers(self) -> int:
        matches = [re.match(r"blocks\.(\d{1,6})\.", name) for name in self._tensors]
        found = {int(match[1]) for match in matches if match}
        for i in range(len(found)):
            if i not in found:
                raise FormatError(
                    f"{self.path}: no tensor of blocks.{i}, but of blocks.{max(found)}"
                )
        return len(found)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor from which the sizes of the model are read."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise FormatError(f"{self.path}: missing tensor {name}, expected {dims} dimensions")
        shape = without_ones(tensor.shape) if len(tensor.shape) > dims else tensor.shape
        if len(shape) != dims or 0 in shape:
            raise FormatError(
                f"{self.path}: tensor {name} is {list(tensor.shape)}, expected {dims} dimensions"
            )
        return shape

    def first_dimension(self, name: str) -> int:
        """The rows of a tensor of any number of dimensions."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise FormatError(f"{self.path}: missing tensor {name}")
        return tensor.shape[0] if tensor.shape else 0

    def count(self, name: str) -> int:
        """How many values a tensor has; 0 where it is missing."""
        tensor = self._tensors.get(name)
        return 0 if tensor is None else math.prod(tensor.shape)

    def add(
        self,
        target: str,
        source: str,
        shape: tuple[int, ...],
        target_shape: tuple[int, ...] | None = None,
    ) -> None:
        """`target` holds the values of `source` as they are; it may state another shape."""
        tensor = self._take(source, shape)
        if tensor is not None:
            self.outputs.append(Output(target, target_shape or shape, tensor))

    def make(
        self,
        target: str,
        target_shape: tuple[int, ...],
        sources: Mapping[str, tuple[int, ...]],
        function: Callable[..., NDArray[Any]],
    ) -> None:
        """`target` holds what `function` makes of the sources, float32 arrays of these shapes, all
        at once: joined, turned, expanded. It is small."""
        found = [(self._take(name, shape), shape) for name, shape in sources.items()]
        whole = [(tensor, shape) for tensor, shape in found if tensor is not None]
        if len(whole) == len(found):

            def rows(start: int, stop: int | None) -> F32:
                parts = [tensor.float32().reshape(shape) for tensor, shape in whole]
                with np.errstate(over="ignore", invalid="ignore"):  # whoever writes NaN is told so
                    values = np.asarray(function(*parts), np.float32)
                return values.reshape(target_shape)[start:stop]

            made = MadeTensor(target, "f32", target_shape, rows)
            self.outputs.append(Output(target, target_shape, made))

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """A tensor that fits; dimensions of one ([1, 1, D] for [D]) make no difference."""
        self._unused.pop(name, None)
        tensor = self._tensors.get(name)
        if tensor is None:
            self._problems.append(f"missing {name}, expected {list(shape)}")
        elif not tensor.shape or without_ones(tensor.shape) != without_ones(shape):
            self._problems.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
            return None
        return tensor

    def ignore(self, name: str) -> None:
        """A tensor that may be there and is not needed."""
        self._unused.pop(name, None)

    def finish(self) -> list[Output]:
        """Everything taken; FormatError with the list of what was missing, misshapen or unused."""
        problems = self._problems + [
            f"unused {name} {list(tensor.shape)}" for name, tensor in self._unused.items()
        ]
        if problems:
            raise FormatError(f"{self.path}: the tensors do not fit:{listed(problems)}")
        return self.outputs


def listed(problems: list[str]) -> str:
    """A line for each, to stand below what they are problems of; the first MAX_PROBLEMS of many."""
    more = len(problems) - MAX_PROBLEMS
    lines = problems[:MAX_PROBLEMS] + [f"and {more} more"] * (more > 0)
    return "".join(f"\n  {line}" for line in lines)


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
