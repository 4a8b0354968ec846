# SPDX-License-Identifier: Apache-2.0
"""The engine against the double-precision oracle: every type, every kernel level of this CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import engine_runner
import ggml_types as ggml
import numpy as np
import pytest
from conftest import GetModel
from numpy.typing import NDArray
from reference import Array, Linear, Reference, State, Weights, multiply
from rwkv_edge import _core

TOKENS = 77
# The K types come in blocks of 256 columns.
CASES = [(kind, "d256") for kind in ggml.K_TYPES]
CASES += [(kind, "d128") for kind in ("f32", "bf16", "q8_0", "q4_1", "q5_1")]
CASES += [(kind, "d192") for kind in ("f32", "f16", "q4_0", "q5_0")]
CASES += [(kind, "d256") for kind in ("f32", "q8_0")]
FLOAT_CASES = [case for case in CASES if case[0] not in ggml.ROUNDED]
ROUNDED_CASES = [case for case in CASES if case[0] in ggml.ROUNDED]

# How 77 tokens are fed, and on how many threads. All must give the same bits.
FEEDS: dict[str, tuple[list[int], int]] = {
    "once": ([77], 1),
    "steps": ([1] * 77, 1),
    "split, 2 threads": ([7, 70], 2),
}

# A share of the logits' spread, from the second token on. Single precision accumulates some
# 2^-24 * sqrt(steps) ~ 4e-6 here; a layer norm with eps 1e-6 for 1e-5 is already 1e-3 away.
F32_BOUND = 5e-5
# Relative noise that stands for single precision: a few roundings of 2^-24 ~ 6e-8.
NOISE = 5e-7

STATE_PARTS = ("att_shift", "wkv", "ffn_shift")  # in the order of the oracle's State

Engine = Callable[[str, str, str], dict[str, NDArray[np.float32]]]


@pytest.fixture(scope="module", params=_core.isa_levels())
def engine(
    request: pytest.FixtureRequest, tiny_model: GetModel, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """engine(kind, shape, feed) -> "logits" [T, V] and the parts of the state after each chunk."""
    jobs: list[dict[str, Any]] = []
    for kind, shape in CASES:
        path, model = tiny_model(kind, shape)
        tokens = prompt(model.weights)
        for feed, (lengths, threads) in FEEDS.items():
            cuts = np.cumsum([0, *lengths]).tolist()
            chunks = [tokens[a:b] for a, b in pairwise(cuts)]
            job = {"id": f"{kind}/{shape}/{feed}", "threads": threads, "chunks": chunks}
            jobs.append({**job, "model": str(path)})
    out = tmp_path_factory.mktemp("engine") / "results.npz"
    results = engine_runner.run_jobs(request.param, jobs, out)
    return lambda kind, shape, feed: {
        name: results[f"{kind}/{shape}/{feed}/{name}"] for name in ("logits", *STATE_PARTS)
    }


def prompt(weights: Weights) -> list[int]:
    vocab = len(weights["emb.weight"])
    tokens: list[int] = np.random.default_rng(5).integers(0, vocab, TOKENS).tolist()
    return tokens


def rounding(x: Array, W: Array) -> Array:
    """As the engine multiplies by block types: with the inputs rounded to 8 bits."""
    return multiply(ggml.round_activations(x), W)


def disturbing(seed: int) -> Linear:
    """Products whose inputs carry NOISE."""
    rng = np.random.default_rng(seed)
    return lambda x, W: multiply(x * (1 + NOISE * rng.standard_normal(x.shape)), W)


def state_after(found: dict[str, NDArray[np.float32]], chunk: int) -> State:
    return State(*(found[name][chunk].astype(np.float64) for name in STATE_PARTS))


def worst(difference: Array) -> Array:
    """The largest deviation of each token's logits: [T]."""
    largest: Array = np.abs(difference).max(axis=-1)
    return largest


def rms(difference: Array) -> float:
    return float(np.sqrt((difference**2).mean()))


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_any_chunking_and_any_thread_count_gives_the_same_bits(
    engine: Engine, kind: str, shape: str
) -> None:
    once = engine(kind, shape, "once")
    assert once["logits"].shape[0] == TOKENS
    assert all(np.isfinite(values).all() for values in once.values())
    for feed in FEEDS:
        other = engine(kind, shape, feed)
        assert other["logits"].tobytes() == once["logits"].tobytes(), feed
        for part in STATE_PARTS:
            assert other[part][-1].tobytes() == once[part][-1].tobytes(), (feed, part)


@pytest.mark.parametrize(("kind", "shape"), FLOAT_CASES)
def test_logits_of_types_with_float_activations(
    engine: Engine, tiny_model: GetModel, kind: str, shape: str
) -> None:
    weights = tiny_model(kind, shape)[1].weights
    tokens = prompt(weights)
    expected, _ = Reference(weights).forward(tokens)
    error = worst(engine(kind, shape, "once")["logits"] - expected) / expected.std()
    assert error[1:].max() < F32_BOUND
    # With an empty state the group norm may magnify rounding errors: as much as noise shows it to.
    noise = 0.0
    for seed in range(4):
        disturbed, _ = Reference(weights, disturbing(seed)).forward(tokens[:1])
        noise = max(noise, worst(disturbed - expected[:1])[0] / expected.std())
    assert error[0] < max(F32_BOUND, 4 * noise)


@pytest.mark.parametrize(("kind", "shape"), ROUNDED_CASES)
def test_logits_of_types_with_8_bit_activations(
    engine: Engine, tiny_model: GetModel, kind: str, shape: str
) -> None:
    """Noise of single precision now and then moves an activation over a rounding edge, and from
    there on two runs drift apart. So the tight comparison takes one step at a time, from the
    engine's own state before it: most steps meet no edge. The whole run is compared loosely."""
    weights = tiny_model(kind, shape)[1].weights
    tokens = prompt(weights)
    exact, _ = Reference(weights).forward(tokens)
    oracle = Reference(weights, rounding)
    expected, _ = oracle.forward(tokens)
    found = engine(kind, shape, "steps")

    error = []
    for t in range(1, len(tokens), 3):
        one_step, _ = oracle.forward(tokens[t : t + 1], state_after(found, t - 1))
        error.append(worst(found["logits"][t : t + 1] - one_step)[0] / exact.std())
    assert np.median(error) < F32_BOUND
    # Seen from the unrounded model, the engine is no worse than rounding alone.
    assert rms(found["logits"] - exact) < 1.25 * rms(expected - exact)
    assert rms(expected - exact) < 0.05 * exact.std()


@pytest.mark.parametrize(("kind", "shape"), FLOAT_CASES)
def test_state_holds_what_the_paper_says(
    engine: Engine, tiny_model: GetModel, kind: str, shape: str
) -> None:
    weights = tiny_model(kind, shape)[1].weights
    _, expected = Reference(weights).forward(prompt(weights))
    found = state_after(engine(kind, shape, "once"), -1)
    for name in ("att_prev", "S", "ffn_prev"):
        right = getattr(expected, name)
        error = np.abs(getattr(found, name) - right).max() / right.std()
        assert error < F32_BOUND, name


def test_an_unknown_level_is_an_error() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "from rwkv_edge import _core; _core.isa()"],
        env={**os.environ, "RWKV_EDGE_ISA": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode != 0
    assert "UnsupportedError: RWKV_EDGE_ISA=sse9" in found.stderr
    assert "scalar" in found.stderr


def test_the_bound_sees_a_wrong_eps(tiny_model: GetModel) -> None:
    """The bound is worth something only if the smallest likely mistakes break it."""
    weights = tiny_model("f32", "d128")[1].weights
    right, _ = Reference(weights).forward(prompt(weights))
    for wrong in (Reference(weights, ln_eps=1e-6), Reference(weights, gn_eps=1e-5)):
        error = worst(wrong.forward(prompt(weights))[0] - right) / right.std()
        assert np.median(error[1:]) > 2 * F32_BOUND


def test_the_oracle_continues_from_a_state(tiny_model: GetModel) -> None:
    weights = tiny_model("f32", "d128")[1].weights
    tokens, oracle = prompt(weights), Reference(weights)
    whole, end = oracle.forward(tokens)
    first, state = oracle.forward(tokens[:30])
    second, last = oracle.forward(tokens[30:], state)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, atol=1e-12)
    np.testing.assert_allclose(last.S, end.S, atol=1e-12)
