# SPDX-License-Identifier: Apache-2.0
"""What a model thinks before it answers, told from the answer, as the pieces of a text come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

OPEN, CLOSE = "<think>", "</think>"


class Thought(str):
    """A piece of reasoning."""

    __slots__ = ()


def without_blanks(pieces: Iterable[str], bracket: str = "") -> Iterator[str]:
    """Pieces without the white space before their text, nor the `bracket` before that."""
    begun, first = False, True
    for piece in pieces:
        text = piece
        if first and text:
            text, first = text.removeprefix(bracket), False
        if not begun:
            text = text.lstrip()
        if text:
            begun = True
            yield text


def told_apart(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of an answer. Where it begins with <think>, what comes up to </think> as Thoughts, and
    neither of the two.
    """
    source, held = iter(pieces), ""
    for piece in source:
        held += piece
        text = held.lstrip()
        if not (OPEN.startswith(text) if len(text) < len(OPEN) else text.startswith(OPEN)):
            break
        if len(text) >= len(OPEN):
            yield from until_close(text[len(OPEN) :], source)
            return
    yield from without_blanks(chained(held, source))


def until_close(text: str, source: Iterator[str]) -> Iterator[str]:
    """Thoughts up to </think>, and then the answer behind it."""
    held, begun = "", False
    for piece in chained(text, source):
        held += piece
        before, close, after = held.partition(CLOSE)
        if not close:
            cut = len(held) - held_back(held)
            before, held = held[:cut], held[cut:]
        if not begun:
            before = before.lstrip()
        if before:
            begun = True
            yield Thought(before)
        if close:
            yield from without_blanks(chained(after, source))
            return
    if held:
        yield Thought(held)


def held_back(text: str) -> int:
    """How many characters at the end may turn out to begin </think>."""
    return next((n for n in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:n])), 0)


def chained(text: str, source: Iterator[str]) -> Iterator[str]:
    if text:
        yield text
    yield from source
