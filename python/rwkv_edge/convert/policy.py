# SPDX-License-Identifier: Apache-2.0
"""Which tensor of a file gets which type, and its bytes in that type."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import FormatError, UnsupportedError
from ..files.form import ALIASES, FILE_TYPES, open_regular
from ..files.gguf_writer import TensorPlan, Value, uint32
from ..files.source import F32, NUMPY_TYPES, MappedTensor
from .plan import Output

# What a file may be made of already; q2_k is read and never written.
KEPT_FILE_TYPES = FILE_TYPES | {"q2_k": 10}
# Of head and embedding where nothing is said. The embedding is hardly read, and both are sensitive.
ENDS = {"q3_k": "q5_k", "q4_k": "q5_k", "q5_k": "q6_k"} | dict.fromkeys(
    ("q4_0", "q4_1", "q5_0", "q5_1"), "q8_0"
)
# K-types have blocks of 256 columns. What fits none gets the type that llama.cpp gives it.
FALLBACKS = {"q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
# These matrices have searched scales, so they take an importance of their columns.
SEARCHED = ("q4_0", "q4_1", "q5_0", "q5_1", *FALLBACKS)
# Its input has a channel that is thousands of times as large as the others in every RWKV-7 of
# BlinkDL's. Beside it nothing else is left of a block of activations.
MASSIVE, MASSIVE_TYPE = "blk.0.time_mix_output.weight", "q8_0"
MASSIVE_ARCHS = ("rwkv7", "rwkv7a")

# Two-dimensional, yet too small and too sensitive to quantize; llama.cpp's list, and what RWKV-7a
# and initial states add to it. Of these its converter keeps FLOAT32 in float32 even in a float16
# file.
FLOAT32 = tuple(
    f"time_mix_{x}.weight"
    for x in ("first", "w1", "w2", "decay_w1", "decay_w2", "lerp_fused", "state")
)
KEPT = (
    *FLOAT32,
    *(f"time_mix_{x}{i}.weight" for x in "wvag" for i in "012"),
    *(f"channel_mix_{x}.weight" for x in ("s1", "s2")),
)

CHUNK_VALUES = 1 << 22  # 16 MB of float32 at a time
LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class Types:
    """The types of a file: of the embedding, of the head, and of all other matrices.

    None: each in the type it has.
    """

    base: str | None
    head: str | None
    embd: str | None
    again: bool = False
    """Whether a matrix that is quantized already may be quantized again."""
    named: Mapping[str, str] = field(default_factory=dict)
    """The types of single matrices, before all others."""

    @staticmethod
    def choose(
        base: str | None, head: str | None, embd: str | None, *, again: bool = False
    ) -> Types:
        """In a file of 3 to 5 bits head and embedding have more unless said otherwise."""
        parsed = [None if name is None else parse_type(name) for name in (base, head, embd)]
        default = None if parsed[0] is None else ENDS.get(parsed[0], parsed[0])
        return Types(parsed[0], parsed[1] or default, parsed[2] or default, again)

    def for_massive(self) -> Types:
        """These types with more bits for MASSIVE where the base has fewer than 6."""
        if self.base not in ("q3_k", "q4_k", "q5_k") or MASSIVE in self.named:
            return self
        return replace(self, named={**self.named, MASSIVE: MASSIVE_TYPE})

    def by_default(self, base: str) -> Types:
        """These types with another one for what has none yet."""
        if self.base is not None:
            return self
        return replace(self, base=base, head=self.head or base, embd=self.embd or base)

    def of(self, where: str, name: str, shape: tuple[int, ...], found: str) -> str:
        """The type of a matrix that is `found` now; columns that fit no block get another one.

        Raises UnsupportedError, which begins with `where`, for a matrix that is quantized already.
        """
        wanted = {"output.weight": self.head, "token_embd.weight": self.embd}.get(name, self.base)
        wanted = self.named.get(name, wanted)
        if wanted is not None and shape[-1] % _core.type_block(wanted)[0]:
            wanted = FALLBACKS.get(wanted, "f16")
            if shape[-1] % _core.type_block(wanted)[0]:
                wanted = "f16"
        if wanted is None or wanted == found:
            return found
        if found not in NUMPY_TYPES and not self.again:
            raise UnsupportedError(
                f"{where}: tensor {name} is {found} already; "
                "quantize the f32, f16 or bf16 file it was made from, "
                "or let `convert` quantize it again, which loses more"
            )
        return wanted

    def file_type(self, tensors: Iterable[TensorPlan]) -> Value:
        """llama.cpp's number for a file of these tensors: what was asked for, or what most are."""
        sizes: Counter[str] = Counter()
        for tensor in tensors:
            if is_quantizable(tensor.name, tensor.shape):
                sizes[tensor.type] += math.prod(tensor.shape)
        most = max(sizes, key=sizes.__getitem__, default="f32")
        return uint32(KEPT_FILE_TYPES[self.base or most])


def parse_type(name: str) -> str:
    """The name of a type that can be written; ValueError with the list of them for any other."""
    found = ALIASES.get(name.lower(), name.lower())
    if found not in FILE_TYPES:
        raise ValueError(f"type {name!r}: expected one of {', '.join((*FILE_TYPES, *ALIASES))}")
    return found


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """llama.cpp's rule: matrices only, and not those of KEPT nor any norm."""
    matrix = sum(n > 1 for n in shape[:-1]) > 0 and name.endswith(".weight")
    return matrix and not name.endswith(("_norm.weight", *KEPT))


def is_float32(name: str, shape: tuple[int, ...]) -> bool:
    """llama.cpp's rule for what its converter always writes as float32."""
    return len(shape) == 1 or not name.endswith(".weight") or name.endswith(FLOAT32)


@dataclass(frozen=True)
class FilePlan:
    """A GGUF file before it is written."""

    path: Path
    """Of the source, for messages."""
    metadata: Mapping[str, Value]
    outputs: Sequence[Output]
    types: Types
    settled: bool
    """Whether what is no matrix keeps its type."""
    inputs: Sequence[Path]
    """Files that must not be overwritten."""

    @property
    def arch(self) -> str:
        return str(self.metadata["general.architecture"].data)


def with_file_type(metadata: Mapping[str, Value], number: Value) -> dict[str, Value]:
    """The metadata of a file, with llama.cpp's number for its types."""
    return {
        **metadata,
        "general.file_type": number,
        "general.quantization_version": uint32(2),
    }


def is_quantized(output: Output) -> bool:
    """Whether a tensor comes in blocks that can be copied as they are."""
    return output.tensor.dtype not in NUMPY_TYPES and output.tensor.raw() is not None


def plan_types(
    path: Path, outputs: Sequence[Output], types: Types, *, settled: bool = False
) -> list[TensorPlan]:
    """Every tensor with the type it gets; what is no matrix keeps its own in a `settled` source.

    Raises UnsupportedError for what is quantized otherwise.
    """
    return [TensorPlan(o.name, o.shape, _type(path, o, types, settled)) for o in outputs]


def _type(path: Path, output: Output, types: Types, settled: bool) -> str:
    found = output.tensor.dtype
    if found not in NUMPY_TYPES and not is_quantized(output):
        found = "f32"
    if is_quantizable(output.name, output.shape):
        return types.of(str(path), output.name, output.shape, found)
    if settled:
        return found
    if is_float32(output.name, output.shape):
        return "f32"
    base = types.base or found
    return base if base in ("f32", "bf16") else "f16"


@dataclass(frozen=True)
class Scale:
    """Factors that the values of a tensor are multiplied by; a vector is one row."""

    rows: F32 | None = None
    columns: F32 | None = None

    def apply(self, values: F32, start: int) -> F32:
        """Of rows [R, columns] from `start` on."""
        if self.columns is not None:
            values = values * self.columns
        if self.rows is not None:
            values = values * self.rows[start : start + len(values), None]
        return values


@dataclass(frozen=True)
class Known:
    """What is known of single matrices, for those who quantize them."""

    importance: Mapping[str, F32] = field(default_factory=dict)
    """How much each column matters: [columns]."""
    types: Mapping[str, str] = field(default_factory=dict)
    """What they are to become, whatever the others do."""
    made: Mapping[str, Path] = field(default_factory=dict)
    """Files of their blocks, which were made already, in these types."""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    """By which the others are multiplied."""


NOTHING = Known()


def pieces(
    path: Path, output: Output, kind: str, known: Known = NOTHING
) -> Iterator[NDArray[np.uint8] | bytes]:
    """The bytes of a tensor in a type, some megabytes at a time. Blocks that have the type already
    are copied. FormatError for values that the type cannot hold."""
    tensor = output.tensor
    if (made := known.made.get(output.name)) is not None:
        with open_regular(made) as file:
            while piece := file.read(CHUNK_VALUES):
                yield piece
        return
    scale = known.scales.get(output.name, Scale())
    raw = tensor.raw() if kind == tensor.dtype and kind not in NUMPY_TYPES else None
    if raw is None:
        importance = known.importance.get(output.name)
        start = 0
        for values in output.chunks(CHUNK_VALUES):
            where = f"{path}: tensor {output.name}"
            yield encode(scale.apply(values, start), kind, where, importance).reshape(-1)
            start += len(values)
        return
    for start in range(0, raw.size, CHUNK_VALUES):
        yield raw[start : start + CHUNK_VALUES]
        if isinstance(tensor, MappedTensor):
            tensor.file.forget()


def encode(values: F32, kind: str, where: str, importance: F32 | None = None) -> NDArray[np.uint8]:
    """Values [rows, columns] in a file's type, with searched scales, for which an importance says
    how much each column matters; all CPUs work. FormatError where they cannot be held."""
    check_values(values, kind, where)
    return _core.quantize_matrix(
        np.ascontiguousarray(values), kind, importance if kind in SEARCHED else None
    )


def check_values(values: F32, kind: str, where: str) -> None:
    largest = np.abs(values).max(initial=0.0)
    if not np.isfinite(largest):
        raise FormatError(f"{where} holds NaN or infinity")
    if kind not in ("f32", "bf16") and largest > LARGEST_F16:
        raise FormatError(f"{where} holds {largest:g}, too large for {kind}; use bf16 or f32")
