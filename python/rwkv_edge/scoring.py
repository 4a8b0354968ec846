# SPDX-License-Identifier: Apache-2.0
"""How likely a model finds given continuations, many at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from .model import Model, Session, logprobs_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_ROWS = 256  # of logits at once: 67 MB in a World model

T = TypeVar("T")


@dataclass
class Continuation:
    """A text in the scoring: `session` has read `done` of its tokens."""

    number: int
    session: Session
    tokens: Sequence[int]
    done: int = 0
    logprobs: list[float] = field(default_factory=list)
    greedy: bool = True

    def score(self, rows: NDArray[np.float32]) -> None:
        """Take the next tokens from the logits [T, n_vocab] that precede them."""
        ids = self.tokens[self.done : self.done + len(rows)]
        self.logprobs += logprobs_of(rows, ids).tolist()
        self.greedy = self.greedy and bool((rows.argmax(axis=1) == list(ids)).all())
        self.done += len(ids)


def score(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[float, bool]]:
    """For each pair of contexts and continuations, token ids: ln p(continuation | context), and
    whether each of its tokens is the likeliest.

    `batch_size` sessions go on together. A context that several pairs share is read once. No
    length is too long. `progress` gets the number of pairs that are done since its last call.
    Raises ValueError for an empty context and for a token outside the vocabulary.
    """
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    by_context: dict[tuple[int, ...], list[int]] = {}
    for number, (context, tokens) in enumerate(pairs):
        outside = next((i for i in tokens if not 0 <= i < model.n_vocab), None)
        if outside is not None:
            raise ValueError(f"token {outside} is outside the vocabulary of {model.n_vocab}")
        by_context.setdefault(tuple(context), []).append(number)
    for contexts in several(list(by_context), batch_size):
        sessions = [model.session() for _ in contexts]
        logits = model.batch(sessions).feed(contexts)
        texts = []
        for context, session, row in zip(contexts, sessions, logits, strict=True):
            for number in by_context[context]:
                text = Continuation(number, session, pairs[number][1])
                if text.tokens:
                    text.score(row[None])
                texts.append(text)
        for some in several(texts, batch_size):
            go_on(model, some)
            for text in some:
                # One rounding, so the sum does not depend on who shared the steps.
                found[text.number] = math.fsum(text.logprobs), text.greedy
            if progress:
                progress(len(some))
    return found


def go_on(model: Model, texts: Sequence[Continuation]) -> None:
    """Score what is left of the texts, all of them together."""
    rest = [text for text in texts if text.done < len(text.tokens)]
    for text in rest:
        text.session = text.session.fork()  # of one that other texts may share
    while rest:
        count = max(1, MOST_ROWS // len(rest))
        parts = [t.tokens[t.done - 1 : min(t.done - 1 + count, len(t.tokens) - 1)] for t in rest]
        logits = model.batch([text.session for text in rest]).feed(parts, logits="all")
        for text, rows in zip(rest, logits, strict=True):
            text.score(rows)
        rest = [text for text in rest if text.done < len(text.tokens)]


def several(items: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), count):
        yield items[start : start + count]
