# SPDX-License-Identifier: Apache-2.0
"""The .pth reader: what torch writes is read bit by bit, what it would not write is refused."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import checkpoints as ck
import ggml_types as ggml
import numpy as np
import pytest
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError
from rwkv_edge.files.pth import read_pth

WEIGHTS = {"a": ck.random(3, 4), "b": ck.random(1, 1, 5), "c": ck.random(7)}
STORAGES = ck.pth_entries(WEIGHTS, "f32")


# ---- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_values_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    tensors = read_pth(ck.write(tmp_path, ck.pth_of(WEIGHTS, kind))).tensors
    assert list(tensors) == list(WEIGHTS)
    for name, value in WEIGHTS.items():
        tensor = tensors[name]
        expected = ggml.decode(ggml.encode(value, kind), kind)
        assert (tensor.dtype, tensor.shape) == (kind, value.shape)
        np.testing.assert_array_equal(tensor.float32(), expected, strict=True)
        np.testing.assert_array_equal(tensor.float32(1, 3), expected[1:3], strict=True)
        raw = tensor.raw()
        assert raw is not None
        assert raw.tobytes() == ggml.encode(value, kind).tobytes()


@pytest.mark.parametrize(
    "options", [{"root": "a name from long ago"}, {"with_crc": False}, {"alignment": 1}]
)
def test_archive_may_vary(tmp_path: Path, options: dict[str, Any]) -> None:
    tensors = read_pth(ck.write(tmp_path, ck.pth_of(WEIGHTS, **options))).tensors
    np.testing.assert_array_equal(tensors["a"].float32(), WEIGHTS["a"])


def test_old_archive_without_byteorder(tmp_path: Path) -> None:
    tensors = {"a": ck.torch_tensor("0", (3, 4), location="cuda:0")}
    entries = {"data.pkl": ck.pickled(tensors), "data/0": STORAGES["data/0"]}
    found = read_pth(ck.write(tmp_path, ck.Zip(entries).to_bytes())).tensors
    np.testing.assert_array_equal(found["a"].float32(), WEIGHTS["a"])


def test_views_of_one_storage(tmp_path: Path) -> None:
    base = ck.random(4, 6)
    views = {
        "t()": (ck.torch_tensor("0", (6, 4), numel=24, strides=(1, 6)), base.T),
        "[1:3, 2:5]": (ck.torch_tensor("0", (2, 3), numel=24, offset=8, strides=(6, 1)),
                       base[1:3, 2:5]),
        "[:, ::2]": (ck.torch_tensor("0", (4, 3), numel=24, strides=(6, 2)), base[:, ::2]),
        "[0].expand(5, 6)": (ck.torch_tensor("0", (5, 6), numel=24, strides=(0, 1)),
                             np.broadcast_to(base[0], (5, 6))),
        "[:0]": (ck.torch_tensor("0", (0, 6), numel=24, offset=24), base[:0]),
        "[3, 5]": (ck.torch_tensor("0", (), numel=24, offset=23), base[3, 5]),
    }  # fmt: skip
    top = {name: tensor for name, (tensor, _) in views.items()}
    tensors = read_pth(ck.write(tmp_path, ck.pth(top, ck.pth_entries({"": base}, "f32")))).tensors
    for name, (_, expected) in views.items():
        assert tensors[name].shape == expected.shape, name
        assert (tensors[name].raw() is not None) == expected.flags.c_contiguous, name
        if expected.shape:
            np.testing.assert_array_equal(tensors[name].float32(), expected, err_msg=name)


def test_state_dict_parameters_and_wrappers(tmp_path: Path) -> None:
    tensor = ck.torch_tensor("0", (3, 4))
    parameter = ck.Call(
        ck.Global("torch._utils", "_rebuild_parameter"), (tensor, True, ck.ORDERED_DICT)
    )
    attributes = {"_metadata": ck.Ordered({"": {"version": 1}})}
    state = ck.Ordered({"a": parameter}, attributes)
    for top in (state, {"state_dict": state, "epoch": 3, "losses": [1, 2], "done": True}):
        tensors = read_pth(ck.write(tmp_path, ck.pth(top, STORAGES))).tensors
        assert list(tensors) == ["a"]
        np.testing.assert_array_equal(tensors["a"].float32(), WEIGHTS["a"])


def test_memo_is_understood(tmp_path: Path) -> None:
    """What the standard library writes: memos, batches of items, frames in later protocols."""
    top = {f"entry {i}": "always the same" for i in range(1200)}
    for protocol in (2, 4):
        path = ck.write(tmp_path, ck.Zip({"data.pkl": pickle.dumps(top, protocol)}).to_bytes())
        with refuses(FormatError, path, r"entry 'entry 0' is a str, expected a tensor"):
            read_pth(path)


def test_python_zip_is_read(tmp_path: Path) -> None:
    """An archive that another zip writer made."""
    path = tmp_path / "other.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", ck.pickled({"a": ck.torch_tensor("0", (3, 4))}))
        archive.writestr("x/data/0", STORAGES["data/0"])
    np.testing.assert_array_equal(read_pth(path).tensors["a"].float32(), WEIGHTS["a"])


@pytest.mark.torch
def test_files_of_torch_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    base = torch.randn(4, 6)
    state = {
        "f32": base, "f16": base.half(), "bf16": base.bfloat16(), "t": base.t(),
        "cut": base[1:3, 2:5], "parameter": torch.nn.Parameter(torch.randn(1, 1, 7)),
    }  # fmt: skip
    for top in (state, {"state_dict": state}, torch.nn.Linear(3, 2).state_dict()):
        path = tmp_path / "torch.pth"
        torch.save(top, path)
        tensors = read_pth(path).tensors
        for name, expected in top.get("state_dict", top).items():
            found = tensors[name].float32()
            np.testing.assert_array_equal(found, expected.detach().float().numpy(), err_msg=name)
    for dtype in ("float64", "int8", "uint16", "float8_e4m3fn"):
        torch.save({"a": base.to(getattr(torch, dtype))}, path)
        with refuses(UnsupportedError, path, f"'a' is {dtype}, expected float32"):
            read_pth(path)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with refuses(UnsupportedError, path, r"torch before 1\.6"):
        read_pth(path)


# ---- what is refused ----------------------------------------------------------------------------

A = ck.torch_tensor("0", (3, 4))


def one(tensor: Any) -> bytes:
    return ck.pth({"a": tensor}, STORAGES)


def raw(opcodes: bytes) -> bytes:
    return ck.pth(ck.Raw(opcodes), STORAGES)


def cut_directory() -> bytes:
    return ck.pth_of(WEIGHTS)[:-30]


def shifted_header() -> bytes:
    data = ck.pth_of(WEIGHTS)
    at = data.index(b"PK\3\4", data.index(b"data/0") - 60)
    return data[:at] + b"XX\3\4" + data[at + 4 :]


def huge_storage() -> bytes:
    """The directory promises more bytes than the file has."""
    data = bytearray(ck.pth_of({"a": WEIGHTS["a"]}))
    at = data.rindex(b"archive/data/0") - 46
    data[at + 20 : at + 28] = (1 << 30).to_bytes(4, "little") * 2
    return bytes(data)


V3 = ck.Global("torch._utils", "_rebuild_tensor_v3")
UNTYPED = ck.Persistent(("storage", ck.Global("torch.storage", "UntypedStorage"), "0", "cpu", 12))
FLOAT8 = ck.Call(
    V3, (UNTYPED, 0, (3, 4), (4, 1), False, ck.ORDERED_DICT, ck.Global("torch", "float8_e5m2"))
)

MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "no zip": (b"PK\3\4 and then nothing", r"not a whole zip archive .*download complete"),
    "truncated": (cut_directory(), "not a whole zip archive"),
    "no pickle": (ck.Zip({"version": b"3\n"}).to_bytes(), r"0 entries named data\.pkl"),
    "compressed": (ck.pth_of(WEIGHTS, method=8), r"entry '.*' is compressed"),
    "wrong local header": (shifted_header(), "no local header of entry 'data/0' at byte"),
    "storage past the end": (huge_storage(), r"entry 'data/0' ends at byte \d+, the file has"),
    "forbidden global": (
        one(ck.Call(ck.Global("os", "system"), ("true",))),
        r"data\.pkl: asks for 'os\.system'; only tensors",
    ),
    "numpy array": (
        one(ck.Call(ck.Global("numpy._core.multiarray", "_reconstruct"), ())),
        r"asks for 'numpy\._core\.multiarray\._reconstruct'",
    ),
    "builtins": (one(ck.Global("builtins", "eval")), r"asks for 'builtins\.eval'"),
    "call of a storage type": (
        one(ck.Call(ck.Global("torch", "FloatStorage"), (4,))),
        r"calls 'torch\.FloatStorage'",
    ),
    "call of a tensor": (raw(b"}" + ck.push(A) + b")R."), "calls '_TensorRef'"),
    "opcode of objects": (raw(b"(}o."), "opcode OBJ at byte 4 has no place"),
    "instance opcode": (raw(b"(ios\nsystem\n."), "opcode INST at byte 3 has no place"),
    "reduce by extension": (raw(b"\x82\x01."), "opcode EXT1 at byte 2 has no place"),
    "stack underflow": (raw(b"\x85."), r"malformed pickle \(stack underflow\)"),
    "missing memo": (raw(b"h\x07."), r"malformed pickle \(7\)"),
    "pickle without end": (
        ck.Zip({"data.pkl": b"\x80\x02}"}).to_bytes(),
        r"data\.pkl: malformed pickle \(pickle exhausted before seeing STOP\)",
    ),
    "string past the end": (raw(b"X\xff\xff\xff\x7fabc"), "malformed pickle .*expected 2147483647"),
    "items of a tuple": (raw(b")(K\1K\2u."), "malformed pickle .*no dict or list"),
    "key that nests": (raw(b"}K\1\x85K\1s."), "malformed pickle .*no string or small number"),
    "a list": (ck.pth([1, 2], STORAGES), "holds one list, expected a dict of tensors"),
    "a lone tensor": (ck.pth(A, STORAGES), "holds one tensor, expected a dict"),
    "no tensors": (ck.pth({}, STORAGES), "holds no tensors"),
    "entry that is no tensor": (ck.pth({"a": A, "b": 3}, STORAGES), "entry 'b' is a int"),
    "storage that is missing": (
        one(ck.torch_tensor("9", (3, 4))),
        r"tensor 'a': the archive has no entry 'archive/data/9'",
    ),
    "storage of another size": (
        one(ck.torch_tensor("0", (3, 4), numel=13)),
        "its storage '0' has 48 bytes, expected 13 values of f32",
    ),
    "shape beyond the storage": (
        one(ck.torch_tensor("0", (3, 5), numel=12)),
        r"shape \(3, 5\) with strides \(5, 1\) from 0 reaches value 14 of a storage of 12",
    ),
    "offset beyond the storage": (
        one(ck.torch_tensor("0", (3, 4), numel=12, offset=1)),
        "reaches value 12 of a storage of 12",
    ),
    "a storage of one value that is to be a matrix": (
        one(ck.torch_tensor("0", (1 << 40, 1 << 40), numel=12, strides=(0, 0))),
        r"impossible shape \[1099511627776, 1099511627776\]",
    ),
    "a storage of one value that is to be a large one": (
        one(ck.torch_tensor("0", (1 << 40,), numel=12, strides=(0,))),
        r"tensors of \d{13} bytes in a file of",
    ),
    "negative stride": (
        one(ck.torch_tensor("0", (3, 4), offset=11, strides=(-4, -1))),
        r"impossible shape \(3, 4\) with strides \(-4, -1\)",
    ),
    "product that wraps": (
        one(ck.torch_tensor("0", (1 << 33, 1 << 33), numel=12)),
        r"impossible shape \[8589934592, 8589934592\]",
    ),
    "strides for fewer dimensions": (
        one(ck.torch_tensor("0", (3, 4), strides=(1,))),
        "impossible shape",
    ),
    "too many dimensions": (
        one(ck.torch_tensor("0", (1,) * 9, numel=12)),
        "a tensor with 9 dimensions for a shape, expected at most 8",
    ),
    "a list for a shape": (
        one(ck.torch_tensor("0", [3, 4], numel=12, strides=(4, 1))),  # type: ignore[arg-type]
        "a tensor with list for a shape",
    ),
    "keys of equal hashes": (ck.pth({(1 << 61) - 1: A}, STORAGES), "no string or small number"),
    "a long name": (
        ck.pth({"model." * 200: A}, STORAGES),
        "a name of 1200 bytes, expected at most",
    ),
    "a name of half a character": (
        raw(b"}X\3\0\0\0\xed\xa0\x80" + ck.push(A) + b"s."),
        r"tensor '\\ud800' has a name that is no UTF-8",
    ),
    "an escape in a name": (raw(b"ctorch\n\\*\n."), "malformed pickle .a backslash in b'"),
    "too many opcodes": (raw(b"}" * (1 << 20) + b"."), "more than 1048576 opcodes"),
    "too large a pickle": (
        raw(b"X\0\0\0\1" + bytes(1 << 24) + b"."),
        r"data\.pkl has \d{8} bytes, expected at most 16777216",
    ),
    "too many entries": (
        ck.Zip({"data.pkl": b"."} | {f"{i:0100}": b"" for i in range(60_000)}).to_bytes(),
        "a directory of 9.* bytes, expected at most 8388608",
    ),
    "shape of text": (
        one(ck.torch_tensor("0", ("three",), numel=12, strides=(1,))),  # type: ignore[arg-type]
        "not made of numbers",
    ),
}

UNSUPPORTED: dict[str, tuple[bytes, str]] = {
    "legacy": (
        bytes.fromhex("80028a0a6cfc9c46f9206aa85019") + b".\x80\x02M\xe9\x03.",
        r"the format of torch before 1\.6; .*torch\.save",
    ),
    "big-endian": (
        ck.Zip({"data.pkl": ck.pickled({"a": A}), "byteorder": b"big"}).to_bytes(),
        "a big-endian file",
    ),
    "float64": (one(ck.torch_tensor("0", (3, 2), kind="DoubleStorage")), "'a' is float64, exp"),
    "int8": (one(ck.torch_tensor("0", (48,), kind="CharStorage")), "'a' is int8, expected float32"),
    "float8": (one(FLOAT8), "tensor 'a' is float8_e5m2, expected float32, float16 or bfloat16"),
    "converted by rwkv": (
        ck.pth({"_strategy": "cpu fp32", "_rescale_layer": 0, "_version": "0.7", "a": A}, STORAGES),
        "converted by the `rwkv` package for the strategy 'cpu fp32': the embedding in it is .*"
        "use the original",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(tmp_path: Path, case: str) -> None:
    data, message = MALFORMED[case]
    path = ck.write(tmp_path, data)
    with refuses(FormatError, path, message):
        read_pth(path)


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported(tmp_path: Path, case: str) -> None:
    data, message = UNSUPPORTED[case]
    path = ck.write(tmp_path, data)
    with refuses(UnsupportedError, path, message):
        read_pth(path)


def test_nothing_in_the_pickle_is_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    call = ck.Call(ck.Global("pathlib", "Path.touch"), (str(witness),))
    path = ck.write(tmp_path, one(call))
    with refuses(FormatError, path, r"asks for 'pathlib\.Path\.touch'"):
        read_pth(path)
    assert not witness.exists()


def test_cuts_and_flips_never_escape(tmp_path: Path) -> None:
    """Whatever is damaged: it reads, or it says so. No other exception, no crash."""
    data = ck.pth_of(WEIGHTS, alignment=1)
    rng = np.random.default_rng(2)
    refused = 0
    for i in range(600):
        broken = bytearray(data[: rng.integers(1, len(data))] if i % 4 == 0 else data)
        for at in rng.integers(0, len(broken), rng.integers(1, 4)):
            broken[at] = rng.integers(0, 256)
        try:
            for tensor in read_pth(ck.write(tmp_path, bytes(broken))).tensors.values():
                tensor.float32()
        except (FormatError, UnsupportedError):
            refused += 1
    assert 300 < refused < 600
