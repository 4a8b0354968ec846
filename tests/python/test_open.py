# SPDX-License-Identifier: Apache-2.0
"""Opening a checkpoint by its content, whatever it is called, and naming what is none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import checkpoints as ck
import pytest
import tiny
from reference import Weights
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError
from rwkv_edge.convert.open import open_checkpoint


def weights_of(version: str) -> Weights:
    return tiny.random_weights(tiny.VERSIONS[version]["d128"], seed=6)


@pytest.mark.parametrize("version", tiny.VERSIONS)
@pytest.mark.parametrize("name", ["model", "model.gguf", "model.bin", "config.json"])
def test_content_decides(tmp_path: Path, version: str, name: str) -> None:
    weights = weights_of(version)
    for data in (ck.pth_of(weights), ck.safetensors_of(weights)):
        path = ck.write(tmp_path, data, name)
        assert ck.opened(path) == ck.squeezed(weights)
        assert open_checkpoint(path).folder == tmp_path
    path = ck.write(tmp_path, ck.ggmf_of(weights).to_bytes(), name)
    assert len(ck.opened(path)) == len(weights)


@pytest.mark.parametrize(
    "prefix", ["model.", "module.", "_forward_module.", "_forward_module.model."]
)
def test_prefixes_of_trainers(tmp_path: Path, prefix: str) -> None:
    weights = weights_of("7a")
    named = {f"{prefix}{name}": value for name, value in weights.items()}
    for data in (ck.pth_of(named), ck.safetensors_of(named)):
        assert ck.opened(ck.write(tmp_path, data)) == ck.squeezed(weights)


def test_header_length_that_looks_like_json(tmp_path: Path) -> None:
    """A .safetensors whose first byte, the low one of the header's length, is "{"."""
    weights = weights_of("4")
    data = ck.safetensors_of(weights)
    length = int.from_bytes(data[:8], "little")
    padding = (ord("{") - length) % 256
    longer = (length + padding).to_bytes(8, "little") + data[8 : 8 + length] + b" " * padding
    path = ck.write(tmp_path, longer + data[8 + length :])
    assert path.read_bytes().startswith(b"{")
    assert ck.opened(path) == ck.squeezed(weights)


def test_wrapped_state_dict(tmp_path: Path) -> None:
    weights = weights_of("6")
    tensors = {f"module.{n}": ck.torch_tensor(str(i), v.shape)
               for i, (n, v) in enumerate(weights.items())}  # fmt: skip
    data = ck.pth({"state_dict": tensors, "epoch": 3}, ck.pth_entries(weights, "f32"))
    assert ck.opened(ck.write(tmp_path, data)) == ck.squeezed(weights)


def test_metadata_is_kept(tmp_path: Path) -> None:
    said = {"license": "apache-2.0"}
    path = ck.write(tmp_path, ck.safetensors_of(weights_of("7"), metadata=said))
    assert open_checkpoint(path).metadata == said


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"GGUF\3\0\0\0", FormatError, "a GGUF file already; `quantize` changes its types"),
        (b"ggmf\0\0\0\x65", UnsupportedError, r"a big-endian file of rwkv\.cpp"),
        (b"ggjt\3\0\0\0", FormatError, r"neither a GGUF"),
        (b"hello", FormatError, r"neither a GGUF.* nor an rwkv\.cpp file"),
        (b"", FormatError, "the file is empty"),
        (b'{"model_type": "rwkv"}', FormatError, "weight_map is missing or empty"),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, error: type[Exception], message: str) -> None:
    path = ck.write(tmp_path, data)
    with refuses(error, path, message):
        open_checkpoint(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        open_checkpoint(tmp_path / "nowhere.pth")


CONVERT = """
import sys
from rwkv.model import RWKV
RWKV(sys.argv[1], sys.argv[2], convert_and_save_and_exit=sys.argv[3])
"""


@pytest.mark.torch
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "rwkv")),
    reason="torch and rwkv not installed: rwkv-edge[reference]",
)
@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu fp32i8"])
@pytest.mark.parametrize("version", ["4", "5.2", "6"])
def test_converted_by_the_rwkv_package(tmp_path: Path, version: str, strategy: str) -> None:
    path = ck.write(tmp_path, ck.pth_of(weights_of(version)), "model.pth")
    target = tmp_path / "converted.pth"
    environment = {**os.environ, "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "0"}
    program = [sys.executable, "-c", CONVERT, str(path), strategy, str(target)]
    subprocess.run(program, env=environment, check=True, capture_output=True, timeout=300)
    with refuses(UnsupportedError, target, f"by the `rwkv` package for .*{strategy}.*already no"):
        open_checkpoint(target)
