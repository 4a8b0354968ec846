# SPDX-License-Identifier: Apache-2.0
"""`convert`: any checkpoint in, a GGUF file out. `quantize`: the same where the source is GGUF."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .._core import FormatError, ModelFile, TensorInfo, UnsupportedError
from ..files.form import ARCH_KEY, BY_INPUT, VALUE, is_gguf, shown
from ..files.gguf_writer import GGUFWriter, Progress, TensorPlan, Value, string
from ..files.source import NUMPY_TYPES, MappedTensor, Tensor, turned
from .adapter import apply_adapter
from .chat_template import OLD, chat_template
from .mixture import FOUR_BITS, Budget, Mixture, fit
from .names import plan_model
from .open import open_checkpoint
from .plan import Output
from .policy import (
    MASSIVE_ARCHS,
    NOTHING,
    FilePlan,
    Known,
    Types,
    is_quantized,
    pieces,
    plan_types,
    with_file_type,
)
from .tuned_state import merge_state
from .vocab import find_vocabulary

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
    sparse_ffn: bool = False,
    known: Known = NOTHING,
    progress: Progress | None = None,
) -> None:
    """Convert the RWKV checkpoint `source` to the GGUF file `target`.

    `source` is a .pth, .safetensors or .st file, a Hugging Face folder, a .bin of rwkv.cpp or a
    GGUF file, of RWKV-4 to 7a. In a GGUF file only types and licence are changed.

    `type`, `head_type`, `embd_type` and `progress` are those of `quantize`. The default of `type`
    is f16, or the type of a source that is already quantized. A UserWarning says where quantizing
    a second time loses precision. `known` says more of single matrices.

    `vocab` is a vocabulary file. The default is one beside the source, or else the World vocabulary
    of the package pyrwkv-tokenizer (`rwkv-edge[convert]`). `license` is written to the file.

    `adapter`, with `alpha` and `adapter_init`, is that of `apply_adapter`. It is merged into the
    matrices before they are quantized. `state` is a tuned state, with which every session of the
    new file begins.

    `sparse_ffn` writes the matrix ffn.value of every layer transposed. A step then reads only the
    rows whose inputs are not zero after relu^2. Only this package opens such a file.

    Raises FormatError for a malformed checkpoint or vocabulary and for tensors that are missing,
    misshapen or unknown, UnsupportedError for what is recognised and cannot be converted,
    ValueError for an unknown type, OSError where a file cannot be read or written.
    """
    source, target = Path(source), Path(target)
    types = _types(Types.choose(type, head_type, embd_type, again=True), known)
    if is_gguf(source):
        if any(part is not None for part in (vocab, adapter, alpha, adapter_init, state)):
            raise ValueError(
                f"{source}: a GGUF file; vocabulary, adapter and state are for the checkpoint that "
                "it was made from"
            )
        plan = _plan_gguf(source, types, license=license, sparse_ffn=sparse_ffn)
    else:
        plan = _plan_checkpoint(
            source,
            target,
            types,
            vocab=vocab,
            license=license,
            adapter=adapter,
            alpha=alpha,
            adapter_init=adapter_init,
            state=state,
            sparse_ffn=sparse_ffn,
        )
    _write(target, plan, known, progress)


def _plan_checkpoint(
    source: Path,
    target: Path,
    types: Types,
    *,
    vocab: str | Path | None = None,
    license: str | None = None,
    adapter: str | Path | None = None,
    alpha: float | None = None,
    adapter_init: str | Path | None = None,
    state: str | Path | None = None,
    sparse_ffn: bool = False,
) -> FilePlan:
    """The file that `convert` makes of a checkpoint."""
    checkpoint = open_checkpoint(source)
    if adapter is not None:
        init = None if adapter_init is None else Path(adapter_init)
        checkpoint = apply_adapter(checkpoint, Path(adapter), alpha=alpha, init=init)
    elif alpha is not None or adapter_init is not None:
        raise ValueError("alpha and adapter_init belong to an adapter, and none is named")
    if state is not None:
        checkpoint = merge_state(checkpoint, Path(state))
    metadata, outputs = plan_model(checkpoint)
    if sparse_ffn:
        outputs = by_input(source, outputs, types)
    if not any(is_quantized(output) for output in outputs):
        types = types.by_default("f16")
    metadata["general.name"] = string(source.name if source.is_dir() else source.stem)
    stated = {key: checkpoint.metadata[key] for key in LICENSE_KEYS if key in checkpoint.metadata}
    if license is not None:
        stated["license"] = license
    metadata |= {f"general.{key}": string(text) for key, text in stated.items()}
    rows = outputs[0].shape[0]
    vocabulary = find_vocabulary(checkpoint.folder, rows, vocab)
    if not vocabulary:
        raise UnsupportedError(
            f"{source}: no vocabulary for {rows} tokens beside it: name its file (--vocab FILE), "
            "or for a World model install it: pip install 'rwkv-edge[convert]'"
        )
    metadata |= vocabulary
    kind = vocabulary["tokenizer.ggml.model"].data
    metadata["tokenizer.chat_template"] = string(chat_template(kind, metadata["general.name"].data))
    named = [Path(path) for path in (vocab, adapter, adapter_init, state) if path is not None]
    inputs = [source, *named]
    if target.is_file() and not is_gguf(target):  # which an older target is, in a folder of inputs
        inputs += [file for path in inputs if path.is_dir() for file in path.iterdir()]
    return FilePlan(source, metadata, outputs, types, False, inputs)


def _types(types: Types, known: Known) -> Types:
    return replace(types, named=known.types)


def quantize(
    source: str | Path,
    target: str | Path,
    *,
    type: str | None = None,
    bits: float | None = None,
    size: int | None = None,
    head_type: str | None = None,
    embd_type: str | None = None,
    vocab: str | Path | None = None,
    sparse_ffn: bool = False,
    again: bool = False,
    known: Known = NOTHING,
    progress: Progress | None = None,
) -> Mixture | None:
    """Write the model `source` to the GGUF file `target` with its matrices in another type.

    `type` is f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q3_k, q5_1, q5_0, q4_1 or q4_0 (fp16, int8 and
    int4 are names for f16, q8_0 and q4_0). A CPU multiplies q3_k as float32, slowly. Types that end
    in _k need columns in multiples of 256; other matrices become q8_0, q5_1, q5_0 or q4_0.
    `head_type` and `embd_type` are the types of the output matrix and of the embedding. Their
    default is q5_k beside q3_k and q4_k, q6_k beside q5_k, q8_0 beside q4_0 to q5_1, else `type`.
    Beside q3_k to q5_k the output matrix of the first time mix of an RWKV-7 becomes q8_0. All else,
    such as the vocabulary and the licence, is copied.

    `bits` or `size` takes the place of one type: each matrix gets its own, so that the matrices
    have `bits` a weight at most, or the file `size` bytes, and the model loses little. With `type`
    none gets fewer bits than that. The mixture is returned; its `report()` says what got what and
    why.

    `source` is a GGUF file, or what else `convert` takes, with `vocab`. `sparse_ffn` and `known`
    are those of `convert`. `again` allows a source that is quantized already; a UserWarning says
    what that loses. `progress` is called with the bytes written, the bytes in all and the name of
    the tensor.

    Raises ValueError for an unknown type, for bits or a size that no mixture has, or if source and
    target are one file; FormatError for a malformed source or values that do not fit,
    UnsupportedError where the source is quantized already or no RWKV model, OSError where a file
    cannot be read or written.
    """
    source, target = Path(source), Path(target)
    if bits is None and size is None:
        if type is None:
            raise ValueError("type, bits and size: expected one of them")
        types = _types(Types.choose(type, head_type, embd_type, again=again), known)
        plan = plan_file(source, target, types, vocab=vocab, sparse_ffn=sparse_ffn)
        _write(target, plan, known, progress)
        return None
    budget = Budget.of(bits, size, type, head_type, embd_type)
    types = Types.choose(FOUR_BITS, head_type, embd_type, again=again)
    plan = plan_file(source, target, types, vocab=vocab, sparse_ffn=sparse_ffn)
    mixture = fit(plan, budget, known)
    known = replace(known, types=mixture.types)
    types = _types(Types.choose(mixture.base, head_type, embd_type, again=again), known)
    _write(target, replace(plan, types=types), known, progress)
    return mixture


def plan_file(
    source: Path,
    target: Path,
    types: Types,
    *,
    vocab: str | Path | None = None,
    sparse_ffn: bool = False,
) -> FilePlan:
    """The file that `quantize` makes. Raises what it raises for the source."""
    if not is_gguf(source):
        return _plan_checkpoint(source, target, types, vocab=vocab, sparse_ffn=sparse_ffn)
    if vocab is not None:
        raise ValueError(f"{source}: a GGUF file has its vocabulary inside, so {vocab} is unused")
    return _plan_gguf(source, types, sparse_ffn=sparse_ffn)


def _plan_gguf(
    source: Path, types: Types, *, license: str | None = None, sparse_ffn: bool = False
) -> FilePlan:
    """A GGUF file as another one, in other types."""
    file = ModelFile(source)
    if file.get(ARCH_KEY) is not None:
        raise UnsupportedError(f"{source}: a saved state, which has nothing to quantize")
    architecture = file.get("general.architecture")
    if not (isinstance(architecture, str) and architecture.startswith("rwkv")):
        raise UnsupportedError(f"{source}: general.architecture is {shown(architecture)}, not RWKV")
    metadata = {
        key: Value(file.value_type(key), file.get(key))
        for key in file.keys()  # noqa: SIM118 - not a dict
        if key != "general.alignment"  # ours is the default
    }
    if metadata.get("tokenizer.chat_template") == string(OLD):
        names = (metadata.get(key) for key in ("tokenizer.ggml.model", "general.name"))
        texts = (str(value.data) if value else "" for value in names)
        metadata["tokenizer.chat_template"] = string(chat_template(*texts))
    if license is not None:
        metadata["general.license"] = string(license)
    outputs = [Output(t.name, t.shape, tensor_of(file, t)) for t in file.tensors]
    if sparse_ffn:
        outputs = by_input(source, outputs, types)
    if not any(is_quantized(output) for output in outputs):
        types = types.by_default("f16")
    return FilePlan(source, metadata, outputs, types, True, [source])


def _write(target: Path, plan: FilePlan, known: Known, progress: Progress | None) -> None:
    types = plan.types
    if plan.arch in MASSIVE_ARCHS and not known.types:
        types = types.for_massive()
    write_model(
        target,
        plan.metadata,
        plan.outputs,
        types,
        settled=plan.settled,
        inputs=plan.inputs,
        known=known,
        progress=progress,
    )


def tensor_of(file: ModelFile, info: TensorInfo) -> Tensor:
    data = info.data.view(NUMPY_TYPES.get(info.type, "u1"))
    rows = math.prod(info.shape[:-1])
    return MappedTensor(info.name, info.type, data.reshape(rows, -1), file)


def by_input(path: Path, outputs: Sequence[Output], types: Types) -> list[Output]:
    """The same tensors with every ffn.value [out, in] transposed, under the name of such a one.

    Raises UnsupportedError where it is quantized already, unless it may be quantized again, to a
    type that was named; then a UserWarning says so.
    """
    names, quantized = {output.name for output in outputs}, 0

    def transposed(output: Output) -> Output:
        nonlocal quantized
        if not output.name.endswith(VALUE):
            return output
        target = output.name.removesuffix(VALUE) + BY_INPUT
        if target in names:
            raise FormatError(
                f"{path}: tensors {output.name} and {target} are the same matrix, "
                "expected one of them"
            )
        if len(output.shape) != 2:
            raise FormatError(
                f"{path}: tensor {output.name} is {list(output.shape)}, expected two dimensions"
            )
        if is_quantized(output):
            quantized += 1
            if types.base is None or not types.again:
                raise UnsupportedError(
                    f"{path}: tensor {output.name} is {output.tensor.dtype} already, and blocks "
                    "cannot be transposed; take the f32, f16 or bf16 file it was made from, or let "
                    "`convert` quantize it again to a --type, which loses more"
                )
        return Output(target, output.shape[::-1], turned(output.tensor))

    found = [transposed(output) for output in outputs]
    if quantized:
        warnings.warn(
            f"{path}: {quantized} tensors are transposed and quantized a second time: "
            "this loses more than converting the original checkpoint does",
            stacklevel=4,
        )
    return found


def _lost(outputs: Sequence[Output], plans: Sequence[TensorPlan]) -> str:
    """What a reader of the file should know of tensors that are quantized a second time."""
    again = Counter(
        (output.tensor.dtype, plan.type)
        for output, plan in zip(outputs, plans, strict=True)
        if is_quantized(output) and plan.type not in (output.tensor.dtype, "f32")
    )
    pairs = ", ".join(f"{n} tensors from {old} to {new}" for (old, new), n in again.items())
    return pairs and f"{pairs}: this loses more than converting the original checkpoint does"


def write_model(
    target: Path,
    metadata: Mapping[str, Value],
    outputs: Sequence[Output],
    types: Types,
    *,
    settled: bool = False,
    inputs: Sequence[Path] = (),
    known: Known = NOTHING,
    progress: Progress | None = None,
) -> None:
    """Write the tensors of a model in the types of `plan_types`, a piece of one at a time."""
    path = inputs[0] if inputs else target
    plans = plan_types(path, outputs, types, settled=settled)
    lost = _lost(outputs, plans)
    if lost and not known.made:  # which calibration has said before it began
        warnings.warn(f"{path}: {lost}", stacklevel=4)
    metadata = with_file_type(metadata, types.file_type(plans))
    with GGUFWriter(target, metadata, plans, inputs=inputs, progress=progress) as writer:
        for output, plan in zip(outputs, plans, strict=True):
            writer.tensor(plan.name, pieces(path, output, plan.type, known))
