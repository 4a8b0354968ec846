# SPDX-License-Identifier: Apache-2.0
"""Vocabularies, from the files they come in to the metadata of a GGUF file."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from .._core import FormatError, sentencepiece_model
from ..files.form import Form, form_of, read_bytes, shown
from ..files.gguf_writer import Value, string, uint32
from ..tokenizer import (
    HUGGINGFACE_KEY,
    MAX_TOKENS,
    SENTENCEPIECE_KEY,
    piece_bytes,
    pre_tokenizers,
    read_pieces,
)

NORMAL, UNKNOWN, CONTROL, USER, UNUSED = 1, 2, 3, 4, 5  # llama.cpp's token types
WORLD_FILE = "rwkv_vocab_v20230424.txt"
# What vocabularies are called that come with a model.
FILES = ("20B_tokenizer.json", "tokenizer.json", WORLD_FILE, "tokenizer.model")
TURN_END = "\n\n"
WORLD = 65530  # ids of the World vocabulary
BYTES = 256  # embeddings of a model whose tokens are bytes
ROUNDING = 512  # the largest number to whose multiples trainers are known to round the embeddings
MAX_BYTES = 1 << 24  # of a vocabulary file; World has one megabyte
MAX_TOKEN = 256  # bytes of a World token; the longest has 128
MAX_LINE = 4 * MAX_TOKEN + 64  # of a World vocabulary, each byte written as \\x00


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, as llama.cpp writes them, with their types."""

    source: str
    kind: str
    texts: list[str]
    types: list[int]
    metadata: Mapping[str, Value]
    scores: list[float] = field(default_factory=list)

    def padded(self, rows: int) -> dict[str, Value]:
        """The metadata for a model of `rows` embeddings; FormatError where they are too few."""
        unused = range(len(self.texts), rows)
        if rows > MAX_TOKENS:
            raise FormatError(
                f"{self.source}: a model of {rows} embeddings, expected at most {MAX_TOKENS}"
            )
        if len(self.texts) > rows:
            raise FormatError(
                f"{self.source}: a vocabulary of {len(self.texts)} tokens, but the model has "
                f"{rows} embeddings; this is not its vocabulary (--vocab FILE)"
            )
        texts = self.texts + [f"[PAD{i}]" for i in unused]
        types = self.types + [UNUSED] * len(unused)
        scores = self.scores and self.scores + [-1000.0] * len(unused)
        return {
            **self.metadata,
            "tokenizer.ggml.tokens": Value("array[string]", texts),
            "tokenizer.ggml.token_type": Value("array[int32]", types),
            **({"tokenizer.ggml.scores": Value("array[float32]", scores)} if scores else {}),
            "tokenizer.ggml.bos_token_id": uint32(0),
            "tokenizer.ggml.eos_token_id": uint32(0),
        }


def find_vocabulary(
    folder: Path, rows: int, vocab: str | PathLike[str] | None = None
) -> dict[str, Value]:
    """The `tokenizer.*` metadata for a model with `rows` embeddings whose files lie in a folder.

    `vocab` is the vocabulary's file. Where none is named, one that lies in the folder is taken if
    its tokens are as many, but for what trainers add to have a round number of embeddings. Else a
    model of 256 embeddings reads bytes, and for World models there is the vocabulary in the package
    pyrwkv-tokenizer. Empty where nothing fits; raises what `read_vocabulary` raises, and
    FormatError where `vocab` has more tokens than rows.
    """
    if vocab is not None:
        return read_vocabulary(Path(vocab)).padded(rows)
    for path in (folder / name for name in FILES):
        if path.is_file() and (found := _if_fitting(read_vocabulary(path), rows)):
            return found
    if rows == BYTES:
        return byte_vocabulary().padded(rows)
    world = world_file() if rows >= WORLD else None  # reading it takes a second
    return {} if world is None else _if_fitting(read_vocabulary(world), rows)


def _if_fitting(vocabulary: Vocabulary, rows: int) -> dict[str, Value]:
    fits = 0 <= rows - len(vocabulary.texts) < ROUNDING
    return vocabulary.padded(rows) if fits else {}


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a World vocabulary (.txt), a Hugging Face tokenizer.json such as 20B_tokenizer.json, or
    a sentencepiece model; the content decides.

    Raises FormatError where it is malformed, UnsupportedError for another kind of tokenizer.json,
    OSError where it cannot be read.
    """
    form = form_of(path)
    if form is Form.SENTENCEPIECE:
        return _sentencepiece(path)
    if form in (Form.TOKENIZER, Form.HUB):
        return _huggingface(path)
    return world_vocabulary(str(path), read_world(path))


def world_file() -> Path | None:
    """The vocabulary inside the package pyrwkv-tokenizer, where that is installed."""
    spec = importlib.util.find_spec("pyrwkv_tokenizer")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name(WORLD_FILE)
    return path if path.is_file() else None


# ---- World --------------------------------------------------------------------------------------


# Nearly every literal; evaluating 65,529 of them would take most of a second.
PLAIN = re.compile(r"'([^'\\\0]*)'")


def read_world(path: Path) -> dict[int, bytes]:
    """Tokens by id. A line is `id literal length`, the literal a Python str or bytes."""
    text = _text(path, "a World vocabulary")
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
        where = f"{path}: line {number}"
        token_id, token = _world_line(where, line)
        if token_id in tokens:
            raise FormatError(f"{where}: id {token_id} appears twice")
        tokens[token_id] = token
    if len(set(tokens.values())) != len(tokens):
        raise FormatError(f"{path}: two ids have the same bytes")
    return tokens


def _world_line(where: str, line: str) -> tuple[int, bytes]:
    try:
        if len(line) > MAX_LINE:
            raise ValueError("a line that no token needs")
        first, rest = line.split(" ", 1)
        literal, last = rest.rsplit(" ", 1)
        token_id, length = int(first), int(last)
        plain = PLAIN.fullmatch(literal)
        token = plain[1] if plain else ast.literal_eval(literal)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise FormatError(f"{where}: expected `id 'token' length`, found {line[:60]!r}") from None
    if isinstance(token, str):
        token = token.encode("utf-8", "surrogatepass")
    if not isinstance(token, bytes) or len(token) != length or length == 0:
        raise FormatError(f"{where}: the token {literal[:60]} does not have {shown(length)} bytes")
    if length > MAX_TOKEN:
        raise FormatError(f"{where}: a token of {length} bytes, expected at most {MAX_TOKEN}")
    if not 1 <= token_id < MAX_TOKENS:
        raise FormatError(
            f"{where}: id {shown(token_id)}, expected from 1 to {MAX_TOKENS - 1}; 0 ends a document"
        )
    return token_id, token


def world_vocabulary(source: str, tokens: Mapping[int, bytes]) -> Vocabulary:
    """As llama.cpp's converter writes it: token 0 ends a document, ids without bytes are unused."""
    count = max(tokens, default=0) + 1
    texts, types = [f"[PAD{i}]" for i in range(count)], [UNUSED] * count
    texts[0], types[0] = "<s>", CONTROL
    for token_id, token in tokens.items():
        texts[token_id], types[token_id] = repr(token)[2:-1], NORMAL
    metadata = {"tokenizer.ggml.model": string("rwkv")}
    # A blank line ends a turn. llama.cpp's converter has the number, 261; any vocabulary will do.
    turn = next((i for i, token in tokens.items() if token == TURN_END.encode()), None)
    if turn is not None:
        metadata["tokenizer.ggml.eot_token_id"] = uint32(turn)
    return Vocabulary(source, "RWKV World", texts, types, metadata)


def byte_vocabulary() -> Vocabulary:
    """That of models whose tokens are bytes: a World vocabulary with nothing else. Token 0 ends a
    document."""
    return world_vocabulary("bytes", {byte: bytes([byte]) for byte in range(1, BYTES)})


# ---- Hugging Face -------------------------------------------------------------------------------


def _huggingface(path: Path) -> Vocabulary:
    text = _text(path, "a Hugging Face tokenizer")
    spec, pieces = read_pieces(text, str(path))
    count = max(pieces) + 1
    texts, types = [f"[PAD{i}]" for i in range(count)], [UNUSED] * count
    for i, piece in pieces.items():
        piece_bytes(piece, str(path))
        texts[i] = piece.text
        types[i] = CONTROL if piece.special else USER if piece.added else NORMAL
    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.merges": Value("array[string]", spec["model"]["merges"]),  # for llama.cpp
        HUGGINGFACE_KEY: string(text),
    }
    if len(pre_tokenizers(spec)) == 1:  # and not another way to cut words than GPT-2's
        metadata["tokenizer.ggml.pre"] = string("gpt-2")
    return Vocabulary(str(path), "Hugging Face", texts, types, metadata)


# ---- sentencepiece ------------------------------------------------------------------------------


def _sentencepiece(path: Path) -> Vocabulary:
    model = read_bytes(path, MAX_BYTES, "a sentencepiece model")
    texts, scores, types, adds_space = sentencepiece_model(model, str(path))
    metadata = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.add_bos_token": Value("bool", False),
        "tokenizer.ggml.add_space_prefix": Value("bool", adds_space),
        SENTENCEPIECE_KEY: Value("array[uint8]", model),
    }
    if UNKNOWN in types:
        metadata["tokenizer.ggml.unknown_token_id"] = uint32(types.index(UNKNOWN))
    if TURN_END in texts:
        metadata["tokenizer.ggml.eot_token_id"] = uint32(texts.index(TURN_END))
    return Vocabulary(str(path), "sentencepiece", texts, types, metadata, scores)


def _text(path: Path, what: str) -> str:
    try:
        return read_bytes(path, MAX_BYTES, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not {what}, not UTF-8 ({error})") from None
