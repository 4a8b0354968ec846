# SPDX-License-Identifier: Apache-2.0
"""From the names of a checkpoint to the names of a GGUF file.

This file knows what is common to all RWKV versions: prefixes, which version a set of names means,
and `Binder`, with which the file of a version (`rwkv7.py`) states every tensor it takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._core import FormatError, UnsupportedError
from .source import F32, Tensor

# Wrappers of training frameworks that end up in front of every name.
PREFIXES = ("_forward_module.", "module.", "model.")
MAX_PROBLEMS = 20

# The first pattern that occurs in any name decides. What is no version of a checkpoint we can
# convert has a sentence that says what it is instead.
VERSIONS = (
    (r"\.lora_[ABM]$|\.lora\.[AB]$|\.(disha|bone)$", "an adapter, not a model"),
    (r"^(model\.)?layers\.\d+\.(attn|attention)\.", "RWKV in the Hugging Face layout"),
    (r"^rwkv\.(blocks|embeddings)\.", "RWKV in the Hugging Face layout"),
    (r"(gate_w1|time_maa_rkvw_w1)$", "RWKV x060a/b/c, an experiment that was never released"),
    (r"(^|\.)(head_q|tiny_q|pos_emb)", "an RWKV experiment of version 1 to 4b"),
    (r"\.qkv\.qq\.weight$", "RWKV-7b"),
    (r"\.ffn\.s_emb\.weight$", "RWKV-7a (DeepEmbed)"),
    (r"\.ffn\.enn\.weight$", "RWKV-8"),
    (r"\.att\.(r_k|k_k|x_r)$", "7"),
    (r"\.att\.time_(maa|mix_w1)", "RWKV-6"),
    (r"\.att\.ln_x\.weight$", "RWKV-5"),
    (r"\.att\.time_decay$", "RWKV-4"),
    (r"\.att\.time_state$", "an initial state, not a model"),
)


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the prefixes that all of their names share."""
    found = dict(tensors)
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in found)), None):
        if prefix in found or not found:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def detect(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """The RWKV version of a whole set of names, "7"; UnsupportedError for any other."""
    for pattern, version in VERSIONS:
        if any(re.search(pattern, name) for name in tensors):
            if version.isdigit():
                return version
            raise UnsupportedError(
                f"{path}: this is {version}; so far only RWKV-7 models with BlinkDL's names "
                "(blocks.0.att.r_k ...) are converted"
            )
    some = ", ".join(repr(name) for name in list(tensors)[:3])
    raise UnsupportedError(f"{path}: no RWKV model; its {len(tensors)} tensors begin with {some}")


@dataclass(frozen=True)
class Output:
    """A tensor of the file to be written: its values are those of `sources`, one after another."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[Tensor, ...]
    transposed: bool = False

    def chunks(self, values: int) -> Iterator[F32]:
        """All values as float32 [rows, columns], about `values` of them at a time.

        Only matrices that are stored as they are come in pieces; what is transposed, joined or
        reshaped is small.
        """
        rows, columns = self.shape[0], self.shape[-1]
        if len(self.shape) == 2 and self.sources[0].shape == self.shape and not self.transposed:
            step = max(1, values // columns)
            for start in range(0, rows, step):
                yield self.sources[0].float32(start, min(start + step, rows))
            return
        parts = [source.float32() for source in self.sources]
        if self.transposed:
            parts = [part.T for part in parts]
        yield np.concatenate([part.reshape(-1, columns) for part in parts])


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

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor from which the sizes of the model are read."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise FormatError(f"{self.path}: missing tensor {name}, expected {dims} dimensions")
        shape = _without_ones(tensor.shape) if len(tensor.shape) > dims else tensor.shape
        if len(shape) != dims or 0 in shape:
            raise FormatError(
                f"{self.path}: tensor {name} is {list(tensor.shape)}, expected {dims} dimensions"
            )
        return shape

    def find(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """Take a tensor; dimensions of one ([1, 1, D] for [D]) make no difference."""
        self._unused.pop(name, None)
        tensor = self._tensors.get(name)
        if tensor is None:
            self._problems.append(f"missing {name}, expected {list(shape)}")
        elif _without_ones(tensor.shape) != _without_ones(shape):
            self._problems.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
            return None
        return tensor

    def add(
        self,
        target: str,
        sources: list[str],
        shape: tuple[int, ...],
        *,
        target_shape: tuple[int, ...] | None = None,
        transposed: bool = False,
    ) -> None:
        """`target` holds the sources, each of `shape`, transposed or as `target_shape`."""
        found = [tensor for name in sources if (tensor := self.find(name, shape)) is not None]
        if target_shape is None:
            target_shape = shape[::-1] if transposed else shape
        if len(found) == len(sources):
            self.outputs.append(Output(target, target_shape, tuple(found), transposed))

    def ignore(self, name: str) -> None:
        """A tensor that may be there and is not needed."""
        self._unused.pop(name, None)

    def finish(self) -> list[Output]:
        """Everything taken; FormatError with the list of what was missing, misshapen or unused."""
        problems = self._problems + [
            f"unused {name} {list(tensor.shape)}" for name, tensor in self._unused.items()
        ]
        if problems:
            shown = "\n  ".join(problems[:MAX_PROBLEMS])
            more = len(problems) - MAX_PROBLEMS
            tail = f"\n  and {more} more" if more > 0 else ""
            raise FormatError(f"{self.path}: the tensors do not fit:\n  {shown}{tail}")
        return self.outputs


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
