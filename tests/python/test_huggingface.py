# SPDX-License-Identifier: Apache-2.0
"""Folders of the Hugging Face hub: their names undone to the bit, torn and mixed ones refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
from hub import CONFIGS, fla, folder_of, hub_form, save, save_sharded, weights_of
from reference import Weights
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError
from rwkv_edge.convert.open import open_checkpoint

official = pytest.importorskip("safetensors.numpy")


def without_unused(weights: Weights) -> Weights:
    return {n: v for n, v in weights.items() if not re.fullmatch(r"blocks\.0\.att\.v[012]", n)}


# ---- what is read -------------------------------------------------------------------------------

MODELS = [(version, shape) for version in CONFIGS for shape in ("d128", "d192", "d256")]


@pytest.mark.parametrize(("version", "shape"), MODELS)
def test_names_are_undone(tmp_path: Path, version: str, shape: str) -> None:
    """A folder, its file, sharded or not, give what BlinkDL's file would; matrices in place."""
    weights = weights_of(version, shape)
    expected = ck.squeezed(without_unused(weights))
    save(tmp_path / "model.safetensors", hub_form(weights, version))
    assert ck.opened(tmp_path) == expected
    assert ck.opened(tmp_path / "model.safetensors") == expected
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    save_sharded(sharded, hub_form(weights, version))
    assert ck.opened(sharded) == expected
    assert ck.opened(sharded / "model.safetensors.index.json") == expected
    assert ck.opened(sharded / "model-00002-of-00003.safetensors") == expected
    raw = open_checkpoint(sharded).tensors["blocks.1.ffn.key.weight"].raw()
    assert raw is not None
    assert raw.tobytes() == weights["blocks.1.ffn.key.weight"].tobytes()


@pytest.mark.parametrize("version", CONFIGS)
def test_config_that_fits(tmp_path: Path, version: str) -> None:
    folder = folder_of(tmp_path, version)
    assert ck.opened(folder) == ck.squeezed(without_unused(weights_of(version)))
    assert open_checkpoint(folder).folder == folder
    assert open_checkpoint(folder / "model.safetensors").folder == folder


def test_file_that_only_looks_like_a_shard(tmp_path: Path) -> None:
    save_sharded(tmp_path, hub_form(weights_of("4"), "4"))
    path = tmp_path / "model-00004-of-00003.safetensors"
    save(path, fla(weights_of("7")))
    assert ck.opened(path) == ck.squeezed(without_unused(weights_of("7")))


def test_bin_shards(tmp_path: Path) -> None:
    """pytorch_model-*.bin are .pth files with an index."""
    weights = weights_of("4")
    named = hub_form(weights, "4")
    names = list(named)
    halves = {"pytorch_model-00001-of-00002.bin": names[:40],
              "pytorch_model-00002-of-00002.bin": names[40:]}  # fmt: skip
    for file, listed in halves.items():
        ck.write(tmp_path, ck.pth_of({name: named[name] for name in listed}), file)
    index = {"weight_map": {name: file for file, listed in halves.items() for name in listed}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert ck.opened(tmp_path) == ck.squeezed(weights)
    assert ck.opened(tmp_path / "pytorch_model-00002-of-00002.bin") == ck.squeezed(weights)


def test_older_fla_with_one_tensor_of_lerps(tmp_path: Path) -> None:
    weights = weights_of("7")
    named = fla(weights)
    for i in range(3):
        rows = [named.pop(f"model.layers.{i}.attn.x_{letter}") for letter in "rwkvag"]
        named[f"model.layers.{i}.attn.x_x"] = np.stack(rows)
    save(tmp_path / "model.safetensors", named)
    assert ck.opened(tmp_path) == ck.squeezed(without_unused(weights))


def test_dummy_value_residual_of_layer_0(tmp_path: Path) -> None:
    weights = weights_of("7")
    named = fla(weights) | {
        "model.layers.0.attn.v_lora.lora.0.weight": np.zeros((1, 128), np.float32),
        "model.layers.0.attn.v_lora.lora.2.weight": np.zeros((128, 1), np.float32),
        "model.layers.0.attn.v_lora.lora.2.bias": np.zeros(128, np.float32),
    }
    save(tmp_path / "model.safetensors", named)
    assert ck.opened(tmp_path) == ck.squeezed(without_unused(weights))


@pytest.mark.parametrize("prefix", ["model.", "rwkv."])
def test_older_uploads_of_version_7(tmp_path: Path, prefix: str) -> None:
    """BlinkDL's names with something in front, of the head or not."""
    weights = weights_of("7")
    named = {f"{prefix}{name}": value for name, value in weights.items()}
    save(tmp_path / "model.safetensors", named)
    assert ck.opened(tmp_path) == ck.squeezed(weights)
    named["head.weight"] = named.pop(f"{prefix}head.weight")
    save(tmp_path / "model.safetensors", named)
    assert ck.opened(tmp_path) == ck.squeezed(weights)


def test_tied_embeddings(tmp_path: Path) -> None:
    weights = weights_of("4")
    named = hub_form(weights, "4")
    del named["head.weight"]
    save(tmp_path / "model.safetensors", named)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["4"] | {"tie_word_embeddings": True}))
    weights["head.weight"] = weights["emb.weight"]
    assert ck.opened(tmp_path) == ck.squeezed(weights)


def test_config_beside_another_model_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    weights = weights_of("7")
    path = ck.write(tmp_path, ck.pth_of(weights))
    assert ck.opened(path) == ck.squeezed(weights)


# ---- what is refused ----------------------------------------------------------------------------


def change_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def point(name: str, file: object) -> Callable[[Path], Any]:
    return lambda folder: change_index(folder, lambda i: i["weight_map"].update({name: file}))


def write_index(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


def truncate(name: str) -> Callable[[Path], Any]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def copy_tensor(folder: Path) -> None:
    """A tensor of the first shard in the second as well."""
    first, second = (folder / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    name, value = next(iter(official.load_file(first).items()))
    save(second, official.load_file(second) | {name: value})


SECOND = "model-00002-of-00003.safetensors"
TORN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "torn index": (
        truncate("model.safetensors.index.json"),
        r"index\.json: the file is no proper JSON",
    ),
    "index of a list": (write_index("{}"), "weight_map is missing or empty"),
    "weight_map of a list": (write_index('{"weight_map": [1]}'), "weight_map is missing or empty"),
    "tensor listed twice": (
        write_index('{"weight_map": {"a": "x", "a": "y"}}'),
        r"no proper JSON \('a' appears twice\)",
    ),
    "file that is a number": (point("a", 7), "weight_map: tensor 'a' is in 7, expected a file"),
    "file in another folder": (point("a", "../model.st"), r"'a' is in '\.\./model\.st', expected"),
    "absolute path": (point("a", "/etc/passwd"), "tensor 'a' is in '/etc/passwd', expected a file"),
    "no file name": (point("a", ""), "tensor 'a' is in '', expected a file"),
    "shard that is the folder": (point("a", ".."), r"tensor 'a' is in '\.\.', expected a file"),
    "shard that is missing": (
        lambda folder: (folder / SECOND).unlink(),
        rf"there is no {SECOND} beside it; is the download complete\?",
    ),
    "torn shard": (truncate(SECOND), rf"{SECOND}: the tensors end at byte .*download complete"),
    "shard that is no model": (
        lambda folder: (folder / SECOND).write_bytes(b"<html>Not found</html>"),
        rf"{SECOND}: neither a GGUF",
    ),
    "shard that is an index": (
        lambda folder: (folder / SECOND).write_text('{"weight_map": {"a": "b"}}'),
        rf"{SECOND}: expected a \.pth or \.safetensors file",
    ),
    "tensor that its shard lacks": (
        point("rwkv.ghost", SECOND),
        rf"{SECOND}: tensor 'rwkv\.ghost' is not in it, model\.safetensors\.index\.json says",
    ),
    "tensor in two shards": (
        copy_tensor,
        rf"{SECOND}: tensor '.*' is not for this file by model\.safetensors\.index\.json",
    ),
}


@pytest.mark.parametrize("case", TORN)
def test_torn_shards(tmp_path: Path, case: str) -> None:
    tear, message = TORN[case]
    save_sharded(tmp_path, hub_form(weights_of("4"), "4"))
    tear(tmp_path)
    with refuses(FormatError, tmp_path, message):
        open_checkpoint(tmp_path)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with refuses(FormatError, tmp_path, r"a folder without any of model\.safetensors, .*it has"):
        open_checkpoint(tmp_path)
    ck.write(tmp_path, b"", "RWKV-x070.pth")
    with refuses(FormatError, tmp_path, r"it has: RWKV-x070\.pth\); name the model's file itse"):
        open_checkpoint(tmp_path)


MISMATCHES: dict[str, tuple[str, dict[str, Any], str]] = {
    "layers": ("4", {"num_hidden_layers": 4}, "num_hidden_layers is 4, but the tensors say 3"),
    "width": ("4", {"hidden_size": 64}, "hidden_size is 64, but the tensors say 128"),
    "vocabulary": ("4", {"vocab_size": 50277}, "vocab_size is 50277, but the tensors say 300"),
    "channel mix": ("7", {"intermediate_size": 512}, "intermediate_size is 512, but .* say 384"),
    "heads of version 7": ("7", {"head_dim": 32}, "head_dim is 32, but the tensors say 64"),
    "heads of version 6": ("6", {"head_size": 128}, "head_size is 128, but the tensors say 64"),
    "heads of version 5": ("5.2", {"head_size": 128}, "head_size is 128, but the tensors say 64"),
}
UNCOMPUTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "eps of version 4": ("4", {"layer_norm_epsilon": 1e-6}, "epsilon is 1e-06, expected 1e-05"),
    "eps of version 7": ("7", {"norm_eps": 1e-6}, "norm_eps is 1e-06, expected 1e-05"),
    "scale of the heads": ("6", {"head_size_divisor": 4}, "head_size_divisor is 4, expected 8"),
    "activation": ("7", {"hidden_act": "relu"}, "hidden_act is 'relu', expected 'sqrelu'"),
    "hybrid": ("7", {"attn": {"layers": [2]}}, "a hybrid of RWKV and attention"),
    "another model": ("7", {"model_type": "llama"}, "model_type is 'llama', expected RWKV"),
}


@pytest.mark.parametrize("case", MISMATCHES | UNCOMPUTED)
def test_config_that_does_not_fit(tmp_path: Path, case: str) -> None:
    version, changes, message = (MISMATCHES | UNCOMPUTED)[case]
    folder = folder_of(tmp_path, version, **changes)
    kind = FormatError if case in MISMATCHES else UnsupportedError
    for path in (folder, folder / "model.safetensors"):
        with refuses(kind, folder / "config.json", message):
            open_checkpoint(path)


def test_config_of_a_folder_with_original_names(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", weights_of("7"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["7"]))
    assert ck.opened(tmp_path) == ck.squeezed(weights_of("7"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["7"] | {"head_dim": 32}))
    with refuses(FormatError, tmp_path / "config.json", "head_dim is 32, but the tensors say 64"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}', "\xff"])
def test_config_that_is_malformed(tmp_path: Path, text: str) -> None:
    folder = folder_of(tmp_path, "7")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with refuses(FormatError, folder, r"config\.json: the file is no (proper JSON|JSON object)"):
        open_checkpoint(folder)


def test_two_tensors_of_one_meaning(tmp_path: Path) -> None:
    named = fla(weights_of("7"))
    named["model.layers.1.attn.receptance.weight"] = named["model.layers.1.attn.r_proj.weight"]
    save(tmp_path / "model.safetensors", named)
    with refuses(FormatError, tmp_path, r"are both blocks\.1\.att\.receptance\.weight"):
        open_checkpoint(tmp_path)


@pytest.mark.torch
def test_bin_shards_of_torch_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = weights_of("6")
    named = {n: torch.from_numpy(v).bfloat16() for n, v in hub_form(weights, "6").items()}
    parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": list(named)[i::2] for i in range(2)}
    for file, names in parts.items():
        torch.save({name: named[name] for name in names}, tmp_path / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = open_checkpoint(tmp_path).tensors
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        rounded = torch.from_numpy(value).bfloat16().float().numpy()
        np.testing.assert_array_equal(found[name].float32(), rounded, err_msg=name)
