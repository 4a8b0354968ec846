# SPDX-License-Identifier: Apache-2.0
"""Models and a sampler that say what a test wants them to say."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tiny
from rwkv_edge import Model, Session, _core

# Of the vocabulary that `tiny.put_vocabulary` makes; a single byte is 1 + its value.
THE, USER, ASSISTANT, ING, TURN_END = range(257, 262)
WORDS = {b" the": THE, b"User": USER, b"Assistant": ASSISTANT, b"ing": ING, b"\n\n": TURN_END}


def byte_tokens(text: str | bytes) -> list[int]:
    """One token per byte."""
    data = text.encode() if isinstance(text, str) else text
    return [1 + byte for byte in data]


def letters(model: Model, text: str) -> list[int]:
    """A token for each, which no encoding of the text would give."""
    return [token for letter in text for token in model.tokenizer.encode(letter)]


def talkative_model(folder: Path) -> Path:
    """A random model in float32 that never ends a text of its own accord."""
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    head = made.file.tensor("output.weight")
    rows = np.frombuffer(head.data, np.float32).reshape(head.dims[::-1]).copy()
    rows[[0, TURN_END, *byte_tokens("\n")]] = 0  # far from the likeliest
    head.data = rows.tobytes()
    return tiny.write(folder, "talkative.gguf", made)


class ScriptedSampler:
    """Takes its tokens from `script`; an exception in it is raised."""

    script: ClassVar[list[int | type[BaseException]]] = []
    accepted: ClassVar[list[tuple[int, float]]] = []
    options: ClassVar[dict[str, object]] = {}
    banned: ClassVar[list[int]] = []
    seed = 0

    def __init__(self, banned: Sequence[int] = (), **options: object) -> None:
        type(self).banned = list(banned)
        self.options.update(options)

    def sample(
        self, _logits: bytearray, _row: int, _n_vocab: int, allowed: bytes | None = None
    ) -> int:
        token = self.script.pop(0)
        if not isinstance(token, int):
            raise token
        assert token not in self.banned
        assert allowed is None or allowed[token // 8] >> token % 8 & 1
        return token

    def accept(self, token: int, weight: float) -> None:
        self.accepted.append((token, weight))


def play(
    monkeypatch: pytest.MonkeyPatch, tokens: Sequence[int | type[BaseException]]
) -> type[ScriptedSampler]:
    """Let the next generations say these tokens."""
    monkeypatch.setattr(ScriptedSampler, "script", list(tokens))
    monkeypatch.setattr(ScriptedSampler, "accepted", [])
    monkeypatch.setattr(_core, "Sampler", ScriptedSampler)
    return ScriptedSampler


def bits(session: Session) -> bytes:
    return session.state.data.tobytes()


def bits_after(model: Model, tokens: Sequence[int]) -> bytes:
    """The state of a session that was fed exactly these tokens."""
    session = model.session()
    if tokens:
        session.feed(tokens)
    return bits(session)


class Alarm:
    """Interrupts as Ctrl-C does, at a chosen moment of a block and nowhere else."""

    def __init__(self) -> None:
        self.hits = 0
        """Blocks that were interrupted."""
        self._armed = False

    def _ring(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt

    def __enter__(self) -> Alarm:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    @contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """The block ends with its last line, or with an interrupt after so many seconds."""
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
            self._armed = False
        except KeyboardInterrupt:
            self.hits += 1
