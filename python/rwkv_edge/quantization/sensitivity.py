# SPDX-License-Identifier: Apache-2.0
"""How much a model loses by four bits in one matrix: measured, for each by itself.

A model is assembled of the file's tensors, but for one, and reads a part of the text. Its KL
divergence from the model as it is is what that matrix loses.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..convert.mixture import Losses, four_bits
from ..convert.policy import CHUNK_VALUES, LARGEST_F16, SEARCHED, Scale, check_values
from ..convert.write import tensor_of
from ..files.form import read_bytes
from ..files.gguf_writer import TensorPlan, Value, header
from ..files.output import OutputFile
from ..model import Model
from .perplexity import BLOCK_VALUES, FIRST, log_softmax
from .text import Windows

LEAST_TOKENS, MOST_TOKENS = 1024, 8192  # for each matrix
WINDOW = 256
MOST_LOGITS = 1 << 26  # of the model as it is: 268 MB

F32 = NDArray[np.float32]
Progress = Callable[[int, int, str], object]  # matrices done, and in all, and which is next


def part_of(windows: Windows, matrices: int, n_vocab: int) -> Windows:
    """The windows that each matrix is measured on, from all over the text.

    So many that all matrices together take one reading of the text, between LEAST_TOKENS and
    MOST_TOKENS, and that their logits fit into memory.
    """
    short = windows[:, :WINDOW]
    size = short.shape[1]
    tokens = max(LEAST_TOKENS, min(MOST_TOKENS, windows.size // max(matrices, 1)))
    count = max(1, min(len(short), tokens // size, MOST_LOGITS // n_vocab // size))
    chosen: Windows = short[np.linspace(0, len(short) - 1, count).round().astype(int)]
    return chosen


def measure(
    model: Model,
    types: Mapping[str, str],
    windows: Windows,
    *,
    importance: Mapping[str, F32],
    scales: Mapping[str, Scale],
    kept: Path,
    progress: Progress | None = None,
) -> Losses:
    """The losses of the matrices of `types` at four bits.

    What is measured is kept in the file `kept`, from which a run that was stopped goes on.
    """
    names = [name for name in types if four_bits(_shape(model, name)[-1]) != "f16"]
    part = part_of(windows, len(names), model.n_vocab)
    key = _key(model, part, scales)
    found = kept_losses(kept, key)
    expected = None
    first = min(FIRST, part.shape[1] // 2)
    for number, name in enumerate(names):
        if name in found:
            continue
        if progress is not None:
            progress(number, len(names), f"what {name} loses")
        if expected is None:
            expected = list(_logits(model._core, part, first))
        blocks, kind = _at_four_bits(model, name, importance.get(name), scales.get(name, Scale()))
        with_it = _core.Runner(assembled(model, name, blocks, kind), model.threads)
        kls = map(divergence, expected, _logits(with_it, part, first))
        found[name] = max(float(np.mean(list(kls))), 0.0)
        with OutputFile(kept) as file:
            file.write(json.dumps({"key": key, "losses": found}).encode())
    return Losses(found, part.size)


def assembled(model: Model, name: str, blocks: NDArray[np.uint8], kind: str) -> _core.ModelFile:
    """The file of a model with another matrix in place of one. It has no vocabulary."""
    file = model._file
    own = ("general.architecture", "rwkv_edge.", f"{file.get('general.architecture')}.")
    metadata = {
        key: Value(file.value_type(key), file.get(key))
        for key in file.keys()  # noqa: SIM118 - not a dict
        if key.startswith(own)
    }
    plans, arrays = [], []
    for tensor in file.tensors:
        this = tensor.name == name
        plans.append(TensorPlan(tensor.name, tensor.shape, kind if this else tensor.type))
        arrays.append(blocks if this else tensor.data.reshape(-1).view(np.uint8))
    return _core.ModelFile.assemble(file.path, header(metadata, plans), arrays)


def divergence(expected: F32, found: F32) -> float:
    """The mean KL divergence of rows of logits, [T, n_vocab], from others."""
    total, step = 0.0, max(1, BLOCK_VALUES // expected.shape[1])
    for low in range(0, len(expected), step):
        base = log_softmax(expected[low : low + step])
        total += float((np.exp(base) * (base - log_softmax(found[low : low + step]))).sum())
    return total / len(expected)


def _shape(model: Model, name: str) -> tuple[int, ...]:
    return next(tensor.shape for tensor in model._file.tensors if tensor.name == name)


def _key(model: Model, windows: Windows, scales: Mapping[str, Scale]) -> str:
    """What the losses belong to."""
    digest = hashlib.sha256(model.fingerprint.encode() + windows.tobytes())
    for name, scale in scales.items():
        digest.update(name.encode())
        for factors in (scale.rows, scale.columns):
            digest.update(b"" if factors is None else factors.tobytes())
    return digest.hexdigest()


def kept_losses(path: Path, key: str) -> dict[str, float]:
    """What an earlier run measured of the same."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = json.loads(read_bytes(path, 1 << 24, "losses"))
        if kept["key"] == key:
            return {str(name): float(loss) for name, loss in kept["losses"].items()}
    return {}


def _logits(runner: _core.Runner, windows: Windows, first: int) -> Iterator[F32]:
    """Those of each window at all positions from `first` on, [positions, n_vocab]."""
    for window in windows.tolist():
        session = runner.session()
        session.feed(window[:first], _core.Logits.none)
        found = np.frombuffer(session.feed(window[first:], _core.Logits.all), np.float32)
        yield found.reshape(-1, runner.n_vocab)


def _at_four_bits(
    model: Model, name: str, importance: F32 | None, scale: Scale
) -> tuple[NDArray[np.uint8], str]:
    """The values of a matrix after four bits, scaled back, as the bytes of a float type.

    In a float type, so that activations are not rounded: that would be no matter of its bits.
    """
    info = next(tensor for tensor in model._file.tensors if tensor.name == name)
    tensor = tensor_of(model._file, info)
    columns = info.shape[-1]
    rows = tensor.shape[0]
    kind = four_bits(columns)
    if importance is not None and scale.columns is not None:
        importance = (importance / scale.columns**2).astype(np.float32)
    out = np.empty((rows, columns), np.float16)
    step = max(1, CHUNK_VALUES // columns)
    for start in range(0, rows, step):
        raw = tensor.float32(start, min(start + step, rows)).reshape(-1, columns)
        values = np.ascontiguousarray(scale.apply(raw, start))
        check_values(values, kind, f"{model.path}: tensor {name}")
        given = importance if kind in SEARCHED else None
        found = _core.dequantize(_core.quantize_matrix(values, kind, given), kind)
        if scale.columns is not None:
            found = found / scale.columns
        if scale.rows is not None:
            found = found / scale.rows[start : start + len(found), None]
        out[start : start + len(found)] = np.clip(found, -LARGEST_F16, LARGEST_F16)
    return out.reshape(-1).view(np.uint8), "f16"
