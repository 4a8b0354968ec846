# SPDX-License-Identifier: Apache-2.0
"""A second opinion, opt-in: the PyPI package `rwkv` on PyTorch, from the same .pth file.

pip install "rwkv-edge[reference]" brings what it needs; RWKV_REFERENCE_PYTHON names another
interpreter that has it.
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
from reference import comparable
from rwkv_edge.convert import convert

OTHER = os.environ.get("RWKV_REFERENCE_PYTHON")
NEEDED = () if OTHER else ("torch", "rwkv")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
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
layers = {f"state{i}": part.numpy() for i, part in enumerate(state)}
numpy.savez(sys.argv[3], logits=rows, **layers)
"""

CASES = [(version, shape, False) for version in tiny.VERSIONS for shape in ("d128", "d192")]
# With an initial state merged into the model, where the package looks at it.
CASES += [("5.2", "d192", True), ("6", "d192", True)]

Arrays = dict[str, NDArray[np.float32]]


def run(version: str, script: str, *arguments: Path) -> None:
    """With the package told what it does not see for itself."""
    variables = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_RESCALE_LAYER": "0"}
    variables |= {"RWKV_V7_ON": "1" if version[0] == "7" else "0"}
    variables |= {"RWKV_DE_VERSION": "1" if version == "7a" else "0"}
    subprocess.run(
        [OTHER or sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **variables},
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=300,
    )


def write_vocabulary(path: Path) -> None:
    tokens = [bytes([b]) for b in range(256)] + [b" the", b"User"]
    lines = [f"{i} {token!r} {len(token)}\n" for i, token in enumerate(tokens, 1)]
    path.write_text("".join(lines))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Arrays, Arrays]:
    """Logits [T, V] and the parts of the state [L, ...], of the engine and of the package."""
    folder = tmp_path_factory.mktemp("package")
    version, name, tuned = request.param
    shape = tiny.VERSIONS[version][name]
    weights = tiny.random_weights(shape, seed=9)
    weights |= tiny.random_states(shape, seed=10) if tuned else {}
    tokens = np.random.default_rng(6).integers(0, shape.vocab, 128)
    np.save(folder / "tokens.npy", tokens)
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)
    run(version, SAVE, folder / "weights.npz", folder / "model.pth")
    run(version, RUN, folder / "model.pth", folder / "tokens.npy", folder / "out.npz")

    write_vocabulary(folder / "vocab.txt")
    convert(folder / "model.pth", folder / "m.gguf", type="f32", vocab=folder / "vocab.txt")
    session = rwkv_edge.Model(folder / "m.gguf").session()
    ours = {"logits": session.feed(tokens, logits="all"), **session.state.numpy()}
    with np.load(folder / "out.npz") as stored:
        theirs = {"logits": stored["logits"]}
        parts = list(session.state.numpy())  # theirs have no names, but this order
        for i, part in enumerate(parts):
            layers = [stored[f"state{i + len(parts) * j}"] for j in range(shape.layers)]
            theirs[part] = np.stack(layers)
    return ours, theirs


def test_logits_agree(both: tuple[Arrays, Arrays]) -> None:
    ours, theirs = both[0]["logits"], both[1]["logits"]
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max(axis=1) / theirs.std()
    assert error[0] < BOUND_FIRST
    assert error[1:].max() < BOUND


def test_states_agree(both: tuple[Arrays, Arrays]) -> None:
    ours, theirs = map(comparable, both)
    # In version 4 the package rounds pp + w once a token, often the same way each time.
    exponents = both[1].get("pp", np.zeros(1))
    drift = len(theirs["logits"]) * np.abs(exponents).max() * 2.0**-24
    for part in ours.keys() - {"logits"}:
        assert ours[part].shape == theirs[part].shape, part
        error = np.abs(ours[part] - theirs[part]).max() / theirs[part].std()
        assert error < BOUND + drift, part
