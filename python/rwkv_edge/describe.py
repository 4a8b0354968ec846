# SPDX-License-Identifier: Apache-2.0
"""What a file is, in a sentence and in detail: for `info`, and for whoever took one for another."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from . import _core
from .convert.adapter import CONFIG, PART, Adapter, read_adapter, read_tensors
from .convert.mixture import bits, by_kind_and_type, layers_of
from .convert.open import checkpoint_size
from .convert.policy import MASSIVE, is_quantizable
from .convert.tuned_state import NAME
from .convert.vocab import UNUSED, byte_vocabulary, read_vocabulary
from .files.form import ARCH_KEY, VOCABULARIES, Form, amount, form_of
from .generation import recommended_sampling
from .model_file import by_input, bytes_by_type, open_model_file
from .state import State, StateShape

Lines = list[tuple[str, str]]  # each with its name


def describe(path: Path) -> tuple[str, Lines]:
    """What a file or folder is in a sentence, and its details.

    Raises FormatError and UnsupportedError for what is damaged or nothing of ours, OSError where
    it cannot be read.
    """
    form = Form.HUB if path.is_dir() else form_of(path)
    if form in VOCABULARIES:
        return describe_vocabulary(path)
    if form is Form.GGUF:
        return describe_gguf(path)
    if path.is_dir() and (path / CONFIG).is_file():
        return describe_adapter(read_adapter(path))
    if form in (Form.PTH, Form.SAFETENSORS):
        names = read_tensors(path, "a model, a state or an adapter")
        if any(PART.fullmatch(name) for name in names):
            return describe_adapter(read_adapter(path))
        if all(NAME.fullmatch(name) for name in names):
            return describe_state(path)
    return describe_model(open_model_file(path), form, checkpoint_size(path))


def describe_gguf(path: Path) -> tuple[str, Lines]:
    file = _core.ModelFile(path)
    if file.get(ARCH_KEY) is not None:
        return describe_state(path)
    return describe_model(file, Form.GGUF, file.size)


def describe_model(file: _core.ModelFile, form: Form, nbytes: int) -> tuple[str, Lines]:
    arch = text_of(file, "general.architecture")
    if not arch:
        raise _core.FormatError(f"{file.path}: not a model (no key general.architecture)")
    keys = ("block_count", "embedding_length", "wkv.head_size", "feed_forward_length")
    layers, width, size, ffn = (number_of(file, f"{arch}.{key}") for key in keys)
    version = text_of(file, "rwkv_edge.version") or arch.removeprefix("rwkv")
    sizes = bytes_by_type(file)
    if not arch.startswith("rwkv") or not sizes:
        return f"a GGUF file of '{arch}', which is no RWKV model", [("file", file.path)]
    sentence = (
        f"an RWKV-{version} model in {form.value}, "
        f"{main_type(file)}, {layers} layers, width {width}"
    )
    heads = f", {width // size} heads of {size}" if size else ""
    counts = Counter(tensor.type for tensor in file.tensors)
    values: Counter[str] = Counter()
    for tensor in file.tensors:
        values[tensor.type] += math.prod(tensor.shape)
    licence = [text_of(file, f"general.license{part}") for part in ("", ".name", ".link")]
    return sentence, [
        ("file", file.path),
        ("size", amount(nbytes) + f", GGUF v{file.version}" * (form is Form.GGUF)),
        ("name", text_of(file, "general.name") or "none"),
        ("architecture", arch),
        ("shape", f"{layers} layers, width {width}{heads}, feed-forward {ffn}"),
        ("tokenizer", describe_tokenizer(file)),
        ("parameters", f"{values.total():,}"),
        ("bits/weight", f"{8 * sizes.total() / values.total():.2f}"),
        *describe_mixture(file),
        *(
            (kind, f"{counts[kind]} tensors, {values[kind]:,} values, {amount(nbytes)}")
            for kind, nbytes in sizes.most_common()
        ),
        *describe_by_input(file, layers),
        *describe_sampling(file),
        ("state", describe_memory(file)),
        ("licence", ", ".join(text for text in licence if text) or "not stated"),
        ("kernels", f"{_core.isa()} (this CPU runs {', '.join(_core.isa_levels())})"),
        ("devices", describe_devices()),
    ]


def describe_devices() -> str:
    """Where a model can run, by the names that --device takes."""
    if why_not := _core.why_no_cuda():
        return f"cpu (no cuda: {why_not})"
    names = (f"cuda:{i} {name}" for i, name in enumerate(_core.cuda_devices()))
    return ", ".join(("cpu", *names))


def describe_by_input(file: _core.ModelFile, layers: int) -> Lines:
    found = by_input(file)
    if not found:
        return []
    nbytes = amount(sum(tensor.nbytes for tensor in found))
    where = "every layer" if len(found) == layers else f"{len(found)} of {layers} layers"
    return [
        (
            "sparse FFN",
            f"ffn.value of {where} lies by input, {nbytes}: of it a token reads only the rows of "
            "activations that are not zero. llama.cpp does not open this file",
        )
    ]


def describe_sampling(file: _core.ModelFile) -> Lines:
    found = recommended_sampling(file)
    options = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in found.items())
    return [("sampling", f"{options} (recommended by the file)")] if found else []


def main_type(file: _core.ModelFile) -> str:
    """That of most values in the matrices of the blocks: embedding and head may have another. Or
    that they are a mixture."""
    if is_mixture(file):
        kinds = sorted({tensor.type for tensor in mixed(file)}, key=bits)
        return f"a mixture of {kinds[0]} to {kinds[-1]}"
    sizes: Counter[str] = Counter()
    for tensor in file.tensors:
        block = tensor.name.startswith("blk.") and is_quantizable(tensor.name, tensor.shape)
        sizes[tensor.type] += math.prod(tensor.shape) if block else 0
    return sizes.most_common(1)[0][0]


def mixed(file: _core.ModelFile) -> list[_core.TensorInfo]:
    """The matrices of the blocks, but for one that has more bits in files of any type."""
    return [
        tensor
        for tensor in file.tensors
        if tensor.name.startswith("blk.")
        and is_quantizable(tensor.name, tensor.shape)
        and tensor.name != MASSIVE
    ]


def is_mixture(file: _core.ModelFile) -> bool:
    """Whether matrices with as many columns have several types: then `--bits` or `--size` chose
    them, or another program."""
    found = {(tensor.shape[-1], tensor.type) for tensor in mixed(file)}
    return len(found) > len({columns for columns, _ in found})


def describe_mixture(file: _core.ModelFile) -> Lines:
    if not is_mixture(file):
        return []
    matrices = [t for t in file.tensors if is_quantizable(t.name, t.shape)]
    values = sum(math.prod(tensor.shape) for tensor in matrices)
    parts = (
        f"{kind} {group}" + (f" ({layers})" if (layers := layers_of(names)) else "")
        for (kind, group), names in by_kind_and_type((t.name, t.type) for t in matrices)
    )
    nbytes = sum(tensor.nbytes for tensor in matrices)
    return [("matrices", f"{8 * nbytes / max(values, 1):.2f} bits/weight: {', '.join(parts)}")]


def text_of(file: _core.ModelFile, key: str) -> str | None:
    found: str | None = wanted(file, key, "string")
    return found


def number_of(file: _core.ModelFile, key: str) -> int:
    kinds = [f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64)]
    return wanted(file, key, *kinds) or 0


def wanted(file: _core.ModelFile, key: str, *kinds: str) -> Any:
    """The value of a key, None where it is missing; FormatError where it is of another kind."""
    value = file.get(key)
    if value is not None and file.value_type(key) not in kinds:
        raise _core.FormatError(
            f"{file.path}: key {key} is {file.value_type(key)}, expected {kinds[0]}"
        )
    return value


def describe_tokenizer(file: _core.ModelFile) -> str:
    kind = text_of(file, "tokenizer.ggml.model")
    tokens = wanted(file, "tokenizer.ggml.tokens", "array[string]") or []
    if kind is None:
        return "none in the file or beside it"
    if tokens == byte_vocabulary().texts:
        return "single bytes"
    if file.get("rwkv_edge.sentencepiece_model") is not None:
        kind = "sentencepiece"
    names = {"rwkv": "RWKV World", "gpt2": "byte-level BPE (as GPT-2's)"}
    return f"{names.get(kind, kind)}, {len(tokens):,} tokens"


def describe_memory(file: _core.ModelFile) -> str:
    """Of a session, or why there can be none."""
    try:
        runner = _core.Runner(file, 1)
    except (_core.FormatError, _core.UnsupportedError) as error:
        return f"none: {str(error).removeprefix(f'{file.path}: ')}"
    shape = StateShape(runner.arch, runner.n_layer, tuple(runner.state_parts))
    return f"{amount(4 * shape.n_layer * shape.layer_size)} per session"


def describe_state(path: Path) -> tuple[str, Lines]:
    state = State.load(path)
    parts = ", ".join(f"{name} {list(shape)}" for name, shape in state.shape.parts)
    lines = [("file", str(path)), ("size", amount(path.stat().st_size)), ("each layer", parts)]
    lines += [
        (name, str(value))
        for name, value in (
            ("model", state.model),
            ("fingerprint", state.fingerprint),
            ("tokens read", None if state.tuned else state.tokens),
            ("last output", None if state.output is None else "kept, so a text may go on from it"),
            ("generated", None if state.sampler is None else f"{len(state.sampler.tokens)} tokens"),
            ("text", None if state.text is None else f"{len(state.text):,} characters"),
        )
        if value is not None
    ]
    if state.tuned:
        (_, (heads, size, _)) = state.shape.parts[0]
        return (
            f"a tuned state, to begin with, for an RWKV-5, 6 or 7 of {state.shape.n_layer} layers "
            f"with {heads} heads of {size} (--state)",
            lines,
        )
    return f"a saved state of {state.shape} (--state, or /load in a chat)", lines


def describe_adapter(adapter: Adapter) -> tuple[str, Lines]:
    lora = any("lora_" in part for part in adapter.parts)
    layers = {name.split(".")[1] for name in adapter.modules if name.startswith("blocks.")}
    ranks = {
        tensor.shape[0 if len(tensor.shape) == 2 else -1]  # [r, columns], or blocks of [r, r]
        for parts in adapter.modules.values()
        for part, tensor in parts.items()
        if not part.endswith("lora_B") and tensor.shape
    }
    kind = "LoRA" if lora else "MiSS (DiSHA, Bone)"
    if "init_lora_A" in adapter.parts:
        kind, use = "PISSA", "what the training began with (--adapter-init)"
    else:
        use = "to be merged into a model by `convert --adapter`"
        if lora and adapter.config is None:
            use += ", which needs its alpha (--alpha)"
    rank = "/".join(map(str, sorted(ranks)))
    lines = [
        ("file", str(adapter.path)),
        ("size", amount(adapter.path.stat().st_size)),
        ("matrices", f"{len(adapter.modules)} are changed"),
        ("whole", f"{len(adapter.replaced)} tensors take the place of the model's"),
    ]
    return f"a {kind} adapter of rank {rank} for {len(layers)} layers, {use}", lines


def describe_vocabulary(path: Path) -> tuple[str, Lines]:
    vocabulary = read_vocabulary(path)
    used = sum(kind != UNUSED for kind in vocabulary.types)
    return f"a vocabulary ({vocabulary.kind}) of {used:,} tokens (--vocab)", [
        ("file", str(path)),
        ("size", amount(path.stat().st_size)),
        ("highest id", str(len(vocabulary.texts) - 1)),
    ]
