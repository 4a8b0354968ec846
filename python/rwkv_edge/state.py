# SPDX-License-Identifier: Apache-2.0
"""The recurrent state: the memory of a session, an array of fixed size."""

from __future__ import annotations

import errno
import math
import re
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _core
from .files.form import ARCH_KEY, KEY_FIRST, STATE_KEYS, TUNED, is_gguf, shown, utf8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 2
"""Of the form that `State.save` writes. Files of version 1 do not name one."""
TYPES = ("f32", "f16")
SEED_KEY, GENERATED_KEY = STATE_KEYS + "sampler.seed", STATE_KEYS + "sampler.tokens"
OUTPUT = "output"
"""The tensor that is no part of a layer: `State.output`."""
A_STATE = "a State, as State.load(path) gives"
"""What an argument must be, for errors."""
# Stays f32 in a file of f16: an exponent, which begins at -1e30.
EXPONENT = "pp"


@dataclass(frozen=True)
class StateShape:
    """What a state and a model must agree on: the parts of each layer's state, in their order."""

    arch: str
    n_layer: int
    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def layer_size(self) -> int:
        """Values per layer."""
        return sum(math.prod(shape) for _, shape in self.parts)

    @property
    def width(self) -> int:
        """The model's n_embd; 0 in a tuned state, which does not tell."""
        return dict(self.parts).get("att_shift", (0,))[0]

    def __str__(self) -> str:
        parts = dict(self.parts)
        layers = f"{self.n_layer} layers"
        text = layers if self.arch == TUNED else f"{self.arch} with {layers}"
        if "att_shift" in parts:
            text += f", width {parts['att_shift'][0]}"
        heads = parts.get("wkv") or parts.get(TUNED)
        return text + (f", {heads[0]} heads of {heads[-1]}" if heads else "")


class SamplerState(NamedTuple):
    """What the choice of the next tokens depends on, beside the logits and the options: for
    `generate("", seed=..., earlier=...)`, which goes on with a text that was stopped."""

    seed: int
    """Where the random sequence is."""
    tokens: tuple[int, ...]
    """That were generated, for the penalties."""


@dataclass(frozen=True, eq=False)
class State:
    """A copy of a session's memory, from which any session of its model can go on.

    With `dataclasses.replace(state, text=...)` a copy says something else.
    """

    data: NDArray[np.float32]
    """float32 [n_layer * shape.layer_size]"""
    shape: StateShape
    source: str = "this state"
    """Where it came from, for messages."""
    output: NDArray[np.float32] | None = None
    """float32 [n_embd]: the last token's output, from which the model's head makes the logits of
    what follows. None where it is not known, or no token was read."""
    tokens: int | None = None
    """How many tokens were read since the beginning; None where that is not known."""
    fingerprint: str | None = None
    """That of the model, `Model.fingerprint`. A state without one goes with any model of its shape.
    """
    model: str | None = None
    """The name of the model's file, for people."""
    text: str | None = None
    """What whoever saved the state wrote with it; a chat writes the conversation."""
    sampler: SamplerState | None = None
    """Where the state is the end of a text that was generated."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 0:
            raise ValueError(f"tokens: found {self.tokens}, expected 0 or more")
        for name in ("text", "model"):
            if (text := getattr(self, name)) is not None:
                utf8(name, text)
        width = (self.shape.width,)
        if self.output is not None:
            if self.output.dtype != "float32" or self.output.shape != width:
                raise ValueError(
                    f"the output of a state of {self.shape} is float32 {list(width)}, "
                    f"found {self.output.dtype} {list(self.output.shape)}"
                )
            if self.tokens == 0:
                raise ValueError("an output of a last token, and 0 tokens")
        expected = (self.shape.n_layer * self.shape.layer_size,)
        if self.data.dtype != "float32" or self.data.shape != expected:
            raise ValueError(
                f"a state of {self.shape} is float32 {list(expected)}, "
                f"found {self.data.dtype} {list(self.data.shape)}"
            )

    @property
    def tuned(self) -> bool:
        """Whether this is a tuned state: the result of a training, to begin texts with."""
        return self.shape.arch == TUNED

    def numpy(self) -> dict[str, NDArray[np.float32]]:
        """Views of `data`, each [n_layer, ...]. Writing to them changes the state.

        att_shift [n_embd]: the last token's input of the time mix, after its norm;
        ffn_shift [n_embd]: the last token's input of the channel mix, after its norm;
        wkv [n_head, head_size, head_size]: rows are values and columns keys in RWKV-7, and the
        other way round in RWKV-5 and 6;
        aa, bb, pp [n_embd], instead of wkv in RWKV-4: numerator and denominator of the average,
        both divided by exp(pp);
        time_state [n_head, head_size, head_size], alone in a tuned state: rows are values.
        """
        rows = self.data.reshape(self.shape.n_layer, self.shape.layer_size)
        views, start = {}, 0
        for name, shape in self.shape.parts:
            stop = start + math.prod(shape)
            views[name] = rows[:, start:stop].reshape(self.shape.n_layer, *shape)
            start = stop
        return views

    def save(self, path: str | PathLike[str], *, type: str = "f32", replace: bool = False) -> None:
        """Write the state as a GGUF file (docs/file_format.md): a tensor for each of its parts.

        `type` f32 keeps every bit. f16 has half the size: each value of 6.1e-5 and more is wrong by
        at most 1 / 2048 of itself, a smaller one by at most 3.0e-8. `output`, and so the logits of
        the next token, and RWKV-4's pp keep every bit.

        A saved state or an empty file at `path` is replaced, any other file only with `replace`. A
        state tells what was said, so a new file has the mode 0600; an existing one keeps its own.
        Equal states give equal files.

        Raises FileExistsError for a file that is not to be replaced, OSError if the state cannot be
        written, ValueError for another type, for NaN and infinity, which `load` would refuse, and
        for values beyond f16, which ends at 65504.
        """
        import numpy as np

        from .files.gguf_writer import GGUFWriter, TensorPlan, Value, string, uint32

        if not replace and not replaceable(Path(path)):
            text = "is no saved state; replace=True replaces it"
            raise FileExistsError(errno.EEXIST, text, str(path))
        if type not in TYPES:
            raise ValueError(f"type: found {type!r}, expected one of {', '.join(TYPES)}")
        metadata = {ARCH_KEY: string(self.shape.arch), STATE_KEYS + "version": uint32(VERSION)}
        for name in ("fingerprint", "model", "text"):
            if (text := getattr(self, name)) is not None:
                metadata[STATE_KEYS + name] = string(text)
        if self.tokens is not None:
            metadata[STATE_KEYS + "tokens"] = Value("uint64", self.tokens)
        if self.sampler is not None:
            metadata[SEED_KEY] = Value("uint64", self.sampler.seed)
            metadata[GENERATED_KEY] = Value("array[uint32]", self.sampler.tokens)
        parts = self.numpy()
        types = {name: "f32" if name == EXPONENT else type for name in parts}
        if self.output is not None:
            parts[OUTPUT], types[OUTPUT] = self.output, "f32"
        plans = [TensorPlan(name, part.shape, types[name]) for name, part in parts.items()]
        with GGUFWriter(Path(path), metadata, plans, mode=0o600) as writer:
            for name, part in parts.items():
                if not np.isfinite(part).all():
                    raise ValueError(f"{path}: {name} of this state holds NaN or infinity")
                values = part.astype("<f4")
                if types[name] == "f16":
                    try:
                        values = _core.quantize(part, "f16")
                    except ValueError as error:
                        raise ValueError(f"{path}: {name}: {error}; f32 holds all") from None
                writer.tensor(name, [values.tobytes()])

    @classmethod
    def load(cls, path: str | PathLike[str], *, any_model: bool = False) -> State:
        """Read what `save` wrote, or the tuned state in a .pth or .st file.

        With `any_model` its fingerprint is forgotten, so that a session of any model of that shape
        takes it: of the same model in other types, or of another training.

        Raises FormatError for a file that is damaged, no state, or holds NaN or infinity,
        UnsupportedError for tensors of a type that is not read and for a file of a later version,
        OSError where it cannot be read.
        """
        if is_gguf(Path(path)):
            file = _core.ModelFile(path)
            if file.get(ARCH_KEY) != TUNED:
                state = cls._saved(file)
                return replace(state, fingerprint=None) if any_model else state
        from .convert.tuned_state import read_tuned_state

        values = read_tuned_state(Path(path))
        shape = StateShape(TUNED, len(values), ((TUNED, values.shape[1:]),))
        return cls(values.reshape(-1), shape, str(path), tokens=0)

    @classmethod
    def _saved(cls, file: _core.ModelFile) -> State:
        arch = file.get(ARCH_KEY)
        if not isinstance(arch, str):
            raise _core.FormatError(f"{file.path}: not a saved state (key {ARCH_KEY} is missing)")
        keys = read_keys(file)
        tensors = [tensor for tensor in file.tensors if tensor.name != OUTPUT]
        layers = tensors[0].shape[0] if tensors else 0
        for tensor in tensors:
            if tensor.type not in TYPES or len(tensor.shape) < 2 or tensor.shape[0] != layers:
                raise _core.FormatError(
                    f"{file.path}: tensor {tensor.name}: found {tensor.type} "
                    f"{list(tensor.shape)}, expected f32 or f16 [{layers}, ...], a row for each "
                    "layer"
                )
        if not layers:
            raise _core.FormatError(f"{file.path}: a saved state without values")
        shape = StateShape(arch, layers, tuple((x.name, x.shape[1:]) for x in tensors))
        last = next((tensor for tensor in file.tensors if tensor.name == OUTPUT), None)
        if last is not None and (last.type, last.shape) != ("f32", (shape.width,)):
            raise _core.FormatError(
                f"{file.path}: tensor {OUTPUT}: found {last.type} {list(last.shape)}, "
                f"expected f32 [{shape.width}]"
            )
        if last is not None and keys["tokens"] == 0:
            raise _core.FormatError(f"{file.path}: tensor {OUTPUT} of a last token, and 0 tokens")
        import numpy as np

        parts = [finite_values(file, tensor).reshape(layers, -1) for tensor in tensors]
        data = np.concatenate(parts, axis=1).reshape(-1)
        output = None if last is None else finite_values(file, last)
        return cls(data, shape, file.path, output, **keys)

    def fitted(self, shape: StateShape, model: str, fingerprint: str) -> State:
        """This state as a session of a model of that shape and fingerprint has it.

        A tuned state is laid into an empty one. Raises FormatError unless it fits.
        """
        import numpy as np

        wkv = dict(shape.parts).get("wkv")
        if self.tuned and (self.shape.n_layer, self.shape.parts[0][1]) == (shape.n_layer, wkv):
            data = np.zeros(shape.n_layer * shape.layer_size, np.float32)
            state = State(data, shape, self.source, tokens=0)
            values = self.numpy()[TUNED]
            turned = shape.arch in KEY_FIRST
            state.numpy()["wkv"][:] = values.swapaxes(2, 3) if turned else values
            return state
        if self.shape != shape:
            kind = "tuned state" if self.tuned else "state"
            raise _core.FormatError(
                f"{self.source}: a {kind} of {self.shape} does not fit {model}: {shape}"
            )
        if self.fingerprint not in (None, fingerprint):
            raise _core.FormatError(
                f"{self.source}: a state of another model, or of the same in other types: "
                f"{shown(self.model)} with fingerprint {self.fingerprint:.16}, expected {model} "
                f"with {fingerprint:.16}; --any-model, /load! in a chat, or any_model=True in "
                "Python takes it nevertheless"
            )
        return self


def replaceable(path: Path) -> bool:
    """Whether nothing but a saved state is lost where `path` is written."""
    if not path.is_file() or not path.stat().st_size:
        return True
    try:
        return is_gguf(path) and _core.ModelFile(path).get(ARCH_KEY) is not None
    except _core.FormatError:
        return False


def read_keys(file: _core.ModelFile) -> dict[str, Any]:
    """What a saved state says of itself, by the names of State's fields."""
    kinds = {name: "string" for name in ("fingerprint", "model", "text")}
    found: dict[str, Any] = {}
    for name, kind in {"version": "uint32", "tokens": "uint64", **kinds}.items():
        key = STATE_KEYS + name
        found[name] = file.get(key)
        if found[name] is not None and file.value_type(key) != kind:
            raise _core.FormatError(
                f"{file.path}: key {key} is {file.value_type(key)}, expected {kind}"
            )
    found["sampler"] = read_sampler(file)
    version = found.pop("version")
    if version == 0:
        raise _core.FormatError(f"{file.path}: a saved state of version 0, expected 1 to {VERSION}")
    if version is not None and version > VERSION:
        raise _core.UnsupportedError(
            f"{file.path}: a saved state of version {version}, expected 1 to {VERSION}; "
            "a later rwkv-edge may read it"
        )
    mark = found["fingerprint"]
    if mark is not None and not re.fullmatch("[0-9a-f]{64}", mark):
        raise _core.FormatError(
            f"{file.path}: key {STATE_KEYS}fingerprint is {shown(mark)}, expected 64 hex digits"
        )
    return found


def read_sampler(file: _core.ModelFile) -> SamplerState | None:
    kinds = {SEED_KEY: "uint64", GENERATED_KEY: "array[uint32]"}
    seed, tokens = (file.get(key) for key in kinds)
    if seed is None and tokens is None:
        return None
    for key, kind in kinds.items():
        found = "missing" if file.get(key) is None else file.value_type(key)
        if found != kind:
            raise _core.FormatError(f"{file.path}: key {key} is {found}, expected {kind}")
    return SamplerState(seed, tuple(tokens))


def finite_values(file: _core.ModelFile, tensor: _core.TensorInfo) -> NDArray[np.float32]:
    """The values of a tensor, [values]. Raises FormatError for NaN and infinity."""
    import numpy as np

    values = _core.dequantize(tensor.data, tensor.type)
    if not np.isfinite(values).all():
        raise _core.FormatError(f"{file.path}: tensor {tensor.name} holds NaN or infinity")
    return values


def differences(one: State, other: State) -> list[tuple[int, str, float, float]]:
    """How far two states are apart: for each layer and part the largest difference of two values,
    and the length of the difference as a share of the length of the first (Euclidean norms; 0 where
    both are 0, infinite where only the first is).

    Raises ValueError for states of two shapes.
    """
    import numpy as np

    if one.shape != other.shape:
        raise ValueError(
            f"{other.source}: a state of {other.shape}, expected one of {one.shape}, as "
            f"{one.source} is"
        )
    found = []
    pairs = {name: (part, other.numpy()[name]) for name, part in one.numpy().items()}
    for layer in range(one.shape.n_layer):
        for name, parts in pairs.items():
            a, b = (part[layer].astype(np.float64) for part in parts)
            length, apart = float(np.linalg.norm(a)), float(np.linalg.norm(a - b))
            share = apart / length if length else math.inf if apart else 0.0
            found.append((layer, name, float(np.abs(a - b).max()), share))
    return found
