# SPDX-License-Identifier: Apache-2.0
"""Drafts for the next tokens of a text, taken from the text itself.

A step of a few tokens costs little more than a step of one. So tokens that are likely to come are
fed before they are sampled, and forgotten again where another one is sampled: the text is the same,
only sooner there. Where a text repeats itself (code, quotations, lists), what followed the last
time is a good guess. The idea is known as prompt lookup decoding.
"""

from __future__ import annotations

from collections.abc import Iterable

LENGTHS = (4, 3, 2)
"""How many last tokens are looked up, the longest first."""


class Lookup:
    """A text, and what followed where its last tokens occurred before."""

    def __init__(self, most: int, tokens: Iterable[int] = ()) -> None:
        """`most` is the longest draft; 0: none."""
        self.drafted = 0
        """Tokens that were drafted."""
        self.accepted = 0
        """Of these, the ones that were sampled."""
        self.steps = 0
        """Steps that fed something, with a draft or without."""
        self._most = most
        self._size = most
        self._luck = 0.5  # the share of recent drafts that was right
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # last tokens -> where the text went on
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The text goes on."""
        for token in tokens:
            for length in LENGTHS:
                if len(self._tokens) >= length:
                    self._after[tuple(self._tokens[-length:])] = len(self._tokens)
            self._tokens.append(token)

    def draft(self) -> list[int]:
        """What may follow; empty where nothing is known, or too many drafts were wrong."""
        self.steps += 1
        if self._luck < 0.2:
            self._luck += 0.01  # and try again after a while
            return []
        for length in LENGTHS:
            at = self._after.get(tuple(self._tokens[-length:]))
            if at is not None:
                return self._tokens[at : at + self._size]
        return []

    def learn(self, drafted: int, accepted: int) -> None:
        """How a draft went: long ones after right ones, short ones after wrong ones."""
        self.drafted += drafted
        self.accepted += accepted
        self._luck += 0.25 * (accepted / drafted - self._luck)
        self._size = min(2 * drafted, self._most) if accepted == drafted else max(accepted, 1)
