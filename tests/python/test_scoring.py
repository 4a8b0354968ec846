# SPDX-License-Identifier: Apache-2.0
"""ln p of continuations, against a plain loop in double precision over the engine's logits."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import GetModel
from rwkv_edge import Model, scoring

CONTEXTS = [[0], [0, 5, 6], [0, 9], [0, 5], [7] * 70]


def oracle(model: Model, context: list[int], tokens: list[int]) -> tuple[float, bool]:
    """One token after another, and the softmax as it is written."""
    session = model.session()
    logits = [session.feed(context)]
    logits += [session.feed([token]) for token in tokens]
    total, greedy = 0.0, True
    for row, token in zip(logits, tokens, strict=False):
        shares = np.exp(row.astype(np.float64) - row.max())
        total += np.log(shares[token] / shares.sum())
        greedy = greedy and bool(row[token] == row.max())
    return total, greedy


@pytest.fixture(scope="module")
def model(tiny_model: GetModel) -> Model:
    return Model(tiny_model("q8_0", "d128", "7")[0], threads=2)


def pairs_of(model: Model) -> list[tuple[list[int], list[int]]]:
    """Shared contexts in any order; continuations of no token, one, and hundreds; likely ones."""
    rng = np.random.default_rng(3)
    pairs = []
    for length in (1, 2, 0, 3, 40, 300, 1, 7):
        for context in CONTEXTS[: 5 if length < 300 else 2]:
            pairs.append((context, rng.integers(0, model.n_vocab, length).tolist()))
    session = model.session()
    likely = [int(session.feed([0]).argmax())]
    for _ in range(5):
        likely.append(int(session.feed([likely[-1]]).argmax()))
    pairs += [([0], likely), ([0], [*likely[:-1], (likely[-1] + 1) % model.n_vocab])]
    order = rng.permutation(len(pairs))
    return [pairs[i] for i in order]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores(model: Model, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MOST_ROWS", 48)
    pairs = pairs_of(model)
    done: list[int] = []
    found = scoring.score(model, pairs, batch_size=batch_size, progress=done.append)
    expected = [oracle(model, *pair) for pair in pairs]
    # Each of the terms is rounded to a float32 once, in its exponent and in the sum's terms.
    assert [logprob for logprob, _ in found] == pytest.approx([e for e, _ in expected], rel=1e-6)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert sum(done) == len(pairs)
    assert sum(greedy for _, greedy in found) > sum(not tokens for _, tokens in pairs)


def test_company_changes_nothing(model: Model) -> None:
    pairs = pairs_of(model)
    alone = [scoring.score(model, [pair])[0] for pair in pairs]
    assert scoring.score(model, pairs, batch_size=7) == alone


def test_a_shared_context_is_read_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    feed = type(model.batch([])).feed

    def counted(self, tokens, **options):  # type: ignore[no-untyped-def]
        read.append(sum(map(len, tokens)))
        return feed(self, tokens, **options)

    monkeypatch.setattr(type(model.batch([])), "feed", counted)
    scoring.score(model, [([1] * 100, [2]), ([1] * 100, [3, 4]), ([1] * 100, [5])])
    assert sum(read) == 101


def test_refusals(model: Model) -> None:
    with pytest.raises(ValueError, match="tokens: found none"):
        scoring.score(model, [([], [1])])
    with pytest.raises(ValueError, match="is outside the vocabulary"):
        scoring.score(model, [([0], [1, model.n_vocab, 2])])
    with pytest.raises(ValueError, match="is outside the vocabulary"):
        scoring.score(model, [([0], [1, model.n_vocab])])
    assert scoring.score(model, []) == []
