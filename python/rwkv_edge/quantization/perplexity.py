# SPDX-License-Identifier: Apache-2.0
"""How well a model predicts a text, and how far it is from another one: perplexity and the
Kullback-Leibler divergence.

Windows of a text are read from the zero state. The logits at a position predict the token after it;
those of the first positions do not count, as the model knows too little of the text there.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files.base_file import BaseReader, BaseWriter, scored
from ..model import Model
from .text import Windows

WINDOW, FIRST = 512, 32
ROWS = 256  # of logits at once: 67 MB in a World model
BLOCK_VALUES = 1 << 21  # in double precision at once: 16 MB
RESAMPLES = 2000
CLIPPED = -16.0  # ln p below which llama-perplexity leaves a token of the base out

F64 = NDArray[np.float64]
Progress = Callable[[int, int], object]  # tokens read, and in all


@dataclass(frozen=True)
class Estimate:
    """A mean, and where it lies in 95 % of 2,000 draws of as many windows; the same value twice
    where there is one window only."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """Of each scored position, [windows, positions]; those of a base are None without one."""

    first: int
    nll: F64
    """-ln p of the token that follows."""
    base_nll: F64 | None = None
    kl: F64 | None = None
    """KL divergence of the model from the base: the sum over all tokens of p_base ln(p_base / p).
    """
    same_top: NDArray[np.bool_] | None = None
    """Whether the likeliest token is the same."""

    def perplexity(self) -> Estimate:
        return _exp(_estimate(self.nll))

    def base_perplexity(self) -> Estimate:
        assert self.base_nll is not None
        return _exp(_estimate(self.base_nll))

    def log_ratio(self) -> Estimate:
        """ln(perplexity / perplexity of the base), both over the same windows."""
        assert self.base_nll is not None
        return _estimate(self.nll - self.base_nll)

    def divergence(self) -> Estimate:
        assert self.kl is not None
        return _estimate(self.kl)

    def at(self, window: int, start: int, end: int) -> Scores:
        """A view of some positions of one window."""
        return self._cut(slice(window, window + 1), start, end)

    def by_position(self) -> Iterator[tuple[int, int, Scores]]:
        """Parts of the window, each from where twice as many tokens were read, and their scores."""
        end = self.first + self.nll.shape[1]
        low = self.first
        while low < end:
            high = min(end, max(2 * low, 1))
            yield low, high, self._cut(slice(None), low, high)
            low = high

    def _cut(self, windows: slice, start: int, end: int) -> Scores:
        part = windows, slice(start - self.first, end - self.first)
        return Scores(
            start,
            self.nll[part],
            None if self.base_nll is None else self.base_nll[part],
            None if self.kl is None else self.kl[part],
            None if self.same_top is None else self.same_top[part],
        )


def _exp(estimate: Estimate) -> Estimate:
    return Estimate(math.exp(estimate.mean), math.exp(estimate.low), math.exp(estimate.high))


def _estimate(values: F64) -> Estimate:
    means = values.mean(axis=1)
    mean = float(means.mean())
    if len(means) == 1:
        return Estimate(mean, mean, mean)
    # The same seed draws the same windows, so two models are compared on the same ones.
    draws = np.random.default_rng(0)
    drawn = [means[draws.integers(0, len(means), len(means))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(mean, float(low), float(high))


def score(
    model: Model,
    windows: Windows,
    *,
    first: int | None = None,
    base: Model | BaseReader | None = None,
    save: Path | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score the positions of each window from `first` on: of [windows, size] tokens.

    `base` is the model that is right by definition, or a base file of llama-perplexity with the
    same windows. `save` writes such a file of `model`. With either file `first` is half of the
    window, else 32. Memory holds a few hundred rows of logits of each model.

    Raises ValueError where nothing would be scored, or base and model have other vocabularies.
    """
    size = windows.shape[1]
    first = _first(size, first, isinstance(base, BaseReader) or save is not None)
    _check_base(model, windows, base)
    shape = (len(windows), size - 1 - first)
    scores = Scores(first, np.empty(shape))
    if base is not None:
        kl, same = np.empty(shape), np.empty(shape, np.bool_)
        scores = Scores(first, scores.nll, np.empty(shape), kl, same)
    with contextlib.ExitStack() as stack:
        writer = save and stack.enter_context(BaseWriter(save, windows, model.n_vocab))
        for number, window in enumerate(windows):
            rows = _rows(model, window, first)
            others = _rows(base, window, first) if isinstance(base, Model) else None
            for start, logits in rows:
                end = start + len(logits)
                if writer:
                    writer.write(logits)
                expected = next(others)[1] if others else None
                if isinstance(base, BaseReader):
                    expected = base.rows(len(logits))
                part = scores.at(number, start, end)
                clipped = isinstance(base, BaseReader)
                _compare(part, logits, expected, window[start + 1 : end + 1], clipped=clipped)
                if progress is not None:
                    progress(number * size + end, windows.size)
    return scores


def _first(size: int, first: int | None, of_base_file: bool) -> int:
    half = scored(size)[0]
    if of_base_file and first not in (None, half):
        raise ValueError(f"positions from {first} on, a base file has those from {half} on")
    if first is None:
        first = half if of_base_file else FIRST
    if not 0 <= first < size - 1:
        raise ValueError(
            f"positions from {first} on, expected 0 to {size - 2} in windows of {size}"
        )
    return first


def _check_base(model: Model, windows: Windows, base: Model | BaseReader | None) -> None:
    if base is not None and base.n_vocab != model.n_vocab:
        raise ValueError(
            f"{base.path}: a vocabulary of {base.n_vocab} tokens, that of {model.path} has "
            f"{model.n_vocab}; expected the same"
        )
    if isinstance(base, BaseReader) and not np.array_equal(base.tokens, windows):
        raise ValueError(f"{base.path}: made from another text than this one, or other windows")


def _rows(
    model: Model, window: NDArray[np.int32], first: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The logits at the scored positions of a window, [up to ROWS, n_vocab], and where each piece
    begins."""
    ids = window.tolist()
    session = model.session()
    if first:
        session.read(ids[:first])
    for start in range(first, len(ids) - 1, ROWS):
        yield start, session.feed(ids[start : min(start + ROWS, len(ids) - 1)], logits="all")


def _compare(
    scores: Scores,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32] | None,
    following: NDArray[np.int32],
    *,
    clipped: bool,
) -> None:
    """Score rows of logits, [T, n_vocab], a few at a time, and the tokens that follow, [T]."""
    step = max(1, BLOCK_VALUES // logits.shape[1])
    for low in range(0, len(logits), step):
        rows = slice(low, low + step)
        ids = following[rows, None]
        found = log_softmax(logits[rows])
        scores.nll[0, rows] = -np.take_along_axis(found, ids, 1)[:, 0]
        if (
            expected is None
            or scores.base_nll is None
            or scores.kl is None
            or scores.same_top is None
        ):
            continue
        # Those of a base file are normalised already, but for what was cut off and rounded.
        base = expected[rows].astype(np.float64) if clipped else log_softmax(expected[rows])
        scores.base_nll[0, rows] = -np.take_along_axis(base, ids, 1)[:, 0]
        shares = np.exp(base)
        if clipped:
            shares[base <= CLIPPED] = 0.0
        scores.kl[0, rows] = (shares * (base - found)).sum(axis=1)
        scores.same_top[0, rows] = base.argmax(axis=1) == found.argmax(axis=1)


def log_softmax(logits: NDArray[np.float32]) -> F64:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows
