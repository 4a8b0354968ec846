# SPDX-License-Identifier: Apache-2.0
"""The oracle itself, and whether the random models and the bound show the likeliest mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
from reference import Array, Weights, oracle
from tolerances import F32_BOUND, worst

TOKENS = [int(token) for token in np.random.default_rng(8).integers(0, 64, 12)]

Change = Callable[[Weights], Weights]


def weights_of(version: str, *, tuned: bool = False) -> Weights:
    shape = dataclasses.replace(tiny.VERSIONS[version]["d128"], layers=2, vocab=64)
    return tiny.random_weights(shape, 11) | (tiny.random_states(shape, 12) if tuned else {})


def distance(right: Array, wrong: Weights, **options: Any) -> float:
    """Of logits from the second token on, as a share of their spread: the median token."""
    found, _ = oracle(wrong, **options).forward(TOKENS)
    return float(np.median(worst(found - right)[1:]) / right.std())


def swapped(a: str, b: str) -> Change:
    """The tensors of all blocks whose names end in `a` and `b` change places."""
    return lambda weights: {
        name.removesuffix(a) + b if name.endswith(a)
        else name.removesuffix(b) + a if name.endswith(b)
        else name: value
        for name, value in weights.items()
    }  # fmt: skip


def changed(end: str, change: Callable[[Any], Any]) -> Change:
    return lambda weights: {
        name: change(value) if name.endswith(end) else value for name, value in weights.items()
    }


def renamed(old: str, new: str) -> Change:
    return lambda weights: {name.replace(old, new): value for name, value in weights.items()}


MISTAKES: dict[str, tuple[str, Change]] = {
    "4, lerps in another order": ("4", swapped("att.time_mix_k", "att.time_mix_v")),
    "4, u as exp(u)": ("4", changed("time_first", np.exp)),
    "4, decay with one exp": ("4", changed("time_decay", lambda w: np.log(np.abs(w)))),
    "5.0, lerps in another order": ("5.0", swapped("att.time_mix_r", "att.time_mix_k")),
    "5.0, exp(u) as u": ("5.0", renamed("time_first", "time_faaaa")),
    "5.1, u as exp(u)": ("5.1", renamed("time_faaaa", "time_first")),
    "5.1, lerps in another order": ("5.1", swapped("att.time_mix_r", "att.time_mix_g")),
    "5.2, u as exp(u)": ("5.2", renamed("time_faaaa", "time_first")),
    "5.2, one decay per head": ("5.2", changed("time_decay", lambda w: w[:, :1])),
    "5.2, heads of the decay mixed": ("5.2", changed("time_decay", lambda w: w[::-1])),
    "5.2, state turned": ("5.2", changed("time_state", lambda s: s.transpose(0, 2, 1))),
    "6, lerps in the order of version 7": ("6", swapped("att.time_maa_w", "att.time_maa_r")),
    "6, lerps in another order": ("6", swapped("att.time_maa_k", "att.time_maa_v")),
    "6, low ranks in another order": (
        "6",
        changed("time_maa_w2", lambda w: w[[3, 0, 1, 2, 4]]),
    ),
    "6, u as exp(u)": ("6", changed("time_faaaa", np.exp)),
    "6, state turned": ("6", changed("time_state", lambda s: s.transpose(0, 2, 1))),
    "7, lerps in the order of version 6": ("7", swapped("att.x_r", "att.x_w")),
    "7, state turned": ("7", changed("time_state", lambda s: s.transpose(0, 2, 1))),
    "7a, without DeepEmbed": ("7a", lambda w: {n: v for n, v in w.items() if ".ffn.s" not in n}),
    "7a, table not merged": ("7a", changed("s_emb_x.weight", np.zeros_like)),
    "7a, table turned": (
        "7a",
        changed(
            "s_emb.weight",
            lambda t: t.reshape(-1, 32, 32).transpose(0, 2, 1).reshape(t.shape),
        ),
    ),
}


@pytest.mark.parametrize(("version", "mistake"), MISTAKES.values(), ids=MISTAKES)
def test_the_bound_sees_a_mistake(version: str, mistake: Change) -> None:
    weights = weights_of(version, tuned=version != "4")
    right, _ = oracle(weights).forward(TOKENS)
    assert distance(right, mistake(weights)) > 20 * F32_BOUND


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_the_bound_sees_a_wrong_eps(version: str) -> None:
    """The smallest of the likely mistakes."""
    weights = weights_of(version)
    right, _ = oracle(weights).forward(TOKENS)
    assert distance(right, weights, ln_eps=1e-6) > 2 * F32_BOUND
    if version != "4":
        assert distance(right, weights, gn_eps=1e-5) > 2 * F32_BOUND


# Nothing of layer 0 is to be mixed with the values of layer 0.
UNUSED = [f"blocks.0.att.v{i}" for i in "012"]


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_every_tensor_counts(version: str) -> None:
    """Were its values wrong by a twentieth, the bound would show it."""
    rng, weights = np.random.default_rng(9), weights_of(version, tuned=version != "4")
    right, _ = oracle(weights).forward(TOKENS)
    for name, value in weights.items():
        wrong = value * rng.choice(np.array([0.95, 1.05], np.float32), value.shape)
        moved = distance(right, weights | {name: wrong})
        if name in UNUSED:
            assert moved == 0, name
        else:
            assert moved > 2 * F32_BOUND, name


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_it_continues_from_a_state(version: str) -> None:
    model = oracle(weights_of(version))
    whole, end = model.forward(TOKENS)
    first, state = model.forward(TOKENS[:5])
    second, last = model.forward(TOKENS[5:], state)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=0, atol=1e-11)
    for part in end:
        np.testing.assert_allclose(last[part], end[part], rtol=1e-11, atol=1e-11)


def test_the_average_of_version_4_is_that_of_its_definition() -> None:
    """Sums of exponentials as they stand in the paper: double precision can hold them."""
    weights = weights_of("4")
    keys: list[Array] = []

    def noting(x: Array, W: Array) -> Array:
        keys.append(x @ W.T)
        return keys[-1]

    _, end = oracle(weights, linear=noting).forward(TOKENS)
    k, v = keys[1], keys[2]  # of layer 0, whose products come as r, k, v
    assert np.abs(k).max() > 88  # where a float32 exp overflows
    w = -np.exp(weights["blocks.0.att.time_decay"].astype(np.float64))
    age = np.arange(len(TOKENS))[::-1, None]
    share = np.exp(k + age * w)
    scale = np.exp(end["pp"][0])
    np.testing.assert_allclose(end["aa"][0] * scale, (share * v).sum(axis=0), rtol=1e-10)
    np.testing.assert_allclose(end["bb"][0] * scale, share.sum(axis=0), rtol=1e-10)
