# SPDX-License-Identifier: Apache-2.0
"""`convert`: any checkpoint in, a GGUF file out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._core import UnsupportedError
from ..model_file import is_gguf
from . import rwkv4, rwkv5, rwkv6, rwkv7
from .adapter import apply_adapter
from .gguf_writer import GGUFWriter, Progress, TensorPlan, Value, string, uint32
from .names import Binder, Output, detect
from .open import open_checkpoint
from .quantize import (
    CHUNK_VALUES,
    FLOAT_TYPES,
    Types,
    encode,
    is_float32,
    is_quantizable,
)
from .source import Checkpoint
from .tuned_state import merge_state
from .vocab import find_vocabulary, load_vocabulary

# What states the tensors of a version, by the version that `detect` finds.
ARCHITECTURES: dict[str, Callable[[Binder], dict[str, Value]]] = {
    "4": rwkv4.plan,
    "5": rwkv5.plan,
    "6": rwkv6.plan,
    "7": rwkv7.plan,
    "7a": rwkv7.plan_7a,
}
LICENSE_KEYS = ("license", "license.name", "license.link")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    type: str | None = None,
    vocab: str | Path | None = None,
    license: str | None = None,
    head_type: str | None = None,
    embd_type: str | None = None,
    adapter: str | Path | None = None,
    alpha: float | None = None,
    adapter_init: str | Path | None = None,
    state: str | Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the RWKV checkpoint `source` as the GGUF file `target`.

    `source` is a .pth, a .safetensors, a folder in the Hugging Face layout or an rwkv.cpp .bin, of
    RWKV-4 to 7a. `type`, `head_type`, `embd_type` and `progress` are those of `quantize`; without
    `type` it is f16, and for a source that is quantized already the type that it has. `vocab` is a
    vocabulary file; without it one is looked for beside the source, and then the World vocabulary
    in the package pyrwkv-tokenizer (`rwkv-edge[convert]`). `license` goes into the file as it is.

    `adapter`, with `alpha` and `adapter_init`, is that of `apply_adapter` and is merged into the
    matrices before they are quantized; `state` is a tuned state, from which every session of the
    new file begins.

    Raises FormatError for a malformed checkpoint or vocabulary and for tensors that are missing,
    misshapen or unknown, UnsupportedError for what is recognised and cannot be converted,
    ValueError for an unknown type, OSError where a file cannot be read or written.
    """
    source, target = Path(source), Path(target)
    types = Types.choose(type, head_type, embd_type)
    checkpoint = open_checkpoint(source)
    if adapter is not None:
        init = None if adapter_init is None else Path(adapter_init)
        checkpoint = apply_adapter(checkpoint, Path(adapter), alpha=alpha, init=init)
    elif alpha is not None or adapter_init is not None:
        raise ValueError("alpha and adapter_init belong to an adapter, and none is named")
    if state is not None:
        checkpoint = merge_state(checkpoint, Path(state))
    metadata, outputs = plan_model(checkpoint)
    if type is None and not any(is_quantized(output) for output in outputs):
        types = Types.choose("f16", head_type, embd_type)
    metadata["general.name"] = string(source.name if source.is_dir() else source.stem)
    stated = {key: checkpoint.metadata[key] for key in LICENSE_KEYS if key in checkpoint.metadata}
    if license is not None:
        stated["license"] = license
    metadata |= {f"general.{key}": string(text) for key, text in stated.items()}
    rows = outputs[0].shape[0]
    vocabulary = vocabulary_of(checkpoint, vocab, rows)
    if not vocabulary:
        raise UnsupportedError(
            f"{source}: no vocabulary for {rows} tokens beside it: name its file (--vocab FILE), "
            "or for a World model install it: pip install 'rwkv-edge[convert]'"
        )
    metadata |= vocabulary
    named = [Path(path) for path in (vocab, adapter, adapter_init, state) if path is not None]
    inputs = [source, *named]
    if target.is_file() and not is_gguf(target):  # which an older target is, in a folder of inputs
        inputs += [file for path in inputs if path.is_dir() for file in path.iterdir()]
    write_model(target, metadata, outputs, types, inputs=inputs, progress=progress)


def vocabulary_of(
    checkpoint: Checkpoint, vocab: str | PathLike[str] | None, rows: int
) -> dict[str, Value]:
    """The `tokenizer.*` metadata from a file, or what `find_vocabulary` finds for a checkpoint."""
    if vocab is not None:
        return load_vocabulary(Path(vocab), rows)
    return find_vocabulary(checkpoint.folder, rows)


def plan_model(checkpoint: Checkpoint) -> tuple[dict[str, Value], list[Output]]:
    """The hyperparameters and the tensors that a checkpoint makes up, the embedding first."""
    plan = ARCHITECTURES[detect(checkpoint.path, checkpoint.tensors)]
    binder = Binder(checkpoint.path, checkpoint.tensors)
    metadata = plan(binder)
    return metadata, binder.finish()


def is_quantized(output: Output) -> bool:
    """Whether a tensor comes in blocks that can be copied as they are."""
    return output.tensor.dtype not in FLOAT_TYPES and output.tensor.raw() is not None


def plan_types(path: Path, outputs: Sequence[Output], types: Types) -> list[TensorPlan]:
    """Every tensor with the type it gets; UnsupportedError for what is quantized otherwise."""
    return [TensorPlan(o.name, o.shape, _type(path, o, types)) for o in outputs]


def _type(path: Path, output: Output, types: Types) -> str:
    found = output.tensor.dtype
    if found not in FLOAT_TYPES and not is_quantized(output):
        found = "f32"
    if is_float32(output.name, output.shape):
        return "f32"
    if is_quantizable(output.name, output.shape):
        return types.of(str(path), output.name, output.shape, found)
    base = types.base or found
    return base if base in ("f32", "bf16") else "f16"


def write_model(
    target: Path,
    metadata: Mapping[str, Value],
    outputs: Sequence[Output],
    types: Types,
    *,
    inputs: Sequence[Path] = (),
    progress: Progress | None = None,
) -> None:
    """Write the tensors of a model in the given types, a piece of one of them at a time."""
    path = inputs[0] if inputs else target
    plans = plan_types(path, outputs, types)
    metadata = {
        **metadata,
        "general.file_type": types.file_type(plans),
        "general.quantization_version": uint32(2),
    }
    with GGUFWriter(target, metadata, plans, inputs=inputs, progress=progress) as writer:
        for output, plan in zip(outputs, plans, strict=True):
            writer.tensor(plan.name, _pieces(path, output, plan.type))


def _pieces(path: Path, output: Output, kind: str) -> Iterator[NDArray[np.uint8]]:
    if kind not in FLOAT_TYPES and kind == output.tensor.dtype:
        raw = output.tensor.raw()
        assert raw is not None
        for start in range(0, raw.size, CHUNK_VALUES):
            yield raw[start : start + CHUNK_VALUES]
        return
    for values in output.chunks(CHUNK_VALUES):
        yield encode(values, kind, f"{path}: tensor {output.name}")
