# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's importance matrices, against independent readers and writers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
from conftest import GetModel
from program import run
from refusal import refuses
from rwkv_edge import FormatError, Model
from rwkv_edge._core import ModelFile
from rwkv_edge.quantization.imatrix import Sums, read_imatrix, write_imatrix
from rwkv_edge.quantization.text import tokens_of

ENTRIES = {"blk.0.a.weight": ([1.0, 4.0, 9.0], 2), "blk.1.b.weight": ([0.5, 0.0], 4)}


def old_file(entries: dict[str, tuple[list[float], int]] = ENTRIES) -> bytes:
    """The sums are calls times the mean, which is what ENTRIES have."""
    out = struct.pack("<i", len(entries))
    for name, (sums, calls) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode()
        out += struct.pack(f"<ii{len(sums)}f", calls, len(sums), *sums)
    return out + struct.pack("<ii", 7, 4) + b"text"


def test_old_files(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(old_file())
    means = read_imatrix(tmp_path / "old.dat").means
    assert {name: values.tolist() for name, values in means.items()} == {
        "blk.0.a.weight": [0.5, 2.0, 4.5],
        "blk.1.b.weight": [0.125, 0.0],
    }
    # Those before 2024 end here.
    (tmp_path / "old.dat").write_bytes(old_file()[:-12])
    assert list(read_imatrix(tmp_path / "old.dat").means) == list(means)


def test_new_files(tmp_path: Path) -> None:
    """As llama.cpp's loader finds them: by name, sums over counts."""
    path = tmp_path / "new.gguf"
    sums = {name: Sums(np.array(values), calls) for name, (values, calls) in ENTRIES.items()}
    write_imatrix(path, sums, text="a.txt", windows=3, size=512)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.datasets"] == ["a.txt"]
    assert fields["imatrix.chunk_count"] == 3
    assert fields["imatrix.chunk_size"] == 512
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 4
    for name, (values, calls) in ENTRIES.items():
        assert tensors[f"{name}.in_sum2"].data.ravel().tolist() == values
        assert tensors[f"{name}.in_sum2"].shape.tolist() == [len(values), 1]
        assert tensors[f"{name}.counts"].data.ravel().tolist() == [calls]
        assert tensors[f"{name}.counts"].shape.tolist() == [1, 1]
    found = read_imatrix(path).means
    (tmp_path / "old.dat").write_bytes(old_file())
    old = read_imatrix(tmp_path / "old.dat").means
    assert {n: v.tolist() for n, v in found.items()} == {n: v.tolist() for n, v in old.items()}


def test_a_matrix_that_was_never_reached_has_no_entry(tmp_path: Path) -> None:
    sums = {"a.weight": Sums(np.zeros(3), 0), "b.weight": Sums(np.ones(3), 2)}
    write_imatrix(tmp_path / "new.gguf", sums, text="a", windows=1, size=2)
    assert list(read_imatrix(tmp_path / "new.gguf").means) == ["b.weight"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: b"", "takes 4 bytes at byte 0, 0 are left"),
        (lambda: old_file()[:30], "takes 12 bytes at byte 30"),
        (lambda: struct.pack("<i", -1), "number of entries is -1"),
        (lambda: struct.pack("<i", 2**31 - 1), "number of entries is 2147483647"),
        (lambda: struct.pack("<ii", 1, 2**30), "length of a name is 1073741824"),
        (lambda: struct.pack("<iii", 1, 0, 1) + struct.pack("<i", 2**31 - 1), "takes 8589934588"),
        (lambda: old_file({}), "without entries"),
        (lambda: old_file({"a": ([float("nan")], 1)}), "entry 'a' holds .* NaN"),
        (lambda: old_file({"a": ([-1.0], 1)}), "negative"),
    ],
)
def test_damaged_old_files(tmp_path: Path, make: Callable[[], bytes], text: str) -> None:
    (tmp_path / "bad.dat").write_bytes(make())
    with refuses(FormatError, tmp_path / "bad.dat", text):
        read_imatrix(tmp_path / "bad.dat")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda file: file.put("general.type", tiny.STRING, "model"), "general.type is 'model'"),
        (lambda file: file.drop("general.type"), "general.type is None"),
        (lambda file: file.tensors.pop(1), r"tensor 'a.counts' is missing"),
        (lambda file: setattr(file.tensors[1], "type_id", 1), "'a.counts' is f16, expected f32"),
        (lambda file: setattr(file.tensors[0], "dims", [2, 2]), r"\[2, 2\], expected one row"),
        (lambda file: file.tensors.clear(), "without entries"),
        (
            lambda file: setattr(file.tensors[0], "data", np.float32("inf").tobytes() * 4),
            "entry 'a' holds",
        ),
    ],
)
def test_damaged_new_files(
    tmp_path: Path, change: Callable[[tiny.Gguf], object], text: str
) -> None:
    file = tiny.Gguf()
    file.put("general.type", tiny.STRING, "imatrix")
    one = np.ones(4, np.float32).tobytes()
    file.tensors = [
        tiny.Entry("a.in_sum2", [4, 1], 0, one),
        tiny.Entry("a.counts", [1, 1], 0, one[:4]),
    ]
    path = tmp_path / "bad.gguf"
    path.write_bytes(file.to_bytes())
    assert read_imatrix(path).means["a"].tolist() == [1, 1, 1, 1]
    change(file)
    path.write_bytes(file.to_bytes())
    with refuses(FormatError, path, text):
        read_imatrix(path)


def test_commands(tmp_path: Path, tiny_model: GetModel) -> None:
    """`imatrix` writes the mean squares of what the matrices multiply; `quantize` uses them."""
    path, _ = tiny_model("f32", "d256", "7")
    text, target = tmp_path / "text", tmp_path / "it.gguf"
    text.write_text("abc def " * 40, "utf-8")
    done = run("imatrix", path, text, "-o", target, "--window", "64")
    assert (done.returncode, done.stderr) == (0, b"")
    model = Model(path)
    ids = tokens_of(model, [text])
    count = len(ids) // 64
    name = "blk.1.channel_mix_key.weight"
    rows = [model.session().inputs(ids[i * 64 : i * 64 + 64], [name])[name] for i in range(count)]
    found = read_imatrix(target).means
    expected = (np.concatenate(rows).astype(float) ** 2).mean(axis=0)
    assert found[name] == pytest.approx(expected, rel=1e-5)
    assert len(found) == 19
    out = [tmp_path / "plain.gguf", tmp_path / "known.gguf"]
    for file, options in zip(out, ((), ("--imatrix", target)), strict=True):
        done = run("quantize", path, file, "--type", "q4_k", *options)
        assert (done.returncode, done.stderr) == (0, b"")
    plain, known = ({t.name: t.data.tobytes() for t in ModelFile(f).tensors} for f in out)
    changed = {each for each in plain if plain[each] != known[each]}
    assert changed == set(found) - {"blk.0.time_mix_output.weight"}  # which is q8_0

    other, _ = tiny_model("f32", "d128", "7")
    done = run("quantize", other, tmp_path / "x", "--type", "q4_0", "--imatrix", target)
    message = done.stderr.decode()
    assert message.startswith(f"Error: {target}: an imatrix of another model: ")
    assert "has 256 columns, expected 128" in message
    (tmp_path / "old.dat").write_bytes(old_file())
    done = run(
        "quantize", other, tmp_path / "x", "--type", "q4_0", "--imatrix", tmp_path / "old.dat"
    )
    assert b"another model: it has 'blk.0.a.weight', 'blk.1.b.weight', and no" in done.stderr
    assert not (tmp_path / "x").exists()
