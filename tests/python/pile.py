# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer.json, built like 20B_tokenizer.json of the Pile models."""

from __future__ import annotations

import json
from typing import Any

END, PADDING, FIRST_BYTE = 0, 1, 2
WORDS = (" the", "the", "hello", "\n\n", "Bob", "Alice", "\u00e9", "  ")


def spelled(data: bytes) -> str:
    """Bytes in GPT-2's characters: those that cannot be printed are counted up from U+0100."""
    unprintable = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b <= 172 or b >= 174)]
    return "".join(chr(256 + unprintable.index(b) if b in unprintable else b) for b in data)


def merges_of(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each word built from its left end on."""
    found: dict[tuple[str, str], None] = {}
    for word in words:
        data = word.encode()
        for i in range(1, len(data)):
            found[spelled(data[:i]), spelled(data[i : i + 1])] = None
    return list(found)


def added(number: int, content: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": number,
        "special": special,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not special,
    }


def tokenizer(*, pairs: bool = False) -> dict[str, Any]:
    """`pairs`: merges as newer files have them."""
    vocab = {"<|endoftext|>": END, "<|padding|>": PADDING}
    vocab |= {spelled(bytes([b])): FIRST_BYTE + b for b in range(256)}
    merges = merges_of(WORDS)
    for pair in merges:
        vocab.setdefault("".join(pair), len(vocab))
    number = len(vocab)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added(END, "<|endoftext|>", special=True),
            added(PADDING, "<|padding|>", special=True),
            added(number, " " * 8, special=False),
            added(number + 1, " " * 4, special=False),
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": vocab,
            "merges": [list(pair) if pairs else " ".join(pair) for pair in merges],
        },
    }


def text(**options: Any) -> str:
    return json.dumps(tokenizer(**options))


def token(word: str) -> int:
    """The id of a word of WORDS, or of a single byte."""
    number: int = tokenizer()["model"]["vocab"][spelled(word.encode())]
    return number
