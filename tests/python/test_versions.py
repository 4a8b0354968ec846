# SPDX-License-Identifier: Apache-2.0
"""What is peculiar to a version: how a state begins, what a state is made of, where tables lie."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import checkpoints as ck
import numpy as np
import pytest
import tiny
from conftest import GetModel
from numpy.typing import NDArray
from reference import Array, comparable, oracle
from rwkv_edge import Model, State
from rwkv_edge.state import StateShape
from tolerances import F32_BOUND, worst

TOKENS = [int(token) for token in np.random.default_rng(8).integers(0, 300, 20)]
WITH_MATRIX = [version for version in tiny.VERSIONS if version != "4"]


def wrong_by(found: NDArray[np.float32], right: Array) -> float:
    """From the second token on, as a share of the logits' spread."""
    return float(worst(found - right)[1:].max() / right.std())


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_a_model_says_what_its_state_is_made_of(tiny_model: GetModel, version: str) -> None:
    model = Model(tiny_model("f32", "d192", version)[0])
    shape = tiny.VERSIONS[version]["d192"]
    size = shape.head_size
    recurrence = [("aa", (192,)), ("bb", (192,)), ("pp", (192,))]
    if version != "4":
        recurrence = [("wkv", (shape.heads, size, size))]  # type: ignore[list-item]
    parts = [("att_shift", (192,)), *recurrence, ("ffn_shift", (192,))]
    assert model._core.state_parts == parts
    assert model.head_size == size
    assert model.arch == ("rwkv7a" if version == "7a" else f"rwkv{version[0]}")


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_the_first_state_is_that_of_the_papers(tiny_model: GetModel, version: str) -> None:
    path, made = tiny_model("f32", "d192", version)
    session = Model(path).session()
    session.feed(TOKENS)
    session.reset()
    found = session.state.numpy()
    for part, right in oracle(made.weights).start().items():
        assert found[part].tobytes() == right.astype(np.float32).tobytes(), part


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_a_saved_state_goes_on_to_the_bit(
    tmp_path: Path, tiny_model: GetModel, version: str
) -> None:
    model = Model(tiny_model("f32", "d192", version)[0])
    session = model.session()
    session.feed(TOKENS[:9])
    session.state.save(tmp_path / "s.state")
    expected = session.feed(TOKENS[9:], logits="all")
    again = model.session(State.load(tmp_path / "s.state"))
    assert again.feed(TOKENS[9:], logits="all").tobytes() == expected.tobytes()


@pytest.mark.parametrize("version", tiny.VERSIONS)
@pytest.mark.parametrize(("width", "head_size"), [(32, 32), (64, 64), (96, 8), (160, 40)])
def test_odd_sizes(tmp_path: Path, version: str, width: int, head_size: int) -> None:
    """One layer, one head, a width that is no power of two, ranks that are no multiple of 8."""
    ranks = {"6": (3, 5), "7": (1, 7, 9, 2)}.get(version[0], ())
    shape = tiny.Shape(width, head_size, 1, 96, 50, ranks, version=version)
    shape = dataclasses.replace(shape, head_size=0) if version == "4" else shape
    made = tiny.tiny_model(shape, "f32", 3)
    tokens = [token % 50 for token in TOKENS]
    right, _ = oracle(made.weights).forward(tokens)
    found = Model(tiny.write(tmp_path, "m.gguf", made)).session().feed(tokens, logits="all")
    assert wrong_by(found, right) < F32_BOUND


# ---- tuned states -------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "shape"), list(product(WITH_MATRIX, ["d128", "d192"])))
def test_a_tuned_state_in_the_file_is_where_sessions_begin(
    tmp_path: Path, version: str, shape: str
) -> None:
    """In the orientation that each version has on disk; `test_oracle` shows that turned ones
    lie far beyond the bound."""
    made = tiny.tiny_model(tiny.VERSIONS[version][shape], "f32", 4, tuned=True)
    right, end = oracle(made.weights).forward(TOKENS)
    session = Model(tiny.write(tmp_path, "tuned.gguf", made)).session()
    assert wrong_by(session.feed(TOKENS, logits="all"), right) < F32_BOUND
    found = session.state.numpy()["wkv"]
    assert np.abs(found - end["wkv"]).max() < F32_BOUND * end["wkv"].std()


@pytest.mark.parametrize("version", WITH_MATRIX)
def test_a_tuned_state_in_its_own_file_is_the_same(tiny_model: GetModel, version: str) -> None:
    path, made = tiny_model("f32", "d192", version)
    shape = tiny.VERSIONS[version]["d192"]
    states = tiny.random_states(shape, 5)
    right, _ = oracle(made.weights | states).forward(TOKENS)
    parts = (("time_state", (shape.heads, shape.head_size, shape.head_size)),)
    data = np.concatenate([value.reshape(-1) for value in states.values()])
    state = State(data, StateShape("time_state", shape.layers, parts))
    assert wrong_by(Model(path).session(state).feed(TOKENS, logits="all"), right) < F32_BOUND


# ---- version 4 ----------------------------------------------------------------------------------


def test_version_4_is_exact_where_an_exp_overflows(tiny_model: GetModel) -> None:
    path, made = tiny_model("f32", "d128", "4")
    products: list[Array] = []

    def noting(x: Array, W: Array) -> Array:
        products.append(x @ W.T)
        return products[-1]

    tokens = list(range(300))
    right, end = oracle(made.weights, linear=noting).forward(tokens)
    exponents = products[1] + made.weights["blocks.0.att.time_first"]  # u + k of layer 0
    assert exponents.min() < -100
    assert exponents.max() > 100
    session = Model(path).session()
    assert wrong_by(session.feed(tokens, logits="all"), right) < F32_BOUND
    found, expected = comparable(session.state.numpy()), comparable(end)
    for part in expected:
        error = np.abs(found[part] - expected[part]).max()
        assert error < F32_BOUND * expected[part].std(), part


def test_version_4_does_not_begin_with_zeros(tmp_path: Path) -> None:
    """With pp = 0 the first token's own share, exp(u + k), would be lost where it is below the
    smallest float: 0 / 0."""
    made = tiny.tiny_model(tiny.VERSIONS["4"]["d192"], "f32", 6)
    u = np.full(192, -120, np.float32)
    assert np.exp(u[0] + 10) == 0
    made.weights["blocks.0.att.time_first"] = u
    made.file.tensor("blk.0.time_mix_first.weight").data = u.tobytes()
    session = Model(tiny.write(tmp_path, "m.gguf", made)).session()
    assert (session.state.numpy()["pp"] == np.float32(-1e30)).all()
    right, _ = oracle(made.weights).forward(TOKENS)
    found = session.feed(TOKENS, logits="all")
    assert worst(found - right).max() / right.std() < F32_BOUND  # the first token as well


# ---- DeepEmbed ----------------------------------------------------------------------------------

# Prints the resident KiB of a file's mappings: after opening it, after 40 tokens, and once all of
# it has been read.
RESIDENT = """
import sys
import numpy as np
from rwkv_edge import Model

def resident(path):
    total, ours = 0, False
    for line in open("/proc/self/smaps"):
        fields = line.split()
        if not fields[0].endswith(":"):
            ours = line.rstrip().endswith(path)
        elif ours and fields[0] == "Rss:":
            total += int(fields[1])
    return total

path = sys.argv[1]
model = Model(path)
found = [resident(path)]
tokens = np.random.default_rng(3).integers(0, model.n_vocab, 40)
session = model.session()
session.feed(tokens[:20])
for token in tokens[20:]:
    session.feed([token])
found.append(resident(path))
whole = np.memmap(path, np.uint8, "r")
whole.max()
print(*found, resident(path))
"""
LARGE = tiny.Shape(64, 32, 1, 96, 50_000, (8, 12, 20, 24), version="7a")
TABLE = "blocks.0.ffn.s_emb.weight"


def large_gguf(path: Path) -> None:
    file = tiny.tiny_model(LARGE, "f16", 1).file
    table = file.tensor(tiny.gguf_name(TABLE))
    file.tensors.remove(table)
    file.tensors.append(table)  # at the end, so that its bytes need not be written
    table.type_id, table.data = 0, b""
    data = file.to_bytes()
    path.write_bytes(data + bytes(file.aligned(len(data)) - len(data)))


def large_safetensors(path: Path) -> None:
    weights = tiny.random_weights(LARGE, 1)
    del weights[TABLE]
    data = ck.safetensors_of(weights, "f16")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    size = len(data) - 8 - length
    offsets = [size, size + LARGE.vocab * 4096]
    header[TABLE] = {"dtype": "F32", "shape": [LARGE.vocab, 1024], "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as all writers align it
    path.write_bytes(ck.safetensors(text, data[8 + length :]))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
@pytest.mark.parametrize("writer", [large_gguf, large_safetensors])
def test_of_the_tables_of_7a_only_rows_that_occur_come_into_memory(
    tmp_path: Path, writer: Callable[[Path], None]
) -> None:
    """A table of 200 MB, a hole in the file."""
    path = tmp_path / "large"
    writer(path)
    rest, table = path.stat().st_size // 1024, LARGE.vocab * 4
    with path.open("r+b") as stream:
        stream.truncate((rest + table) * 1024 + path.stat().st_size % 1024)

    program = [sys.executable, "-c", RESIDENT, str(path)]
    out = subprocess.run(program, capture_output=True, text=True, check=True)
    opened, fed, read = map(int, out.stdout.split())
    # The system maps up to 64 KiB around a page that is missed, and a row may lie in two.
    assert opened < rest + 64
    assert fed < rest + 2 * 64 * 40
    assert read > table  # had it been read, this measurement would show it
