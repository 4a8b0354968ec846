# SPDX-License-Identifier: Apache-2.0
"""What a file is, by its first bytes, and the names and numbers that GGUF files have for types."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

# What files are written in, with llama.cpp's numbers for general.file_type.
FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "bf16": 32,
}
ALIASES = {"fp32": "f32", "fp16": "f16", "int8": "q8_0", "int4": "q4_0"}
# A head's state is [key, value] in these architectures. It is [value, key] in RWKV-7, and in every
# checkpoint and tuned state.
KEY_FIRST = ("rwkv5", "rwkv6")


class Form(Enum):
    """The value is how a sentence names it. A file of the other byte order has the same form."""

    HUB = "the form of the Hugging Face hub"  # a folder, or the index of one
    GGUF = "GGUF form"
    PTH = "PyTorch form (.pth)"
    SAFETENSORS = "safetensors form"
    GGMF = "rwkv.cpp's form (.bin)"
    WORLD = "a World vocabulary"
    TOKENIZER = "a Hugging Face tokenizer"
    SENTENCEPIECE = "a sentencepiece model"
    EMPTY = "an empty file"
    UNKNOWN = "a form that is not known"


VOCABULARIES = (Form.WORLD, Form.TOKENIZER, Form.SENTENCEPIECE)
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # of torch before 1.6
GGMF_MAGIC = b"fmgg"  # as it lies in a little-endian file
BEGINNINGS = (
    ((b"GGUF", b"FUGG"), Form.GGUF),
    ((b"PK\3\4", LEGACY_MAGIC), Form.PTH),
    ((GGMF_MAGIC, GGMF_MAGIC[::-1]), Form.GGMF),
    (b"\n", Form.SENTENCEPIECE),  # its first field
)


def form_of(path: Path) -> Form:
    """The form of a file. Raises OSError where it cannot be read, as a folder cannot."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    # A length of eight bytes, then JSON. That length may begin like anything else.
    lengthy = start[8:9] == b"{"
    if lengthy and b"\0" in start[:8]:
        return Form.SAFETENSORS
    for magic, form in BEGINNINGS:
        if start.startswith(magic):
            return form
    if start.startswith(b"{"):
        return Form.HUB if b'"weight_map"' in start else Form.TOKENIZER
    if re.match(rb"\d+ b?['\"]", start):
        return Form.WORLD
    return Form.SAFETENSORS if lengthy else Form.UNKNOWN if start else Form.EMPTY


def is_gguf(path: Path) -> bool:
    return not path.is_dir() and form_of(path) is Form.GGUF


def amount(nbytes: float) -> str:
    """A number of bytes as people read it."""
    unit = next((unit for unit in (1, 1e3, 1e6) if nbytes < 1000 * unit), 1e9)
    name = {1: "bytes", 1e3: "KB", 1e6: "MB", 1e9: "GB"}[unit]
    return f"{nbytes / unit:.3g} {name}"
