# SPDX-License-Identifier: Apache-2.0
"""`convert`: a .pth or .safetensors checkpoint in, a GGUF file out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .._core import FormatError, UnsupportedError
from . import rwkv7
from .gguf_writer import GGUFWriter, Progress, TensorPlan, Value, string, uint32
from .names import Binder, Output, canonical, detect
from .pth import LEGACY_MAGIC, read_pth
from .quantize import CHUNK_VALUES, Types, encode, is_float32, is_quantizable
from .safetensors import read_safetensors
from .source import Checkpoint, Tensor
from .vocab import load_vocabulary

# What states the tensors of a version, by the version that `detect` finds.
ARCHITECTURES = {"7": ("rwkv7", rwkv7.plan)}
LICENSE_KEYS = ("license", "license.name", "license.link")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    type: str = "f16",
    vocab: str | Path | None = None,
    license: str | None = None,
    head_type: str | None = None,
    embd_type: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the RWKV checkpoint `source` (.pth or .safetensors) as the GGUF file `target`.

    `type`, `head_type`, `embd_type` and `progress` are those of `quantize`. `vocab` is a World
    vocabulary file or a sentencepiece model; without it the World vocabulary is taken from the
    package pyrwkv-tokenizer (`rwkv-edge[convert]`). `license` goes into the file as it is.

    Raises FormatError for a malformed checkpoint or vocabulary and for tensors that are missing,
    misshapen or unknown, UnsupportedError for what is recognised and cannot be converted,
    ValueError for an unknown type, OSError where a file cannot be read or written.
    """
    source, target = Path(source), Path(target)
    types = Types.choose(type, head_type, embd_type)
    checkpoint = open_checkpoint(source)
    metadata, outputs = plan_model(source, checkpoint.tensors)
    metadata["general.name"] = string(source.stem)
    stated = {key: checkpoint.metadata[key] for key in LICENSE_KEYS if key in checkpoint.metadata}
    if license is not None:
        stated["license"] = license
    metadata |= {f"general.{key}": string(text) for key, text in stated.items()}
    rows = next(o.shape[0] for o in outputs if o.name == "token_embd.weight")
    metadata |= load_vocabulary(None if vocab is None else Path(vocab), rows)
    write_model(target, metadata, outputs, types, inputs=[source], progress=progress)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint by what the file begins with, whatever it is called."""
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith((b"PK\3\4", LEGACY_MAGIC)):
        return read_pth(path)
    if start.startswith(b"GGUF"):
        raise FormatError(f"{path}: a GGUF file already; `quantize` changes its types")
    if start.startswith(b"fmgg"):
        raise UnsupportedError(f"{path}: an rwkv.cpp .bin file; convert the original .pth instead")
    if start[8:9] == b"{":
        return read_safetensors(path)
    raise FormatError(f"{path}: neither a .pth (torch 1.6 or newer) nor a .safetensors file")


def plan_model(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Value], list[Output]]:
    """The hyperparameters and the tensors that a set of checkpoint tensors makes up."""
    tensors = canonical(tensors)
    architecture, plan = ARCHITECTURES[detect(path, tensors)]
    binder = Binder(path, tensors)
    metadata = {"general.architecture": string(architecture)} | plan(binder)
    return metadata, binder.finish()


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
    metadata = {
        **metadata,
        "general.file_type": types.file_type,
        "general.quantization_version": uint32(2),
    }
    plans = [TensorPlan(o.name, o.shape, _type(o, types)) for o in outputs]
    with GGUFWriter(target, metadata, plans, inputs=inputs, progress=progress) as writer:
        for output, plan in zip(outputs, plans, strict=True):
            where = f"{inputs[0]}: tensor {plan.name}" if inputs else f"tensor {plan.name}"
            chunks = output.chunks(CHUNK_VALUES)
            writer.tensor(plan.name, (encode(chunk, plan.type, where) for chunk in chunks))


def _type(output: Output, types: Types) -> str:
    if is_float32(output.name, output.shape):
        return "f32"
    if is_quantizable(output.name, output.shape):
        return types.of(output.name, output.shape)
    return types.base if types.base in ("f32", "bf16") else "f16"
