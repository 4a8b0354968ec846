# SPDX-License-Identifier: Apache-2.0
"""The engine against the double-precision oracle: every version, type and kernel level here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import engine_runner
import ggml_types as ggml
import numpy as np
import pytest
import tiny
from conftest import GetModel
from numpy.typing import NDArray
from reference import Array, Linear, State, Weights, comparable, multiply, oracle
from rwkv_edge import _core
from tolerances import F32_BOUND, rms, rounding, worst

# The K types come in blocks of 256 columns. Version 4 has huge keys at d128: not for rough types.
CASES = [(version, kind, "d256") for version in tiny.VERSIONS for kind in ("f32", *ggml.K_TYPES)]
CASES += [(version, kind, "d128") for version in tiny.VERSIONS for kind in ("f32", "bf16")]
CASES += [
    (version, kind, "d192")
    for version in tiny.VERSIONS
    for kind in ("f32", "f16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
]
CASES += [("7", kind, "d128") for kind in ("q8_0", "q4_1")] + [("7", "q8_0", "d256")]
FLOAT_CASES = [case for case in CASES if case[1] not in ggml.ROUNDED]
ROUNDED_CASES = [case for case in CASES if case[1] in ggml.ROUNDED]

# How the tokens are fed, and on how many threads. All must give the same bits.
Feeds = dict[str, tuple[list[int], int]]
LONG: Feeds = {
    "once": ([128], 1),
    "steps": ([64] + [1] * 64, 1),
    "split, 2 threads": ([7, 70, 51], 2),
}
SHORT: Feeds = {"once": ([24], 1), "steps": ([1] * 24, 1), "split, 3 threads": ([7, 17], 3)}

# Relative noise that stands for single precision: a few roundings of 2^-24 ~ 6e-8.
NOISE = 5e-7

Results = dict[str, NDArray[np.float32]]
Engine = Callable[[str, str, str, str], Results]
Expected = Callable[[str, str, str], tuple[Array, State]]


@pytest.fixture(scope="module", params=_core.isa_levels())
def engine(
    request: pytest.FixtureRequest, tiny_model: GetModel, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """engine(version, kind, shape, feed) -> "logits" [T, V], parts of the state per chunk."""
    jobs: list[dict[str, Any]] = []
    for version, kind, shape in CASES:
        path, model = tiny_model(kind, shape, version)
        tokens = prompt(model.weights, kind)
        for feed, (lengths, threads) in feeds(kind).items():
            cuts = np.cumsum([0, *lengths]).tolist()
            chunks = [tokens[a:b] for a, b in pairwise(cuts)]
            job = {"id": f"{version}/{kind}/{shape}/{feed}", "threads": threads, "chunks": chunks}
            jobs.append({**job, "model": str(path)})
    out = tmp_path_factory.mktemp("engine") / "results.npz"
    results = engine_runner.run_jobs(request.param, jobs, out)

    def get(version: str, kind: str, shape: str, feed: str) -> Results:
        job = f"{version}/{kind}/{shape}/{feed}/"
        return {n.removeprefix(job): v for n, v in results.items() if n.startswith(job)}

    return get


def feeds(kind: str) -> Feeds:
    return LONG if kind == "f32" else SHORT


def prompt(weights: Weights, kind: str) -> list[int]:
    vocab, length = len(weights["emb.weight"]), feeds(kind)["once"][0][0]
    tokens: list[int] = np.random.default_rng(5).integers(0, vocab, length).tolist()
    return tokens


@pytest.fixture(scope="module")
def expected(tiny_model: GetModel) -> Expected:
    """expected(version, kind, shape) -> the oracle's logits [T, V], and its last state."""

    @cache
    def get(version: str, kind: str, shape: str) -> tuple[Array, State]:
        weights = tiny_model(kind, shape, version)[1].weights
        return oracle(weights).forward(prompt(weights, kind))

    return get


def disturbing(seed: int) -> Linear:
    """Products whose inputs carry NOISE."""
    rng = np.random.default_rng(seed)
    return lambda x, W: multiply(x * (1 + NOISE * rng.standard_normal(x.shape)), W)


def state_after(found: Results, chunk: int) -> State:
    return {n: v[chunk].astype(np.float64) for n, v in found.items() if n != "logits"}


@pytest.mark.parametrize(("version", "kind", "shape"), CASES)
def test_any_chunking_and_any_thread_count_gives_the_same_bits(
    engine: Engine, version: str, kind: str, shape: str
) -> None:
    once = engine(version, kind, shape, "once")
    assert all(np.isfinite(values).all() for values in once.values())
    for feed in feeds(kind):
        other = engine(version, kind, shape, feed)
        assert other.keys() == once.keys()
        assert other["logits"].tobytes() == once["logits"].tobytes(), feed
        for part in once.keys() - {"logits"}:
            assert other[part][-1].tobytes() == once[part][-1].tobytes(), (feed, part)


@pytest.mark.parametrize(("version", "kind", "shape"), FLOAT_CASES)
def test_logits_of_types_with_float_activations(
    engine: Engine, expected: Expected, tiny_model: GetModel, version: str, kind: str, shape: str
) -> None:
    right, _ = expected(version, kind, shape)
    error = worst(engine(version, kind, shape, "once")["logits"] - right) / right.std()
    assert error[1:].max() < F32_BOUND
    # With an empty state the group norm may magnify rounding errors: as much as noise shows it to.
    weights, noise = tiny_model(kind, shape, version)[1].weights, 0.0
    for seed in range(4):
        disturbed, _ = oracle(weights, linear=disturbing(seed)).forward(prompt(weights, kind)[:1])
        noise = max(noise, worst(disturbed - right[:1])[0] / right.std())
    assert error[0] < max(F32_BOUND, 4 * noise)


@pytest.mark.parametrize(("version", "kind", "shape"), ROUNDED_CASES)
def test_logits_of_types_with_8_bit_activations(
    engine: Engine, expected: Expected, tiny_model: GetModel, version: str, kind: str, shape: str
) -> None:
    """Noise of single precision now and then moves an activation over a rounding edge, and from
    there on two runs drift apart. So the tight comparison takes one step at a time, from the
    engine's own state before it: most steps meet no edge. The whole run is compared loosely."""
    weights = tiny_model(kind, shape, version)[1].weights
    tokens = prompt(weights, kind)
    exact, _ = expected(version, kind, shape)
    rounded = oracle(weights, linear=rounding)
    right, _ = rounded.forward(tokens)
    found = engine(version, kind, shape, "steps")

    error = []
    for t in range(1, len(tokens), 2):
        one_step, _ = rounded.forward(tokens[t : t + 1], state_after(found, t - 1))
        error.append(worst(found["logits"][t : t + 1] - one_step)[0] / exact.std())
    assert np.median(error) < F32_BOUND
    # Seen from the unrounded model, the engine is no worse than rounding alone.
    assert rms(found["logits"] - exact) < 1.25 * rms(right - exact)
    assert rms(right - exact) < 0.05 * exact.std()


@pytest.mark.parametrize(("version", "kind", "shape"), FLOAT_CASES)
def test_state_holds_what_the_papers_say(
    engine: Engine, expected: Expected, version: str, kind: str, shape: str
) -> None:
    _, right = expected(version, kind, shape)
    found = state_after(engine(version, kind, shape, "once"), -1)
    assert list(found) == list(right)
    found, right = comparable(found), comparable(right)
    for part in right:
        assert np.abs(found[part] - right[part]).max() < F32_BOUND * right[part].std(), part


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
