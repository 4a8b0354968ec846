# SPDX-License-Identifier: Apache-2.0
"""Sampling text token by token, and leaving a session as if only the emitted text had been fed."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Sequence
from functools import partial
from typing import TypedDict

from . import _core
from .tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer

Floats = bytearray
"""Of 32 bits, as the engine takes and gives them. Text is generated without numpy, which takes
longer to import than a model to open."""
# Which logits a feed returns, as the engine numbers them.
LOGITS = {"none": 0, "last": 1, "all": 2}

# Of these and their runs, numbers and columns, the frequency penalty does not count occurrences.
NEVER_FREQUENT = b" \t0123456789"


class Sampling(TypedDict, total=False):
    """The options of `Session.generate`, which says what they mean."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    penalty_decay: float
    seed: int | None


class Trail:
    """The sampled tokens, how far they have been fed, and the way back to where the text stops."""

    def __init__(self, session: _core.Session, tokenizer: Tokenizer, logits: Floats) -> None:
        self.emitted = 0
        """How many bytes of the tokens' text the caller has got."""
        self._session = session
        self._feed = partial(session.feed, logits=LOGITS["last"])
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._ends: list[int] = []  # where the text of each token ends; may be one ahead of _tokens
        self._last = deque([(0, logits)], maxlen=1)  # tokens fed, and the logits after them
        self._checkpoint: tuple[int, Floats, Floats] | None = None

    @property
    def logits(self) -> Floats:
        return self._last[0][1]

    @property
    def size(self) -> int:
        """Bytes of text of all tokens."""
        return self._ends[-1] if self._ends else 0

    def add(self, token: int) -> bytes:
        """Note a sampled token; returns its bytes."""
        data = self._tokenizer.token_bytes(token)
        self._ends.append(self.size + len(data))
        self._tokens.append(token)
        return data

    def feed(self) -> None:
        """Feed the token added last, keeping a way back if some text is still held."""
        fed, logits = self._last[0]
        all_out = self.emitted == self.size
        if not all_out and self._checkpoint is None:
            self._checkpoint = fed, self._session.get_state(), logits
        ids = self._tokens[fed:]
        # All in C, so that Ctrl-C cannot fall between feeding the token and counting it.
        self._last.extend(zip([fed + 1], map(self._feed, [ids]), strict=True))
        if all_out:
            self._checkpoint = None

    def settle(self) -> Floats:
        """Leave the session where the emitted text ends; returns its logits there.

        Where that is inside a token, the beginning of it is encoded anew.
        """
        kept = bisect_right(self._ends, self.emitted)
        tokens = self._tokens[:kept]
        begun = self.emitted - (self._ends[kept - 1] if kept else 0)
        if begun:
            data = self._tokenizer.token_bytes(self._tokens[kept])
            tokens += self._tokenizer.encode(data[:begun])
        fed, logits = self._last[0]
        if fed > kept:
            assert self._checkpoint is not None
            fed, state, logits = self._checkpoint
            self._session.set_state(state)
        rest = tokens[fed:]
        return self._feed(rest) if rest else logits


def stop_bytes(stop: str | Sequence[str]) -> list[bytes]:
    """The stop strings as bytes; raises ValueError for an empty one."""
    stops = [
        text.encode("utf-8", "surrogateescape")
        for text in ([stop] if isinstance(stop, str) else stop)
    ]
    if b"" in stops:
        raise ValueError("stop: found an empty string, expected some text")
    return stops


def find_stop(text: bytes, stops: Sequence[bytes]) -> int:
    """Where the first stop string begins, or -1."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=-1)


def held_back(text: bytes, stops: Sequence[bytes]) -> int:
    """How many bytes at the end of a text may turn out to begin a stop string."""
    longest = max(map(len, stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0


def generate(
    trail: Trail,
    sampler: _core.Sampler,
    *,
    max_tokens: int,
    stops: Sequence[bytes],
) -> Generator[str, None, None]:
    """Sample up to max_tokens tokens and yield their text, up to a stop string or END_OF_TEXT."""
    decoder = StreamDecoder()
    held = b""
    for _ in range(max_tokens):
        token = sampler.sample(trail.logits)
        if token == END_OF_TEXT:
            break
        data = trail.add(token)
        sampler.accept(token, 0.0 if data in NEVER_FREQUENT else 1.0)
        held += data
        stop = find_stop(held, stops)
        cut = stop if stop >= 0 else len(held) - held_back(held, stops)
        text = decoder.push(held[:cut])
        held = held[cut:]
        if stop >= 0:
            text += decoder.flush()
        trail.emitted = trail.size - len(held) - decoder.pending
        if text:
            yield text
        if stop >= 0:
            return
        trail.feed()
    text = decoder.push(held) + decoder.flush()
    trail.emitted = trail.size
    if text:
        yield text
