# SPDX-License-Identifier: Apache-2.0
"""Files whose tensors or keys are not those of their version: what is missing, what is too much."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import rwkv_edge
import tiny
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError
from spoil import Change, drop, extra, put, remove, tensor
from tiny import STRING, U32, Gguf

RANKS = {"6": (8, 12), "7": (8, 6, 4, 10), "7a": (8, 6, 4, 10)}
SHAPES = {
    version: tiny.Shape(
        64, 0 if version == "4" else 32, 2, 96, 70, RANKS.get(version, ()), version=version
    )
    for version in tiny.VERSIONS
}


def file_of(version: str) -> Gguf:
    return tiny.tiny_model(SHAPES[version], "f32", seed=3, tuned=version != "4").file


def both(*changes: Change) -> Change:
    return lambda file: [change(file) for change in changes]


def turned(name: str) -> Change:
    def change(file: Gguf) -> None:
        dims = file.tensor(name).dims
        dims[0], dims[1] = dims[1], dims[0]

    return change


def moved(source: str) -> Change:
    """The tensors of another version on top of these."""
    return lambda file: file.tensors.extend(
        entry for entry in file_of(source).tensors
        if entry.name not in {own.name for own in file.tensors}
    )  # fmt: skip


def separate_lerp(letter: str) -> Change:
    entry = tiny.Entry(f"blk.1.time_mix_lerp_{letter}.weight", [64], 0, bytes(256))
    return lambda file: file.tensors.append(entry)


def no_states(file: Gguf) -> None:
    file.tensors = [entry for entry in file.tensors if "time_mix_state" not in str(entry.name)]


MISFITS: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "4 without a decay": (
        "4",
        remove("blk.1.time_mix_decay.weight"),
        ("'blk.1.time_mix_decay.weight' is missing",),
    ),
    "4 with a norm of its heads": (
        "4",
        extra("blk.0.time_mix_ln.weight"),
        ("'blk.0.time_mix_ln.weight'", "not part of"),
    ),
    "4 with a state": (
        "4",
        extra("blk.0.time_mix_state.weight"),
        ("'blk.0.time_mix_state.weight'", "not part of"),
    ),
    "4 said to be 5": (
        "4",
        put("general.architecture", STRING, "rwkv5"),
        ("'rwkv5.block_count' is missing",),
    ),
    "5.0 with four lerps": (
        "5.0",
        tensor("blk.1.time_mix_lerp_fused.weight", dims=[64, 1, 1, 4], data=bytes(1024)),
        ("'blk.1.time_mix_lerp_fused.weight' has shape", "[3, 64]"),
    ),
    "5.1 with three lerps": (
        "5.1",
        tensor("blk.1.time_mix_lerp_fused.weight", dims=[64, 1, 1, 3], data=bytes(768)),
        ("'blk.1.time_mix_lerp_fused.weight' has shape", "[4, 64]"),
    ),
    "5.1 with a gate in one layer": (
        "5.1",
        remove("blk.1.time_mix_gate.weight"),
        ("'blk.1.time_mix_gate.weight' is missing",),
    ),
    "5.0 with a gate in the last layer": (
        "5.0",
        extra("blk.1.time_mix_gate.weight"),
        ("'blk.1.time_mix_gate.weight'", "not part of"),
    ),
    "5.2 with a decay per head": (
        "5.2",
        tensor("blk.0.time_mix_decay.weight", dims=[2], data=bytes(8)),
        ("'blk.0.time_mix_decay.weight' has shape [2]", "[2, 32]"),
    ),
    "5.2 with a state in one layer": (
        "5.2",
        remove("blk.1.time_mix_state.weight"),
        ("'blk.1.time_mix_state.weight' is missing",),
    ),
    "5.2 with a state but in the first layer": (
        "5.2",
        remove("blk.0.time_mix_state.weight"),
        ("'blk.1.time_mix_state.weight'", "not part of"),
    ),
    "6 with a state of other heads": (
        "6",
        tensor("blk.0.time_mix_state.weight", dims=[16, 16, 8]),
        ("'blk.0.time_mix_state.weight' has shape [8, 16, 16]", "[2, 32, 32]"),
    ),
    "6 with one lerp missing": (
        "6",
        both(remove("blk.1.time_mix_lerp_fused.weight"), *map(separate_lerp, "wkvr")),
        ("'blk.1.time_mix_lerp_g.weight' is missing",),
    ),
    "6 with lerps fused and separate": (
        "6",
        separate_lerp("k"),
        ("'blk.1.time_mix_lerp_k.weight'", "not part of"),
    ),
    "6 with the lerps of version 7": (
        "6",
        tensor("blk.0.time_mix_lerp_fused.weight", dims=[64, 1, 1, 6], data=bytes(1536)),
        ("'blk.0.time_mix_lerp_fused.weight' has shape", "[5, 64]"),
    ),
    "6 with ranks that are no five": (
        "6",
        tensor("blk.0.time_mix_w1.weight", dims=[64, 38], data=bytes(64 * 38 * 4)),
        ("'blk.0.time_mix_w1.weight' has shape [38, 64]",),
    ),
    "6 with w2 as trainers have it": (
        "6",
        turned("blk.0.time_mix_w2.weight"),
        ("'blk.0.time_mix_w2.weight' has shape [5, 8, 64]", "[5, 64, 8]"),
    ),
    "6 with decay_w1 as trainers have it": (
        "6",
        turned("blk.0.time_mix_decay_w1.weight"),
        ("'blk.0.time_mix_decay_w1.weight' has shape [64, 12]",),
    ),
    "6 divided every -1 layers": (
        "6",
        put("rwkv6.rescale_every_n_layers", tiny.I32, -1),
        ("'rwkv6.rescale_every_n_layers' is -1",),
    ),
    "6 divided every so many layers": (
        "6",
        put("rwkv6.rescale_every_n_layers", STRING, "six"),
        ("'rwkv6.rescale_every_n_layers'", "string"),
    ),
    "6 without the size of its heads": (
        "6",
        drop("rwkv6.wkv.head_size"),
        ("'rwkv6.wkv.head_size' is missing",),
    ),
    "7 with the tables of 7a": ("7", moved("7a"), ("'blk.0.channel_mix_s", "not part of")),
    "7a without its tables": (
        "7a",
        remove("blk.0.channel_mix_s_emb.weight"),
        ("'blk.0.channel_mix_s_emb.weight' is missing",),
    ),
    "7a with tables of another vocabulary": (
        "7a",
        tensor("blk.1.channel_mix_s_emb.weight", dims=[1024, 69], data=bytes(1024 * 69 * 4)),
        ("'blk.1.channel_mix_s_emb.weight' has shape [69, 1024]", "[70, 1024]"),
    ),
    "7a with s_emb_x turned": (
        "7a",
        turned("blk.0.channel_mix_s_emb_x.weight"),
        ("'blk.0.channel_mix_s_emb_x.weight' has shape [64, 1024]", "[1024, 64]"),
    ),
    "7a with s1 as trainers have it": (
        "7a",
        turned("blk.0.channel_mix_s1.weight"),
        ("'blk.0.channel_mix_s1.weight' has shape [64, 32]", "[32, 64]"),
    ),
}
OTHERS = ("rwkv6qwen2", "arwkv7", "rwkv7b", "rwkv8", "RWKV7", "")


def opened(tmp_path: Path, version: str, change: Change) -> Path:
    file = file_of(version)
    change(file)
    path = tmp_path / "file.gguf"
    path.write_bytes(file.to_bytes())
    return path


@pytest.mark.parametrize("version", SHAPES)
def test_the_unspoiled_file_is_a_model(tmp_path: Path, version: str) -> None:
    model = rwkv_edge.Model(opened(tmp_path, version, lambda _: None))
    assert np.isfinite(model.session().feed([1, 2, 3])).all()
    bare = rwkv_edge.Model(opened(tmp_path, version, no_states))
    assert not bare.session().state.numpy()["att_shift"].any()


@pytest.mark.parametrize(("version", "change", "parts"), MISFITS.values(), ids=MISFITS)
def test_misfits(tmp_path: Path, version: str, change: Change, parts: tuple[str, ...]) -> None:
    path = opened(tmp_path, version, change)
    with refuses(FormatError, path, *map(re.escape, parts)):
        rwkv_edge.Model(path)


@pytest.mark.parametrize("arch", OTHERS)
def test_other_architectures_are_named(tmp_path: Path, arch: str) -> None:
    path = opened(tmp_path, "7", put("general.architecture", STRING, arch))
    with refuses(UnsupportedError, path, f"architecture '{arch}'", "rwkv4", "rwkv7a"):
        rwkv_edge.Model(path)


def test_keys_that_only_inform_may_be_wrong_or_missing(tmp_path: Path) -> None:
    """Ranks are those of the tensors; `rwkv_edge.version` is for people."""
    expected = rwkv_edge.Model(opened(tmp_path, "6", lambda _: None)).session().feed([5, 6])
    for change in (
        drop("rwkv6.rescale_every_n_layers"),
        drop("rwkv6.time_mix_extra_dim"),
        put("rwkv6.time_decay_extra_dim", U32, 999),
        put("rwkv_edge.version", STRING, "4"),
    ):
        model = rwkv_edge.Model(opened(tmp_path, "6", change))
        assert model.session().feed([5, 6]).tobytes() == expected.tobytes()
