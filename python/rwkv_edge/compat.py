# SPDX-License-Identifier: Apache-2.0
"""The names and habits of the package `rwkv`: a program for it runs with another import.

    from rwkv_edge.compat import RWKV, PIPELINE, PIPELINE_ARGS

Arrays take the place of torch's tensors. docs/compat.md says what is the same and what differs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from .model import Model, Session
from .state import State
from .tokenizer import HuggingFaceTokenizer, StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PART = re.compile(r"(cpu|cuda(?::\d+)?|mps|dml) (?:fp16|fp32|bf16)(i8|i4|i3)?(?: \*\d+\+?)?")
WORLD = "rwkv_vocab_v20230424"


class Tensor(np.ndarray[Any, np.dtype[np.float32]]):
    """An array that also has the methods with which programs turn a tensor into one."""

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        return self

    def clone(self) -> Tensor:
        out: Tensor = self.copy()
        return out

    def numpy(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.asarray(self)


Tensors = list[Tensor]


class RWKV:
    """A model that is given the state, and gives back another."""

    def __init__(
        self,
        model: str | PathLike[str],
        strategy: str = "cpu fp32",
        verbose: bool = True,  # noqa: ARG002 (nothing is printed)
        *,
        threads: int | None = None,
    ) -> None:
        """Open any file that `Model` opens, also when ".pth" is left out of its name.

        Of the strategy only its form is checked. The model runs on the CPU, with the weights as
        they are in the file; a UserWarning says so where the strategy asks for more.

        Raises ValueError for a strategy that the package would not take, and as `Model` does.
        """
        check_strategy(strategy, model)
        path = Path(fspath(model).strip())
        if not path.exists() and path.with_name(path.name + ".pth").exists():
            path = path.with_name(path.name + ".pth")
        self.model = Model(path, threads=threads)
        self.n_layer, self.n_embd = self.model.n_layer, self.model.n_embd
        head_size = self.model.head_size
        self.args = SimpleNamespace(
            MODEL_NAME=str(path),
            strategy_string=strategy,
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            head_size=head_size,
            n_head=self.n_embd // head_size if head_size else 0,
            vocab_size=self.model.n_vocab,
        )

    def forward(
        self,
        tokens: int | Iterable[int],
        state: Sequence[ArrayLike] | None,
        full_output: bool = False,
    ) -> tuple[Tensor, Tensors]:
        """Read tokens, or one, after a state (None: from the beginning).

        Returns the logits, float32 [n_vocab] after the last token or, with `full_output` and
        several tokens, [T, n_vocab]; and the state: for each layer the arrays that the package has,
        in its order. As there, a list that was given is left alone by RWKV-7, and holds the new
        state in older versions.

        Raises ValueError for a token outside the vocabulary, for no tokens, and for a state of
        another shape.
        """
        ids = [tokens] if isinstance(tokens, (int, np.integer)) else list(tokens)
        session = self.session_at(state)
        every = full_output and len(ids) > 1
        logits = session.feed(ids, logits="all" if every else "last")
        return logits.view(Tensor), self.state_of(session, state)

    def generate_zero_state(self) -> Tensors:
        """The state before the first token."""
        return parts_of(self.model.session().state)

    def session_at(self, state: Sequence[ArrayLike] | None) -> Session:
        """A new session that stands where the state does."""
        if state is None:
            return self.model.session()
        shape = self.model._shape
        expected = [part for _, part in shape.parts] * shape.n_layer
        values = [np.asarray(part, np.float32) for part in state]
        found = [part.shape for part in values]
        if found != expected:
            pairs = enumerate(zip(found, expected, strict=False))
            wrong = next(
                (f"; array {i} is {list(a)}, not {list(b)}" for i, (a, b) in pairs if a != b), ""
            )
            raise ValueError(
                f"state: found {len(found)} arrays, expected {len(expected)} of {self.model}{wrong}"
            )
        return self.model.session(State(np.concatenate([part.ravel() for part in values]), shape))

    def state_of(self, session: Session, given: object = None) -> Tensors:
        """The session's state; in versions before 7 put into the list that was given."""
        new = parts_of(session.state)
        if isinstance(given, list) and not self.model.arch.startswith("rwkv7"):
            given[:] = new
            return given
        return new


class PIPELINE_ARGS:
    """How PIPELINE.generate chooses tokens, with the package's defaults."""

    def __init__(
        self,
        temperature: float = 1.0,
        top_p: float = 0.85,
        top_k: int = 0,
        alpha_frequency: float = 0.2,
        alpha_presence: float = 0.2,
        alpha_decay: float = 0.996,
        token_ban: Iterable[int] = (),
        token_stop: Iterable[int] = (),
        chunk_len: int = 256,
    ) -> None:
        """`chunk_len` changes nothing: a long prompt is read in steps anyway."""
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.alpha_frequency = alpha_frequency
        self.alpha_presence = alpha_presence
        self.alpha_decay = alpha_decay
        self.token_ban = list(token_ban)
        self.token_stop = list(token_stop)
        self.chunk_len = chunk_len


class PIPELINE:
    """Text in, text out, with a model of this module."""

    def __init__(self, model: RWKV, WORD_NAME: str | None = None) -> None:
        """The vocabulary is the model's own for None and for the name of the World vocabulary, or
        a Hugging Face tokenizer.json (extra `pile`).

        Raises ValueError where that name is not of the model's vocabulary, and as
        `Model.tokenizer` does.
        """
        self.model = model
        self.tokenizer: Tokenizer
        if WORD_NAME is not None and WORD_NAME.endswith(".json"):
            text = Path(WORD_NAME).read_text(encoding="utf-8")
            self.tokenizer = HuggingFaceTokenizer(text, WORD_NAME)
        else:
            self.tokenizer = model.model.tokenizer
            if WORD_NAME is not None and (WORD_NAME, self.tokenizer.kind) != (WORLD, "world"):
                raise ValueError(
                    f"WORD_NAME: found '{WORD_NAME}', expected '{WORLD}' for a World model, the "
                    f"path of a tokenizer.json, or None for the vocabulary of {model.model.path}, "
                    f"which is of the kind '{self.tokenizer.kind}'"
                )

    def encode(self, x: str) -> list[int]:
        return self.tokenizer.encode(x)

    def decode(self, x: Iterable[int]) -> str:
        """U+FFFD stands for bytes that are not UTF-8. Control tokens have no text."""
        return self.tokenizer.decode(x)

    def refine_context(self, context: str) -> str:
        """A line break, and the lines of a text, none of them empty, without blanks around them."""
        lines = [line.strip().strip("\u3000") for line in context.strip().split("\n")]
        return "\n" + "\n".join(line for line in lines if line)

    def sample_logits(
        self,
        logits: ArrayLike,
        temperature: float = 1.0,
        top_p: float = 0.85,
        top_k: int = 0,
    ) -> int:
        """A token for logits [n_vocab]; -infinity bans one. numpy.random.seed makes the choices
        repeat themselves."""
        values = np.array(logits, np.float32)
        banned = np.flatnonzero(values == -np.inf)
        values[banned] = 0
        args = PIPELINE_ARGS(temperature, top_p, top_k, 0.0, 0.0, token_ban=banned.tolist())
        return sampler(args).sample(bytearray(values.tobytes()))

    def generate(
        self,
        ctx: str,
        token_count: int = 100,
        args: PIPELINE_ARGS | None = None,
        callback: Callable[[str], object] | None = None,
        state: Sequence[ArrayLike] | None = None,
    ) -> str:
        """Read a text and return what follows, at most `token_count` tokens or until one of
        `token_stop`. `callback` gets it piece by piece, in whole characters.

        As in the package, token 0 ends nothing unless it is in `token_stop`; the last of
        `token_count` tokens is not read; and a list `state` of a version before 7 moves on.

        Raises ValueError for no text, and as `RWKV.forward` does.
        """
        args = args or PIPELINE_ARGS()
        if token_count < 1:
            return ""
        ids = self.encode(ctx)
        if not ids:
            raise ValueError("ctx: found no text, expected some")
        session = self.model.session_at(state)
        choose = sampler(args)
        decoder = StreamDecoder()
        pieces = []
        for _ in range(token_count):
            logits = session._feed(ids, _core.Logits.last, None)
            token = choose.sample(logits)
            if token in args.token_stop:
                break
            # Entries that round up the embeddings have no text.
            data = self.tokenizer.token_bytes(token) if token < self.tokenizer.n_vocab else b""
            choose.accept(token, _core.frequency_weight(data) if data else 1.0)
            if text := decoder.push(data):
                pieces.append(text)
                if callback:
                    callback(text)
            ids = [token]
        self.model.state_of(session, state)
        return "".join(pieces)


def sampler(args: PIPELINE_ARGS) -> _core.Sampler:
    """Penalties, nucleus, then temperature; the random numbers follow from those of numpy."""
    return _core.Sampler(
        temperature=args.temperature,
        top_k=max(int(args.top_k), 0),
        top_p=args.top_p,
        presence_penalty=args.alpha_presence,
        frequency_penalty=args.alpha_frequency,
        penalty_decay=args.alpha_decay,
        seed=int(np.random.randint(2**63)),  # noqa: NPY002 (what such programs seed)
        banned=list(args.token_ban),
    )


def parts_of(state: State) -> Tensors:
    """The parts of each layer, layer after layer. Views: what is written there is in the state."""
    by_part = [values.view(Tensor) for values in state.numpy().values()]
    return [part[layer] for layer in range(state.shape.n_layer) for part in by_part]


def check_strategy(strategy: str, model: str | PathLike[str]) -> None:
    """ValueError unless the package knows such a strategy, UserWarning where it asks for more than
    a CPU with the file's own weights."""
    parts = [PART.fullmatch(part.strip()) for part in strategy.split("->")]
    if not all(parts):
        raise ValueError(
            f"strategy: found '{strategy}', expected a device and a precision, such as 'cpu fp32' "
            "or 'cuda fp16i8 *10 -> cpu fp32'"
        )
    found = [part for part in parts if part]
    wishes = []
    if any(part[1] != "cpu" for part in found):
        wishes.append("it runs on the CPU")
    if any(part[2] for part in found):
        wishes.append("its weights stay as they are in the file (`rwkv-edge quantize` shrinks one)")
    if wishes:
        warnings.warn(f"{model}: strategy '{strategy}': {' and '.join(wishes)}", stacklevel=3)
