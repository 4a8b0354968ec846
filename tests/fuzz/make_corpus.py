# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzz corpus: `python tests/fuzz/make_corpus.py`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "python"))

import sentencepiece_library as spm  # noqa: E402 (found through the line above)
import tiny  # noqa: E402


def every_value_type() -> tiny.Gguf:
    file = tiny.Gguf(version=2)
    file.put("general.alignment", tiny.U32, 64)
    for kind in tiny.FORMATS:
        file.put(f"scalar.{kind}", kind, 1)
        file.put(f"array.{kind}", tiny.ARRAY, tiny.array(kind, [1, 0, 1]))
    file.put("text", tiny.STRING, "caf\u00e9")
    texts = ["", "a", "ab", "b" * 40, "\\x61\\t", "\\xe4\\xbd\\xa0", "[PAD6]"]
    file.put("texts", tiny.ARRAY, tiny.array(tiny.STRING, texts))
    return file


def smallest_model(version: str, kind: str) -> tiny.Gguf:
    ranks = {"6": (4, 3), "7": (4, 3, 2, 5)}.get(version[0], ())
    head_size = 0 if version == "4" else 16
    shape = tiny.Shape(32, head_size, 1 + (version == "7"), 32, 6, ranks, "absent", version)
    file = tiny.tiny_model(shape, kind, seed=1, tuned=version in ("5.2", "6")).file
    for key in ("tokens", "token_type"):
        file.drop(f"tokenizer.ggml.{key}")
    return file


def split_and_divided() -> tiny.Gguf:
    """RWKV-6 as llama.cpp once wrote it: lerps apart, the outputs of later layers divided."""
    file = smallest_model("6", "f16")
    fused = file.tensor("blk.0.time_mix_lerp_fused.weight")
    file.tensors.remove(fused)
    for j in range(5):
        name, data = f"blk.0.time_mix_lerp_{'wkvrg'[j]}.weight", fused.data[j * 64 : (j + 1) * 64]
        file.tensors.append(tiny.Entry(name, [32], fused.type_id, data))
    file.put("rwkv6.rescale_every_n_layers", tiny.U32, 6)
    return file


def pieces(kind: int) -> tiny.Gguf:
    """A small sentencepiece model, and no other thing."""
    model = spm.piece("</s>", 0.0, spm.CONTROL) + spm.piece("<unk>", 0.0, spm.UNKNOWN)
    model += b"".join(spm.byte_pieces()) if kind == spm.BPE else b""
    texts = ("a", "b", "\u2581", "ab", "aa", "aab", "\u2581a", "abba", "\u00e9", "caf\u00e9")
    model += b"".join(spm.piece(text, -1.0 - i % 3) for i, text in enumerate(texts))
    model += spm.piece("ba", 0.0, spm.USER) + spm.piece("abb", -0.5, spm.UNUSED)
    model += spm.trainer(kind, kind == spm.BPE)
    file = tiny.Gguf()
    file.put("tokenizer.ggml.model", tiny.STRING, "llama")
    values = tiny.array(tiny.U8, list(model))
    file.put("rwkv_edge.sentencepiece_model", tiny.ARRAY, values)
    return file


def main() -> None:
    corpus = HERE / "corpus"
    corpus.mkdir(exist_ok=True)
    seeds = {"empty": tiny.Gguf(), "values": every_value_type()}
    seeds |= {f"rwkv7-{kind}": smallest_model("7", kind) for kind in ("f16", "q4_0", "q5_1")}
    others = {"4": "q8_0", "5.0": "f16", "5.2": "q5_0", "6": "q4_1", "7a": "q4_0"}
    seeds |= {f"rwkv{version}": smallest_model(version, kind) for version, kind in others.items()}
    seeds |= {"bpe": pieces(spm.BPE), "unigram": pieces(spm.UNIGRAM)}
    seeds["rwkv6-split"] = split_and_divided()
    for name, file in seeds.items():
        (corpus / f"{name}.gguf").write_bytes(file.to_bytes())


if __name__ == "__main__":
    main()
