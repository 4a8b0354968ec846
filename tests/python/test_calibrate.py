# SPDX-License-Identifier: Apache-2.0
"""`quantize --calibrate`: what it writes, how it goes on, and what it refuses."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import GetModel
from program import run
from refusal import refuses
from rwkv_edge import Model, _core
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import quantize
from rwkv_edge.quantization import calibrate
from rwkv_edge.quantization.calibrate import Calibration, calibration, massive, spread
from rwkv_edge.quantization.collect import Inputs, collect, matrices_of
from rwkv_edge.quantization.text import tokens_of, windows_of

WORDS = "In the beginning was the word, and 3 others; then nobody said anything. "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    rng = np.random.default_rng(1)
    path.write_text(
        "".join(rng.permuted(list(WORDS)).tobytes().decode("utf-32") for _ in range(20))
    )
    return path


def planned(source: Path, target: Path, text: Path, **options: Any) -> Calibration:
    given = {"type": "q4_k", "window": 64, "tokens": 1 << 16, **options}
    return calibration(source, target, [text], **given)


def files(path: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.type, t.data.tobytes()) for t in ModelFile(path).tensors}


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7", "7a"])
def test_each_matrix_is_quantized_on_its_inputs(
    tmp_path: Path, tiny_model: GetModel, version: str, text: Path
) -> None:
    path, _ = tiny_model("f32", "d256", version)
    model = Model(path)
    target = tmp_path / "out.gguf"
    counts = planned(path, target, text).run()
    windows = windows_of(tokens_of(model, [text]), 64, "text")
    names = list(matrices_of(model))
    inputs = collect(model, windows, names, hessians=True)
    found, sources = files(target), {t.name: t for t in ModelFile(path).tensors}
    assert sum(counts.values()) == len(names) + 1 + 3 * (version == "7a")
    for name, source in sources.items():
        if name not in names:
            continue
        kind, blocks = found[name]
        assert kind == ("q5_k" if name == "output.weight" else "q4_k")
        values = source.data.view("<f4").reshape(source.shape)
        hessian = inputs[name].hessian()
        assert blocks == _core.quantize_matrix(values, kind, None, hessian).tobytes(), name
        # Which errs less on this text than what is written without it.
        plain = _core.quantize_matrix(values, kind)

        def error(raw: object, values: Any = values, kind: str = kind, h: Any = hessian) -> float:
            wrong = values - _core.dequantize(np.asarray(raw), kind)
            return float(np.einsum("ij,ij->", wrong @ h, wrong))

        assert error(np.frombuffer(blocks, np.uint8).reshape(plain.shape)) < 0.9 * error(plain)
    assert found["token_embd.weight"][0] == "q5_k"
    assert np.isfinite(Model(target).session().feed([1, 2])).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "text"]


def test_memory_and_threads_change_nothing(
    tmp_path: Path, tiny_model: GetModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    monkeypatch.setattr(calibrate, "CHUNK_VALUES", 256 * 100)
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    plan = planned(path, whole, text)
    assert "on 1,408 tokens, layer by layer; up to" in plan.statement()
    assert f"and {1408 * 3 * 256 * 4 / 1e6:.2f} MB on the disk" in plan.statement()
    plan.run()
    least = calibrate.FIXED_MEMORY + 8 * 512**2
    plan = planned(path, parts, text, memory=least, threads=2)
    assert "layer by layer, up to 3 times each; up to" in plan.statement()
    assert f"up to {least / 1e6:.0f} MB" in plan.statement()
    plan.run()
    assert files(whole) == files(parts)
    with refuses(ValueError, path, "--memory .*, needed are .* matrices of 512 columns"):
        planned(path, parts, text, memory=least - 1)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, tiny_model: GetModel, text: Path) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    right = tmp_path / "right.gguf"
    planned(path, right, text).run()
    target = tmp_path / "out.gguf"

    def stop(_done: int, _total: int, what: str) -> None:
        if what == "blk.1.time_mix_value.weight":
            raise KeyboardInterrupt

    plan = planned(path, target, text)
    with pytest.raises(KeyboardInterrupt):
        plan.run(stop)
    assert not target.exists()
    kept = {p.name for p in plan.folder.iterdir()}
    assert "blk.0.time_mix_key.weight.q4_k" in kept
    assert "blk.1.time_mix_value.weight.q4_k" not in kept
    assert {"carry", "residual.1", "residual.2"} < kept
    copy = shutil.copytree(plan.folder, tmp_path / "copy")

    def note(seen: list[str], _done: int, _total: int, what: str) -> None:
        seen.append(what)

    # What the layers left goes on from the last whole file of it, or from the beginning.
    for cut, first in ((None, 2), ("residual.1", 1), ("carry", 1), ("residual.2", 2)):
        shutil.copytree(copy, plan.folder, dirs_exist_ok=True)
        if cut is not None:
            os.truncate(plan.folder / cut, 4)
        seen: list[str] = []
        plan = planned(path, target, text)
        plan.run(partial(note, seen))
        layers = [what for what in dict.fromkeys(seen) if what.startswith(("layer", "the head"))]
        assert layers == [f"layer {n} of 3" for n in range(first, 4)] + ["the head"]
        assert "blk.0.time_mix_key.weight" not in seen
        assert "blk.1.time_mix_value.weight" in seen
        assert files(target) == files(right)
        assert not plan.folder.exists()
        target.unlink()

    # What another text, type or model has left is not used, nor what is not whole.
    with pytest.raises(KeyboardInterrupt):
        planned(path, target, text, type="q5_k").run(stop)
    planned(path, target, text).run()
    assert files(target) == files(right)
    with pytest.raises(KeyboardInterrupt):
        planned(path, target, text).run(stop)
    part = plan.folder / "blk.0.time_mix_key.weight.q4_k"
    part.write_bytes(part.read_bytes()[:-1])
    planned(path, target, text).run()
    assert files(target) == files(right)


def test_a_full_disk(
    tmp_path: Path, tiny_model: GetModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    right, target = tmp_path / "right.gguf", tmp_path / "out.gguf"
    planned(path, right, text).run()
    left = 12

    def write(number: int, data: memoryview) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(number, data)

    plan = planned(path, target, text)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
        with pytest.raises(OSError, match=r"1 MB are free, needed are 4\.33 MB") as caught:
            plan.run()
        assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in plan.folder.iterdir()] == ["job"]
    real = os.write
    monkeypatch.setattr("rwkv_edge.files.output.os.write", write)
    # The job, what 22 windows leave of the residual and the carry, then matrices.
    for left, kept in ((12, 1), (1 + 2 * 22 + 3, 3 + 3)):  # noqa: B007 - `write` counts it down
        shutil.rmtree(plan.folder, ignore_errors=True)
        with pytest.raises(OSError, match=r"No space left") as caught:
            plan.run()
        assert Path(caught.value.filename).parent == plan.folder
        assert not target.exists()
        assert len(list(plan.folder.iterdir())) == kept
    left = 1 << 30
    planned(path, target, text).run()
    assert files(target) == files(right)


def test_eight_bits_have_only_their_columns_scaled(
    tmp_path: Path, tiny_model: GetModel, text: Path
) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    target, plain = tmp_path / "out.gguf", tmp_path / "plain.gguf"
    plan = planned(path, target, text, type="q8_0", equal=False)
    assert plan.windows.shape == (calibrate.JUDGED, 64)
    assert plan.statement() == "20 matrices, 0 of them with scaled columns, judged by 512 tokens"
    assert plan.run() == {"q8_0": 20}
    quantize(path, plain, type="q8_0")
    assert files(target) == files(plain)
    # A head of fewer bits has codes to choose, and is the only one that memory is needed for.
    plan = planned(path, target, text, type="q8_0", head_type="q4_k", equal=False)
    assert plan.statement().startswith("1 matrix on 1,408 tokens, layer by layer; up to ")
    plan.run()
    planned(path, plain, text, type="q4_k", head_type="q4_k", equal=False).run()
    assert files(target)["output.weight"] == files(plain)["output.weight"]
    assert files(target)["blk.1.time_mix_key.weight"][0] == "q8_0"


def test_what_is_refused(tmp_path: Path, tiny_model: GetModel, text: Path) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    target = tmp_path / "out.gguf"
    for data, message in (
        (b"", "an empty text"),
        (b"abc\xff", "byte 3 is 0xff, expected a text in UTF-8"),
        (b"abc", "3 tokens, expected at least one window of 64"),
    ):
        text.write_bytes(data)
        with refuses(ValueError, text, message):
            planned(path, target, text)
    with pytest.raises(ValueError, match="type f16: nothing to calibrate, expected"):
        planned(path, target, text, type="f16")
    text.write_text(WORDS * 10)
    with pytest.raises(ValueError, match="self, which the model writes, and other texts"):
        calibration(path, target, [text, calibrate.SELF], type="q4_k", tokens=64)
    with pytest.warns(UserWarning, match=r"text: [\d,]+ tokens, expected 65,536 or more"):
        planned(path, target, text, tokens=None)
    norm = next(t for t in ModelFile(path).tensors if t.name == "blk.1.attn_norm_2.weight")
    whole = path.read_bytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(whole[: norm.offset] + np.float32("nan").tobytes() + whole[norm.offset + 4 :])
    with refuses(ValueError, bad, r"tensor blk\.1\.channel_mix_key\.weight multiplies NaN"):
        planned(bad, target, text).run()
    assert not target.exists()


def test_a_quantized_source_is_a_warning(tmp_path: Path, tiny_model: GetModel, text: Path) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    quantize(path, tmp_path / "small.gguf", type="q8_0")
    with pytest.warns(UserWarning, match="q8_0 already: quantizing a second time loses more"):
        plan = planned(tmp_path / "small.gguf", tmp_path / "out.gguf", text)
    plan.run()  # without another warning
    assert files(tmp_path / "out.gguf")["blk.1.time_mix_key.weight"][0] == "q4_k"


def test_a_massive_input_gets_more_bits(
    tmp_path: Path, tiny_model: GetModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squares = np.array([1.0, 2.0, 3.0, 1500.0])
    assert not massive(Inputs(squares, None))
    assert massive(Inputs(squares * [1, 1, 1, 2], None))
    assert not massive(Inputs(np.array([0.0, 0.0, 0.0, 5.0]), None))
    path, _ = tiny_model("f32", "d256", "7")
    monkeypatch.setattr(calibrate, "MASSIVE_RATIO", 1.0)
    planned(path, tmp_path / "out.gguf", text).run()
    found = files(tmp_path / "out.gguf")
    assert found["blk.0.time_mix_output.weight"][0] == "q8_0"
    assert found["blk.1.time_mix_output.weight"][0] == "q4_k"


def test_windows_from_all_over_the_text() -> None:
    windows = np.arange(20, dtype=np.int32).reshape(10, 2)
    assert spread(windows, 4)[:, 0].tolist() == [0, 6, 12, 18]
    assert spread(windows, 10) is windows


def test_a_text_of_its_own() -> None:
    model = Model()
    one = calibrate.own_text(model, 3, 64, None)
    assert one.shape == (3, 64)
    assert np.array_equal(one, calibrate.own_text(Model(), 3, 64, None))
    assert len(np.unique(one)) > 30


def test_command(tmp_path: Path, tiny_model: GetModel, text: Path) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    text.write_text(WORDS * 50)
    target = tmp_path / "out.gguf"
    arguments = ("quantize", path, target, "--type", "q4_0", "--calibrate", text)
    done = run(*arguments, "--calibration-tokens", "1024", "--memory", "600MB")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(b"19 matrices on 1,024 tokens, layer by layer; up to ")
    assert files(target)["output.weight"][0] == "q5_k"
    for more, message in (
        (("--imatrix", text), "--calibrate and --imatrix: expected one of them"),
        (("--sparse-ffn",), "--calibrate and --sparse-ffn"),
        (("--memory", "much"), "'much' is no size, such as 800MB"),
        (("--memory", "1MB"), "--memory 1 MB, needed are"),
    ):
        done = run(*arguments, *more)
        assert done.returncode != 0
        assert message in " ".join(done.stderr.decode().split())
    done = run("quantize", path, target, "--type", "q4_0", "--memory", "1GB")
    assert b"--memory belongs to --calibrate" in done.stderr
