# SPDX-License-Identifier: Apache-2.0
"""The layouts of the Hugging Face hub: a folder with config.json and one file of tensors or many.

RWKV-4 is that of `transformers`; RWKV-5 and 6 came with code of their own and the same names;
RWKV-7 is that of flash-linear-attention ("fla"), whose low-rank functions are pairs of Linears,
[out, in]. Older uploads of RWKV-7 have BlinkDL's names with something in front.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .._core import FormatError, UnsupportedError
from ..files.form import shown
from ..files.safetensors import read_json
from ..files.source import Checkpoint, Tensor, by_name, split, turned

CONFIG = "config.json"
# In the order in which `transformers` looks for them.
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")
PLAIN_NAME = re.compile(r"[\w-][\w.-]*")  # of a file in the same folder

# One after the other, on every name.
RENAMES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^(model|rwkv)\.", ""),
        (r"^embeddings\.", "emb."),
        (r"^lm_head\.", "head."),
        (r"^norm\.", "ln_out."),
        (r"^layers\.", "blocks."),
        (r"\.(pre_ln|pre_norm)\.", ".ln0."),
        (r"\.attn_norm\.", ".ln1."),
        (r"\.ffn_norm\.", ".ln2."),
        (r"\.(attention|attn)\.", ".att."),
        (r"\.feed_forward\.", ".ffn."),
        (r"\.time_mix_(k)ey$|\.time_mix_(v)alue$", r".time_mix_\1\2"),
        (r"\.time_mix_(r)eceptance$|\.time_mix_(g)ate$", r".time_mix_\1\2"),
        (r"\.r_proj\.", ".receptance."),
        (r"\.k_proj\.", ".key."),
        (r"\.v_proj\.", ".value."),
        (r"\.o_proj\.", ".output."),
        (r"\.g_norm\.", ".ln_x."),
        (r"\.([wavg])_lora\.lora\.0\.weight$", r".\g<1>1"),
        (r"\.([wavg])_lora\.lora\.2\.weight$", r".\g<1>2"),
        (r"\.([wav])_lora\.lora\.2\.bias$", r".\g<1>0"),
    )
)
LINEAR = re.compile(r".*_lora\.lora\.[02]\.weight")
LERPS = "rwkvag"  # the order inside attn.x_x, from before there were six of them


# ---- files --------------------------------------------------------------------------------------


def model_file(path: Path) -> Path:
    """The file or the index of shards that `path` means: a folder, a shard or just a file."""
    if path.is_dir():
        found = next((path / name for name in MODEL_FILES if (path / name).is_file()), None)
        if found is None:
            some = ", ".join(sorted(p.name for p in path.iterdir())[:5])
            raise FormatError(
                f"{path}: a folder without any of {', '.join(MODEL_FILES)} (it has: {some}); "
                "name the model's file itself"
            )
        return found
    if match := SHARD.fullmatch(path.name):
        index = path.with_name(f"{match[1]}{match[2]}.index.json")
        if index.is_file() and path.name in shards(index):
            return index
    return path


def read_index(path: Path, read: Callable[[Path], Checkpoint]) -> Checkpoint:
    """All tensors of the shards that an index lists, each file opened with `read`."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name, listed in shards(path).items():
        shard = path.with_name(name)
        if not shard.is_file():
            raise FormatError(f"{path}: there is no {name} beside it; is the download complete?")
        part = read(shard)
        metadata |= part.metadata
        if missing := sorted(listed - part.tensors.keys()):
            raise FormatError(
                f"{shard}: tensor {shown(missing[0])} is not in it, {path.name} says it is"
            )
        if unlisted := sorted(part.tensors.keys() - listed):
            raise FormatError(
                f"{shard}: tensor {shown(unlisted[0])} is not for this file by {path.name}; "
                "do both belong to the same model?"
            )
        tensors |= part.tensors
    return Checkpoint(path, tensors, metadata)


def shards(index: Path) -> dict[str, set[str]]:
    """The names of the tensors in each file that an index lists."""
    where = f"{index}: weight_map"
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise FormatError(f"{where} is missing or empty, expected {{tensor: file}}")
    shards: dict[str, set[str]] = {}
    for tensor, name in listed.items():
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
            raise FormatError(
                f"{where}: tensor {shown(tensor)} is in {shown(name)}, expected a file name"
            )
        shards.setdefault(name, set()).add(tensor)
    return shards


# ---- names --------------------------------------------------------------------------------------


def original_names(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under BlinkDL's names and in his orientation.

    His own names are never a name of the hub's, so they stay what they are.
    """

    def renamed() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            new = original_name(name)
            if new.endswith(".att.x_x") and tensor.shape[:1] == (len(LERPS),):
                for letter, lerp in zip(LERPS, split(tensor), strict=True):
                    yield f"{new.removesuffix('x')}{letter}", lerp
            # fla has no value residual in layer 0, or a dummy.
            elif not re.fullmatch(r".*layers\.0\.attn\.v_lora\..*", name):
                yield new, turned(tensor) if LINEAR.fullmatch(name) else tensor

    return by_name(path, renamed())


def original_name(name: str) -> str:
    for pattern, new in RENAMES:
        name = pattern.sub(new, name)
    return name


# ---- config.json --------------------------------------------------------------------------------


def checked(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, canonical already, of a model that the config.json `path` describes.

    With tied embeddings the head is the embedding. FormatError where the two disagree,
    UnsupportedError for what no tensor shows and we do not compute.
    """
    config = read_json(path)
    found = dict(tensors)
    if config.get("tie_word_embeddings") is True and "emb.weight" in found:
        found.setdefault("head.weight", found["emb.weight"])
    if "rwkv" not in shown(config.get("model_type", "rwkv")).lower():
        raise UnsupportedError(
            f"{path}: model_type is {shown(config['model_type'])}, expected RWKV"
        )
    if config.get("attn") is not None:
        raise UnsupportedError(f"{path}: a hybrid of RWKV and attention (key 'attn')")
    for keys, expected in (
        (("layer_norm_epsilon", "norm_eps"), 1e-5),
        (("head_size_divisor",), 8),
        (("hidden_act",), "sqrelu"),
    ):
        for key in keys:
            if config.get(key, expected) != expected:
                raise UnsupportedError(
                    f"{path}: {key} is {shown(config[key])}, expected {expected!r}"
                )
    for key, size in _sizes(found).items():
        if type(config.get(key)) is int and config[key] != size:
            raise FormatError(
                f"{path}: {key} is {shown(config[key])}, but the tensors say {size}; "
                "is it the config.json of another model?"
            )
    return found


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What the tensors say of the sizes that a config.json has."""
    layers = {m[1] for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))}
    sizes = {"num_hidden_layers": len(layers)}
    for key, name, axis in (
        ("vocab_size", "emb.weight", 0),
        ("hidden_size", "emb.weight", 1),
        ("intermediate_size", "blocks.0.ffn.key.weight", 0),
        ("head_size", "blocks.0.att.time_faaaa", 1),
        ("head_dim", "blocks.0.att.r_k", 1),
    ):
        if name in tensors and len(tensors[name].shape) == 2:
            sizes[key] = tensors[name].shape[axis]
    return sizes
