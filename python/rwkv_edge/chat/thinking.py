# SPDX-License-Identifier: Apache-2.0
"""What a model thinks before it answers, told from the answer, as the pieces of a text come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

OPEN, CLOSE = "<think>", "</think>"


class Thought(str):
    """A piece of reasoning."""

    __slots__ = ()


class WithoutBlanks:
    """Text without the white space before it, nor the `bracket` before that."""

    def __init__(self, bracket: str = "") -> None:
        self._bracket = bracket
        self._begun = False

    def push(self, piece: str) -> str:
        """What of a piece is to be seen."""
        if piece and not self._begun:
            piece, self._bracket = piece.removeprefix(self._bracket), ""
            piece = piece.lstrip()
            self._begun = bool(piece)
        return piece


def without_blanks(pieces: Iterable[str], bracket: str = "") -> Iterator[str]:
    """Pieces without the white space before their text, nor the `bracket` before that."""
    text = WithoutBlanks(bracket)
    yield from filter(None, map(text.push, pieces))


class ToldApart:
    """An answer, which may begin with <think>: what comes up to </think> as a Thought, and the
    rest, each without blanks before it."""

    def __init__(self) -> None:
        self._held = ""
        self._open: bool | None = None  # whether it is in a thought; None: not known yet
        self._text = WithoutBlanks()

    def push(self, piece: str) -> list[str]:
        """The pieces that are now certain."""
        self._held += piece
        if self._open is None:
            text = self._held.lstrip()
            if len(text) < len(OPEN) and OPEN.startswith(text):
                return []
            self._open = text.startswith(OPEN)
            if self._open:
                self._held = text[len(OPEN) :]
        found: list[str] = []
        if self._open:
            before, close, after = self._held.partition(CLOSE)
            if not close:
                cut = len(before) - held_back(before)
                before, after = before[:cut], before[cut:]
            if thought := self._text.push(before):
                found.append(Thought(thought))
            self._held = after
            if not close:
                return found
            self._open, self._text = False, WithoutBlanks()
        if text := self._text.push(self._held):
            found.append(text)
        self._held = ""
        return found

    def end(self) -> list[str]:
        """What was held back."""
        text = self._text.push(self._held)
        return [Thought(text) if self._open else text] if text else []


def told_apart(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of an answer, as ToldApart has them."""
    reader = ToldApart()
    for piece in pieces:
        yield from reader.push(piece)
    yield from reader.end()


def held_back(text: str) -> int:
    """How many characters at the end may turn out to begin </think>."""
    return next((n for n in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:n])), 0)
