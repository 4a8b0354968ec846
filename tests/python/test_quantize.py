# SPDX-License-Identifier: Apache-2.0
"""`quantize`: the bytes of every type, what is quantized and what is not, and what is copied."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import checkpoints as ck
import ggml_types as ggml
import gguf
import numpy as np
import pytest
import tiny
from conftest import GetModel
from numpy.typing import NDArray
from refusal import refuses
from rwkv_edge import FormatError, Model, UnsupportedError, _core
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import convert, quantize
from rwkv_edge.convert.policy import KEPT_FILE_TYPES, Known, Types
from rwkv_edge.files.gguf_writer import TensorPlan, uint32

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
F32 = NDArray[np.float32]


# ---- bytes --------------------------------------------------------------------------------------


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def ties() -> F32:
    """Values half way between two steps in every type, of either sign."""
    steps = np.arange(-255, 256).astype(np.float32) / 2
    rows = [np.concatenate([[scale * 127], scale * steps[i : i + 31]]) for i in range(0, 480, 31)
            for scale in (1.0, -1.0, 1 / 127, 1 / 15, 1 / 31, 1 / 8, 1 / 16)]  # fmt: skip
    return np.array(rows, np.float32)


def opposite() -> F32:
    """Largest magnitude twice, once of each sign: the first one counts."""
    x = rng().uniform(-1, 1, (64, 32)).astype(np.float32)
    x[:, 5], x[:, 20] = 2, -2
    x[::2] *= -1
    return x


BLOCKS: dict[str, Callable[[], F32]] = {
    "normal": lambda: rng().normal(0, 1, (256, 256)).astype(np.float32),
    "of a weight": lambda: rng().normal(0, 0.02, (64, 2560)).astype(np.float32),
    "heavy tails": lambda: rng().standard_cauchy((256, 64)).clip(-1e4, 1e4).astype(np.float32),
    "one sign": lambda: -rng().uniform(3, 4, (256, 32)).astype(np.float32),
    "ties": ties,
    "opposite": opposite,
    "zeros": lambda: np.zeros((3, 64), np.float32),
    "constant": lambda: np.full((3, 64), -0.3, np.float32),
    "one value": lambda: np.eye(32, dtype=np.float32) * -3,
    "tiny": lambda: rng().normal(0, 1e-7, (64, 64)).astype(np.float32),
    "large": lambda: rng().normal(0, 10_000, (64, 64)).clip(-60000, 60000).astype(np.float32),
    "bf16": lambda: (rng().normal(0, 1, (64, 64)).astype(np.float32).view(np.uint32)
                     & np.uint32(0xFFFF0000)).view(np.float32),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", BLOCKS)
def test_bytes_are_those_of_the_gguf_package(kind: str, block: str) -> None:
    ggml.skip_other_rounding(kind)
    values = BLOCKS[block]()
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind.upper()])
    found = _core.quantize(values, kind)
    np.testing.assert_array_equal(found, np.ascontiguousarray(expected).view(np.uint8))


@pytest.mark.parametrize("kind", KINDS[3:])
def test_blocks_without_a_scale(kind: str) -> None:
    """Negative zeros, and values whose scale has no inverse or is none as a half: all vanish."""
    blocks = [-np.zeros((3, 64), np.float32)]
    blocks += [rng().normal(0, size, (64, 64)).astype(np.float32) for size in (1e-39, 1e-44)]
    for values in blocks:
        np.testing.assert_array_equal(_core.dequantize(_core.quantize(values, kind), kind), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_values_come_back(kind: str) -> None:
    """Never further away than the distance of two steps allows."""
    values = BLOCKS["normal"]()
    back = _core.dequantize(_core.quantize(values, kind), kind)
    blocks = values.reshape(-1, 32)
    peak = np.abs(blocks).max(axis=1, keepdims=True)
    spread = blocks.max(axis=1, keepdims=True) - blocks.min(axis=1, keepdims=True)
    # Half a step; a whole one at the end that q4_0 and q5_0 lack; the scale is itself a half.
    bound = {
        "f32": 0 * peak,
        "f16": peak * 2**-11,
        "bf16": peak * 2**-8,
        "q8_0": peak / 127 * 0.51 + peak * 2**-11,
        "q4_0": peak / 8 * 1.01,
        "q5_0": peak / 16 * 1.01,
        "q4_1": spread / 15 * 0.51 + peak * 2**-10,
        "q5_1": spread / 31 * 0.51 + peak * 2**-10,
    }[kind]
    assert np.all(np.abs(back.reshape(-1, 32) - blocks) <= bound)


# ---- files --------------------------------------------------------------------------------------


def is_matrix(name: str) -> bool:
    matrices = ("receptance", "key", "value", "gate", "output", "embd", "s_emb", "s_emb_x")
    return name.endswith(tuple(f"{matrix}.weight" for matrix in matrices))


CASES = [("7", source, kind) for source in ("f32", "f16", "bf16") for kind in KINDS]
CASES += [(version, "f16", "q5_1") for version in tiny.VERSIONS if version != "7"]


@pytest.mark.parametrize(("version", "source_kind", "kind"), CASES)
def test_matrices_are_quantized_and_nothing_else(
    tmp_path: Path, tiny_model: GetModel, version: str, source_kind: str, kind: str
) -> None:
    path, _ = tiny_model(source_kind, "d192", version)
    target = tmp_path / "out.gguf"
    quantize(path, target, type=kind)
    before, after = ck.tensors_of(path), ck.tensors_of(target)
    assert list(after) == list(before)
    for name, (old_kind, shape, old) in before.items():
        new_kind, new_shape, new = after[name]
        expected = kind if is_matrix(name) else old_kind
        if name in ("token_embd.weight", "output.weight") and kind[:2] in ("q4", "q5"):
            expected = "q8_0"
        assert (new_kind, new_shape) == (expected, shape), name
        values = ggml.decode(np.frombuffer(old, np.uint8).reshape(shape[0], -1), old_kind)
        assert new == ck.written(values, expected), name


@pytest.mark.parametrize(
    ("kind", "narrow", "ends"),
    [
        ("q3_k", "q4_0", "q5_k"),
        ("q4_k", "q5_0", "q5_k"),
        ("q5_k", "q5_1", "q6_k"),
        ("q6_k", "q8_0", "q6_k"),
    ],
)
def test_k_types_and_what_stands_for_them(
    tmp_path: Path, kind: str, narrow: str, ends: str
) -> None:
    """Blocks of 256 columns; matrices that are narrower get the type that llama.cpp gives them."""
    shape = dataclasses.replace(tiny.SHAPES["d256"], ffn=416)
    path = tiny.write(tmp_path, "in.gguf", tiny.tiny_model(shape, "f16", seed=1))
    target = tmp_path / "out.gguf"
    quantize(path, target, type=kind)
    written = ck.tensors_of(target)
    assert written["token_embd.weight"][0] == written["output.weight"][0] == ends
    assert written["blk.2.channel_mix_value.weight"][0] == narrow
    assert written["blk.2.channel_mix_key.weight"][0] == kind
    assert (
        ModelFile(target).get("general.file_type")
        == gguf.LlamaFileType["MOSTLY_Q6_K" if kind == "q6_k" else f"MOSTLY_{kind.upper()}_M"]
    )
    before = ck.tensors_of(path)
    for tensor in gguf.GGUFReader(target).tensors:  # what llama.cpp's package reads
        found, dims, data = written[tensor.name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = _core.dequantize(tensor.data, found) if is_matrix(tensor.name) else values
        assert ours.tobytes() == values.tobytes()
        if is_matrix(tensor.name):
            old = ggml.decode(
                np.frombuffer(before[tensor.name][2], np.uint8), before[tensor.name][0]
            )
            assert data == ck.written(old.reshape(dims), found), tensor.name
    kept = Model(path).session().feed([1, 2, 3], logits="all")
    got = Model(target).session().feed([1, 2, 3], logits="all")
    assert np.isfinite(got).all()
    assert np.corrcoef(kept.ravel(), got.ravel())[0, 1] > 0.5


def test_types_of_head_and_embedding(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f16", "d192")
    target = tmp_path / "out.gguf"
    quantize(path, target, type="int4", head_type="fp16", embd_type="q5_1")
    kinds = {name: kind for name, (kind, _, _) in ck.tensors_of(target).items()}
    assert kinds["output.weight"] == "f16"
    assert kinds["token_embd.weight"] == "q5_1"
    assert kinds["blk.0.time_mix_key.weight"] == "q4_0"


def test_columns_that_fit_no_block_become_f16(tmp_path: Path) -> None:
    shape = dataclasses.replace(tiny.SHAPES["d128"], ffn=360)
    path = tiny.write(tmp_path, "odd.gguf", tiny.tiny_model(shape, "f32", seed=1))
    quantize(path, tmp_path / "out.gguf", type="q5_0")
    kinds = {name: kind for name, (kind, _, _) in ck.tensors_of(tmp_path / "out.gguf").items()}
    assert kinds["blk.2.channel_mix_value.weight"] == "f16"
    assert kinds["blk.2.channel_mix_key.weight"] == "q5_0"


def test_metadata_is_copied(tmp_path: Path) -> None:
    """Every kind of value, text that is no UTF-8, and an alignment that is not ours."""
    model = tiny.tiny_model(tiny.SHAPES["d128"], "f16", seed=1)
    file = model.file
    file.alignment = 256
    file.put("general.alignment", tiny.U32, 256)
    file.put("general.license", tiny.STRING, "apache-2.0")
    file.put("tokenizer.chat_template", tiny.STRING, "{{ a }}")
    file.put("x.text", tiny.STRING, tiny.string(b"\xff\xfe broken"))
    numbers = {tiny.U8: 255, tiny.I8: -128, tiny.U16: 65535, tiny.I16: -32768, tiny.U32: 7,
               tiny.I32: -(1 << 31), tiny.U64: (1 << 64) - 1, tiny.I64: -(1 << 63),
               tiny.F32: 0.1, tiny.F64: 0.1, tiny.BOOL: True}  # fmt: skip
    for kind, value in numbers.items():
        file.put(f"x.scalar.{kind}", kind, value)
        file.put(f"x.array.{kind}", tiny.ARRAY, tiny.array(kind, [value] * 3))
    file.put("x.array.empty", tiny.ARRAY, tiny.array(tiny.STRING, []))
    path, target = tiny.write(tmp_path, "in.gguf", model), tmp_path / "out.gguf"
    quantize(path, target, type="q4_1")
    old, new = ModelFile(str(path)), ModelFile(str(target))
    ours = {"general.alignment", "general.file_type", "general.quantization_version"}
    for key in set(old.keys()) - ours:
        assert (new.value_type(key), new.get(key)) == (old.value_type(key), old.get(key)), key
    assert new.get("x.text") == b"\xff\xfe broken".decode("utf-8", "surrogateescape")
    assert set(new.keys()) - set(old.keys()) <= ours
    assert new.get("general.file_type") == 3
    assert new.get("general.quantization_version") == 2
    assert (new.alignment, new.version) == (32, 3)


def test_llama_cpp_opens_what_we_write(tmp_path: Path, tiny_model: GetModel) -> None:
    """Its own Python package reads the same tensors from the same places."""
    gguf = pytest.importorskip("gguf")
    path, _ = tiny_model("f16", "d192")
    target = tmp_path / "out.gguf"
    quantize(path, target, type="q5_0")
    ours = ck.tensors_of(target)
    for tensor in gguf.GGUFReader(target).tensors:
        kind = tensor.tensor_type.name.lower()
        assert ours[tensor.name] == (kind, tuple(tensor.shape[::-1]), tensor.data.tobytes())


def test_quantized_input_is_refused(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("q8_0", "d128")
    message = r"tensor blk\.0\.\w+\.weight is q8_0 already; quantize the f32, f16 or bf16 file"
    with refuses(UnsupportedError, path, message):
        quantize(path, tmp_path / "out.gguf", type="q4_0")
    assert not list(tmp_path.iterdir())


def test_convert_takes_gguf(tmp_path: Path, tiny_model: GetModel) -> None:
    """As `quantize` does, and what is quantized already too, with a warning where it loses."""
    path, _ = tiny_model("f16", "d128")
    quantize(path, tmp_path / "a.gguf", type="q5_1")
    convert(path, tmp_path / "b.gguf", type="q5_1")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    convert(path, tmp_path / "b.gguf", license="MIT")  # f16 by default
    assert ck.tensors_of(tmp_path / "b.gguf") == ck.tensors_of(path)
    assert ModelFile(tmp_path / "b.gguf").get("general.license") == "MIT"
    message = "18 tensors from q5_1 to q4_0: this loses more than converting the original"
    quantized = tmp_path / "a.gguf"
    convert(quantized, tmp_path / "c.gguf")
    assert ck.tensors_of(tmp_path / "c.gguf") == ck.tensors_of(quantized)
    convert(quantized, tmp_path / "f32.gguf", type="f32")  # exact, so without a warning
    with pytest.warns(UserWarning, match=message) as warned:
        convert(quantized, tmp_path / "d.gguf", type="q4_0", head_type="q4_1", embd_type="q4_0")
    assert str(warned[0].message).startswith(f"{quantized}: ")
    quantize(
        tmp_path / "f32.gguf", tmp_path / "e.gguf", type="q4_0", head_type="q4_1", embd_type="q4_0"
    )
    assert ck.tensors_of(tmp_path / "d.gguf") == ck.tensors_of(tmp_path / "e.gguf")
    for option in ({"vocab": path}, {"adapter": path}, {"state": path}, {"alpha": 1.0}):
        with refuses(ValueError, path, "are for the checkpoint that it was made from"):
            convert(path, tmp_path / "out.gguf", **option)
    with pytest.raises(ValueError, match="input and output are the same file"):
        convert(path, path)


def test_what_has_its_type_already_is_copied(tmp_path: Path, tiny_model: GetModel) -> None:
    """So that head and embedding of a file can be made smaller when all else is."""
    path, _ = tiny_model("f16", "d128")
    middle, target, again = (tmp_path / f"{i}.gguf" for i in range(3))
    quantize(path, middle, type="q4_0", head_type="f16", embd_type="f16")
    quantize(middle, target, type="q4_0")
    quantize(path, again, type="q4_0")
    assert ck.tensors_of(target) == ck.tensors_of(again)


def test_a_checkpoint_is_converted(tmp_path: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    vocab = tmp_path / "vocab.txt"
    vocab.write_text(ck.VOCABULARY, "utf-8")
    quantize(path, tmp_path / "one.gguf", type="q4_0", vocab=vocab)
    convert(path, tmp_path / "two.gguf", type="q4_0", vocab=vocab)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    with refuses(ValueError, tmp_path / "one.gguf", "vocabulary inside"):
        quantize(tmp_path / "one.gguf", tmp_path / "three.gguf", type="q8_0", vocab=vocab)


@pytest.mark.parametrize("version", ["4", "7"])
@pytest.mark.parametrize("kind", ["q3_k", "q4_k", "q5_k", "q6_k"])
def test_k_types(tmp_path: Path, tiny_model: GetModel, kind: str, version: str) -> None:
    """What each matrix becomes, and that its scales are searched for."""
    path, made = tiny_model("f32", "d256", version)
    quantize(path, tmp_path / "out.gguf", type=kind)
    file = ModelFile(tmp_path / "out.gguf")
    assert (
        file.get("general.file_type")
        == gguf.LlamaFileType[f"MOSTLY_{kind.upper()}{'' if kind == 'q6_k' else '_M'}"]
    )
    sources = {tensor.name: tensor for tensor in ModelFile(path).tensors}
    ends = {"q5_k": "q6_k", "q6_k": "q6_k"}.get(kind, "q5_k")
    special = {"token_embd.weight": ends, "output.weight": ends}
    if version == "7" and kind != "q6_k":
        special["blk.0.time_mix_output.weight"] = "q8_0"
    matrices = {tiny.gguf_name(name) for name in made.weights if tiny.is_quantized(name)}
    for tensor in file.tensors:
        source = sources[tensor.name]
        if tensor.name not in matrices:
            assert tensor.data.tobytes() == source.data.tobytes()
            continue
        expected = special.get(tensor.name, kind)
        assert tensor.type == expected, tensor.name
        values = source.data.view("<f4").reshape(source.shape)
        blocks = _core.quantize_matrix(values, expected)
        assert tensor.data.tobytes() == blocks.tobytes()
    assert np.isfinite(Model(tmp_path / "out.gguf").session().feed([1, 2, 3])).all()


def test_k_types_need_whole_blocks(tmp_path: Path, tiny_model: GetModel) -> None:
    """Columns that are no multiple of 256 get llama.cpp's choice; those of no block become f16."""
    path, _ = tiny_model("f32", "d128", "7")
    for kind, narrow in (("q3_k", "q4_0"), ("q4_k", "q5_0"), ("q5_k", "q5_1"), ("q6_k", "q8_0")):
        quantize(path, tmp_path / "out.gguf", type=kind)
        types = {tensor.name: tensor.type for tensor in ModelFile(tmp_path / "out.gguf").tensors}
        assert types["blk.1.time_mix_key.weight"] == narrow
    assert Types.choose("q4_k", None, None).of("x", "blk.0.a.weight", (64, 40), "f32") == "f16"


def test_an_importance_changes_what_it_is_of(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    name = "blk.1.time_mix_key.weight"
    importance = rng().uniform(0, 1, 256).astype(np.float32) ** 4
    for kind in ("q4_0", "q4_k", "q8_0"):
        quantize(path, tmp_path / "plain.gguf", type=kind)
        known = Known(importance={name: importance})
        quantize(path, tmp_path / "known.gguf", type=kind, known=known)
        plain, other = (
            {t.name: t.data.tobytes() for t in ModelFile(tmp_path / file).tensors}
            for file in ("plain.gguf", "known.gguf")
        )
        changed = {each for each in plain if plain[each] != other[each]}
        assert changed == ({name} if kind != "q8_0" else set())
        source = next(t for t in ModelFile(path).tensors if t.name == name)
        values = source.data.view("<f4").reshape(source.shape)
        if kind != "q8_0":
            assert other[name] == _core.quantize_matrix(values, kind, importance).tobytes()


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    model = tiny.tiny_model(tiny.SHAPES["d128"], "f16", seed=1)
    model.file.put("general.architecture", tiny.STRING, "llama")
    path = tiny.write(tmp_path, "in.gguf", model)
    with refuses(UnsupportedError, path, r"general\.architecture is 'llama', not RWKV"):
        quantize(path, tmp_path / "out.gguf", type="q4_0")


def test_values_that_fit_no_type(tmp_path: Path) -> None:
    model = tiny.tiny_model(tiny.SHAPES["d128"], "f32", seed=1)
    entry = model.file.tensor("blk.1.time_mix_key.weight")
    good = entry.data
    entry.data = np.float32(1e6).tobytes() + good[4:]
    path, target = tiny.write(tmp_path, "in.gguf", model), tmp_path / "out.gguf"
    with refuses(FormatError, path, r"time_mix_key\.weight holds 1e\+06, too large for f16"):
        quantize(path, target, type="f16")
    quantize(path, target, type="bf16")
    entry.data = np.float32(np.nan).tobytes() + good[4:]
    path = tiny.write(tmp_path, "in.gguf", model)
    with refuses(FormatError, path, r"tensor blk\.1\.time_mix_key\.weight holds NaN"):
        quantize(path, target, type="q8_0")
    entry.data = good
    norm = model.file.tensor("output_norm.weight")  # which keeps its type
    norm.data = np.float32(np.inf).tobytes() + norm.data[4:]
    path = tiny.write(tmp_path, "in.gguf", model)
    with refuses(FormatError, path, r"tensor output_norm\.weight holds NaN or infinity"):
        quantize(path, target, type="q8_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]


def test_files_and_names_that_do_not_fit(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f16", "d128")
    target = tmp_path / "out.gguf"
    for kind, head in (("q2_k", None), ("f16", "int5")):
        with pytest.raises(ValueError, match=r"type '(q2_k|int5)': expected one of f32, f16, q4_0"):
            quantize(path, target, type=kind, head_type=head)
    with pytest.raises(ValueError, match="input and output are the same file"):
        quantize(path, path, type="q4_0")
    with pytest.raises(FileNotFoundError, match=r"missing\.gguf"):
        quantize(tmp_path / "missing.gguf", target, type="q4_0")
    (tmp_path / "broken.gguf").write_bytes(path.read_bytes()[:-100])
    with refuses(FormatError, tmp_path / "broken.gguf", r"broken\.gguf"):
        quantize(tmp_path / "broken.gguf", target, type="q4_0")
    assert not target.exists()


def test_interrupted_work_leaves_nothing(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f16", "d128")

    def interrupt(done: int, total: int, name: str) -> None:
        assert 0 < done <= total
        if name == "blk.2.time_mix_key.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(path, tmp_path / "out.gguf", type="q4_0", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_progress(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f32", "d128")
    calls: list[tuple[int, int, str]] = []
    quantize(path, tmp_path / "out.gguf", type="q8_0", progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert {total for _, total, _ in calls} == {done[-1]}
    assert {name for _, _, name in calls} == set(ck.tensors_of(path))


def test_a_file_has_the_number_of_the_type_asked_for() -> None:
    """Also where its embedding and head, in 8 bits, have more values than the rest."""
    plans = [
        TensorPlan("token_embd.weight", (60000, 64), "q8_0"),
        TensorPlan("blk.0.time_mix_key.weight", (64, 64), "q4_0"),
        TensorPlan("blk.0.time_mix_w1.weight", (1 << 20, 64), "f32"),  # never quantized
    ]
    assert Types.choose("q4_0", None, None).file_type(plans) == uint32(2)
    # what is kept as it is has the number of what most values are
    assert Types.choose(None, None, None).file_type(plans) == uint32(7)
    assert Types.choose(None, None, None).file_type(plans[2:]) == uint32(0)


def test_the_numbers_of_files_are_those_of_llama_cpp() -> None:
    """Of K-types llama.cpp has mixtures of several sizes; the middle one stands for them."""
    for kind, number in KEPT_FILE_TYPES.items():
        middle = "_M" if kind in {"q3_k", "q4_k", "q5_k"} else ""
        name = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}{middle}"
        assert number == gguf.LlamaFileType[name]
