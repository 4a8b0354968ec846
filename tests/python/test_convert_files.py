# SPDX-License-Identifier: Apache-2.0
"""`convert` among files: what it does not overwrite, what it leaves behind, how much it holds."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
import tiny
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import convert


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(ck.VOCABULARY, "utf-8")
    return path


def test_unknown_type_and_missing_files(tmp_path: Path, vocab: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    with pytest.raises(ValueError, match=r"type 'q9': expected one of f32, f16, q4_0"):
        convert(path, tmp_path / "out.gguf", type="q9", vocab=vocab)
    with pytest.raises(ValueError, match="alpha and adapter_init belong to an adapter"):
        convert(path, tmp_path / "out.gguf", alpha=16, vocab=vocab)
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        convert(path, tmp_path / "nowhere" / "out.gguf", vocab=vocab)
    with pytest.raises(IsADirectoryError):
        convert(path, tmp_path, vocab=vocab)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        convert(tmp_path / "missing.pth", tmp_path / "out.gguf", vocab=vocab)
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        convert(path, tmp_path / "out.gguf", vocab=tmp_path / "missing.txt")


def test_input_is_not_overwritten(tmp_path: Path, vocab: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    before = path.read_bytes()
    link = tmp_path / "link.gguf"
    os.link(path, link)
    with pytest.raises(ValueError, match="input and output are the same file"):
        convert(path, link, vocab=vocab)
    with pytest.raises(ValueError, match="input and output are the same file"):
        convert(path, vocab, vocab=vocab)
    assert path.read_bytes() == before


def test_a_file_in_a_folder_of_inputs_is_not_overwritten(tmp_path: Path, vocab: Path) -> None:
    path = ck.write(tmp_path, ck.safetensors_of(ck.weights_of()), "model.safetensors")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="input and output are the same file"):
        convert(tmp_path, path, vocab=vocab)
    assert path.read_bytes() == before
    for _ in range(2):  # an older target is
        convert(tmp_path, tmp_path / "model.gguf", vocab=vocab)


def test_interrupted_work_leaves_nothing(tmp_path: Path, vocab: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    target = ck.write(tmp_path, b"an older file", "out.gguf")

    def interrupt(done: int, total: int, name: str) -> None:
        assert len(list(tmp_path.glob(".out.gguf.*.part"))) == 1
        if done > total // 2:
            raise KeyboardInterrupt(name)

    with pytest.raises(KeyboardInterrupt):
        convert(path, target, vocab=vocab, progress=interrupt)
    assert target.read_bytes() == b"an older file"
    assert not list(tmp_path.glob(".*"))


def test_progress(tmp_path: Path, vocab: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    target = tmp_path / "out.gguf"
    convert(path, target, vocab=vocab, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert {call[1] for call in calls} == {done[-1]}
    assert done[-1] == sum(t.nbytes for t in ModelFile(str(target)).tensors)
    assert {call[2] for call in calls} == set(ck.tensors_of(target))


LARGE = """
import resource, sys
import rwkv_edge.convert
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
{call}
sys.stdout.write(str(peak() - before))
"""


def growth(call: str) -> int:
    """Resident memory, in KiB, that a call adds at its peak; measured in a process of its own."""
    program = [sys.executable, "-c", LARGE.format(call=call)]
    result = subprocess.run(program, capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_the_file(tmp_path: Path, vocab: Path) -> None:
    """A checkpoint of 570 MB, all of it a hole in the file, through convert and then quantize."""
    rows, width = 65536, 1024
    shape = dataclasses.replace(ck.SHAPE, width=width, layers=1)
    weights = tiny.random_weights(shape, seed=5)
    header: dict[str, Any] = {}
    end = 0
    for name, value in weights.items():
        dims = [rows, width] if name in ("emb.weight", "head.weight") else list(value.shape)
        size = 4 * int(np.prod(dims))
        header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [end, end + size]}
        end += size
    path = ck.write(tmp_path, ck.safetensors(header, b""))
    os.truncate(path, path.stat().st_size + end)
    middle, target = tmp_path / "middle.gguf", tmp_path / "out.gguf"
    calls = (
        f"rwkv_edge.convert.convert({str(path)!r}, {str(middle)!r}, vocab={str(vocab)!r})",
        f"rwkv_edge.convert.quantize({str(middle)!r}, {str(target)!r}, type='q4_0')",
    )
    for call in calls:
        assert growth(call) < 200_000, call
    assert target.stat().st_size > 2 * rows * width
