# SPDX-License-Identifier: Apache-2.0
"""What is peculiar to a version: odd sizes, the exponents of version 4, where tables lie."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints as ck
import numpy as np
import pytest
import tiny
from conftest import GetModel
from reference import Array, comparable, oracle
from rwkv_edge import Model
from tolerances import F32_BOUND, worst, wrong_by

TOKENS = [int(token) for token in np.random.default_rng(8).integers(0, 300, 20)]


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
    assert (np.exp(u + np.float32(10)) == 0).all()
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
