# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that `convert` cannot use: what the message says, and that nothing is left behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from reference import Weights
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError
from rwkv_edge.convert import convert


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(ck.VOCABULARY, "utf-8")
    return path


def failing(folder: Path, vocab: Path, weights: Mapping[str, NDArray[np.float32]]) -> str:
    path = ck.write(folder, ck.pth_of(weights))
    with refuses((FormatError, UnsupportedError), path) as error:
        convert(path, folder / "out.gguf", vocab=vocab)
    assert sorted(p.name for p in folder.iterdir()) == [path.name, vocab.name]
    return str(error.value)


def test_all_that_does_not_fit_is_listed(tmp_path: Path, vocab: Path) -> None:
    weights = ck.weights_of()
    del weights["blocks.2.att.w2"], weights["ln_out.bias"]
    weights["blocks.1.ffn.key.weight"] = weights["blocks.1.ffn.key.weight"][:-1]
    weights["blocks.1.att.x_g"] = weights["blocks.1.att.x_g"][..., :-1]
    weights["blocks.0.att.time_state"] = np.zeros((2, 64, 64), np.float32)
    weights["blocks.2.att.time_state"] = np.zeros((2, 64, 63), np.float32)
    weights["extra"] = np.zeros(3, np.float32)
    assert failing(tmp_path, vocab, weights).split("\n")[1:] == [
        "  blocks.1.att.x_g is [1, 1, 127], expected [128]",
        "  blocks.1.ffn.key.weight is [511, 128], expected [512, 128]",
        "  missing blocks.2.att.w2, expected [24, 128]",
        "  missing ln_out.bias, expected [128]",
        "  missing blocks.1.att.time_state, expected [2, 64, 64]",
        "  blocks.2.att.time_state is [2, 64, 63], expected [2, 64, 64]",
        "  unused extra [3]",
    ]


def test_a_long_list_is_cut(tmp_path: Path, vocab: Path) -> None:
    def message(extra: int) -> str:
        more = {f"extra.{i}": np.zeros(1, np.float32) for i in range(extra)}
        return failing(tmp_path, vocab, ck.weights_of() | more)

    assert message(50).endswith("\n  and 30 more")
    assert message(21).endswith("\n  unused extra.19 [1]\n  and 1 more")
    assert message(20).endswith("\n  unused extra.19 [1]")


ZERO = np.zeros((2, 3), np.float32)
BROKEN: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "no embedding": (lambda w: w.pop("emb.weight"), "missing tensor emb.weight, expected 2 dim"),
    "embedding of one dimension": (
        lambda w: w.update({"emb.weight": ZERO[0]}),
        r"tensor emb\.weight is \[3\], expected 2 dimensions",
    ),
    "heads that do not fit": (
        lambda w: w.update({"blocks.0.att.r_k": ZERO}),
        r"blocks\.0\.att\.r_k is \[2, 3\], expected 128 values",
    ),
    "a block that is missing": (
        lambda w: [w.pop(n) for n in list(w) if n.startswith("blocks.1.")],
        r"no tensor of blocks\.1, but of blocks\.2",
    ),
    "a block far away": (
        lambda w: w.update({"blocks.999999.ln1.weight": ZERO}),
        r"no tensor of blocks\.3, but of blocks\.999999",
    ),
    "a rank of its own": (
        lambda w: w.update({"blocks.1.att.a1": np.zeros((128, 24), np.float32)}),
        r"blocks\.1\.att\.a1 is \[128, 24\], expected \[128, 20\]",
    ),
    "infinity": (
        lambda w: w["head.weight"].__setitem__((7, 7), np.inf),
        r"tensor output\.weight holds NaN or infinity",
    ),
    "NaN in a vector": (
        lambda w: w["blocks.0.ln0.bias"].__setitem__(3, np.nan),
        r"tensor token_embd_norm\.bias holds NaN or infinity",
    ),
    "too large for f16": (
        lambda w: w["emb.weight"].__setitem__((0, 0), 70000.0),
        r"token_embd\.weight holds 70000, too large for f16; use bf16 or f32",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints(tmp_path: Path, vocab: Path, case: str) -> None:
    change, message = BROKEN[case]
    weights = ck.weights_of()
    change(weights)
    assert re.search(message, failing(tmp_path, vocab, weights))


OTHERS = {
    "RWKV-7b": ["blocks.0.att.r_k", "blocks.0.ffn.s_emb.weight", "blocks.0.qkv.qq.weight"],
    "RWKV-8": ["blocks.0.att.r_k", "blocks.0.ffn.enn.weight"],
    "RWKV x060a/b/c": ["blocks.0.att.ln_x.weight", "blocks.0.att.gate_w1"],
    r"an RWKV experiment \(version 1 to 4b\)": ["head_q.weight", "blocks.0.att.time_decay"],
    "an adapter, not a model.*--adapter FILE": ["blocks.0.att.key.lora_A"],
    "an adapter, not a model; ": ["base_model.model.blocks.0.att.key.lora_A.weight"],
    "an initial state, not a model.*--state FILE": [f"blocks.{i}.att.time_state" for i in (0, 1)],
    "no RWKV model; its 2 tensors begin with 'wte', 'wpe'": ["wte", "wpe"],
}


@pytest.mark.parametrize("version", OTHERS)
def test_other_models_are_named(tmp_path: Path, vocab: Path, version: str) -> None:
    path = ck.write(tmp_path, ck.pth_of({name: ZERO for name in OTHERS[version]}))
    with refuses(UnsupportedError, path, version):
        convert(path, tmp_path / "out.gguf", vocab=vocab)


def missing(weights: Weights, *ends: str) -> Weights:
    return {name: value for name, value in weights.items() if not name.endswith(ends)}


def of(version: str) -> Weights:
    return ck.weights_of(tiny.VERSIONS[version]["d128"])


def some(weights: Weights, *ends: str) -> Weights:
    return {name: value for name, value in weights.items() if name.endswith(ends)}


MISFITS: dict[str, tuple[Callable[[], Weights], str]] = {
    "tensors of version 6 in 7": (
        lambda: of("7") | some(of("6"), "time_maa_w1"),
        r"unused blocks\.0\.att\.time_maa_w1 \[128, 60\]",
    ),
    "a gate in version 4": (
        lambda: of("4") | some(of("6"), "gate.weight"),
        r"unused blocks\.0\.att\.gate\.weight",
    ),
    "half a DeepEmbed": (
        lambda: missing(of("7a"), "s_emb_x.weight"),
        r"missing blocks\.0\.ffn\.s_emb_x\.weight, expected \[1024, 128\]",
    ),
    "a table without the rest": (
        lambda: of("7") | some(of("7a"), "s_emb.weight"),
        r"missing blocks\.0\.ffn\.s1, expected \[128, 32\]",
    ),
    "a table of another vocabulary": (
        lambda: {n: v[:-1] if n.endswith("s_emb.weight") else v for n, v in of("7a").items()},
        r"blocks\.0\.ffn\.s_emb\.weight is \[299, 1024\], expected \[300, 1024\]",
    ),
    "a gate in some blocks": (
        lambda: missing(of("5.2"), "1.att.gate.weight"),
        r"missing blocks\.1\.att\.gate\.weight, expected \[128, 128\]",
    ),
    "no u": (
        lambda: missing(of("5.2"), "time_faaaa"),
        r"missing blocks\.0\.att\.time_faaaa, expected \[2, 64\]",
    ),
    "a decay one value short": (
        lambda: {n: v[..., :-1] if n.endswith("2.att.time_decay") else v
                 for n, v in of("5.2").items()},
        r"blocks\.2\.att\.time_decay is \[2, 63\], expected \[2, 64\]",
    ),
    "heads that divide nothing": (
        lambda: {n: v[:, :, None].repeat(2, 0)[:3] if n.endswith("time_decay") else v
                 for n, v in of("5.2").items()},
        r"blocks\.0\.att\.time_decay has 3 heads, expected a divisor of 128",
    ),
    "ranks that differ": (
        lambda: {n: v[:, :-5] if n.endswith("1.att.time_maa_w1") else v
                 for n, v in of("6").items()},
        r"blocks\.1\.att\.time_maa_w1 is \[128, 55\], expected \[128, 60\]",
    ),
    "a state of another shape": (
        lambda: of("6") | tiny.random_states(tiny.VERSIONS["6"]["d192"], 1),
        r"blocks\.0\.att\.time_state is \[6, 32, 32\], expected \[2, 64, 64\]",
    ),
    "a state in version 4": (
        lambda: of("4") | tiny.random_states(tiny.VERSIONS["6"]["d128"], 1),
        r"unused blocks\.0\.att\.time_state \[2, 64, 64\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_of_every_version(tmp_path: Path, vocab: Path, case: str) -> None:
    make, message = MISFITS[case]
    assert re.search(message, failing(tmp_path, vocab, make()))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"GGUF\3\0\0\0", ValueError, "a GGUF file; vocabulary, adapter and state are for the"),
        (b"hello", FormatError, r"neither a GGUF, a \.pth \(torch 1\.6 or newer\), a \.saf"),
        (b"", FormatError, "the file is empty"),
    ],
)
def test_other_files_are_named(
    tmp_path: Path, vocab: Path, data: bytes, error: type[Exception], message: str
) -> None:
    path = ck.write(tmp_path, data)
    with refuses(error, path, message):
        convert(path, tmp_path / "out.gguf", vocab=vocab)
