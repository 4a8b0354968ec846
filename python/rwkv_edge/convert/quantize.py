# SPDX-License-Identifier: Apache-2.0
"""Which tensor gets which type, and `quantize`: a GGUF file in, a smaller one out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._core import FormatError, ModelFile, TensorInfo, UnsupportedError
from ..model_file import ALIASES, FILE_TYPES, is_gguf
from .gguf_writer import GGUFWriter, Progress, TensorPlan, Value, uint32
from .source import F32, MappedFile, MappedTensor

# What a file may be made of already; K-types are read and never written.
KEPT_FILE_TYPES = FILE_TYPES | {"q2_k": 10, "q3_k": 12, "q4_k": 15, "q5_k": 17, "q6_k": 18}
FLOAT_TYPES = ("f32", "f16", "bf16")

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

    @staticmethod
    def choose(base: str | None, head: str | None, embd: str | None) -> Types:
        """In a 4- or 5-bit file head and embedding have 8 bits unless said otherwise."""
        parsed = [None if name is None else parse_type(name) for name in (base, head, embd)]
        default = "q8_0" if (parsed[0] or "").startswith(("q4", "q5")) else parsed[0]
        return Types(parsed[0], parsed[1] or default, parsed[2] or default)

    def of(self, where: str, name: str, shape: tuple[int, ...], found: str) -> str:
        """The type of a matrix that is `found` now; columns that fit no block become float16.

        Raises UnsupportedError, which begins with `where`, for a matrix that is quantized already.
        """
        wanted = {"output.weight": self.head, "token_embd.weight": self.embd}.get(name, self.base)
        if wanted is None or wanted == found:
            return found
        if found not in FLOAT_TYPES:
            raise UnsupportedError(
                f"{where}: tensor {name} is {found} already; "
                "quantize the f32, f16 or bf16 file it was made from"
            )
        return wanted if shape[-1] % _core.type_block(wanted)[0] == 0 else "f16"

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


def encode(values: F32, kind: str, where: str) -> NDArray[np.uint8]:
    """Values [rows, columns] in a file's type. FormatError where they cannot be held."""
    largest = np.abs(values).max(initial=0.0)
    if not np.isfinite(largest):
        raise FormatError(f"{where} holds NaN or infinity")
    if kind == "f16" and largest > LARGEST_F16:
        raise FormatError(f"{where} holds {largest:g}, too large for f16; use bf16 or f32")
    return _core.quantize(np.ascontiguousarray(values), kind)


def quantize(
    source: str | Path,
    target: str | Path,
    *,
    type: str,
    head_type: str | None = None,
    embd_type: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the GGUF file `source` as `target` with its matrices in another type.

    `type` is f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0 (fp16, int8 and int4 are names for
    f16, q8_0 and q4_0); `head_type` and `embd_type` are for the output matrix and the embedding,
    q8_0 by default in a 4- or 5-bit file. All else, vocabulary and licence included, is copied.
    `progress` is called with bytes written, bytes in all and the tensor's name.

    Raises ValueError for an unknown type or source and target being one file, FormatError for a
    malformed source or values that do not fit, UnsupportedError where the source is quantized
    already or no RWKV model, OSError where a file cannot be read or written.
    """
    source, target = Path(source), Path(target)
    types = Types.choose(type, head_type, embd_type)
    if not is_gguf(source):
        raise FormatError(f"{source}: not a GGUF file; `convert` makes one of any type")
    file = ModelFile(str(source))
    architecture = file.get("general.architecture")
    if not str(architecture).startswith("rwkv"):
        raise UnsupportedError(f"{source}: general.architecture is {architecture!r}, not RWKV")
    plans = [_plan(source, tensor, types) for tensor in file.tensors]
    metadata = {
        key: Value(file.value_type(key), file.get(key))
        for key in file.keys()  # noqa: SIM118 - not a dict
        if key != "general.alignment"  # ours is the default
    }
    metadata["general.file_type"] = types.file_type(plans)
    metadata["general.quantization_version"] = uint32(2)
    mapped = MappedFile(source)
    with GGUFWriter(target, metadata, plans, inputs=[source], progress=progress) as writer:
        for tensor, plan in zip(file.tensors, plans, strict=True):
            writer.tensor(plan.name, _pieces(mapped, tensor, plan))


def _plan(source: Path, tensor: TensorInfo, types: Types) -> TensorPlan:
    kind = tensor.type
    if is_quantizable(tensor.name, tensor.shape):
        kind = types.of(str(source), tensor.name, tensor.shape, kind)
    return TensorPlan(tensor.name, tensor.shape, kind)


def _pieces(
    file: MappedFile, tensor: TensorInfo, plan: TensorPlan
) -> Iterator[NDArray[np.uint8] | bytes]:
    if plan.type == tensor.type:
        end = tensor.offset + tensor.nbytes
        for start in range(tensor.offset, end, CHUNK_VALUES):
            yield file.read(start, min(CHUNK_VALUES, end - start))
            file.forget()
        return
    columns = tensor.shape[-1]
    rows = math.prod(tensor.shape) // columns
    raw = file.view(tensor.type, tensor.offset, (rows, columns))
    values = MappedTensor(tensor.name, tensor.type, raw, file)
    step = max(1, CHUNK_VALUES // columns)
    for start in range(0, rows, step):
        where = f"{file.path}: tensor {tensor.name}"
        yield encode(values.float32(start, start + step), plan.type, where)
