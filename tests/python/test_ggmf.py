# SPDX-License-Identifier: Apache-2.0
"""rwkv.cpp's .bin files: what its converter did is undone to the bit, and every lie found out."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints as ck
import ggml_types as ggml
import numpy as np
import pytest
import tiny
from reference import Weights
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError
from rwkv_edge.convert.open import open_checkpoint
from rwkv_edge.files.ggmf import read_ggmf

MODELS = [(version, shape) for version in tiny.VERSIONS for shape in tiny.VERSIONS[version]]


def expected_weights(weights: Weights, version: str) -> Weights:
    """Decays and an exponential u stay as the file has them, under the names that say so."""
    found = dict(weights)
    for name in weights:
        if name.endswith("time_decay") and version == "4":
            found[f"{name}_rate"] = -ck.exp(found.pop(name))
        elif name.endswith("time_decay") and version[0] == "5":
            found[f"{name}_factor"] = ck.decay_factor(found.pop(name))
        elif name.endswith("time_first") and version[0] == "5":
            found[name.replace("first", "faaaa")] = ck.exp(found.pop(name))
    return found


@pytest.mark.parametrize(("version", "shape"), MODELS)
def test_every_version_comes_back(tmp_path: Path, version: str, shape: str) -> None:
    weights = tiny.random_weights(tiny.VERSIONS[version][shape], seed=7)
    path = ck.write(tmp_path, ck.ggmf_of(weights).to_bytes(), "model.bin")
    assert ck.opened(path) == ck.squeezed(expected_weights(weights, version))


@pytest.mark.parametrize("version", ["5.2", "6", "7"])
def test_merged_states_are_not_turned(tmp_path: Path, version: str) -> None:
    shape = tiny.VERSIONS[version]["d128"]
    weights = tiny.random_weights(shape, seed=7) | tiny.random_states(shape, seed=8)
    path = ck.write(tmp_path, ck.ggmf_of(weights).to_bytes())
    assert ck.opened(path) == ck.squeezed(expected_weights(weights, version))


@pytest.mark.parametrize("kind", ck.GGMF_TYPES)
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_types(tmp_path: Path, version: str, kind: str) -> None:
    """Matrices are used in place, in their own type; in RWKV-6 even turned ones have blocks."""
    weights = tiny.random_weights(tiny.VERSIONS[version]["d128"], seed=7)
    tensors = open_checkpoint(ck.write(tmp_path, ck.ggmf_of(weights, kind).to_bytes())).tensors
    turned = {"6": ck.LOW_RANK_6, "7": ck.LOW_RANK_7}.get(version, ())
    in_file, seen = ck.in_rwkv_cpp(weights), set()
    for name, value in expected_weights(weights, version).items():
        tensor, is_turned = tensors[name], name.split(".")[-1] in turned
        stored = value.swapaxes(-1, -2) if is_turned else value
        of_type = ck.ggmf_type(name, in_file[name].shape, kind) if name in in_file else "f32"
        data = ggml.encode(np.ascontiguousarray(stored), of_type)
        decoded = ggml.decode(data, of_type).reshape(stored.shape)
        expected = decoded.swapaxes(-1, -2) if is_turned else decoded.reshape(tensor.shape)
        np.testing.assert_array_equal(tensor.float32(), expected, strict=True, err_msg=name)
        np.testing.assert_array_equal(tensor.float32(1, 3), expected[1:3], strict=True)
        raw = tensor.raw()
        if is_turned:
            assert raw is None
            assert tensor.dtype == (of_type if of_type in ggml.PLAIN else "f32")
        else:
            assert raw is not None
            assert (tensor.dtype, raw.tobytes()) == (of_type, data.tobytes())
        seen.add((is_turned, of_type))
    assert (False, kind) in seen
    assert kind in ("f32", "f16") or version != "6" or (True, kind) in seen


@pytest.mark.parametrize("kind", ggml.K_TYPES)
def test_k_types(tmp_path: Path, kind: str) -> None:
    file = ck.ggmf_of(tiny.random_weights(tiny.VERSIONS["4"]["d256"], seed=7))
    blocks = ggml.random_k_blocks(np.random.default_rng(3), (256, 256), kind, 0.1)
    entry = file.tensor("blocks.1.att.key.weight")
    entry.type_id, entry.data = 11 + ggml.K_TYPES.index(kind), blocks.tobytes()
    tensor = open_checkpoint(ck.write(tmp_path, file.to_bytes())).tensors["blocks.1.att.key.weight"]
    assert (tensor.dtype, tensor.shape) == (kind, (256, 256))
    np.testing.assert_array_equal(tensor.float32(5, 9), ggml.decode(blocks, kind)[5:9])


def test_version_100_holds_floats(tmp_path: Path) -> None:
    weights = tiny.random_weights(tiny.VERSIONS["4"]["d128"], seed=7)
    file = ck.ggmf_of(weights, "f16")
    file.header[1] = 100
    assert len(read_ggmf(ck.write(tmp_path, file.to_bytes())).tensors) == len(weights)
    file = ck.ggmf_of(weights, "q5_1")
    file.header[1] = 100
    path = ck.write(tmp_path, file.to_bytes())
    with refuses(UnsupportedError, path, "is q5_1 of file version 100, whose blocks had"):
        read_ggmf(path)


def test_weights_are_not_read_when_opened(tmp_path: Path) -> None:
    """A file of 2 GB that is one hole: no copy is made, and `raw` is a view of the map."""
    rows, width = 1 << 20, 512
    header = struct.pack("<6i", 0x67676D66, 101, rows, width, 0, 0)
    head = ck.GgmfTensor(b"emb.weight", [width, rows], 0, b"").to_bytes()
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.write(header + head)
        file.truncate(len(header + head) + 4 * rows * width)
    tracemalloc.start()
    tensor = read_ggmf(path).tensors["emb.weight"]
    raw = tensor.raw()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert raw is not None
    assert raw.nbytes == 4 * rows * width
    assert peak < 1 << 20
    assert not raw.flags.writeable


# ---- what is refused ----------------------------------------------------------------------------


def model() -> ck.Ggmf:
    return ck.ggmf_of(tiny.random_weights(tiny.VERSIONS["4"]["d128"], seed=7), "q8_0")


def changed(change: Callable[[ck.Ggmf], Any]) -> bytes:
    file = model()
    change(file)
    return file.to_bytes()


def with_tensor(**changes: Any) -> bytes:
    """A good file with one more tensor, a good one but for the changes."""
    good = ck.GgmfTensor(b"extra", [32, 2], 0, bytes(256))
    return changed(lambda file: file.tensors.append(dataclasses.replace(good, **changes)))


def cut(at: int) -> bytes:
    """The file ends `at` bytes after the beginning of its last tensor."""
    file = model()
    return file.to_bytes()[: len(file.to_bytes()) - len(file.tensors[-1].to_bytes()) + at]


LAST = model().tensors[-1]
DOWNLOAD = r".*; is the download complete\?"
MALFORMED: dict[str, tuple[bytes, str]] = {
    "cut header": (model().to_bytes()[:23], "23 bytes, a header of rwkv.cpp has 24"),
    "only a header": (model().to_bytes()[:24], f"no tensor 'emb.weight'{DOWNLOAD}"),
    "cut in a tensor's header": (cut(7), f"the header of a tensor has 12 bytes{DOWNLOAD}"),
    "cut in a shape": (cut(14), f"the shape of a tensor has 8 bytes{DOWNLOAD}"),
    "cut in a name": (cut(25), f"the name of a tensor has 25 bytes{DOWNLOAD}"),
    "cut in the data": (cut(900), rf"tensor '.*' has \d+ bytes from byte \d+{DOWNLOAD}"),
    "a byte short": (cut(-1 + len(LAST.to_bytes())), rf"tensor '.*' has \d+ bytes{DOWNLOAD}"),
    "cut between two tensors": (
        changed(lambda file: file.tensors.__delitem__(slice(30, None))),
        r"tensors of [12] layers, the header says 3; is the download complete",
    ),
    "no dimensions": (with_tensor(dims=[]), "has 0 dimensions and a name of 5 bytes, expected 1"),
    "four dimensions": (with_tensor(dims=[4, 4, 2, 2]), "has 4 dimensions"),
    "no name": (with_tensor(name=b""), "a name of 0 bytes, expected 1 to 3 and 1 to 256"),
    "endless name": (with_tensor(name=b"x" * 257), "a name of 257 bytes"),
    "name of no UTF-8": (with_tensor(name=b"\xff\xfe"), "a name that is no UTF-8"),
    "name twice": (with_tensor(name=b"emb.weight"), "tensor 'emb.weight' appears twice"),
    "negative size": (with_tensor(dims=[-32, -2]), r"the impossible shape \[-2, -32\]"),
    "no rows": (with_tensor(dims=[32, 0]), r"the impossible shape \[0, 32\]"),
    "half a block": (
        with_tensor(dims=[48, 2], type_id=2, data=bytes(54)),
        r"the impossible shape \[2, 48\] for blocks of 32 values",
    ),
    "product beyond 64 bits": (
        with_tensor(dims=[1 << 30, 1 << 30, 1 << 30]),
        rf"tensor 'extra' has {4 << 90} bytes from byte",
    ),
    "unknown type": (with_tensor(type_id=17), "tensor 'extra' has the unknown type 17"),
    "negative type": (with_tensor(type_id=-1), "tensor 'extra' has the unknown type -1"),
    "another vocabulary": (
        changed(lambda file: file.header.__setitem__(2, 65536)),
        r"'emb.weight' is \[300, 128\], the header says \[65536, 128\]",
    ),
    "another width": (
        changed(lambda file: file.header.__setitem__(3, 64)),
        r"'emb.weight' is \[300, 128\], the header says \[300, 64\]",
    ),
    "another number of layers": (
        changed(lambda file: file.header.__setitem__(4, 4)),
        "tensors of 3 layers, the header says 4",
    ),
    "negative number of layers": (
        changed(lambda file: file.header.__setitem__(4, -3)),
        "tensors of 3 layers, the header says -3",
    ),
    "a name that is made twice": (
        changed(lambda file: file.tensors.append(
            dataclasses.replace(LAST, name=b"blocks.0.att.time_decay_rate"))),
        "'blocks.0.att.time_decay' and 'blocks.0.att.time_decay_rate' are both",
    ),
}  # fmt: skip

UNSUPPORTED: dict[str, tuple[bytes, str]] = {
    "version 99": (
        changed(lambda file: file.header.__setitem__(1, 99)),
        "rwkv.cpp file version 99, expected 100 or 101",
    ),
    "version 102": (changed(lambda file: file.header.__setitem__(1, 102)), "file version 102"),
    "Q4_1_O": (with_tensor(type_id=4), "tensor 'extra' is Q4_1_O, which rwkv.cpp no longer reads"),
    "Q4_2": (with_tensor(type_id=5), "tensor 'extra' is Q4_2"),
    "Q4_3": (with_tensor(type_id=6), "tensor 'extra' is Q4_3"),
    "Q8_1": (with_tensor(type_id=10), "tensor 'extra' is Q8_1"),
    "Q8_K": (with_tensor(type_id=16), "tensor 'extra' is Q8_K"),
}


@pytest.mark.parametrize("case", MALFORMED | UNSUPPORTED)
def test_malformed(tmp_path: Path, case: str) -> None:
    data, message = (MALFORMED | UNSUPPORTED)[case]
    path = ck.write(tmp_path, data)
    kind = FormatError if case in MALFORMED else UnsupportedError
    with refuses(kind, path, message):
        read_ggmf(path)


def test_a_vector_is_not_turned(tmp_path: Path) -> None:
    """It is for the plan of the version to say that it does not fit."""
    file = ck.ggmf_of(tiny.random_weights(tiny.VERSIONS["7"]["d128"], seed=7))
    file.tensor("blocks.1.att.w1").dims = [24 * 128]
    tensors = read_ggmf(ck.write(tmp_path, file.to_bytes())).tensors
    assert tensors["blocks.1.att.w1"].shape == (24 * 128,)


def test_cuts_and_flips_never_escape(tmp_path: Path) -> None:
    """Whatever is damaged: it reads, or it says so. No other exception, no crash."""
    data = changed(lambda file: file.tensors.__delitem__(slice(8, None)))
    data = data[:16] + struct.pack("<i", 1) + data[20:]
    assert read_ggmf(ck.write(tmp_path, data)).tensors
    starts = np.array([at for at in range(len(data)) if data[at : at + 7] == b"blocks."])
    rng = np.random.default_rng(2)
    refused = 0
    for i in range(600):
        broken = bytearray(data[: rng.integers(1, len(data))] if i % 4 == 0 else data)
        for at in rng.choice(starts, 2) + rng.integers(-20, 8, 2):  # around the names
            if at < len(broken):
                broken[at] = rng.integers(0, 256)
        try:
            for tensor in read_ggmf(ck.write(tmp_path, bytes(broken))).tensors.values():
                tensor.float32()
        except (FormatError, UnsupportedError):
            refused += 1
    assert 300 < refused < 600
