# SPDX-License-Identifier: Apache-2.0
"""Adapters that do not fit a model, are damaged, or are something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints as ck
import pytest
import tiny
from adapters import (
    LORA,
    RANK,
    Weights,
    base_of,
    modules_of,
    opened,
    pairs_of,
    peft_folder,
)
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError
from rwkv_edge.convert import convert
from rwkv_edge.convert.adapter import apply_adapter
from rwkv_edge.convert.open import open_checkpoint

KEY = "blocks.0.att.key"
LORA_OF_KEY = pairs_of(base_of(), [KEY])
WIDE = {f"{KEY}.lora_A": ck.random(RANK, 192), f"{KEY}.lora_B": ck.random(192, RANK)}
# The adapter's tensors, the options, and the error.
MISFITS: dict[str, tuple[Weights, dict[str, Any], type[Exception], str]] = {
    "no alpha": (LORA_OF_KEY, {}, ValueError, r"does not say its alpha; .* \(--alpha\)"),
    "negative alpha": (LORA_OF_KEY, {"alpha": -1.0}, ValueError, "alpha: found -1, expected a pos"),
    "alpha for MiSS": (
        {f"{KEY}.disha": ck.random(8, 128)}, {"alpha": 16.0}, ValueError, "--alpha has no use here"
    ),
    "a model": (base_of(), {"alpha": 1.0}, FormatError, "no adapter, it has .* emb.weight"),
    "a state": (
        dict(tiny.random_states(tiny.SHAPES["d128"], 1)), {}, FormatError, "no adapter, it has no"
    ),
    "another width": (
        WIDE, {"alpha": 1.0}, FormatError,
        r"does not fit .*base\.pth:\n  blocks\.0\.att\.key: lora_A \[6, 192\] and lora_B "
        r"\[192, 6\], expected \[r, 128\] and \[128, r\]",
    ),
    "two ranks": (
        LORA_OF_KEY | {f"{KEY}.lora_B": ck.random(128, 5)}, {"alpha": 1.0}, FormatError,
        r"lora_A \[6, 128\] and lora_B \[128, 5\]",
    ),
    "another version": (
        pairs_of(base_of("6"), ["blocks.1.att.gate"]), {"alpha": 1.0}, FormatError,
        "blocks.1.att.gate.lora_A, blocks.1.att.gate.lora_B matches nothing",
    ),
    "more layers": (
        {**LORA_OF_KEY, "blocks.3.ln1.weight": ck.random(128)}, {"alpha": 1.0}, FormatError,
        "blocks.3.ln1.weight matches nothing",
    ),
    "a whole tensor of another shape": (
        {**LORA_OF_KEY, "ln_out.weight": ck.random(64)}, {"alpha": 1.0}, FormatError,
        r"ln_out\.weight is \[64\], in the model \[128\]",
    ),
    "one half": (
        {f"{KEY}.lora_A": ck.random(RANK, 128)}, {"alpha": 1.0}, FormatError,
        "blocks.0.att.key: without lora_B",
    ),
    "one half twice": (
        LORA_OF_KEY | {f"{KEY}.lora_A.weight": ck.random(RANK, 128)}, {"alpha": 1.0}, FormatError,
        "blocks.0.att.key has lora_A twice",
    ),
    "two kinds": (
        LORA_OF_KEY | {"blocks.1.att.key.disha": ck.random(8, 128)}, {"alpha": 1.0}, FormatError,
        "holds disha, lora_A, lora_B, expected one kind",
    ),
    "a start for the end": (
        pairs_of(base_of(), [KEY], prefix="init_"), {}, ValueError, "for --adapter-init"
    ),
    "MiSS of another model": (
        {f"{KEY}.disha": ck.random(8, 192)}, {}, FormatError,
        r"found \[8, 192\], which fits no matrix \[128, 128\]",
    ),
    "Bone blocks that leave columns over": (
        {f"{KEY}.bone": ck.random(2, 48, 48)}, {}, FormatError,
        r"found \[2, 48, 48\], which fits no matrix \[128, 128\]",
    ),
    "Bone blocks of nothing": (
        {f"{KEY}.bone": ck.random(2, 3, 0)}, {}, FormatError,
        r"found \[2, 3, 0\], which fits no matrix \[128, 128\]",
    ),
    "Bone of another model": (
        {f"{KEY}.bone": ck.random(12, 16, 16)}, {}, FormatError, r"found \[12, 16, 16\], which fits"
    ),
    "a scalar": ({f"{KEY}.bone": ck.random()}, {}, FormatError, r"found \[\], which fits"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_adapters_that_do_not_fit(tmp_path: Path, name: str) -> None:
    adapter, options, error, message = MISFITS[name]
    path = ck.write(tmp_path, ck.pth_of(adapter), "adapter.pth")
    begins = "alpha" if message.startswith("alpha: ") else path
    with refuses(error, begins, message):
        apply_adapter(opened(tmp_path, base_of()), path, **options)


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(pairs_of(base_of("6"), modules_of("6"))), "lora.pth")
    with refuses(FormatError, path) as caught:
        apply_adapter(opened(tmp_path, base_of()), path, alpha=1)
    assert str(caught.value).count("matches nothing") == 4


def test_the_start_of_a_pissa(tmp_path: Path) -> None:
    base = opened(tmp_path, base_of())
    path = ck.write(tmp_path, ck.pth_of(LORA_OF_KEY), "pissa.pth")
    start = pairs_of(base_of(), [KEY], prefix="init_")
    other = pairs_of(base_of(), ["blocks.1.att.key"], prefix="init_")
    for tensors, message in (
        (LORA_OF_KEY, "found lora_A, lora_B to begin with and lora_A, lora_B at the end"),
        (
            other,
            r"without init_lora_A and init_lora_B\n  blocks\.1\.att\.key of .* matches nothing",
        ),
        ({**start, f"{KEY}.init_lora_B": ck.random(64, RANK)}, r"init_lora_B \[64, 6\], expected"),
    ):
        init = ck.write(tmp_path, ck.pth_of(tensors), "init.pth")
        with refuses(FormatError, tmp_path, message):
            apply_adapter(base, path, init=init)
    init = ck.write(tmp_path, ck.pth_of(start), "init.pth")
    with refuses(ValueError, path, "--alpha has no use here"):
        apply_adapter(base, path, init=init, alpha=1)


CONFIGS: dict[str, tuple[Any, type[Exception], str]] = {
    "another kind": ({"peft_type": "ADALORA"}, UnsupportedError, "'ADALORA', expected LORA, MISS"),
    "DoRA": (LORA | {"use_dora": True}, UnsupportedError, "use_dora is set"),
    "PISSA by peft": (
        LORA | {"init_lora_weights": "pissa_niter_4"}, UnsupportedError,
        "init_lora_weights is 'pissa_niter_4', which changed the model's own weights",
    ),
    "no alpha": ({"peft_type": "LORA", "r": RANK}, FormatError, "lora_alpha: found None, expected"),
    "alpha of text": (LORA | {"lora_alpha": "1"}, FormatError, "lora_alpha: found '1', expected"),
    "another rank": (LORA | {"r": 8}, FormatError, r"key: rank 6, in adapter_config\.json 8"),
    "a pattern": (
        LORA | {"alpha_pattern": {"(a+)+$": 1}}, UnsupportedError, r"pattern '\(a\+\)\+\$' for lora"
    ),
    "patterns of another kind": (
        LORA | {"rank_pattern": [1]}, FormatError, r"r: found \[1\], expected an object"
    ),
    "MiSS": ({"peft_type": "MISS"}, FormatError, "holds lora_A, lora_B, expected what adapter_con"),
    "a list": ([], FormatError, "is no JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_of_peft(tmp_path: Path, name: str) -> None:
    config, error, message = CONFIGS[name]
    path = peft_folder(tmp_path, LORA_OF_KEY, config)
    with refuses(error, path, message):
        apply_adapter(opened(tmp_path, base_of()), path)


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    base = opened(tmp_path, base_of())
    path = peft_folder(tmp_path, LORA_OF_KEY, LORA)
    weights = path / "adapter_model.safetensors"
    with refuses(ValueError, weights, "--alpha has no use here, found 3"):
        apply_adapter(base, path, alpha=3)
    weights.write_bytes(weights.read_bytes()[:-10])
    with refuses(FormatError, weights, "is the download complete"):
        apply_adapter(base, path)
    weights.unlink()
    without = r"without adapter_model\.safetensors or adapter_model\.bin"
    with refuses(FormatError, path, without):
        apply_adapter(base, path)
    (path / "adapter_config.json").write_text("{")
    with refuses(
        FormatError,
        path / "adapter_config.json",
        "the file is no proper JSON",
    ):
        apply_adapter(base, path)
    (path / "adapter_config.json").unlink()
    with refuses(FormatError, path, r"a folder without adapter_config\.json"):
        apply_adapter(base, path)


def test_files_that_are_no_adapters(tmp_path: Path) -> None:
    base = opened(tmp_path, base_of())
    for data, message in (
        (b"This is no adapter.", "no .pth and no .safetensors file; expected an adapter"),
        (ck.pth_of(LORA_OF_KEY)[:-100], "not a whole zip archive"),
    ):
        path = ck.write(tmp_path, data, "a.pth")
        with refuses(FormatError, path, message):
            apply_adapter(base, path, alpha=1)


def test_a_quantized_model_takes_no_adapter(tmp_path: Path) -> None:
    base = ck.write(tmp_path, ck.ggmf_of(base_of(), "q8_0").to_bytes(), "base.bin")
    path = ck.write(tmp_path, ck.pth_of(LORA_OF_KEY), "lora.pth")
    with refuses(UnsupportedError, base, r"key\.weight is q8_0; an adapter needs the f32"):
        apply_adapter(open_checkpoint(base), path, alpha=1)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(LORA_OF_KEY))
    with refuses(UnsupportedError, path, r"an adapter, not a model; .*--adapter FILE"):
        convert(path, tmp_path / "out.gguf")
