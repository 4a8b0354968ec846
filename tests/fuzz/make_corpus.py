# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzz corpus: `python tests/fuzz/make_corpus.py`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "python"))

import tiny  # noqa: E402 (found through the line above)


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


def smallest_model(kind: str) -> tiny.Gguf:
    shape = tiny.Shape(32, 16, 2, 32, 6, (4, 3, 2, 5), "absent")
    file = tiny.tiny_model(shape, kind, seed=1).file
    for key in ("tokens", "token_type"):
        file.drop(f"tokenizer.ggml.{key}")
    return file


def main() -> None:
    corpus = HERE / "corpus"
    corpus.mkdir(exist_ok=True)
    seeds = {"empty": tiny.Gguf(), "values": every_value_type()}
    seeds |= {kind: smallest_model(kind) for kind in ("f16", "q4_0", "q5_1")}
    for name, file in seeds.items():
        (corpus / f"{name}.gguf").write_bytes(file.to_bytes())


if __name__ == "__main__":
    main()
