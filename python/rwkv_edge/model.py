# SPDX-License-Identifier: Apache-2.0
"""A model, and the sessions that run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import cached_property
from operator import index
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

from . import _core
from .generation import LOGITS, Floats, Trail, generate, stop_bytes
from .model_file import hint, open_model_file
from .state import ARCH_KEY, State, StateShape
from .tokenizer import END_OF_TEXT, Tokenizer, tokenizer_from_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Tokens between two calls of a progress function.
PROGRESS_CHUNK = 64

FeedProgress = Callable[[int, int], None]  # tokens fed, tokens in all


def bundled_model() -> Path:
    """The path of the demo model; raises FileNotFoundError where it was not installed."""
    path = Path(__file__).with_name("demo.gguf")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: this installation has no demo model; name a model file instead"
        )
    return path


class Model:
    """An RWKV model: its weights, mapped from a file, and its tokenizer.

    Immutable; its sessions may run in several threads at once.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        vocab: str | PathLike[str] | None = None,
        threads: int | None = None,
    ) -> None:
        """Open `path`, or the bundled demo model, to run on `threads` threads (None: one for
        each core that the process may use, at most 8).

        A checkpoint that is no GGUF file is opened as `convert` would take it, with its weights in
        their own precision; `vocab` is the file of its vocabulary, by default one beside it or the
        World vocabulary in the package pyrwkv-tokenizer.

        Raises FormatError for a file that is no model or a damaged one, UnsupportedError for a
        model that this build cannot run, OSError for a file that cannot be read or threads that the
        system does not give.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads: found {threads}, expected at least 1")
        self._file = open_model_file(bundled_model() if path is None else path, vocab=vocab)
        if self._file.get(ARCH_KEY) is not None:
            raise _core.FormatError(
                f"{self._file.path}: a saved state, not a model; "
                "`rwkv-edge chat MODEL --state FILE` goes on from it"
            )
        self._core = _core.Model(self._file, threads or 0)
        self.path = Path(self._file.path)

    def __repr__(self) -> str:
        return f"Model('{self.path}': {self._shape})"

    @property
    def arch(self) -> str:
        return self._core.arch

    @property
    def n_layer(self) -> int:
        return self._core.n_layer

    @property
    def n_embd(self) -> int:
        return self._core.n_embd

    @property
    def n_vocab(self) -> int:
        return self._core.n_vocab

    @property
    def head_size(self) -> int:
        """Channels in each head; 0 in RWKV-4, which has none."""
        return dict(self._core.state_parts).get("wkv", (0,))[-1]

    @property
    def threads(self) -> int:
        return self._core.threads

    @property
    def hint(self) -> str | None:
        """What would make this model faster on this machine; None where nothing is known to."""
        return hint(self._file)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """All keys of the file with their values: bool, int, float, str or a list of these."""
        return {key: self._file.get(key) for key in self._file.keys()}  # noqa: SIM118 (no mapping)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises FormatError where the file holds none that fits, UnsupportedError for its kind."""
        tokenizer = tokenizer_from_file(self._file)
        if tokenizer.n_vocab > self.n_vocab:
            raise _core.FormatError(
                f"{self.path}: a tokenizer of {tokenizer.n_vocab} tokens, "
                f"expected at most the model's {self.n_vocab}"
            )
        return tokenizer

    @cached_property
    def _without_text(self) -> list[int]:
        """The ids that no text can produce, but for END_OF_TEXT."""
        tokenizer = self.tokenizer
        return [*tokenizer.without_text(), *range(tokenizer.n_vocab, self.n_vocab)]

    @property
    def _shape(self) -> StateShape:
        return StateShape(self.arch, self.n_layer, tuple(self._core.state_parts))

    def session(self, state: State | None = None) -> Session:
        """A new session: from the beginning, from where `state` was copied, or from a tuned state.

        Raises FormatError where the state is of another model.
        """
        session = Session(self, self._core.session())
        if state is not None:
            session.reset(state)
        return session


class Session:
    """One text as the model has read it so far. To be used by one thread at a time."""

    def __init__(self, model: Model, core: _core.Session) -> None:
        """For `Model.session` and `Session.fork`."""
        self.model = model
        self._core = core
        self._fresh = True
        self._logits: Floats | None = None  # after the last token, where known
        self._running: Generator[str, None, None] | None = None

    @overload
    def feed(
        self,
        tokens: Iterable[SupportsIndex],
        *,
        logits: Literal["last", "all"] = "last",
        progress: FeedProgress | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def feed(
        self,
        tokens: Iterable[SupportsIndex],
        *,
        logits: Literal["none"],
        progress: FeedProgress | None = None,
    ) -> None: ...
    def feed(
        self,
        tokens: Iterable[SupportsIndex],
        *,
        logits: Literal["last", "all", "none"] = "last",
        progress: FeedProgress | None = None,
    ) -> NDArray[np.float32] | None:
        """Read tokens, at least one; all of them or, when an exception ends the call, none.

        Returns what is expected next: the logits, float32 [n_vocab], after the last token, or
        [T, n_vocab] after each, or None. `progress` is called now and then, and may raise.
        Raises ValueError for a token outside the vocabulary.
        """
        if logits not in LOGITS:
            raise ValueError(f"logits: found '{logits}', expected 'last', 'all' or 'none'")
        self._finish()
        found = self._feed(self._checked(tokens), LOGITS[logits], progress)
        if logits == "none":
            return None
        import numpy as np

        shape = (-1, self.model.n_vocab) if logits == "all" else (-1,)
        return np.frombuffer(found, np.float32).reshape(shape)

    def read(
        self, tokens: Iterable[SupportsIndex], *, progress: FeedProgress | None = None
    ) -> None:
        """Read tokens as `feed` does, for `generate` to go on from there."""
        self._finish()
        self._feed(self._checked(tokens), LOGITS["last"], progress)

    def _checked(self, tokens: Iterable[SupportsIndex]) -> list[int]:
        ids = self._ids(tokens)
        if not ids:
            raise ValueError("tokens: found none, expected at least one")
        return ids

    def _ids(self, tokens: Iterable[SupportsIndex]) -> list[int]:
        expected = "expected a list or an array of whole numbers"
        if isinstance(tokens, (str, bytes, bytearray, memoryview)):
            raise ValueError(f"tokens: found {type(tokens).__name__}, {expected}")
        try:
            ids = [index(token) for token in tokens]
        except TypeError as error:
            raise ValueError(f"tokens: {error}, {expected}") from error
        outside = next((i for i in ids if not 0 <= i < self.model.n_vocab), None)
        if outside is not None:
            raise ValueError(f"token {outside} is outside the vocabulary of {self.model.n_vocab}")
        return ids

    def _feed(self, ids: list[int], logits: int, progress: FeedProgress | None = None) -> Floats:
        size = PROGRESS_CHUNK if progress else len(ids)
        chunks = [ids[at : at + size] for at in range(0, len(ids), size)]
        # A single token is quick, and a copy of the state would cost a good part of its time.
        before = self._core.get_state() if len(ids) > 1 else None
        found = []
        try:
            for i, chunk in enumerate(chunks):
                if progress:
                    progress(i * size, len(ids))
                wanted = i == len(chunks) - 1 or logits == LOGITS["all"]
                found.append(self._core.feed(chunk, logits if wanted else LOGITS["none"]))
        except BaseException:
            if before is not None:
                self._core.set_state(before)
            raise
        self._fresh = False
        rows = bytearray().join(found)
        self._logits = rows[-4 * self.model.n_vocab :] or None  # of the last token, 4 bytes each
        return rows

    @property
    def state(self) -> State:
        """A copy of what the session remembers."""
        self._finish()
        import numpy as np

        return State(np.frombuffer(self._core.get_state(), np.float32), self.model._shape)

    def reset(self, state: State | None = None) -> None:
        """Go to the beginning, to where `state` was copied, or to a tuned state.

        Raises FormatError where the state is of another model.
        """
        self._finish()
        if state is None:
            self._core.reset()
        else:
            fitted = state.fitted(self.model._shape, str(self.model.path))
            self._core.set_state(bytearray(fitted.data))
        self._fresh = state is None or state.tuned
        self._logits = None

    def fork(self) -> Session:
        """A second session that goes on from here on its own."""
        self._finish()
        twin = Session(self.model, self._core.fork())
        twin._fresh, twin._logits = self._fresh, self._logits
        return twin

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.3,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 0.996,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> Generator[str, None, None]:
        """Read the prompt and yield what follows, piece by piece, in whole characters.

        It ends after `max_tokens` tokens, at the token that ends a document, or before a stop
        string. Then, or when the iterator is closed early, the session stands exactly behind the
        text that was yielded, ready for more. An empty prompt goes on from the last token fed; at
        the very beginning it stands for the token that ends a document.

        Of the tokens, the most likely are kept: as few as hold `top_p` of the probability (1: all),
        and at most `top_k` (0: any number). Then `temperature` sharpens (< 1) or flattens (> 1)
        their probabilities; 0 always takes the first. A token's logit is lowered by
        `presence_penalty` once it was generated, and by `frequency_penalty` times its count, of
        which each later token leaves `penalty_decay`; digits and blanks are not counted. Equal
        seeds give equal text; None is random.

        Raises ValueError for options out of range, and for an empty prompt after a state was set.
        """
        self._finish()
        if max_tokens < 0:
            raise ValueError(f"max_tokens: found {max_tokens}, expected at least 0")
        sampler = _core.Sampler(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            penalty_decay=penalty_decay,
            seed=int.from_bytes(os.urandom(8), "little") if seed is None else seed,
            banned=self.model._without_text,
        )
        encode = self.model.tokenizer.encode
        ids = self._ids(encode(prompt) if isinstance(prompt, str) else prompt)
        if not ids and self._fresh:
            ids = [END_OF_TEXT]
        if not ids and self._logits is None:
            raise ValueError("the prompt is empty, and the last token's logits are not known")
        self._running = self._generate(ids or None, sampler, max_tokens, stop_bytes(stop))
        return self._running

    def _generate(
        self,
        prompt: list[int] | None,
        sampler: _core.Sampler,
        max_tokens: int,
        stops: Sequence[bytes],
    ) -> Generator[str, None, None]:
        logits = self._logits if prompt is None else self._feed(prompt, LOGITS["last"])
        assert logits is not None
        trail = Trail(self._core, self.model.tokenizer, logits)
        try:
            yield from generate(trail, sampler, max_tokens=max_tokens, stops=stops)
        finally:
            self._logits = trail.settle()

    def _finish(self) -> None:
        """End a generation that was left half-way, so that the state is where its text is."""
        if self._running is not None:
            self._running.close()
            self._running = None
