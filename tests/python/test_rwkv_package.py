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
from rwkv_edge import _core
from rwkv_edge.convert import convert
from rwkv_edge.generation import Answer
from test_sampler import CLOSE, uniforms

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

# The package's sampler, with the probabilities that it draws from; and what its loop says where the
# likeliest is taken, of a model whose logits are given.
SAMPLE = """
import sys, numpy, torch
from rwkv.utils import PIPELINE, PIPELINE_ARGS
drawn, greedy = [], False
def choice(a, p):
    drawn.append(p)
    return int(p.argmax())
numpy.random.choice = choice
with numpy.load(sys.argv[1]) as given:
    rows, settings, script = given["rows"], given["settings"], given["script"]
pipeline = PIPELINE(None, "rwkv_vocab_v20230424")
for row in rows:
    for temperature, top_p, top_k in settings:
        pipeline.sample_logits(torch.tensor(row), temperature, top_p, int(top_k))
class Scripted:
    step = -1
    def forward(self, tokens, state):
        self.step += 1
        return torch.tensor(script[self.step]), state
said = []
sample = pipeline.sample_logits
def watch(*arguments, **options):
    said.append(sample(*arguments, **options))
    return said[-1]
pipeline.sample_logits, pipeline.model = watch, Scripted()
args = PIPELINE_ARGS(1.0, 0, 0, 0.7, 0.4, 0.9, token_ban=[300])
probabilities = numpy.array(drawn)
pipeline.generate("x", len(script), args)
numpy.savez(sys.argv[2], probabilities=probabilities, said=said)
"""

CASES = [(version, shape, False) for version in tiny.VERSIONS for shape in ("d128", "d192")]
# With an initial state merged into the model, where the package looks at it.
CASES += [("5.2", "d192", True), ("6", "d192", True)]

Arrays = dict[str, NDArray[np.float32]]


# temperature, top_p, top_k; top_p = 1 is a defect of the package.
SETTINGS = [(1, 0.85, 0), (1, 0.3, 0), (0.5, 0.9, 0), (3, 0.6, 0), (1, 0.95, 20), (0.7, 0.8, 3)]


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


def test_the_sampler_is_the_package_s(tmp_path: Path) -> None:
    """Its choices, with our random numbers for its own; and its penalties, bans and exemptions."""
    rng = np.random.default_rng(3)
    rows = rng.normal(0, 2.5, (40, 1000)).astype(np.float32)
    # Few tokens that come again and again, digits and blanks among them; of the World vocabulary
    script = np.full((60, 65536), -20, np.float32)
    often = [*range(33, 40), *range(49, 54), 300, 301, 302]
    script[:, often] = rng.normal(0, 1, (60, len(often)))
    np.savez(tmp_path / "in.npz", rows=rows, settings=SETTINGS, script=script)
    run("7", SAMPLE, tmp_path / "in.npz", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as stored:
        probabilities, said = iter(stored["probabilities"]), stored["said"].tolist()
    compared = 0
    for i, row in enumerate(rows):
        for temperature, top_p, top_k in SETTINGS:
            options = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": i}
            mass = np.cumsum(next(probabilities).astype(np.float64))
            u = next(uniforms(i))
            if np.abs(mass / mass[-1] - u).min() > CLOSE:
                expected = int(np.searchsorted(mass / mass[-1], u, side="right"))
                assert _core.Sampler(**options).sample(bytearray(row)) == expected, options  # type: ignore[arg-type]
                compared += 1
    assert compared > 200
    assert 300 not in said
    assert len(set(said)) > 5

    class Bytes:
        def token_bytes(self, token: int) -> bytes:
            return bytes([token - 1]) if token < 257 else b"xy"

    penalties = {"presence_penalty": 0.4, "frequency_penalty": 0.7, "penalty_decay": 0.9}
    answer = Answer(Bytes(), 65536, [], temperature=0, banned=[300], **penalties)  # type: ignore[arg-type]
    for logits in script:
        answer.take(bytearray(logits), 0, 0)
    assert answer.tokens == said
