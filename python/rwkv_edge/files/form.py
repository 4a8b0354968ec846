# SPDX-License-Identifier: Apache-2.0
"""What a file is, by its first bytes; reading and showing what may be hostile; GGUF's names."""

from __future__ import annotations

import errno
import os
import re
import reprlib
import stat
import sys
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from .._core import FormatError
from .output import AT_ONCE, PLAIN

# What files are written in, with llama.cpp's numbers for general.file_type.
FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q3_k": 12,
    "q4_k": 15,
    "q5_k": 17,
    "q6_k": 18,
    "bf16": 32,
}
ALIASES = {"fp32": "f32", "fp16": "f16", "int8": "q8_0", "int4": "q4_0"}
# ffn.value of a layer, and the same transposed, so that its rows are inputs.
VALUE, BY_INPUT = "channel_mix_value.weight", "channel_mix_value_t.weight"
# A head's state is [key, value] in these architectures. It is [value, key] in RWKV-7, and in every
# checkpoint and tuned state.
KEY_FIRST = ("rwkv5", "rwkv6")
STATE_KEYS = "rwkv_edge.state."  # of a saved state
ARCH_KEY = STATE_KEYS + "arch"  # what it is a state of
# A tuned state: made by training, for whatever model has its heads. It has one part, of that name.
TUNED = "time_state"


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


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError where that cannot be done, FormatError for a pipe or
    a device, from which one might read for ever."""
    if sys.platform == "win32" and path.is_dir():  # which it refuses as if it were forbidden
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    number = os.open(path, os.O_RDONLY | AT_ONCE | PLAIN)
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise FormatError(f"{path}: a pipe or a device, expected a regular file")
    except BaseException:
        os.close(number)
        raise
    return os.fdopen(number, "rb")


def read_bytes(path: Path, most: int, what: str) -> bytes:
    """All of a small regular file; FormatError where it has more than `most` bytes."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise FormatError(f"{path}: not {what}, larger than {most} bytes")
    return data


def form_of(path: Path) -> Form:
    """The form of a file. Raises OSError where it cannot be read, as a folder cannot, FormatError
    where it is no regular file."""
    with open_regular(path) as file:
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


SHOWN = reprlib.Repr()
SHOWN.maxlevel, SHOWN.maxstring, SHOWN.maxother, SHOWN.maxlong = 2, 80, 80, 40


def shown(value: object) -> str:
    """A value from a file as `repr` has it, but short: `repr` itself may take for ever."""
    return SHOWN.repr(value)


# Characters that steer a terminal, or turn the direction of what follows; lone surrogates stand for
# bytes that are no UTF-8.
STEERING = dict.fromkeys(
    (
        *range(32),
        *range(127, 160),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    ),
    "\ufffd",
)
STEERING_BUT_LINES = {code: new for code, new in STEERING.items() if chr(code) not in "\n\t"}


def printable(text: str, *, lines: bool = False) -> str:
    """A text from a file or a model with U+FFFD for every character that could steer a terminal.

    Newlines and tabs stay only where it may have several `lines`.
    """
    return text.translate(STEERING_BUT_LINES if lines else STEERING)


def check_kind(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raises TypeError for an argument of another type than `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: found {shown(value)}, expected {expected}")


def utf8(name: str, text: str, errors: str = "surrogateescape") -> bytes:
    """A text's bytes. Surrogate escapes are the bytes that they came from, unless `errors` is
    "strict".

    Raises TypeError for what is no text, ValueError for halves of characters; both begin with
    `name`.
    """
    check_kind(name, text, str, "a text")
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError:
        text = f"{name}: found {shown(text)}, expected characters that UTF-8 has"
        raise ValueError(text) from None


def amount(nbytes: float) -> str:
    """A number of bytes as people read it."""
    unit = next((unit for unit in (1, 1e3, 1e6) if nbytes < 999.5 * unit), 1e9)
    name = {1: "bytes", 1e3: "KB", 1e6: "MB", 1e9: "GB"}[unit]
    return f"{nbytes / unit:.3g} {name}"
