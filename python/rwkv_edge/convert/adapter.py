# SPDX-License-Identifier: Apache-2.0
"""Adapters: small trained changes of a model's matrices, applied when rows of them are asked for.

They come as one file of RWKV-PEFT, RWKV-LM-LoRA or web-rwkv, or as a folder of Hugging Face's
peft. With W [out, in] a matrix of the model:
    LoRA      A [r, in], B [out, r]: W + s B A, s = alpha / r (rslora: alpha / sqrt(r))
    PISSA     the same with s = 1, less B0 A0, which the training began with
    MiSS      D [r, out], also called DiSHA or Bone: W[o, c] + D[c mod r, o]
    Bone, 3-D D [in / r, r, r]: every block of r x r values becomes W_ij + W_ij D_j + D_j;
              peft has one for each row of blocks instead, D [out / r, r, r]: W_ij + W_ij D_i + D_i
Other tensors in a file (time_*, ln*, emb, head) were trained whole and take the place of the old.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .._core import FormatError, UnsupportedError
from ..files.form import Form, form_of, shown
from ..files.pth import read_pth
from ..files.safetensors import read_json, read_safetensors
from ..files.source import F32, NUMPY_TYPES, Checkpoint, MadeTensor, Tensor, turned
from .names import PREFIXES as WRAPPERS
from .plan import listed, without_ones

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIXES = ("base_model.model.", *WRAPPERS)
PART = re.compile(
    r"(.+)\.((?:init_)?lora_[AB]|lora\.[01]|disha|bone|miss_block|bone_block)(?:\.weight)?"
)
SHARDS = ("disha", "bone", "miss_block", "bone_block")
KINDS = {"LORA": ("lora_A", "lora_B"), "MISS": ("miss_block",), "BONE": ("bone_block",)}
MOST_NUMBER = 1e6  # of a rank or an alpha
# peft: how training began; with any other answer it has changed the model's own matrices.
HARMLESS_INIT = (None, True, False, "gaussian", "eva", "orthogonal", "bat", "mini")


def read_tensors(path: Path, expected: str) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file that is no model, without prefixes of training.

    Raises FormatError for a file that is damaged or something else than what was `expected`,
    UnsupportedError for tensors of a type that is not read, OSError where it cannot be opened.
    """
    form = form_of(path)
    if form not in (Form.PTH, Form.SAFETENSORS):
        raise FormatError(f"{path}: no .pth and no .safetensors file; expected {expected}")
    found = (read_pth if form is Form.PTH else read_safetensors)(path).tensors
    tensors = {_without_prefix(name): tensor for name, tensor in found.items()}
    if len(tensors) != len(found):
        raise FormatError(f"{path}: two tensors have one name but for {' or '.join(PREFIXES)}")
    return tensors


def _without_prefix(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


# ---- what is done to a matrix -------------------------------------------------------------------


class Change(Protocol):
    def apply(self, rows: F32, start: int) -> None:
        """Change rows of a matrix in place; `start` is the number of the first."""


@dataclass(frozen=True)
class LowRank:
    """W + scale B A."""

    a: Tensor
    b: Tensor
    scale: float

    def apply(self, rows: F32, start: int) -> None:
        b = self.b.float32(start, start + len(rows))
        rows += np.float32(self.scale) * (b @ self.a.float32())


@dataclass(frozen=True)
class Shard:
    """W[o, c] + D[c mod r, o mod the columns of D]."""

    shard: Tensor

    def apply(self, rows: F32, start: int) -> None:
        shard = self.shard.float32().T  # [out, r]
        repeats = -(-rows.shape[1] // shard.shape[1])
        outputs = np.arange(start, start + len(rows)) % len(shard)
        rows += np.tile(shard[outputs], repeats)[:, : rows.shape[1]]


@dataclass(frozen=True)
class Blocks:
    """W_ij + W_ij D + D, D that of the block's column j, or of its row i."""

    blocks: Tensor
    by_row: bool

    def apply(self, rows: F32, start: int) -> None:
        blocks = self.blocks.float32()
        size = blocks.shape[1]
        inside = np.arange(start, start + len(rows)) % size  # of a block, the row
        parts = rows.reshape(len(rows), -1, size).swapaxes(0, 1)  # a view: [block, row, column]
        if not self.by_row:
            parts += parts @ blocks + blocks[:, inside]
            return
        for i in range(start // size, -(-(start + len(rows)) // size)):
            own = slice(max(0, i * size - start), (i + 1) * size - start)
            parts[:, own] += parts[:, own] @ blocks[i] + blocks[i][inside[own]]


def changed(base: Tensor, changes: Sequence[Change]) -> Tensor:
    """A tensor of a model with an adapter's changes."""

    def rows(start: int, stop: int | None) -> F32:
        values = np.ascontiguousarray(base.float32(start, stop))
        with np.errstate(over="ignore", invalid="ignore"):  # whoever writes NaN is told so
            for change in changes:
                change.apply(values, start)
        return values

    return MadeTensor(base.name, base.dtype, base.shape, rows)


# ---- an adapter's files -------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """What peft's adapter_config.json says; `kind` is one of KINDS."""

    path: Path
    kind: str
    values: Mapping[str, Any]

    def number(self, name: str, module: str) -> float:
        """`r` or `lora_alpha`, for one module where a pattern is for it."""
        patterns = self.values.get({"r": "rank_pattern"}.get(name, "alpha_pattern")) or {}
        if not isinstance(patterns, dict):
            raise FormatError(f"{self.path}: {name}: found {shown(patterns)}, expected an object")
        for pattern in patterns:
            # peft takes them for regular expressions, which may take for ever; names are common.
            if not re.fullmatch(r"[\w.]+", pattern):
                raise UnsupportedError(
                    f"{self.path}: pattern {shown(pattern)} for {name}, "
                    "expected the name of a module"
                )
        found = next((p for p in patterns if f".{module}".endswith(f".{p}")), None)
        value = self.values.get(name) if found is None else patterns[found]
        if isinstance(value, int | float) and 0 < value <= MOST_NUMBER:
            return float(value)
        raise FormatError(
            f"{self.path}: {name}: found {shown(value)}, expected a number above 0, "
            f"at most {MOST_NUMBER:g}"
        )


@dataclass(frozen=True)
class Adapter:
    """The tensors of an adapter: by module and part, and those that replace others."""

    path: Path
    modules: Mapping[str, Mapping[str, Tensor]]
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    config: Config | None = None

    @property
    def parts(self) -> set[str]:
        return {part for parts in self.modules.values() for part in parts}


def read_adapter(path: Path) -> Adapter:
    """Open an adapter, a file or peft's folder; no value is read yet.

    Raises FormatError where it is damaged or none, UnsupportedError for a kind that is recognised
    and cannot be applied, OSError where it cannot be read.
    """
    config = _read_config(path / CONFIG) if path.is_dir() else None
    weights = path
    if config is not None:
        found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if found is None:
            raise FormatError(f"{path}: a folder without {' or '.join(WEIGHTS)}")
        weights = found
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    replaced = {}
    for name, tensor in read_tensors(weights, "an adapter").items():
        match = PART.fullmatch(name)
        if match is None:
            replaced[name] = tensor
        else:
            # In an .st of web-rwkv A is lora.0 and lies turned, B is lora.1 and does not.
            part = {"lora.0": "lora_A", "lora.1": "lora_B"}.get(match[2], match[2])
            if part in modules[match[1]]:
                raise FormatError(f"{weights}: {match[1]} has {part} twice")
            modules[match[1]][part] = turned(tensor) if match[2] == "lora.0" else tensor
    adapter = Adapter(weights, dict(modules), replaced, config)
    _check_kind(adapter)
    return adapter


def _check_kind(adapter: Adapter) -> None:
    lora = {"lora_A", "lora_B"}
    if not adapter.parts:
        some = ", ".join(list(adapter.replaced)[:3])
        raise FormatError(
            f"{adapter.path}: no adapter, it has no lora_A and lora_B, .disha or .bone; "
            f"its {len(adapter.replaced)} tensors begin with {some}"
        )
    allowed = [lora, {"init_lora_A", "init_lora_B"}, *({shard} for shard in SHARDS)]
    if adapter.config is not None:
        allowed = [set(KINDS[adapter.config.kind])]
    if not any(adapter.parts <= kind for kind in allowed):
        expected = f"what {CONFIG} says, {allowed[0]}" if adapter.config else "one kind"
        raise FormatError(
            f"{adapter.path}: holds {', '.join(sorted(adapter.parts))}, expected {expected}"
        )


def _read_config(path: Path) -> Config:
    if not path.is_file():
        raise FormatError(f"{path.parent}: a folder without {CONFIG}, expected a peft adapter")
    values = read_json(path)
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnsupportedError(f"{path}: peft_type {shown(kind)}, expected {', '.join(KINDS)}")
    for option in ("use_dora", "use_qalora", "fan_in_fan_out", "lora_bias"):
        if values.get(option):
            raise UnsupportedError(f"{path}: {option} is set, which is not supported")
    for option in ("init_lora_weights", "init_weights"):
        if values.get(option) not in HARMLESS_INIT:
            raise UnsupportedError(
                f"{path}: {option} is {shown(values[option])}, which changed the model's own "
                "weights; save it from peft with path_initial_model_for_weight_conversion"
            )
    return Config(path, kind, values)


# ---- applying one -------------------------------------------------------------------------------


def apply_adapter(
    checkpoint: Checkpoint, path: Path, *, alpha: float | None = None, init: Path | None = None
) -> Checkpoint:
    """The checkpoint of a model with the changes of an adapter, a file or peft's folder.

    `alpha` is LoRA's factor times the rank; peft's folders know it, other files do not. `init` is
    the file with which a PISSA training began. Nothing is computed until values are asked for.

    Raises FormatError where tensors of the adapter match nothing in the model or are of another
    shape, with a list of them, UnsupportedError where the model is quantized or the adapter of a
    kind that is not supported, ValueError for options that are missing or have no use.
    """
    adapter = read_adapter(path)
    begun = None if init is None else read_adapter(init)
    _check_options(adapter, alpha, begun)
    problems: list[str] = []
    tensors = dict(checkpoint.tensors)
    for name, tensor in adapter.replaced.items():
        base = tensors.get(name)
        if base is None and not name.endswith(".att.time_state"):
            problems.append(f"{name} matches nothing")
        elif base is not None and without_ones(base.shape) != without_ones(tensor.shape):
            problems.append(f"{name} is {list(tensor.shape)}, in the model {list(base.shape)}")
        else:
            tensors[name] = tensor
    for module, parts in adapter.modules.items():
        target = f"{module}.weight"
        base = tensors.get(target)
        if base is None or len(base.shape) != 2:
            problems.append(f"{', '.join(f'{module}.{part}' for part in parts)} matches nothing")
            continue
        if base.dtype not in NUMPY_TYPES:
            raise UnsupportedError(
                f"{checkpoint.path}: {target} is {base.dtype}; "
                "an adapter needs the f32, f16 or bf16 model"
            )
        changes, wrong = _changes(adapter, module, base, alpha, begun)
        problems += [f"{module}: {text}" for text in wrong]
        tensors[target] = changed(base, changes)
    if begun is not None:
        unused = [module for module in begun.modules if module not in adapter.modules]
        problems += [f"{module} of {begun.path} matches nothing" for module in unused]
    if problems:
        raise FormatError(
            f"{adapter.path}: the adapter does not fit {checkpoint.path}:{listed(problems)}"
        )
    return replace(checkpoint, tensors=tensors)


def _check_options(adapter: Adapter, alpha: float | None, begun: Adapter | None) -> None:
    lora = "lora_A" in adapter.parts or "lora_B" in adapter.parts
    if "init_lora_A" in adapter.parts:
        raise ValueError(f"{adapter.path}: the start of a PISSA training, for --adapter-init")
    if begun is not None and (not lora or "init_lora_A" not in begun.parts):
        raise FormatError(
            f"{begun.path}: found {', '.join(sorted(begun.parts))} to begin with and "
            f"{', '.join(sorted(adapter.parts))} at the end; --adapter-init is for PISSA, "
            "init_lora_A and init_lora_B to lora_A and lora_B"
        )
    needed = lora and begun is None and adapter.config is None
    if needed and alpha is None:
        raise ValueError(
            f"{adapter.path}: this LoRA does not say its alpha; name the number it was trained "
            "with (--alpha)"
        )
    if alpha is not None and not needed:
        raise ValueError(f"{adapter.path}: --alpha has no use here, found {alpha:g}")
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha: found {alpha:g}, expected a positive number")


def _changes(
    adapter: Adapter, module: str, base: Tensor, alpha: float | None, begun: Adapter | None
) -> tuple[tuple[Change, ...], list[str]]:
    """What is done to one matrix, and what is wrong with it."""
    parts = adapter.modules[module]
    out, columns = base.shape
    shard = next((parts[name] for name in SHARDS if name in parts), None)
    if shard is not None:
        return _shard_changes(adapter, shard, out, columns)
    problems, rank = _low_rank_problems(parts, "", out, columns)
    start: Mapping[str, Tensor] = {}
    if begun is not None:
        start = begun.modules.get(module, {})
        problems += _low_rank_problems(start, "init_", out, columns)[0]
    config = adapter.config
    if config is not None and not problems and rank != config.number("r", module):
        problems.append(f"rank {rank}, in {CONFIG} {config.number('r', module):g}")
    if problems:
        return (), problems
    change = LowRank(parts["lora_A"], parts["lora_B"], _scale(adapter, module, rank, alpha, begun))
    if begun is None:
        return (change,), []
    return (LowRank(start["init_lora_A"], start["init_lora_B"], -1.0), change), []


def _scale(
    adapter: Adapter, module: str, rank: int, alpha: float | None, begun: Adapter | None
) -> float:
    if begun is not None:
        return 1.0
    config = adapter.config
    if config is None:
        assert alpha is not None
        return alpha / rank
    root = math.sqrt(rank) if config.values.get("use_rslora") else rank
    return config.number("lora_alpha", module) / root


def _low_rank_problems(
    parts: Mapping[str, Tensor], prefix: str, out: int, columns: int
) -> tuple[list[str], int]:
    a, b = parts.get(f"{prefix}lora_A"), parts.get(f"{prefix}lora_B")
    if a is None or b is None:
        missing = [part for part in ("lora_A", "lora_B") if f"{prefix}{part}" not in parts]
        return [f"without {' and '.join(prefix + part for part in missing)}"], 0
    rank = a.shape[0] if a.shape else 0
    if not 0 < rank <= columns or a.shape != (rank, columns) or b.shape != (out, rank):
        return [
            f"{prefix}lora_A {list(a.shape)} and {prefix}lora_B {list(b.shape)}, "
            f"expected [r, {columns}] and [{out}, r]"
        ], rank
    return [], rank


def _shard_changes(
    adapter: Adapter, shard: Tensor, out: int, columns: int
) -> tuple[tuple[Change, ...], list[str]]:
    values = {} if adapter.config is None else adapter.config.values
    size = shard.shape[-1] if shard.shape else 0
    if len(shard.shape) == 3 and size and not (out % size or columns % size):
        by_row = adapter.config is not None
        count = (out if by_row else columns) // size
        if shard.shape == (count, size, size):
            return (Blocks(shard, by_row),), []
    mini = values.get("init_weights") == "mini"
    width = values.get("mini_r") if mini else out
    fits = len(shard.shape) == 2 and 0 < shard.shape[0] <= columns and size == width
    if fits and out % size == 0:
        return (Shard(shard),), []
    return (), [f"found {list(shard.shape)}, which fits no matrix [{out}, {columns}]"]
