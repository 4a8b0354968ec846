# SPDX-License-Identifier: Apache-2.0
"""Malformed and misfitting GGUF files: each kind ends in an error that says what and where."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import rwkv_edge
import tiny
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError, _core
from spoil import (
    Change,
    add_key,
    as_type,
    drop,
    extra,
    header,
    patch,
    put,
    remove,
    tensor,
    vocabulary,
)
from tiny import ARRAY, BOOL, F32, I32, STRING, U8, U32, U64, Gguf

SHAPE = tiny.Shape(64, 32, 2, 96, 270, (8, 6, 4, 10), "absent")
MATRIX = "blk.1.time_mix_key.weight"
VECTOR = "blk.1.time_mix_k_k.weight"


def good_file() -> Gguf:
    return tiny.tiny_model(SHAPE, "f32", seed=3).file


# ---- ways to spoil a file -----------------------------------------------------------------------


def hyper(key: str, value: int) -> Change:
    return put(f"rwkv7.{key}", U32, value)


def repeat_key(file: Gguf) -> None:
    file.keys.append(file.keys[0])


def repeat_tensor(file: Gguf) -> None:
    file.tensors.append(file.tensor(VECTOR))


def overlap(file: Gguf) -> None:
    file.tensors[2].offset = file.offsets()[1]


def one_key_more(file: Gguf) -> None:
    file.n_keys = len(file.keys) + 1


def one_tensor_more(file: Gguf) -> None:
    file.n_tensors = len(file.tensors) + 1


def cut_last_byte(file: Gguf) -> None:
    file.tensors[-1].data = file.tensors[-1].data[:-1]


def drop_all_data(file: Gguf) -> None:
    for entry in file.tensors:
        entry.data = b""


HUGE_LENGTH = struct.pack("<Q", 1 << 40)

# name: (what is done to a good file, what the message must say besides the path)
MALFORMED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "bad magic": (header(magic=b"GGML"), ("neither a GGUF", "nor an rwkv.cpp file")),
    "big-endian magic": (header(magic=b"FUGG"), ("big-endian",)),
    "big-endian version": (header(version=3 << 24), ("big-endian",)),
    "version 0": (header(version=0), ("version 0", "expected 2 or 3")),
    "version 1": (header(version=1), ("version 1", "expected 2 or 3")),
    "version 4": (header(version=4), ("version 4", "expected 2 or 3")),
    "more keys than bytes": (header(n_keys=1 << 60), (str(1 << 60), "keys", "do not fit")),
    "one key too many": (one_key_more, ("key",)),
    "more tensors than bytes": (header(n_tensors=1 << 63), (str(1 << 63), "tensors")),
    "one tensor too many": (one_tensor_more, ("tensor",)),
    "key name beyond the file": (patch(24, HUGE_LENGTH), ("name of key 0", str(1 << 40))),
    "key name empty": (add_key("", U8, b"\0"), ("name of key", "0 bytes", "expected 1 to")),
    "duplicate key": (repeat_key, ("'general.architecture'", "twice")),
    "unknown value type": (add_key("odd", 13, b"\0"), ("'odd'", "13", "expected 0 to 12")),
    "nested array": (
        add_key("odd", ARRAY, struct.pack("<IQ", ARRAY, 1)),
        ("'odd'", "array of arrays"),
    ),
    "array of an unknown type": (
        add_key("odd", ARRAY, struct.pack("<IQ", 99, 1)),
        ("'odd'", "99", "expected 0 to 12"),
    ),
    "array length overflows": (
        add_key("odd", ARRAY, tiny.array(U64, [1], count=(1 << 61) + 1)),
        ("'odd'", str((1 << 61) + 1), "do not fit"),
    ),
    "array longer than the file": (
        add_key("odd", ARRAY, tiny.array(U8, [1], count=1 << 40)),
        ("'odd'", str(1 << 40), "do not fit"),
    ),
    "strings longer than the file": (
        add_key("odd", ARRAY, tiny.array(STRING, ["a"], count=1 << 62)),
        ("'odd'", str(1 << 62), "do not fit"),
    ),
    "string beyond the file": (add_key("odd", STRING, HUGE_LENGTH), ("'odd'", str(1 << 40))),
    "string in an array beyond the file": (
        add_key("odd", ARRAY, struct.pack("<IQ", STRING, 1) + HUGE_LENGTH),
        ("'odd'", str(1 << 40)),
    ),
    "alignment 0": (put("general.alignment", U32, 0), ("'general.alignment' is 0",)),
    "alignment 3": (put("general.alignment", U32, 3), ("'general.alignment' is 3",)),
    "alignment 24": (put("general.alignment", U32, 24), ("is 24", "power of two")),
    "alignment huge": (put("general.alignment", U32, 1 << 31), ("'general.alignment' is",)),
    "alignment as text": (put("general.alignment", STRING, "32"), ("type string", "integer")),
    "tensor name empty": (tensor(VECTOR, name=""), ("tensor", "0 bytes")),
    "duplicate tensor": (repeat_tensor, (f"'{VECTOR}'", "twice")),
    "no dimensions": (tensor(VECTOR, n_dims=0), (f"'{VECTOR}'", "0 dim", "1 to 4")),
    "five dimensions": (tensor(VECTOR, n_dims=5), (f"'{VECTOR}'", "5 dim", "1 to 4")),
    "dimension 0": (tensor(VECTOR, dims=[0]), (f"'{VECTOR}'", "size 0")),
    "dimension negative": (tensor(VECTOR, dims=[1 << 63]), (f"'{VECTOR}'", str(1 << 63))),
    "dimensions overflow": (
        tensor(MATRIX, dims=[1 << 40, 1 << 40]),
        (f"'{MATRIX}'", str(1 << 40)),
    ),
    "partial block": (
        as_type("blk.1.time_mix_w2.weight", 2, 64 * 18),  # rows of 8 values
        ("'blk.1.time_mix_w2.weight'", "rows of 8", "multiple of 32", "q4_0"),
    ),
    "offset unaligned": (tensor(VECTOR, offset=17), (f"'{VECTOR}'", "17", "alignment 32")),
    "offset beyond the file": (tensor(VECTOR, offset=1 << 40), (f"'{VECTOR}'", str(1 << 40))),
    "offset wraps": (tensor(VECTOR, offset=(1 << 64) - 32), (f"'{VECTOR}'", str((1 << 64) - 32))),
    "tensors overlap": (overlap, ("overlaps",)),
    "data one byte short": (cut_last_byte, ("cut short", "time_mix_lerp_fused")),
    "data missing": (drop_all_data, ("tensor",)),
    # Well-formed, but no model of ours.
    "no architecture": (drop("general.architecture"), ("'general.architecture' is missing",)),
    "architecture as a number": (put("general.architecture", U32, 7), ("type uint32", "string")),
    "no layer count": (drop("rwkv7.block_count"), ("'rwkv7.block_count' is missing",)),
    "layer count as text": (put("rwkv7.block_count", STRING, "2"), ("type string", "integer")),
    "layer count as a float": (put("rwkv7.block_count", F32, 2.0), ("type float32", "integer")),
    "layer count as a bool": (put("rwkv7.block_count", BOOL, 1), ("type bool", "integer")),
    "layer count as an array": (
        put("rwkv7.block_count", ARRAY, tiny.array(U32, [2])),
        ("type array", "integer"),
    ),
    "layer count 0": (hyper("block_count", 0), ("'rwkv7.block_count' is 0", "expected 1 to")),
    "layer count negative": (put("rwkv7.block_count", I32, -1), ("'rwkv7.block_count' is -1",)),
    "layer count absurd": (
        put("rwkv7.block_count", U64, (1 << 64) - 1),
        ("'rwkv7.block_count' is", "expected 1 to"),
    ),
    "a layer more than there is": (hyper("block_count", 3), ("'blk.2.", "is missing")),
    "a layer less than there is": (hyper("block_count", 1), ("'blk.1.", "not part of")),
    "width 0": (hyper("embedding_length", 0), ("'rwkv7.embedding_length' is 0",)),
    "width no multiple of 32": (hyper("embedding_length", 72), ("is 72", "multiple of 32")),
    "width of another model": (
        hyper("embedding_length", 128),
        ("'token_embd.weight' has shape [270, 64]", "128]"),
    ),
    "head size 0": (hyper("wkv.head_size", 0), ("'rwkv7.wkv.head_size' is 0",)),
    "head size no multiple of 8": (hyper("wkv.head_size", 12), ("is 12", "multiple of 8")),
    "head size that does not divide": (
        hyper("wkv.head_size", 48),
        ("is 48", "divisor of the width 64"),
    ),
    "ffn of another model": (
        hyper("feed_forward_length", 128),
        ("'blk.0.channel_mix_key.weight' has shape [96, 64]", "[128, 64]"),
    ),
    "no eps": (drop("rwkv7.attention.layer_norm_epsilon"), ("layer_norm_epsilon' is missing",)),
    "eps 0": (put("rwkv7.attention.layer_norm_epsilon", F32, 0.0), ("is 0", "between 0 and 1")),
    "eps NaN": (put("rwkv7.attention.layer_norm_epsilon", F32, float("nan")), ("is nan",)),
    "eps as an integer": (put("rwkv7.attention.layer_norm_epsilon", U32, 0), ("is uint32",)),
    "tensor missing": (remove(MATRIX), (f"'{MATRIX}' is missing",)),
    "head missing": (remove("output.weight"), ("'output.weight' is missing",)),
    "tensor that no one knows": (extra("blk.0.extra.weight"), ("'blk.0.extra.weight'", "[8]")),
    "matrix of a wrong shape": (
        tensor(MATRIX, dims=[32, 128]),
        (f"'{MATRIX}' has shape [128, 32]", "expected [64, 64]"),
    ),
    "matrix transposed": (
        tensor("blk.0.channel_mix_key.weight", dims=[96, 64]),
        ("has shape [64, 96]", "expected [96, 64]"),
    ),
    "low-rank pair that does not meet": (
        tensor("blk.1.time_mix_a2.weight", dims=[3, 128]),
        ("'blk.1.time_mix_a2.weight' has shape [128, 3]", "expected [64, 6]"),
    ),
    "vector of a wrong length": (
        tensor(VECTOR, dims=[32], data=bytes(128)),
        (f"'{VECTOR}' has shape [32]", "64]"),
    ),
    "vector folded": (tensor(VECTOR, dims=[8, 8]), (f"'{VECTOR}' has shape [8, 8]", "64]")),
    "fused lerps transposed": (
        tensor("blk.0.time_mix_lerp_fused.weight", dims=[6, 64]),
        ("'blk.0.time_mix_lerp_fused.weight' has shape [64, 6]", "[6, 64]"),
    ),
    "head of another vocabulary": (
        tensor("output.weight", dims=[64, 269], data=bytes(64 * 269 * 4)),
        ("'output.weight' has shape [269, 64]", "expected [270, 64]"),
    ),
}

UNSUPPORTED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "another architecture": (
        put("general.architecture", STRING, "llama"),
        ("architecture 'llama'", "expected one of rwkv4"),
    ),
    "unknown tensor type": (tensor(MATRIX, type_id=99), (f"'{MATRIX}'", "99")),
    "removed tensor type": (tensor(MATRIX, type_id=4), (f"'{MATRIX}'", "type 4")),
    "tensor type we cannot read": (tensor(MATRIX, type_id=15), (f"'{MATRIX}'", "q8_k")),
    "integers": (tensor(MATRIX, type_id=26), (f"'{MATRIX}'", "26")),
}

NO_TOKENIZER: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no tokenizer": (drop("tokenizer.ggml.model"), ("tokenizer.ggml.model is missing",)),
    "more tokens than embeddings": (vocabulary(300), ("300 tokens", "270")),
    "tokens that are no strings": (
        put("tokenizer.ggml.tokens", ARRAY, tiny.array(U32, [1, 2, 3])),
        ("tokenizer.ggml.tokens",),
    ),
    "token types of another length": (
        put("tokenizer.ggml.token_type", ARRAY, tiny.array(I32, [1, 1, 1])),
        ("tokenizer.ggml.token_type", "3", "270"),
    ),
    "a broken escape": (
        put("tokenizer.ggml.tokens", ARRAY, tiny.array(STRING, ["<s>", "a", "\\x4"])),
        ("tokenizer.ggml.token",),
    ),
}


def cases(table: dict[str, tuple[Change, tuple[str, ...]]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("change", "parts"), list(table.values()), ids=list(table))


def spoiled(tmp_path: Path, change: Change) -> Path:
    file = good_file()
    change(file)
    path = tmp_path / "file.gguf"
    path.write_bytes(file.to_bytes())
    return path


def test_the_unspoiled_file_is_a_model(tmp_path: Path) -> None:
    model = rwkv_edge.Model(spoiled(tmp_path, lambda _: None))
    assert (model.arch, model.n_layer, model.n_embd, model.n_vocab) == ("rwkv7", 2, 64, 270)
    assert np.isfinite(model.session().feed([1, 2, 3])).all()
    assert model.tokenizer.decode(model.tokenizer.encode("User: hi")) == "User: hi"


@cases(MALFORMED)
def test_malformed(tmp_path: Path, change: Change, parts: tuple[str, ...]) -> None:
    path = spoiled(tmp_path, change)
    with refuses(FormatError, path, *map(re.escape, parts)):
        rwkv_edge.Model(path)


@cases(UNSUPPORTED)
def test_unsupported(tmp_path: Path, change: Change, parts: tuple[str, ...]) -> None:
    path = spoiled(tmp_path, change)
    with refuses(UnsupportedError, path, *map(re.escape, parts)):
        rwkv_edge.Model(path)


@cases(NO_TOKENIZER)
def test_tokenizer_that_does_not_fit(
    tmp_path: Path, change: Change, parts: tuple[str, ...]
) -> None:
    path = spoiled(tmp_path, change)
    model = rwkv_edge.Model(path)  # tokens are all that feeding needs
    with refuses(FormatError, path, *map(re.escape, parts)):
        model.tokenizer.encode("a")


def test_every_cut_of_the_header_is_noticed(tmp_path: Path) -> None:
    whole, header_size = good_file().to_bytes(), len(good_file().header())
    path = tmp_path / "cut.gguf"
    for n in [*range(200), *range(200, header_size, 61), header_size, len(whole) - 1]:
        path.write_bytes(whole[:n])
        with refuses(FormatError, path):
            _core.ModelFile(str(path))


def test_string_values_keep_their_bytes(tmp_path: Path) -> None:
    file = good_file()
    file.put("odd.text", STRING, tiny.string(b"caf\xe9 \0 end"))
    path = tmp_path / "odd.gguf"
    path.write_bytes(file.to_bytes())
    found = _core.ModelFile(str(path)).get("odd.text")
    assert found.encode("utf-8", "surrogateescape") == b"caf\xe9 \0 end"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.gguf"):
        rwkv_edge.Model(tmp_path / "nothing.gguf")
    with pytest.raises((OSError, FormatError), match=tmp_path.name):
        rwkv_edge.Model(tmp_path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_versions_and_alignments_that_are_fine(
    tmp_path: Path, version: int, alignment: int
) -> None:
    file = good_file()
    file.version = version
    file.alignment = alignment
    file.put("general.alignment", U32, alignment)
    path = tmp_path / "fine.gguf"
    path.write_bytes(file.to_bytes())
    plain = spoiled(tmp_path, lambda _: None)
    expected = rwkv_edge.Model(plain).session().feed([5, 6, 7])
    assert rwkv_edge.Model(path).session().feed([5, 6, 7]).tobytes() == expected.tobytes()
