# SPDX-License-Identifier: Apache-2.0
"""Texts to measure or to calibrate with, as windows of tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files.form import read_bytes
from ..model import Model
from ..tokenizer import END_OF_TEXT

MOST_BYTES = 1 << 30  # of a text
STDIN = "-"

Windows = NDArray[np.int32]  # [windows, size]


def files_of(sources: Iterable[str | Path]) -> list[str | Path]:
    """The files that are meant: a folder stands for every file in it, at any depth, by name."""
    found: list[str | Path] = []
    for source in sources:
        folder = Path(source)
        if str(source) == STDIN or not folder.is_dir():
            found.append(source)
            continue
        inside = sorted(path for path in folder.rglob("*") if path.is_file())
        if not inside:
            raise ValueError(f"{folder}: an empty folder, expected texts in it")
        found += inside
    return found


def read_text(source: str | Path) -> str:
    """A text in a file, or of stdin for "-".

    Raises ValueError, which names the source, for an empty text and for one that is not UTF-8.
    """
    if str(source) == STDIN:
        name, data = "stdin", sys.stdin.buffer.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"stdin: larger than {MOST_BYTES} bytes")
    else:
        name, data = str(source), read_bytes(Path(source), MOST_BYTES, "a text")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: byte {error.start} is {data[error.start]:#04x}, expected a text in UTF-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{name}: an empty text")
    return text


def tokens_of(model: Model, sources: Iterable[str | Path]) -> list[int]:
    """The tokens of some texts, with the token that ends a document between two of them."""
    ids: list[int] = []
    for source in files_of(sources):
        if ids:
            ids.append(END_OF_TEXT)
        ids += model.tokenizer.encode(read_text(source))
    return ids


def windows_of(ids: Sequence[int], size: int, where: str) -> Windows:
    """Tokens cut into windows; what is left at the end is not used.

    Raises ValueError, which names the text, where there is not one window.
    """
    count = len(ids) // size
    if count == 0:
        raise ValueError(f"{where}: {len(ids)} tokens, expected at least one window of {size}")
    return np.array(ids[: count * size], np.int32).reshape(count, size)
