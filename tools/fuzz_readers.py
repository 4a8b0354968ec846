# SPDX-License-Identifier: Apache-2.0
"""What tools/fuzz.py feeds: for every reader, good files from the writers of the tests, and ways to
damage them that keep most of the structure."""

from __future__ import annotations

import copy
import ctypes
import json
import math
import os
import random
import readline
import struct
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import adapters
import checkpoints as ck
import ggml_types as ggml
import hub
import numpy as np
import pile
import tiny
from fuzz import ROOT, Files, Reader
from reference import Weights
from rwkv_edge import FormatError, Model, State, UnsupportedError
from rwkv_edge._core import ModelFile, feed_together
from rwkv_edge.chat import TEMPLATES, Turn, load_template
from rwkv_edge.chat.saved import Transcript, text_of, transcript_of
from rwkv_edge.chat.templates import fields_of_template
from rwkv_edge.cli.lines import (
    HISTORY_BYTES,
    HISTORY_LINES,
    add_to_history,
    read_history,
    with_readline,
)
from rwkv_edge.convert import convert, quantize
from rwkv_edge.convert.vocab import read_vocabulary
from rwkv_edge.describe import describe
from rwkv_edge.files.form import printable
from rwkv_edge.files.gguf_writer import header
from rwkv_edge.server import anthropic, ollama, responses
from rwkv_edge.server.fields import Fields, Refused, read_json
from rwkv_edge.server.http import to_json
from rwkv_edge.server.native import read_state
from rwkv_edge.server.openai import read_chat, read_completions, read_stream
from rwkv_edge.server.program import Ended, Rows, Vector
from rwkv_edge.server.request import Caller, Event, Request, Whole
from rwkv_edge.server.service import Options, Service
from rwkv_edge.tokenizer import tokenizer_from_file
from sentencepiece_library import LibraryTokenizer, ours, protobuf_fields, varint
from texts import TEXTS, train
from web_rwkv import as_st

Make = Callable[[random.Random], Files]

# ---- values -------------------------------------------------------------------------------------

NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 64, 127, 128, 255, 256, 1000, 65535, 65536, 1 << 20),
    *((1 << bits) + step for bits in (31, 32, 40, 56, 61, 62, 63, 64) for step in (-1, 0, 1)),
    *(-1, -2, -(1 << 31), -(1 << 63), (1 << 61) - 1, 1 << 2000),
)
FLOATS = (0.0, -1.0, 0.5, 1e-5, 1e30, 1e308, float("inf"), float("-inf"), float("nan"))
WORDS = (
    *("", "a", "\0", "\n", "\x1b[2J", "é你", "\ud800", "\udcff", "../../etc/passwd", "/dev/zero"),
    *("model." * 300, "a" * 70_000, "blocks.0.att.key.weight", "blocks.999999.att.key.weight"),
    *("emb.weight", "time_state", "lora_A", "F32", "F64", "rwkv7", "rwkv", "gpt2", "llama"),
)


def number(rng: random.Random, near: int | None = None) -> int:
    if near is not None and rng.random() < 0.5:
        return rng.choice(
            (near - 1, near + 1, near * 2, near // 2, -near, near + rng.choice(NUMBERS))
        )
    return rng.choice(NUMBERS)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can hold."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(WORDS): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return (number(rng), rng.choice(FLOATS), rng.choice(WORDS), None, True, deep(rng))[kind]


def deep(rng: random.Random) -> Any:
    found: Any = []
    for _ in range(rng.choice((1, 10, 90, 900))):
        found = [found] if rng.random() < 0.9 else {"a": found}
    return found


def likely(rng: random.Random, old: Any) -> Any:  # noqa: PLR0911 - one for each type
    """A value in place of another: mostly of its kind."""
    if rng.random() < 0.25:
        return value(rng)
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return number(rng, old)
    if isinstance(old, float):
        return rng.choice(FLOATS)
    if isinstance(old, str):
        return rng.choice(
            (*WORDS, old + "x", old[:-1], old.upper(), old * 2, old.replace("0", "1"))
        )
    if isinstance(old, list | tuple):
        return rng.choice((old[:-1], old * 2, old[::-1], [*old, value(rng)], []))
    return value(rng)


# ---- bytes --------------------------------------------------------------------------------------


def damage(rng: random.Random, data: bytes, most: int = 3) -> bytes:
    """Flip, cut, move, repeat: nothing is known of what it is."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, most + 1)):
        at = rng.randrange(len(out) + 1)
        if rng.random() < 0.6:
            at = min(at, rng.randrange(1 << 12))  # where headers are
        size = rng.choice((1, 2, 4, 8, 16, rng.randrange(1, 300)))
        kind = rng.randrange(7)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            bits = rng.choice((32, 64))
            out[at : at + bits // 8] = (number(rng) % (1 << bits)).to_bytes(bits // 8, "little")
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size] * rng.choice((1, 1, 2, 50))
        elif kind == 4:
            other = rng.randrange(len(out) + 1)
            out[at : at + size] = out[other : other + size]
        elif kind == 5:
            out[at:at] = rng.choice(WORDS).encode("utf-8", "surrogatepass")[:2000]
        else:
            del out[rng.randrange(len(out) + 1) :]
    return bytes(out)


def maybe(rng: random.Random, data: bytes, chance: float = 0.25) -> bytes:
    return damage(rng, data) if rng.random() < chance else data


# ---- trees --------------------------------------------------------------------------------------


def change_json(rng: random.Random, tree: Any, most: int = 3) -> Any:
    """A copy of what JSON holds with some of it changed, dropped, moved or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randrange(1, most + 1)):
        node, path = tree, 0
        while isinstance(node, dict | list) and node and (path == 0 or rng.random() < 0.8):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = rng.choice(keys[-3:] if rng.random() < 0.1 else keys)
            below, path = node[key], path + 1
            if not isinstance(below, dict | list) or not below or rng.random() < 0.3:
                change_entry(rng, node, key)
                break
            node = below
    return tree


def change_entry(rng: random.Random, node: Any, key: Any) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice((*WORDS, key + "x"))] = node.pop(key)
    elif kind == 2:
        other = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node[key], node[other] = node[other], node[key]
    elif kind == 3 and isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), value(rng))
    else:
        node[key] = likely(rng, node[key])


def as_json(rng: random.Random, tree: Any) -> bytes:
    try:
        text = json.dumps(tree)
    except ValueError:  # a number of 4300 digits
        text = "{}"
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]  # each key twice
    return text.encode("utf-8", "surrogatepass")


# ---- models -------------------------------------------------------------------------------------

# Of every version, as small as the engine takes them.
SHAPES = {
    "4": tiny.Shape(32, 0, 2, 32, 264, version="4"),
    "5.0": tiny.Shape(32, 16, 2, 32, 264, version="5.0", u_name="time_first"),
    "5.2": tiny.Shape(32, 16, 2, 32, 264, version="5.2"),
    "6": tiny.Shape(32, 16, 2, 32, 264, (4, 4), version="6"),
    "7": tiny.Shape(32, 16, 2, 32, 264, (4, 4, 4, 8), "absent"),
    "7a": tiny.Shape(32, 16, 1, 32, 264, (4, 4, 4, 8), version="7a"),
}


@cache
def weights_of(version: str) -> Weights:
    return tiny.random_weights(SHAPES[version], seed=5)


def some_weights(rng: random.Random, form: Callable[[Weights], Weights] = dict) -> Weights:
    """Those of a model; a tensor may be missing, renamed, of another shape or hold no numbers."""
    weights = form(weights_of(rng.choice(list(SHAPES))))
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        name = rng.choice(list(weights))
        old = weights.pop(name)
        kind = rng.randrange(6)
        if kind == 0:
            weights[rng.choice((*WORDS[:-9], f"model.{name}", f"{name}.lora_A"))] = old
        elif kind == 1:
            weights[name] = old.reshape(rng.choice(((-1,), (1, -1), (-1, 1, 1), (1, 1, 1, 1, -1))))
        elif kind == 2:
            weights[name] = old[rng.randrange(len(old) + 1) :]
        elif kind == 3:
            weights[name] = np.full_like(old, rng.choice((np.nan, np.inf, 3e38, 1e-40)))
        elif kind == 4:
            weights[name] = old.swapaxes(0, -1)
    return weights


def talk(path: Path) -> None:
    speak(Model(path, threads=1))


def talk_with_vocabulary(path: Path) -> None:
    speak(Model(path, vocab=vocabulary_file(path), threads=1))


def speak(model: Model) -> None:
    session = model.session()
    session.feed([1 % model.n_vocab, 2 % model.n_vocab, 0], logits="all")
    state = session.state
    model.session(state).read([0])
    repr((model, model.hint, model.metadata))
    tokenize(model.tokenizer)


def tokenize(tokenizer: Any) -> None:
    tokenizer.without_text()
    tokenizer.decode(range(min(tokenizer.n_vocab, 2000)))
    texts: tuple[str | bytes, ...] = (*TEXTS, "a" * 3000, b"\xff\xfe\0")
    for text in texts:
        try:
            tokens = tokenizer.encode(text)
        except UnicodeError:
            raise
        except ValueError:  # a byte that the vocabulary lacks
            continue
        data = text if isinstance(text, bytes) else text.encode()
        if tokenizer.decode_bytes(tokens) != data:
            raise AssertionError(f"{data[:50]!r} did not survive")


def beside(path: Path, name: str) -> Path:
    """A file outside the folder of an input."""
    return (path.parent if path.is_dir() else path.parent.parent) / name


def small(path: Path) -> None:
    quantize(path, beside(path, "out.gguf"), type="q4_0")


def converted(path: Path) -> None:
    convert(path, beside(path, "out.gguf"), vocab=vocabulary_file(path))


def vocabulary_file(path: Path) -> Path:
    file = beside(path, "vocabulary.txt")
    if not file.exists():
        file.write_text(ck.VOCABULARY, "utf-8")
    return file


# ---- GGUF ---------------------------------------------------------------------------------------


@cache
def gguf_of(version: str, kind: str, tuned: bool) -> tiny.Gguf:
    return tiny.tiny_model(SHAPES[version], kind, seed=3, tuned=tuned).file


def gguf(rng: random.Random) -> Files:
    version = rng.choice(list(SHAPES))
    kind = rng.choice(("f32", "f16", "bf16", "q4_0", "q5_1", "q8_0"))
    tuned = version in ("5.2", "6", "7") and rng.random() < 0.2
    file = copy.deepcopy(gguf_of(version, kind, tuned))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        change_gguf(rng, file)
    return {"m.gguf": maybe(rng, gguf_bytes(file))}


def gguf_bytes(file: tiny.Gguf) -> bytes:
    try:
        return file.to_bytes()
    except (struct.error, UnicodeEncodeError):  # what no file can say
        return b"GGUF"


def gguf_value(rng: random.Random) -> tuple[int, bytes]:
    kind = rng.choice((*range(13), tiny.STRING, tiny.ARRAY))
    if kind == tiny.ARRAY:
        element, count = rng.choice((0, 4, 5, 6, 7, 8, 12)), rng.choice((0, 1, 2, 264, 300))
        values = [gguf_scalar(rng, element) for _ in range(count)]
        wrong = rng.choice((None, None, None, number(rng) % (1 << 64)))
        head = struct.pack("<IQ", element, count if wrong is None else wrong)
        return kind, head + b"".join(values)
    return kind, gguf_scalar(rng, kind)


def gguf_scalar(rng: random.Random, kind: int) -> bytes:
    if kind == tiny.STRING:
        return tiny.string(rng.choice(WORDS).encode("utf-8", "surrogatepass"))
    if kind in (tiny.F32, tiny.F64):
        wide = kind == tiny.F64
        return struct.pack(
            "<d" if wide else "<f", rng.choice([x for x in FLOATS if wide or x < 1e38])
        )
    size = struct.calcsize(tiny.FORMATS[kind])
    return (number(rng) % (1 << 8 * size)).to_bytes(size, "little")


def change_gguf(rng: random.Random, file: tiny.Gguf) -> None:
    kind = rng.randrange(14)
    if kind < 4 and file.keys:
        i = rng.randrange(len(file.keys))
        name, _, _ = file.keys[i]
        file.keys[i] = (name, *gguf_value(rng))
    elif kind == 4:
        name = rng.choice(("general.alignment", "general.name", "general.license", *WORDS))
        raw = name.encode("utf-8", "surrogatepass")
        file.keys.insert(rng.randrange(len(file.keys) + 1), (raw, *gguf_value(rng)))
    elif kind == 5 and file.keys:
        del file.keys[rng.randrange(len(file.keys))]
    elif kind == 6:
        field = rng.choice(("version", "n_keys", "n_tensors"))
        setattr(file, field, number(rng) % (1 << (32 if field == "version" else 64)))
    elif kind == 7:
        file.alignment = rng.choice((8, 16, 32, 64, 4096))
    elif file.tensors:
        change_tensor(rng, file, rng.choice(file.tensors))


def change_tensor(rng: random.Random, file: tiny.Gguf, entry: tiny.Entry) -> None:
    kind = rng.randrange(9)
    if kind == 0:
        i = rng.randrange(len(entry.dims))
        entry.dims[i] = number(rng, entry.dims[i]) % (1 << 64)
    elif kind == 1:
        entry.dims = rng.choice((entry.dims[::-1], [*entry.dims, 1], entry.dims[1:] or [1]))
    elif kind == 2:
        entry.type_id = rng.choice((*range(42), number(rng) % (1 << 32)))
    elif kind == 3:
        entry.offset = number(rng) % (1 << 64)
    elif kind == 4:
        entry.n_dims = number(rng) % (1 << 32)
    elif kind == 5:
        other = rng.choice((*WORDS, *(str(each.name) for each in file.tensors[:20])))
        entry.name = other.encode("utf-8", "surrogatepass")
    elif kind == 6:
        entry.data = rng.choice((entry.data[:-1], entry.data * 2, b"\xff" * len(entry.data)))
    elif kind == 7:
        file.tensors.remove(entry)
    else:
        file.tensors.append(copy.deepcopy(entry))


# ---- .pth ---------------------------------------------------------------------------------------


def change_pickled(rng: random.Random, node: Any) -> Any:  # noqa: PLR0911 - one for each type
    """A copy of what a pickle holds, with one part of it changed."""
    if rng.random() < 0.15:
        return odd_pickled(rng, node)
    if isinstance(node, dict) and node:
        key = rng.choice(list(node))
        new = dict(node)
        kind = rng.randrange(5)
        if kind == 0:
            new[odd_key(rng)] = new.pop(key)
        elif kind == 1:
            del new[key]
        else:
            new[key] = change_pickled(rng, node[key])
        return new
    if isinstance(node, tuple | list) and node:
        items = list(node)
        i = rng.randrange(len(items))
        items[i] = change_pickled(rng, items[i])
        return type(node)(items)
    if isinstance(node, ck.Call):
        if rng.random() < 0.1:
            return ck.Call(rng.choice(GLOBALS), node.args)
        return ck.Call(node.function, change_pickled(rng, node.args))
    if isinstance(node, ck.Persistent):
        return ck.Persistent(change_pickled(rng, node.value))
    if isinstance(node, ck.Ordered):
        items = change_pickled(rng, node.items)
        return ck.Ordered(items, node.attributes) if isinstance(items, dict) else items
    if isinstance(node, ck.Global):
        return rng.choice(GLOBALS)
    return odd_pickled(rng, node)


GLOBALS = (
    *(ck.Global("torch", f"{kind}Storage") for kind in ("Float", "Half", "BFloat16", "Long")),
    ck.Global("torch._utils", "_rebuild_tensor_v2"),
    ck.Global("torch._utils", "_rebuild_tensor_v3"),
    ck.Global("torch._utils", "_rebuild_parameter"),
    ck.Global("collections", "OrderedDict"),
    ck.Global("torch", "float8_e5m2"),
    ck.Global("os", "system"),
)
NESTED = (
    b")" + b"\x85" * 5000,
    b")" + b"q\0h\0\x86" * 60,
    b"]" + b"q\0h\0a" * 50,
    b"(" * 500 + b"t" * 500,
)
OPCODES = (
    b")]}(NKJIQRabetsu.012hqrjcX\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x8d\x90\x91\x92\x93\x94"
)


def odd_key(rng: random.Random) -> Any:
    word = rng.choice((*WORDS, "_strategy", "state_dict", number(rng)))
    return ck.Raw(b"N") if isinstance(word, str) and "\ud800" <= word[:1] < "\ue000" else word


def odd_pickled(rng: random.Random, old: Any) -> Any:
    kind = rng.randrange(6)
    if kind == 0:
        return ck.Raw(rng.choice(NESTED))
    if kind == 1:
        return ck.Raw(bytes(rng.choice(OPCODES) for _ in range(rng.randrange(1, 12))))
    if kind == 2:
        return ck.Raw(b"X" + struct.pack("<I", 3) + b"\xed\xa0\x80")
    found = likely(rng, old) if isinstance(old, int | str | tuple) else number(rng)
    return plain(found)


def plain(found: Any) -> Any:
    """What a pickle of the tests' writer can hold."""
    if isinstance(found, bool | int) or found is None:
        return found
    if isinstance(found, str):
        return found.encode("utf-8", "replace").decode()
    if isinstance(found, list | tuple):
        return tuple(map(plain, found[:20]))
    return 0


def pth_files(rng: random.Random, weights: Weights, name: str = "m.pth") -> Files:
    kind = rng.choice(("f32", "f16", "bf16"))
    weights = {each.encode("utf-8", "replace").decode(): v for each, v in weights.items()}
    top: Any = {
        each: ck.torch_tensor(str(i), v.shape, kind=kind)
        for i, (each, v) in enumerate(weights.items())
    }
    if rng.random() < 0.2:
        top = rng.choice(({"state_dict": top, "epoch": 3}, ck.Ordered(top, {"_metadata": 1})))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        top = change_pickled(rng, top)
    entries = ck.pth_entries({n: np.nan_to_num(v) for n, v in weights.items()}, kind)
    for _ in range(rng.choice((0, 0, 0, 1))):
        each = rng.choice(list(entries))
        data = entries.pop(each)
        entries[rng.choice((each, f"{each}x", "data.pkl", "byteorder"))] = data[
            : rng.choice((None, 4))
        ]
    data = zipped(rng, top, entries)
    return {name: maybe(rng, data)}


def zipped(rng: random.Random, top: Any, entries: dict[str, bytes]) -> bytes:
    pickle = ck.pickled(top) if rng.random() < 0.85 else damage(rng, ck.pickled(top))
    every = {"data.pkl": pickle, "byteorder": b"little", **entries, "version": b"3\n"}
    archive = ck.Zip(every, root=rng.choice(("archive", "archive", "a/b", "é")))
    archive.method = rng.choice((0, 0, 0, 0, 0, 8, 99))
    data = archive.to_bytes()
    if rng.random() < 0.2:  # the directory and its end
        cut = max(0, len(data) - rng.randrange(1, 800))
        data = data[:cut] + damage(rng, data[cut:])
    return data


# ---- .safetensors, .st, the hub -----------------------------------------------------------------


def safetensors_data(rng: random.Random, weights: Weights, chance: float = 0.7) -> bytes:
    kind = rng.choice(("F32", "F16", "BF16"))
    tree: dict[str, Any] = {"__metadata__": {"format": "pt", "license": "x"}}
    data = b""
    for name, values in weights.items():
        with np.errstate(over="ignore"):
            raw = ggml.encode(np.nan_to_num(values), kind.lower()).tobytes()
        tree[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    if rng.random() < chance:
        tree = change_json(rng, tree)
    text = as_json(rng, tree)
    length = rng.choice((None, None, None, None, None, number(rng) % (1 << 64)))
    return maybe(rng, ck.safetensors(text, data, length=length), 0.15)


def safetensors(rng: random.Random) -> Files:
    return {"m.safetensors": safetensors_data(rng, some_weights(rng))}


def st(rng: random.Random) -> Files:
    return {"m.st": safetensors_data(rng, some_weights(rng, as_st))}


def hub_folder(rng: random.Random) -> Files:
    version = rng.choice(("4", "5.2", "6", "7"))
    shape = SHAPES[version]
    weights = hub.hub_form(weights_of(version), version)
    config = hub.CONFIGS[version] | {
        "hidden_size": shape.width, "attention_hidden_size": shape.width,
        "num_hidden_layers": shape.layers, "intermediate_size": shape.ffn,
        "vocab_size": shape.vocab, "head_dim": shape.head_size, "head_size": shape.head_size,
    }  # fmt: skip
    if rng.random() < 0.6:
        config = change_json(rng, config)
    files = {"config.json": maybe(rng, as_json(rng, config), 0.1)}
    if rng.random() < 0.5:
        return {**files, "model.safetensors": safetensors_data(rng, weights, 0.4)}
    names, count = sorted(weights), rng.choice((1, 2, 3))
    index: Any = {"metadata": {"total_size": 1}, "weight_map": {}}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        listed = {each: weights[each] for each in names[i::count]}
        files[name] = safetensors_data(rng, listed, 0.2)
        index["weight_map"] |= dict.fromkeys(listed, name)
    if rng.random() < 0.6:
        index = change_json(rng, index)
    return {**files, "model.safetensors.index.json": maybe(rng, as_json(rng, index), 0.1)}


# ---- rwkv.cpp -----------------------------------------------------------------------------------


def ggmf(rng: random.Random) -> Files:
    version = rng.choice([each for each in SHAPES if each != "7a"])
    weights = dict(weights_of(version))
    if version in ("5.2", "6", "7") and rng.random() < 0.2:
        weights |= tiny.random_states(SHAPES[version], seed=6)
    file = ck.ggmf_of(weights, rng.choice(("f32", "f16", "q4_0", "q8_0")))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        i = rng.randrange(len(file.tensors))
        tensor = file.tensors[i]
        kind = rng.randrange(8)
        if kind == 0:
            file.header[rng.randrange(6)] = int32(number(rng))
        elif kind == 1:
            if tensor.dims:  # kind 2 takes one away each time
                tensor.dims[rng.randrange(len(tensor.dims))] = int32(number(rng))
        elif kind == 2:
            tensor.dims = rng.choice((tensor.dims[::-1], [*tensor.dims, 1], tensor.dims[1:]))
        elif kind == 3:
            tensor.type_id = rng.choice((*range(20), int32(number(rng))))
        elif kind == 4:
            tensor.name = rng.choice((*WORDS, "emb.weight")).encode("utf-8", "surrogatepass")
        elif kind == 5:
            del file.tensors[i]
            if not file.tensors:
                break
        elif kind == 6:
            file.tensors.insert(0, tensor)
        else:  # of another size or type, and whole
            name = rng.choice(list(ck.GGMF_TYPES))
            columns = rng.choice((32, 64) if name[0] == "q" else (1, 2, 16, 31, 32, 33))
            dims = [columns, *(rng.choice((1, 2, 3, 32, 33)) for _ in range(rng.randrange(3)))]
            size = ggml.row_bytes(name, columns) * math.prod(dims[1:])
            same = tensor.data * (size // max(1, len(tensor.data)) + 1)
            values = rng.choice((bytes(size), rng.randbytes(size), same[:size]))
            file.tensors[i] = ck.GgmfTensor(tensor.name, dims, ck.GGMF_TYPES[name], values)
    return {"m.bin": maybe(rng, file.to_bytes())}


def int32(n: int) -> int:
    return (n + (1 << 31)) % (1 << 32) - (1 << 31)


# ---- rwkv.cpp, by the C library's reader --------------------------------------------------------

# The C++ build makes it, and the preset asan one with sanitizers.
LIBRARY = Path(os.environ.get("RWKV_EDGE_LIBRARY", ROOT / "build" / "release" / "librwkv_edge.so"))
STATUSES = {1: ValueError, 2: OSError, 3: FormatError, 4: UnsupportedError, 5: MemoryError}


@cache
def library() -> ctypes.CDLL:
    found = ctypes.CDLL(str(LIBRARY))
    found.rwkv_edge_last_error.restype = ctypes.c_char_p
    found.rwkv_edge_model_free.restype = found.rwkv_edge_session_free.restype = None
    return found


def ask(function: str, *arguments: Any) -> None:
    status = library()[function](*arguments)
    if status != 0:
        text = library().rwkv_edge_last_error().decode("utf-8", "replace")
        raise STATUSES.get(status, AssertionError)(text)


def logits_in_c(path: Path, tokens: Sequence[int]) -> np.ndarray:
    options = struct.pack("@Niq", 24, 1, 0)  # size, threads, device
    model, session, n_vocab = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int64()
    try:
        ask("rwkv_edge_model_open", os.fsencode(path), options, ctypes.byref(model))
        ask("rwkv_edge_model_info", model, b"n_vocab", ctypes.byref(n_vocab))
        ask("rwkv_edge_session_new", model, ctypes.byref(session))
        logits = np.empty(n_vocab.value, np.float32)
        ids = (ctypes.c_int32 * len(tokens))(*(token % n_vocab.value for token in tokens))
        to = ctypes.c_void_p(logits.ctypes.data)
        ask("rwkv_edge_feed", session, ids, ctypes.c_size_t(len(ids)), to, None, None)
    finally:
        library().rwkv_edge_session_free(session)
        library().rwkv_edge_model_free(model)
    return logits


def talk_in_c(path: Path) -> None:
    """Both readers take the same files, and make the same model of one."""
    tokens = (1, 2, 0)
    try:
        model = Model(path, threads=1)
    except (FormatError, UnsupportedError, ValueError):
        logits_in_c(path, tokens)
        return
    expected = model.session().feed([token % model.n_vocab for token in tokens])
    if not np.array_equal(logits_in_c(path, tokens), expected, equal_nan=True):
        raise AssertionError("the C library computes other logits")


# ---- states -------------------------------------------------------------------------------------


def state(rng: random.Random) -> Files:
    file = tiny.Gguf()
    arch, parts = rng.choice(
        (
            ("rwkv7", {"att_shift": (2, 32), "wkv": (2, 2, 16, 16), "ffn_shift": (2, 32)}),
            ("rwkv4", {x: (2, 32) for x in ("att_shift", "aa", "bb", "pp", "ffn_shift")}),
            ("time_state", {"time_state": (2, 2, 16, 16)}),
        )
    )
    file.put("rwkv_edge.state.arch", tiny.STRING, arch)
    said = {
        "version": (tiny.U32, rng.choice((1, 2, 2, 3))),
        "tokens": (tiny.U64, rng.choice((0, 7, 1 << 63))),
        "fingerprint": (tiny.STRING, rng.choice(("0" * 64, "x"))),
        "sampler.seed": (tiny.U64, 7),
        "sampler.tokens": (tiny.ARRAY, struct.pack("<IQ2I", tiny.U32, 2, 3, 1 << 31)),
        "text": (tiny.STRING, tiny.string(rng.choice(WORDS).encode("utf-8", "surrogatepass"))),
    }
    for name, (kind, found) in said.items():
        if rng.random() < 0.3:
            file.put(f"rwkv_edge.state.{name}", kind, found)
    if rng.random() < 0.3:
        parts = {**parts, "output": (32,)}
    for name, shape in parts.items():
        half = rng.random() < 0.1
        data = struct.pack("<e" if half else "<f", rng.random()) * int(np.prod(shape))
        file.tensors.append(tiny.Entry(name, list(shape[::-1]), int(half), data))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        change_gguf(rng, file)
    return {"a.state": maybe(rng, gguf_bytes(file))}


def tuned(rng: random.Random) -> Files:
    states = dict(tiny.random_states(SHAPES["7"], seed=2))
    if rng.random() < 0.3:
        name = rng.choice(list(states))
        states[rng.choice(("blocks.7.att.time_state", "x", name))] = states.pop(name)[:1]
    if rng.random() < 0.5:
        return pth_files(rng, states, "tuned.pth")
    return {"tuned.st": safetensors_data(rng, states)}


@cache
def model_of(version: str, folder: Path) -> Model:
    path = folder / f"model-{version}.gguf"
    path.write_bytes(gguf_of(version, "f32", False).to_bytes())
    return Model(path, threads=1)


def begin(path: Path) -> None:
    """Load a state, save it, and go on from it where it fits."""
    loaded = State.load(path, any_model=True)
    str(loaded.shape)
    loaded.numpy()
    loaded.save(beside(path, "again.state"))
    State.load(beside(path, "again.state"))
    session = model_of("7", beside(path, "")).session(loaded)
    session.feed([1, 2])


def merge(path: Path) -> None:
    convert(base_file(path), beside(path, "out.gguf"), state=path, vocab=vocabulary_file(path))


def base_file(path: Path) -> Path:
    file = beside(path, "base.pth")
    if not file.exists():
        file.write_bytes(ck.pth_of(weights_of("7")))
    return file


# ---- adapters -----------------------------------------------------------------------------------


def adapter(rng: random.Random) -> Files:
    base = weights_of("7")
    modules = [
        f"blocks.{i}.{name}" for i in (0, 1) for name in ("att.key", "ffn.value", "att.output")
    ]
    kind = rng.randrange(4)
    if kind < 2:
        tensors = adapters.pairs_of(base, modules)
    elif kind == 2:
        tensors = {f"{m}.disha": ck.random(8, base[f"{m}.weight"].shape[0]) for m in modules}
    else:
        tensors = {f"{m}.bone": ck.random(2, 16, 16) for m in modules}
    if rng.random() < 0.3:
        tensors["blocks.0.ln1.weight"] = ck.random(32)
    if rng.random() < 0.4:
        name = rng.choice(list(tensors))
        old = tensors.pop(name)
        tensors[rng.choice((name, f"{name}.weight", f"model.{name}", "x.lora_A"))] = rng.choice(
            (old, old[:1], old.reshape(-1), old * np.float32(1e30))
        )
    if kind != 0:
        if rng.random() < 0.5:
            return pth_files(rng, tensors, "adapter.pth")
        return {"adapter.safetensors": safetensors_data(rng, tensors)}
    config: Any = adapters.LORA | {"alpha_pattern": {"att.key": 3}, "rank_pattern": {}}
    named = {f"base_model.model.{name}.weight": v for name, v in tensors.items()}
    return {
        "adapter_config.json": maybe(rng, as_json(rng, change_json(rng, config)), 0.1),
        "adapter_model.safetensors": safetensors_data(rng, named, 0.4),
    }


def merge_adapter(path: Path) -> None:
    alpha = None if path.is_dir() else 8.0
    vocab = vocabulary_file(path)
    convert(base_file(path), beside(path, "out.gguf"), adapter=path, alpha=alpha, vocab=vocab)


# ---- vocabularies -------------------------------------------------------------------------------


def world(rng: random.Random) -> Files:
    lines = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)]
    lines += ["300 'hello' 5", "301 '\\u00e9' 2", "302 '\\n\\n' 2", "400 'hello world' 11"]
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        i = rng.randrange(len(lines))
        parts = lines[i].split(" ")
        kind = rng.randrange(6)
        if kind == 0:
            parts[0] = rng.choice((str(rng.choice(NUMBERS)), "1_0", "٣", "9" * 5000))
        elif kind == 1:
            parts[-1] = str(rng.choice(NUMBERS))
        elif kind == 2:
            parts[1:2] = [rng.choice(LITERALS)]
        elif kind == 3:
            parts.append(rng.choice(WORDS))
        elif kind == 4:
            lines.insert(i, lines[rng.randrange(len(lines))])
            continue
        else:
            parts = [rng.choice(("", " ", "\t", "1 'a'", "'a' 1"))]
        lines[i] = " ".join(parts)
    text = rng.choice(("\n", "\n", "\n", "\r\n")).join(lines)
    return {"vocabulary.txt": maybe(rng, text.encode("utf-8", "surrogatepass"))}


LITERALS = (
    *(
        "'a'",
        "b'a'",
        "''",
        "1",
        "None",
        "[]",
        "'a' 'b'",
        "f'{x}'",
        "b'\\xff'",
        "'\\ud800'",
        "'\\N{BEE}'",
    ),
    *(
        "'" + "a" * 300 + "'",
        "(" * 900,
        "-" * 900 + "1",
        "'\\x",
        "u'a'",
        "rb'\\x'",
        "'''a'''",
        "{1:2}",
    ),
    *(
        "9" * 800,
        "1e999",
        "1j",
        "b'" + "\\x00" * 256 + "'",
        "'\0'",
        "'a'if 1 else'b'",
        "print('x')",
    ),
)


def tokenizer(rng: random.Random) -> Files:
    spec = pile.tokenizer(pairs=rng.random() < 0.5)
    if rng.random() < 0.9:
        spec = change_json(rng, spec, 4)
    if rng.random() < 0.1:
        spec["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [value(rng), spec.get("pre_tokenizer")],
        }
    return {"tokenizer.json": maybe(rng, as_json(rng, spec), 0.15)}


@cache
def trained(kind: str) -> bytes:
    return train(model_type=kind, vocab_size=400)


def sentencepiece(rng: random.Random) -> Files:
    model = trained(rng.choice(("bpe", "unigram")))
    fields = [(tag, data) for tag, data, _ in protobuf_fields(model) if isinstance(data, bytes)]
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        i = rng.randrange(len(fields))
        if rng.random() < 0.3:  # those after the pieces say how it works
            i = rng.randrange(max(0, len(fields) - 4), len(fields))
        tag, data = fields[i]
        kind = rng.randrange(7)
        if kind == 0:
            del fields[i]
            if not fields:
                break
        elif kind == 1:
            fields.insert(i, fields[rng.randrange(len(fields))])
        elif kind == 2:
            fields[i] = (rng.choice((1, 2, 3, 4, 5)), data)
        elif kind == 3:
            charsmap = struct.pack("<I", number(rng) % (1 << 32)) + rng.randbytes(
                rng.choice((0, 64, 900))
            )
            spec = b"\x12" + varint(len(charsmap)) + charsmap
            fields.append((rng.choice((3, 5)), spec))
        elif kind == 4:
            sample = b"\x0a\x03abc\x12\x03abc"
            fields.append((4, b"\x0a" + varint(len(sample)) + sample))
        else:
            fields[i] = (tag, damage(rng, data, 2))
    data = b"".join(varint(tag << 3 | 2) + varint(len(data)) + data for tag, data in fields)
    return {"tokenizer.model": maybe(rng, data, 0.15)}


def in_a_file(path: Path) -> None:
    """A vocabulary as it comes out of a model's file."""
    vocabulary = read_vocabulary(path)
    metadata = vocabulary.padded(len(vocabulary.texts) + 3)
    tokenize(tokenizer_from_file(ModelFile.assemble(path, header(metadata, []), [])))


def like_the_library(path: Path) -> None:
    """The tokens of a model that the library takes too are the library's."""
    model = path.read_bytes()
    tokenizer = ours(model, str(path))
    try:
        library = LibraryTokenizer(model)
    except (KeyError, IndexError, RuntimeError, OSError):
        return  # where its self-test fails, say
    for text in TEXTS:
        try:
            tokens = library.encode(text.encode())
            # It gives unused characters a token, and the text is lost.
            expected = tokens if all(map(library.token_bytes, tokens)) else None
        except (KeyError, ValueError):  # a byte or a character that the vocabulary lacks
            continue
        if expected is not None and tokenizer.encode(text) != expected:
            raise AssertionError(f"{text[:50]!r} has other tokens in the library")


# ---- the history of the chat --------------------------------------------------------------------


def history(rng: random.Random) -> Files:
    said = (
        *TEXTS,
        "/save a",
        "what is\vthis",
        "\x1b[2J",
        "\u202egnp",
        "a" * 5000,
        "\0",
        "\r",
        "\x85",
    )
    lines = [
        rng.choice((*said, rng.choice(WORDS))) for _ in range(rng.choice((0, 1, 9, 999, 2000)))
    ]
    data = rng.choice(("\n", "\n", "\r\n", "")).join(lines).encode("utf-8", "surrogatepass")
    return {"history": maybe(rng, data + rng.choice((b"\n", b"", b"\xff", b"\xf0\x9f")))}


def remember(path: Path) -> None:
    """What a chat does with it: show the lines, add some, write all, and read them again."""
    before = read_history(path)
    with_readline(before)
    readline.clear_history()
    if any(line != printable(line, lines=True) for line in before):
        raise AssertionError("a line of the history steers the terminal")
    new = ["one line", "two\nlines", "\x1b[2J", "\udcff"]
    add_to_history(path, new)
    after = read_history(path)
    kept = [*before, "one line", "two\nlines", "\ufffd[2J", "?"][-HISTORY_LINES:]
    if path.stat().st_size <= HISTORY_BYTES and after != kept:
        raise AssertionError(f"{len(before)} lines and {len(new)} became {len(after)} others")


# ---- chat ---------------------------------------------------------------------------------------


def template(rng: random.Random) -> Files:
    found = fields_of_template(rng.choice(list(TEMPLATES.values())))
    if rng.random() < 0.7:
        found = change_json(rng, found)
    return {"template.json": maybe(rng, as_json(rng, found), 0.1)}


def write_turn(path: Path) -> None:
    found = load_template(path)
    found.told("a"), found.asked("b"), found.answered("c"), found.stops(paragraphs=True)


def conversation(rng: random.Random) -> Files:
    turns = (Turn("a", "b"), Turn("c", ""))
    found = json.loads(text_of(Transcript(TEMPLATES["g1"], "system", turns, None)))
    if rng.random() < 0.7:
        found = change_json(rng, found)
    return {"text": maybe(rng, as_json(rng, found), 0.1)}


def read_turns(path: Path) -> None:
    found = transcript_of(path.read_text("utf-8", "surrogateescape"))
    if found is None:
        raise FormatError(f"{path}: no conversation")
    found.template.told(found.system)
    assert all(found.template.asked(turn.user) and turn.answer is not None for turn in found.turns)


# ---- the server's JSON --------------------------------------------------------------------------

ASKED: dict[str, Any] = {
    "model": "m", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3,
    "temperature": 1.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "presence_penalty": 0.1,
    "penalty_decay": 0.9, "seed": 1, "logit_bias": {"5": -1, "7": 2.5}, "stop": ["a", ""],
    "stop_token_ids": [3], "n": 2, "min_tokens": 1, "ignore_eos": True, "timeout": 5, "state": None,
    "store": False, "cache": True,
}  # fmt: skip
TALKED: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "d"},
        {"role": "assistant", "content": "e", "prefix": True},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "g", "parameters": {
        "type": "object", "properties": {"x": {"enum": ["h"]}}, "required": ["x"]}}}],
    "tool_choice": "auto", "response_format": {"type": "json_schema", "json_schema": {
        "name": "s", "schema": {"type": "object", "properties": {"y": {"type": "integer"}}}}},
    "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low", "thinking_budget": 2,
    "user_name": "U", "chat_template_kwargs": {"enable_thinking": True},
}  # fmt: skip
COMPLETED: dict[str, Any] = {
    "prompt": ["a", [1, 2]], "echo": True, "logprobs": 1, "guided_regex": "a+", "suffix": None,
}  # fmt: skip


A_SCHEMA = {"type": "object", "properties": {"x": {"enum": ["h"]}}, "required": ["x"]}
A_TURN = {"role": "user", "content": [{"type": "text", "text": "b"}]}
ITEMS: dict[str, Any] = {
    "input": [
        {"role": "developer", "content": "a"}, A_TURN,
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "q"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "r"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "d"},
    ],
    "instructions": "g", "previous_response_id": None, "max_output_tokens": 4, "store": True,
    "tools": [{"type": "function", "name": "f", "parameters": A_SCHEMA}, {"type": "web_search"}],
    "tool_choice": {"type": "function", "name": "f"}, "metadata": {"k": "v"}, "background": False,
    "text": {"format": {"type": "json_schema", "name": "s", "schema": A_SCHEMA}},
    "reasoning": {"effort": "low", "summary": "auto"},
}  # fmt: skip
BLOCKS: dict[str, Any] = {
    "system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        A_TURN,
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "q", "signature": ""},
            {"type": "text", "text": "r"},
            {"type": "tool_use", "id": "c", "name": "f", "input": {"x": "h"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "d"}]},
            {"type": "text", "text": "e"}]},
        {"role": "assistant", "content": "k"},
    ],
    "tools": [{"name": "f", "description": "g", "input_schema": A_SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f"}, "stop_sequences": ["z"],
    "thinking": {"type": "enabled", "budget_tokens": 2},
    "output_config": {"format": {"type": "json_schema", "schema": A_SCHEMA}},
}  # fmt: skip
OLLAMAS: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "a"}, {"role": "user", "content": "b", "images": []},
        {"role": "assistant", "content": "", "thinking": "q", "tool_calls": [
            {"function": {"name": "f", "arguments": {"x": "h"}}}]},
        {"role": "tool", "tool_name": "f", "content": "d"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": A_SCHEMA}}],
    "options": {"num_predict": 3, "temperature": 1, "top_k": 5, "stop": ["z"], "seed": 3,
                "num_ctx": 100},
    "think": "low", "format": A_SCHEMA, "keep_alive": "5m", "prompt": "b", "system": "a",
    "raw": False, "suffix": "", "context": [],
}  # fmt: skip


def asked_with(*parts: dict[str, Any]) -> Make:
    def make(rng: random.Random) -> Files:
        part = rng.choice(parts)
        tree = {**ASKED, **{name: part[name] for name in part if rng.random() < 0.7}}
        return {"body.json": maybe(rng, as_json(rng, change_json(rng, tree, 4)), 0.1)}

    return make


@cache
def service_of(folder: Path) -> Service:
    return Service(model_of("7", folder), Options(max_prompt=1000, template=TEMPLATES["g1"]))


Writes = Callable[[Sequence[Event]], object]


def in_openai(body: Fields, n_vocab: int) -> tuple[Request | None, Writes]:
    if body.sent("messages"):
        requests = read_chat(body, n_vocab)
    else:
        requests, _ = read_completions(body, n_vocab)
    read_stream(body)
    return requests[0], len


def in_responses(body: Fields, n_vocab: int) -> tuple[Request | None, Writes]:
    found, id = responses.read_request(body, n_vocab)
    writer = responses.Writer(responses.about(body, "m", found, id))
    return found, lambda events: [each for event in events for each in writer.told(event)]


def in_anthropic(body: Fields, n_vocab: int) -> tuple[Request | None, Writes]:
    writer = anthropic.Writer("m")
    found = anthropic.read_request(body, n_vocab)
    return found, lambda events: [each for event in events for each in writer.told(event)]


def in_ollama(body: Fields, n_vocab: int) -> tuple[Request | None, Writes]:
    chats = body.sent("messages")
    found = (ollama.read_chat if chats else ollama.read_generate)(body, n_vocab)

    def write(events: Sequence[Event]) -> object:
        whole = Whole()
        for event in events:
            whole.add(event)
        end = [] if whole.finish is None else [ollama.last(whole.finish)]
        return [(ollama.chat_part if chats else ollama.generate_part)(whole), *end]

    return found, write


Reads = Callable[[Fields, int], "tuple[Request | None, Writes]"]


def serve(read: Reads, path: Path) -> None:
    """Answer as the server does, but for HTTP and its threads."""
    service = service_of(beside(path, ""))
    try:
        request, write = read(Fields(read_json(path.read_bytes())), service.model.n_vocab)
        if request is None:
            return
        program = service._program(request, Caller(""))
    except Refused as error:
        if error.status >= 500:
            raise
        raise FormatError(f"{path}: {error}") from None
    steps, rows = program.steps(), None
    for _ in range(40):
        try:
            feed = steps.send(rows)
        except StopIteration:
            break
        assert feed is not None
        logits = feed_together([(feed.session, feed.tokens, feed.logits)])
        rows = Rows(logits, 0)
        program.expired = program.expired or len(program.events) > 20
    steps.close()
    events = [x.finish if isinstance(x, Ended) else x for x in program.events]
    to_json(write([event for event in events if not isinstance(event, Vector)]))


def state_request(rng: random.Random) -> Files:
    tree = {"messages": TALKED["messages"][:-1], "prompt": "a", "from": None, "ttl": 5}
    return {"body.json": maybe(rng, as_json(rng, change_json(rng, tree)), 0.1)}


def make_state(path: Path) -> None:
    service = service_of(beside(path, ""))
    try:
        found = read_state(Fields(read_json(path.read_bytes())), service.model.n_vocab)
        service._reading(found, Caller(""))
    except Refused as error:
        raise FormatError(f"{path}: {error}") from None


# ---- all ----------------------------------------------------------------------------------------

USES: Sequence[Callable[[Path], object]] = (describe, talk_with_vocabulary, converted)


def reader(
    name: str, make: Make, *uses: Callable[[Path], object], needs: Path | None = None
) -> tuple[str, Reader]:
    return name, Reader(name, make, uses or USES, needs)


READERS = dict(
    (
        reader("gguf", gguf, describe, talk, small),
        reader("pth", lambda rng: pth_files(rng, some_weights(rng))),
        reader("safetensors", safetensors),
        reader("st", st),
        reader("hub", hub_folder),
        reader("ggmf", ggmf),
        reader("ggmf-c", ggmf, talk_in_c, needs=LIBRARY),
        reader("state", state, describe, begin),
        reader("tuned", tuned, describe, begin, merge),
        reader("adapter", adapter, describe, merge_adapter),
        reader("template", template, write_turn),
        reader("conversation", conversation, read_turns),
        reader("world", world, describe, in_a_file),
        reader("tokenizer", tokenizer, describe, in_a_file),
        reader("sentencepiece", sentencepiece, describe, in_a_file, like_the_library),
        reader("history", history, remember),
        reader("request", asked_with(TALKED, COMPLETED), partial(serve, in_openai)),
        reader("responses", asked_with(ITEMS), partial(serve, in_responses)),
        reader("messages", asked_with(BLOCKS), partial(serve, in_anthropic)),
        reader("ollama", asked_with(OLLAMAS), partial(serve, in_ollama)),
        reader("state-request", state_request, make_state),
    )
)
