# SPDX-License-Identifier: Apache-2.0
"""The sentencepiece library as a tokenizer that keeps a text to the byte, to compare ours with; and
models for both, field by field."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from rwkv_edge import Tokenizer, _core
from rwkv_edge.files.gguf_writer import Value, header, string
from rwkv_edge.tokenizer import SENTENCEPIECE_KEY, tokenizer_from_file
from sentencepiece import SentencePieceProcessor

PIECES, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4

# A normalizer_spec that changes nothing: no precompiled_charsmap (2), no add_dummy_prefix (3), no
# remove_extra_whitespaces (4), but escape_whitespaces (5), as the pieces are written so.
IDENTITY_NORMALIZER = bytes([0x1A, 8, 0x12, 0, 0x18, 0, 0x20, 0, 0x28, 1])

# sentencepiece writes a space as U+2581, so a real U+2581 must go round it, and so must bytes that
# are not UTF-8, which surrogateescape decodes to these surrogates.
NOT_FOR_SENTENCEPIECE = re.compile("([\u2581\udc80-\udcff]+)")


def ours(model: bytes, source: str = "a.gguf") -> Tokenizer:
    """The engine's tokenizer of a sentencepiece model."""
    metadata = {
        "tokenizer.ggml.model": string("llama"),
        SENTENCEPIECE_KEY: Value("array[uint8]", model),
    }
    return tokenizer_from_file(_core.ModelFile.assemble(Path(source), header(metadata, []), []))


class LibraryTokenizer:
    """Spaces are not touched, characters are not normalised, and nothing is put before the text."""

    def __init__(self, model: bytes) -> None:
        # The model's own normalizers are cut out.
        kept = [
            field
            for number, _, field in protobuf_fields(model)
            if number not in (NORMALIZER, DENORMALIZER)
        ]
        self.library = SentencePieceProcessor()
        self.library.LoadFromSerializedProto(IDENTITY_NORMALIZER + b"".join(kept))
        self.n_vocab = self.library.vocab_size()
        is_byte = self.library.is_byte
        self._byte_tokens = {
            int(self.library.id_to_piece(i)[3:5], 16): i for i in range(self.n_vocab) if is_byte(i)
        }
        # What stands for a space where the vocabulary has no piece for it.
        self._escaped = [self._byte_tokens.get(byte, -1) for byte in "\u2581".encode()]

    def encode(self, data: bytes) -> list[int]:
        """KeyError where there is no token for a byte, ValueError where there is none for a
        character."""
        tokens: list[int] = []
        for i, part in enumerate(
            NOT_FOR_SENTENCEPIECE.split(data.decode(errors="surrogateescape"))
        ):
            if i % 2:
                tokens += [self._byte_tokens[b] for b in part.encode(errors="surrogateescape")]
                continue
            found = self.library.encode(part)
            if self.library.unk_id() in found:
                raise ValueError(part)
            for token in found:
                tokens.append(token)
                if tokens[-3:] == self._escaped:
                    tokens[-3:] = [self._byte_tokens[32]]
        return tokens

    def token_bytes(self, token: int) -> bytes:
        model = self.library
        if model.is_control(token) or model.is_unknown(token) or model.is_unused(token):
            return b""
        piece: str = model.id_to_piece(token)
        if model.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


# ---- protobuf -----------------------------------------------------------------------------------


def protobuf_fields(data: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """The fields of a protobuf message: number, value and the bytes that say both.

    Raises KeyError or IndexError where it is none.
    """
    at = 0
    while at < len(data):
        begin = at
        key, at = _varint(data, at)
        value: int | bytes
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = data[at : at + size], at + size
        if at > len(data):
            raise IndexError
        yield key >> 3, value, data[begin:at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise IndexError


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def piece(text: str | bytes, score: float = 0.0, kind: int = NORMAL) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return field(
        PIECES, field(1, data) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind)
    )


def trainer(kind: int, byte_fallback: bool) -> bytes:
    return field(TRAINER, b"\x18" + varint(kind) + varint(35 << 3) + varint(byte_fallback))


def byte_pieces() -> Iterable[bytes]:
    return (piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))
