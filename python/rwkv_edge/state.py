# SPDX-License-Identifier: Apache-2.0
"""The recurrent state: the memory of a session, an array of fixed size."""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from . import _core
from .files.form import ARCH_KEY, KEY_FIRST, TUNED, is_gguf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

    def __str__(self) -> str:
        parts = dict(self.parts)
        layers = f"{self.n_layer} layers"
        text = layers if self.arch == TUNED else f"{self.arch} with {layers}"
        if "att_shift" in parts:
            text += f", width {parts['att_shift'][0]}"
        heads = parts.get("wkv") or parts.get(TUNED)
        return text + (f", {heads[0]} heads of {heads[-1]}" if heads else "")


@dataclass(frozen=True, eq=False)
class State:
    """A copy of a session's state. Any session of a model of that shape can continue from it.

    `data` is float32 [n_layer * shape.layer_size]. `source` says where the state came from, for
    messages.
    """

    data: NDArray[np.float32]
    shape: StateShape
    source: str = "this state"

    def __post_init__(self) -> None:
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

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write the state as a GGUF file: a tensor [n_layer, ...] for each of its parts.

        A saved state or an empty file at `path` is replaced, any other file only with `overwrite`.
        A state tells what was said, so a new file has the mode 0600; an existing one keeps its own.
        Raises FileExistsError for a file that is not to be replaced, OSError where the state cannot
        be written.
        """
        from .files.gguf_writer import GGUFWriter, TensorPlan, string

        if not overwrite and not replaceable(Path(path)):
            text = "is no saved state; overwrite=True replaces it"
            raise FileExistsError(errno.EEXIST, text, str(path))
        parts = self.numpy()
        plans = [TensorPlan(name, part.shape, "f32") for name, part in parts.items()]
        metadata = {ARCH_KEY: string(self.shape.arch)}
        with GGUFWriter(Path(path), metadata, plans, mode=0o600) as writer:
            for name, part in parts.items():
                writer.tensor(name, [part.astype("<f4").tobytes()])

    @classmethod
    def load(cls, path: str | PathLike[str]) -> State:
        """Read what `save` wrote, or the tuned state in a .pth or .st file.

        Raises FormatError for a file that is damaged, not a state, or holds NaN or infinity,
        UnsupportedError for tensors of a type that is not read, OSError if it cannot be read.
        """
        if is_gguf(Path(path)):
            file = _core.ModelFile(path)
            if file.get(ARCH_KEY) != TUNED:
                return cls._saved(file)
        from .convert.tuned_state import read_tuned_state

        values = read_tuned_state(Path(path))
        shape = StateShape(TUNED, len(values), ((TUNED, values.shape[1:]),))
        return cls(values.reshape(-1), shape, str(path))

    @classmethod
    def _saved(cls, file: _core.ModelFile) -> State:
        arch = file.get(ARCH_KEY)
        if not isinstance(arch, str):
            raise _core.FormatError(f"{file.path}: not a saved state (key {ARCH_KEY} is missing)")
        layers = file.tensors[0].shape[0] if file.tensors else 0
        for tensor in file.tensors:
            if tensor.type != "f32" or len(tensor.shape) < 2 or tensor.shape[0] != layers:
                raise _core.FormatError(
                    f"{file.path}: tensor {tensor.name}: found {tensor.type} "
                    f"{list(tensor.shape)}, expected f32 [{layers}, ...], a row for each layer"
                )
        if not layers:
            raise _core.FormatError(f"{file.path}: a saved state without values")
        import numpy as np

        parts = [tensor.data.view("<f4").reshape(layers, -1) for tensor in file.tensors]
        for tensor, part in zip(file.tensors, parts, strict=True):
            if not np.isfinite(part).all():
                raise _core.FormatError(f"{file.path}: tensor {tensor.name} holds NaN or infinity")
        data = np.concatenate(parts, axis=1, dtype=np.float32).reshape(-1)
        shapes = tuple((tensor.name, tensor.shape[1:]) for tensor in file.tensors)
        return cls(data, StateShape(arch, layers, shapes), file.path)

    def fitted(self, shape: StateShape, model: str) -> State:
        """This state as a session of a model of that shape has it.

        A tuned state is laid into an empty one. Raises FormatError unless it fits.
        """
        import numpy as np

        wkv = dict(shape.parts).get("wkv")
        if self.tuned and (self.shape.n_layer, self.shape.parts[0][1]) == (shape.n_layer, wkv):
            data = np.zeros(shape.n_layer * shape.layer_size, np.float32)
            state = State(data, shape, self.source)
            values = self.numpy()[TUNED]
            turned = shape.arch in KEY_FIRST
            state.numpy()["wkv"][:] = values.swapaxes(2, 3) if turned else values
            return state
        if self.shape != shape:
            kind = "tuned state" if self.tuned else "state"
            raise _core.FormatError(
                f"{self.source}: a {kind} of {self.shape} does not fit {model}: {shape}"
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
