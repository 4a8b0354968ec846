# SPDX-License-Identifier: Apache-2.0
"""Text from logits, and a session that stands where the text stops."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Generator, Iterable, Sequence
from numbers import Real
from operator import index
from typing import SupportsIndex, TypedDict

from . import _core
from .lookup import Lookup
from .tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer

Floats = bytearray
"""Of 32 bits, as the engine takes and gives them. Text is generated without numpy, which takes
longer to import than a model to open."""

MAX_SEED = 2**64 - 1

# Where more sampled tokens wait to be fed again, none are drafted: long steps cost more.
MOST_AGAIN = 3

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


class Answer:
    """A text in the making: it takes logits, gives text, and says which token to feed next.

    It knows no session: whoever feeds tokens, of one answer or of many, asks it after each step.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        banned: list[int],
        *,
        stop: str | Sequence[str] = (),
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.3,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 0.996,
        seed: int | None = None,
    ) -> None:
        """`Session.generate` says what the options mean.

        Raises ValueError for one out of range, TypeError for one of another kind.
        """
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        self._sampler = _core.Sampler(
            temperature=real("temperature", temperature),
            top_k=whole("top_k", top_k, 0, 2**63 - 1),
            top_p=real("top_p", top_p),
            presence_penalty=real("presence_penalty", presence_penalty),
            frequency_penalty=real("frequency_penalty", frequency_penalty),
            penalty_decay=real("penalty_decay", penalty_decay),
            seed=whole("seed", seed, 0, MAX_SEED),
            banned=banned,
        )
        self._stops = stop_bytes(stop)
        self._left = whole("max_tokens", max_tokens, 0)
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder()
        self._held = b""  # the end of the tokens' text, which may begin a stop string
        self._given = 0  # bytes of the tokens' text that were returned
        self._ends: list[int] = []  # where the text of each token ends
        self.tokens: list[int] = []
        """All that were sampled, but for the one that ends a document."""
        self.complete = False
        """Whether no token follows."""

    @property
    def all_given(self) -> bool:
        """Whether the text of all tokens was returned."""
        return self._given == (self._ends[-1] if self._ends else 0)

    def take(self, logits: Floats, row: int, n_vocab: int) -> str:
        """Sample the next token from a row of [rows, n_vocab] logits (0: all are one row).

        Returns the text that is now certain: whole characters that begin no stop string. Unless the
        answer is complete, the last of `tokens` is the one to feed next.
        """
        token = self._sampler.sample(logits, row, n_vocab) if self._left else END_OF_TEXT
        if token == END_OF_TEXT:
            return self._finish(self._held)
        self._left -= 1
        data = self._tokenizer.token_bytes(token)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(data))
        self.tokens.append(token)
        self._sampler.accept(token, 0.0 if data in NEVER_FREQUENT else 1.0)
        self._held += data
        stop = find_stop(self._held, self._stops)
        if stop >= 0:
            return self._finish(self._held[:stop])
        if not self._left:
            return self._finish(self._held)
        cut = len(self._held) - held_back(self._held, self._stops)
        text = self._decoder.push(self._held[:cut])
        self._held = self._held[cut:]
        self._given = self._ends[-1] - len(self._held) - self._decoder.pending
        return text

    def _finish(self, rest: bytes) -> str:
        self.complete = True
        self._given += self._decoder.pending + len(rest)
        return self._decoder.push(rest) + self._decoder.flush()

    def given(self) -> tuple[int, list[int]]:
        """What the returned text consists of: so many of `tokens`, and where it ends inside the
        next one, the tokens of its beginning.
        """
        whole = bisect_right(self._ends, self._given)
        begun = self._given - (self._ends[whole - 1] if whole else 0)
        if not begun:
            return whole, []
        return whole, self._tokenizer.encode(
            self._tokenizer.token_bytes(self.tokens[whole])[:begun]
        )


class Stream:
    """An answer and the engine's session that feeds it."""

    def __init__(
        self, core: _core.Session, prompt: list[int], answer: Answer, lookup: Lookup | None = None
    ) -> None:
        """Without a prompt, the answer goes on from the last token that was fed. `lookup` knows the
        text so far, prompt included.
        """
        self.answer = answer
        self.lookup = lookup
        self.ended = False
        """Whether no text follows, and the session stands where it ends."""
        self._core = core
        self._prompt: list[int] | None = prompt or None
        self._start = core.tokens + len(prompt)
        self._draft: list[int] = []  # fed, or to be fed, and not yet sampled
        self._skip = 0  # rows of logits before the one that follows the last sampled token
        # Where the session can go back to: what was fed by then was also given out.
        self._mark: _core.Session | None = None
        self._marked = False
        self.keeps_mark = False
        """Whether `mark` is known after the end, too."""

    def part(self) -> tuple[_core.Session, list[int], _core.Logits]:
        """What to feed next: the prompt; then what was sampled, and perhaps a draft of more."""
        if self._prompt:
            return self._core, self._prompt, _core.Logits.last
        sampled = self.answer.tokens[self._core.tokens - self._start :]
        draft = self.lookup.draft() if self.lookup and len(sampled) <= MOST_AGAIN else []
        if self.answer.all_given:
            self._marked = False
        if not self._marked and (draft or not self.answer.all_given):
            if self._mark is None:
                self._mark = self._core.fork()
            else:
                self._mark.rewind(self._core)
            self._marked = True
        self._draft = draft
        self._skip = len(sampled) - 1 if draft else 0
        return self._core, sampled + draft, _core.Logits.all if draft else _core.Logits.last

    def take(self, logits: Floats, row: int = 0, n_vocab: int = 0) -> str:
        """The text that is certain after the logits of `part`, which begin at a row."""
        self._prompt = None
        known, draft = len(self.answer.tokens), self._draft
        row += self._skip
        text = self.answer.take(logits, row, n_vocab)
        accepted = 0
        while (
            accepted < len(draft)
            and not self.answer.complete
            and self.answer.tokens[-1] == draft[accepted]
        ):
            accepted += 1
            text += self.answer.take(logits, row + accepted, n_vocab)
        if accepted < len(draft):
            assert self._mark is not None
            self._core.rewind(self._mark)
        self._draft = []
        if self.lookup:
            self.lookup.extend(self.answer.tokens[known:])
            if draft:
                self.lookup.learn(len(draft), accepted)
        if self.answer.complete:
            self.settle()
        return text

    def take_last(self) -> str:
        """The text that is certain after the last token fed, where there is no prompt."""
        return "" if self._prompt else self.take(self._core.logits())

    def settle(self) -> None:
        """End, and leave the session where the text ends that was returned."""
        if not self.ended:
            self.ended = True
            self._settle(self._core)
            if not self.keeps_mark:
                self._mark = None

    @property
    def mark(self) -> tuple[int, _core.Session] | None:
        """A session before the last tokens of the answer, and how many of them it has read."""
        return None if self._mark is None else (self._mark.tokens - self._start, self._mark)

    def settled_fork(self) -> _core.Session:
        """A second session where that text ends; this one goes on."""
        fork = self._core.fork()
        self._settle(fork)
        return fork

    def _settle(self, core: _core.Session) -> None:
        if core.tokens < self._start:  # the prompt was not read
            return
        # What was fed is counted by the engine: an interrupt cannot fall between the two.
        whole, begun = self.answer.given()
        if self._draft or core.tokens - self._start > whole:
            assert self._mark is not None
            core.rewind(self._mark)
        rest = self.answer.tokens[core.tokens - self._start : whole] + begun
        if rest:
            core.feed(rest, _core.Logits.none)


def run(streams: Sequence[Stream], n_vocab: int) -> Generator[tuple[int, str], None, None]:
    """Feed streams of one model together until all have ended; yields the texts with the numbers
    of their streams. Whenever it stops, the sessions stand where their texts end.
    """
    try:
        for i, stream in enumerate(streams):
            if not stream.ended and (text := stream.take_last()):
                yield i, text
        while active := [i for i, stream in enumerate(streams) if not stream.ended]:
            parts = [streams[i].part() for i in active]
            logits = _core.feed_together(parts)
            row = 0
            for i, (_, ids, mode) in zip(active, parts, strict=True):
                # the one who got the text before may have ended this stream
                if not streams[i].ended and (text := streams[i].take(logits, row, n_vocab)):
                    yield i, text
                row += len(ids) if mode == _core.Logits.all else 1
    finally:
        for stream in streams:
            stream.settle()


def whole(name: str, value: SupportsIndex, least: int, most: int | None = None) -> int:
    """An option that is a whole number."""
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name}: found {value!r}, expected a whole number") from None
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: found {number}, expected {limits}")
    return number


def real(name: str, value: float) -> float:
    """An option that is a number; the sampler knows its range."""
    if not isinstance(value, Real):
        raise TypeError(f"{name}: found {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def stop_bytes(stop: str | Sequence[str]) -> list[bytes]:
    """The stop strings as bytes; raises ValueError for an empty one, TypeError for no text."""
    texts = [stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else list(stop)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"stop: found {stop!r}, expected a text or a list of texts")
    stops = [text.encode("utf-8", "surrogateescape") for text in texts]
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
