# SPDX-License-Identifier: Apache-2.0
"""Vocabularies, from the files they come in to the metadata of a GGUF file."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from .._core import FormatError, UnsupportedError
from .gguf_writer import Value, string, uint32

NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6  # llama.cpp's token types
WORLD_FILE = "rwkv_vocab_v20230424.txt"
MAX_BYTES = 1 << 26  # of a vocabulary file; World has one megabyte
CHAT_TEMPLATE = "rwkv-world"  # llama.cpp knows the template by this name


def load_vocabulary(path: Path | None, rows: int) -> dict[str, Value]:
    """The `tokenizer.*` metadata for a model with `rows` embeddings.

    `path` is a World vocabulary (.txt) or a sentencepiece model; the content decides. None means
    the World vocabulary of the package pyrwkv-tokenizer. Raises FormatError where the file is
    malformed or has more tokens than rows, UnsupportedError where there is none to be found.
    """
    if path is None:
        path = world_file()
        if path is None:
            raise UnsupportedError(
                "no vocabulary: name its file (--vocab FILE), or install the RWKV World "
                "vocabulary: pip install 'rwkv-edge[convert]'"
            )
    with path.open("rb") as file:
        start = file.read(1)
        if file.seek(0, 2) > MAX_BYTES:
            raise FormatError(f"{path}: not a vocabulary, larger than {MAX_BYTES} bytes")
    if start == b"\n":  # the first field of a sentencepiece model
        return _sentencepiece(path, rows)
    if start == b"{":
        raise UnsupportedError(
            f"{path}: a Hugging Face tokenizer; expected {WORLD_FILE} or a sentencepiece model"
        )
    return world_metadata(str(path), read_world(path), rows)


def world_file() -> Path | None:
    """The vocabulary inside the package pyrwkv-tokenizer, where that is installed."""
    spec = importlib.util.find_spec("pyrwkv_tokenizer")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name(WORLD_FILE)
    return path if path.is_file() else None


# ---- World --------------------------------------------------------------------------------------


def read_world(path: Path) -> dict[int, bytes]:
    """Tokens by id. A line is `id literal length`, the literal a Python str or bytes."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not a World vocabulary, not UTF-8 ({error})") from None
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
        first, rest = line.split(" ", 1)
        literal, last = rest.rsplit(" ", 1)
        token_id, length = int(first), int(last)
        token = ast.literal_eval(literal)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise FormatError(f"{where}: expected `id 'token' length`, found {line[:60]!r}") from None
    if isinstance(token, str):
        token = token.encode("utf-8", "surrogatepass")
    if not isinstance(token, bytes) or len(token) != length or length == 0:
        raise FormatError(f"{where}: the token {literal[:60]} does not have {length} bytes")
    if token_id < 1:
        raise FormatError(f"{where}: id {token_id}, expected 1 or more; 0 ends a document")
    return token_id, token


def world_metadata(name: str, tokens: Mapping[int, bytes], rows: int) -> dict[str, Value]:
    """As llama.cpp's converter writes it: token 0 ends a document, ids without bytes are unused."""
    if max(tokens, default=0) >= rows:
        raise FormatError(
            f"{name}: a token has id {max(tokens)}, but the model has {rows} embeddings; "
            "this is not its vocabulary (--vocab FILE)"
        )
    texts = [f"[PAD{i}]" for i in range(rows)]
    kinds = [UNUSED] * rows
    texts[0], kinds[0] = "<s>", CONTROL
    for token_id, token in tokens.items():
        texts[token_id], kinds[token_id] = repr(token)[2:-1], NORMAL
    metadata = {
        "tokenizer.ggml.model": string("rwkv"),
        "tokenizer.ggml.tokens": Value("array[string]", texts),
        "tokenizer.ggml.token_type": Value("array[int32]", kinds),
        "tokenizer.ggml.bos_token_id": uint32(0),
        "tokenizer.ggml.eos_token_id": uint32(0),
        "tokenizer.chat_template": string(CHAT_TEMPLATE),
    }
    # A blank line ends a turn. llama.cpp's converter has the number, 261; any vocabulary will do.
    turn = next((i for i, token in tokens.items() if token == b"\n\n"), None)
    if turn is not None:
        metadata["tokenizer.ggml.eot_token_id"] = uint32(turn)
    return metadata


# ---- sentencepiece ------------------------------------------------------------------------------


def _sentencepiece(path: Path, rows: int) -> dict[str, Value]:
    from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - slow to import

    model = path.read_bytes()
    try:
        pieces = SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
        raise FormatError(f"{path}: not a sentencepiece model ({error})") from None
    count = pieces.vocab_size()
    if not 0 < count <= rows:
        raise FormatError(
            f"{path}: {count} pieces, but the model has {rows} embeddings; "
            "this is not its vocabulary (--vocab FILE)"
        )
    unused = range(count, rows)
    texts = [pieces.id_to_piece(i) for i in range(count)] + [f"[PAD{i}]" for i in unused]
    scores = [pieces.get_score(i) for i in range(count)] + [-1000.0] * len(unused)
    kinds = [_piece_kind(pieces, i) for i in range(count)] + [UNUSED] * len(unused)
    first = pieces.encode("a", out_type=str)[:1]
    metadata = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": Value("array[string]", texts),
        "tokenizer.ggml.scores": Value("array[float32]", scores),
        "tokenizer.ggml.token_type": Value("array[int32]", kinds),
        "tokenizer.ggml.bos_token_id": uint32(0),
        "tokenizer.ggml.eos_token_id": uint32(0),
        "tokenizer.ggml.add_bos_token": Value("bool", False),
        "tokenizer.ggml.add_space_prefix": Value("bool", first[:1] != ["a"]),
        "tokenizer.chat_template": string(CHAT_TEMPLATE),
        "rwkv_edge.sentencepiece_model": Value("array[uint8]", model),
    }
    if pieces.unk_id() >= 0:
        metadata["tokenizer.ggml.unknown_token_id"] = uint32(pieces.unk_id())
    return metadata


def _piece_kind(pieces: object, i: int) -> int:
    for test, kind in (
        ("is_unknown", UNKNOWN),
        ("is_control", CONTROL),
        ("is_unused", UNUSED),
        ("is_byte", BYTE),
    ):
        if getattr(pieces, test)(i):
            return kind
    return NORMAL
