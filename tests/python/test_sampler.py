# SPDX-License-Identifier: Apache-2.0
"""The sampler against its definition in double precision, token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rwkv_edge import _core

Array = NDArray[np.float64]
# Of a probability: where a border or a draw is closer, single precision may decide otherwise.
CLOSE = 2e-5


def uniforms(seed: int) -> Iterator[float]:
    """splitmix64, the top 53 bits as fractions."""
    mask, state = 2**64 - 1, seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        yield ((z ^ z >> 31) >> 11) / 2**53


class TooClose(Exception):
    pass


def smallest(keys: Array, p: Array, enough: float) -> NDArray[np.bool_]:
    """The tokens with the smallest keys that hold `enough` together, with all equal to the last."""
    order = np.argsort(keys, kind="stable")
    mass = np.cumsum(p[order])
    if np.abs(mass - enough).min() < CLOSE:
        raise TooClose
    last = keys[order[min(int(np.searchsorted(mass, enough)), len(keys) - 1)]]
    apart = np.abs(keys - last)
    if ((apart > 0) & (apart < CLOSE)).any():
        raise TooClose
    found: NDArray[np.bool_] = keys <= last
    return found


def kept(
    logits: NDArray[np.float32], top_k: int, top_p: float, min_p: float, typical_p: float
) -> NDArray[np.bool_]:
    """Which tokens the rules leave, by the probabilities before the temperature."""
    x = logits.astype(np.float64)
    left = np.isfinite(x)

    def probabilities() -> Array:
        p: Array = np.where(left, np.exp(x - x[left].max()), 0)
        p /= p.sum()
        return p

    if typical_p < 1:
        p = probabilities()
        information = -np.log(p, where=left, out=np.full_like(p, -np.inf))
        expected = (p[left] * information[left]).sum()
        left &= smallest(np.abs(information - expected), p, typical_p)
    if top_p < 1:
        left &= smallest(np.where(left, -x, np.inf), probabilities(), top_p)
    if top_k and left.sum() > top_k:
        order = np.argsort(np.where(left, -x, np.inf), kind="stable")
        left[order[top_k:]] = False
    if min_p > 0:
        p = probabilities()
        if np.abs(p / p.max() - min_p).min() < CLOSE:
            raise TooClose
        left &= p >= min_p * p.max()
    return left


class Oracle:
    """The definition: penalties as in the package rwkv's generate, filters, temperature, draw."""

    def __init__(self, seed: int, **options: Any) -> None:
        self.uniforms = uniforms(seed)
        self.options = options
        self.said: list[tuple[int, float]] = []

    def sample(self, logits: NDArray[np.float32]) -> int:
        o: dict[str, Any] = {
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "penalty_decay": 0.996,
        }
        o |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
        o |= {"penalty_window": 0} | self.options
        x = logits.copy()
        for token, bias in o.get("logit_bias", []):
            x[token] += np.float32(bias)
        window = self.said[-int(o["penalty_window"]) :]
        for token in {token for token, _ in window}:
            ages = [(age, w) for age, (t, w) in enumerate(reversed(window)) if t == token]
            count = sum(w * o["penalty_decay"] ** age for age, w in ages)
            x[token] -= np.float32(o["presence_penalty"] + count * o["frequency_penalty"])
        x[list(o.get("banned", []))] = -np.inf
        if o["temperature"] == 0:
            return int(x.argmax())
        u = next(self.uniforms)
        left = kept(x, int(o["top_k"]), o["top_p"], o["min_p"], o["typical_p"])
        power = (x.astype(np.float64) - x[left].max()) / o["temperature"]
        mass = np.cumsum(np.where(left, np.exp(power), 0))
        if np.abs(mass / mass[-1] - u).min() < CLOSE:
            raise TooClose
        return int(np.searchsorted(mass / mass[-1], u, side="right"))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.4},
    {"temperature": 7, "top_p": 0.5},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_k": 5},
    {"top_k": 200, "top_p": 0.8, "temperature": 2},
    {"min_p": 0.05},
    {"min_p": 0.3, "top_k": 3},
    {"typical_p": 0.2},
    {"typical_p": 0.9, "temperature": 1.5},
    {"typical_p": 0.7, "top_p": 0.6, "top_k": 20, "min_p": 0.02},
    {"top_p": 0.7, "presence_penalty": 0.4, "frequency_penalty": 0.4},
    {"presence_penalty": 1.0, "frequency_penalty": 0.7, "penalty_decay": 0.8, "top_k": 40},
    {"frequency_penalty": 2.0, "penalty_window": 5, "min_p": 0.1},
    {"temperature": 0, "presence_penalty": 3.0, "penalty_window": 3},
    {"logit_bias": [(1, 4.0), (2, -3.0)], "banned": [3, 4], "top_p": 0.9},
]


@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(map(str, o)) or "nothing")
def test_every_choice_is_that_of_the_definition(options: dict[str, Any], spread: float) -> None:
    rng = np.random.default_rng(int(spread))
    compared = 0
    for n_vocab in (7, 300, 5000):
        seed = int(rng.integers(2**63))
        sampler = _core.Sampler(seed=seed, **options)
        oracle = Oracle(seed, **options)
        base = rng.normal(0, spread, n_vocab)
        for _ in range(40):
            noisy = (base + rng.normal(0, 0.3, n_vocab)).astype(np.float32)
            logits = np.round(noisy, 1) if rng.random() < 0.3 else noisy  # with equals
            token = sampler.sample(bytearray(logits))
            with contextlib.suppress(TooClose):
                assert token == oracle.sample(logits)
                compared += 1
            weight = float(rng.random() < 0.8)
            sampler.accept(token, weight)
            oracle.said.append((token, weight))
    assert compared > 60


def test_logprobs_are_those_of_the_softmax() -> None:
    rng = np.random.default_rng(5)
    for n_vocab in (1, 63, 64, 65, 5000):
        rows = rng.normal(0, 4, (3, n_vocab)).astype(np.float32)
        data = bytearray(rows)
        for row in range(3):
            x = rows[row].astype(np.float64)
            right = x - x.max() - np.log(np.exp(x - x.max()).sum())
            token = int(rng.integers(n_vocab))
            top = min(20, n_vocab)
            own, *best = _core.logprobs(data, row, n_vocab, token, 20)
            assert own[0] == token
            assert [i for i, _ in best] == np.argsort(-x, kind="stable")[:top].tolist()
            for i, logprob in [own, *best]:
                assert abs(logprob - right[i]) < 1e-5


def test_arguments_that_do_not_fit() -> None:
    sampler = _core.Sampler()
    with pytest.raises(ValueError, match="row 1 of logits, found 4 values in rows of 4"):
        sampler.sample(bytearray(16), row=1)
    with pytest.raises(ValueError, match="row 2 of logits, found 4 values in rows of 2"):
        _core.logprobs(bytearray(16), 2, 2, 0)
    with pytest.raises(ValueError, match="token 4 is outside the vocabulary of 4"):
        _core.logprobs(bytearray(16), 0, 4, 4)
    with pytest.raises(ValueError, match="14 bytes are no whole number of floats"):
        sampler.sample(bytearray(14))
    assert sampler.sample(bytearray(16), allowed=b"\x04") == 2
    with pytest.raises(ValueError, match="no token is left to choose"):
        sampler.sample(bytearray(16), allowed=b"\xf0")
