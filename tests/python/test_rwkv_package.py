# SPDX-License-Identifier: Apache-2.0
"""A second opinion, opt-in: the PyPI package `rwkv` on PyTorch, from the same .pth file.

pip install "rwkv-edge[reference]" brings what it needs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rwkv_edge
import tiny
from numpy.typing import NDArray
from rwkv_edge.convert import convert

MISSING = [name for name in ("torch", "rwkv") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: rwkv-edge[reference]"
    ),
]

# A share of the logits' spread, from the second token on: two programs in single precision.
BOUND = 1e-4
# With an empty state the group norm may magnify rounding errors up to forty times.
BOUND_FIRST = 40 * BOUND

SAVE = """
import sys, numpy, torch
with numpy.load(sys.argv[1]) as weights:
    torch.save({name: torch.from_numpy(weights[name]) for name in weights.files}, sys.argv[2])
"""

# The package takes the path without .pth; tokens first at once, then the second half in steps.
RUN = """
import sys, numpy
from rwkv.model import RWKV
tokens = numpy.load(sys.argv[2]).tolist()
model = RWKV(model=sys.argv[1].removesuffix(".pth"), strategy="cpu fp32")
half = len(tokens) // 2
logits, state = model.forward(tokens[:half], None, full_output=True)
rows = list(logits.numpy())
for token in tokens[half:]:
    logits, state = model.forward([token], state)
    rows.append(logits.numpy())
numpy.savez(sys.argv[3], logits=rows, wkv=[s.numpy() for s in state[1::3]])
"""


def run(script: str, *arguments: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"},
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=300,
    )


def write_vocabulary(path: Path) -> None:
    tokens = [bytes([b]) for b in range(256)] + [b" the", b"User"]
    lines = [f"{i} {token!r} {len(token)}\n" for i, token in enumerate(tokens, 1)]
    path.write_text("".join(lines))


@pytest.fixture(scope="module", params=["d128", "d192", "d256"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Logits [T, V] and S [L, H, N, N] of the engine, and those of the package."""
    folder = tmp_path_factory.mktemp("package")
    weights = tiny.random_weights(tiny.SHAPES[request.param], seed=9)
    for name in list(weights):  # published checkpoints have vectors as [1, 1, D]
        if ".att.x_" in name or name.endswith(("w0", "a0", "v0", "k_k", "k_a", "x_k")):
            weights[name] = weights[name].reshape(1, 1, -1)
    tokens = np.random.default_rng(6).integers(0, len(weights["emb.weight"]), 64)
    np.save(folder / "tokens.npy", tokens)
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)
    run(SAVE, folder / "weights.npz", folder / "model.pth")
    run(RUN, folder / "model.pth", folder / "tokens.npy", folder / "out.npz")
    with np.load(folder / "out.npz") as stored:
        theirs = [stored["logits"], stored["wkv"]]

    write_vocabulary(folder / "vocab.txt")
    convert(folder / "model.pth", folder / "m.gguf", type="f32", vocab=folder / "vocab.txt")
    session = rwkv_edge.Model(folder / "m.gguf").session()
    ours = [session.feed(tokens, logits="all"), session.state.numpy()["wkv"]]
    return ours, theirs


def test_logits_agree(
    both: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]],
) -> None:
    (ours, _), (theirs, _) = both
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max(axis=1) / theirs.std()
    assert error[0] < BOUND_FIRST
    assert error[1:].max() < BOUND


def test_states_agree(
    both: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]],
) -> None:
    (_, ours), (_, theirs) = both
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() / theirs.std() < BOUND
