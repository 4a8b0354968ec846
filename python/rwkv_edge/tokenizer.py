# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back, byte for byte, with the vocabulary that lies in the model file."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable

from sentencepiece import SentencePieceProcessor

from . import _core

END_OF_TEXT = 0
"""The token that ends a document, in every model. No text encodes to it."""


class StreamDecoder:
    """Turns pieces of UTF-8 into whole characters; what can never become one turns into U+FFFD.

    The pieces of any cutting join to `data.decode("utf-8", "replace")`.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """All characters that are complete by now."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left of a character that the end cut off, as U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)

    @property
    def pending(self) -> int:
        """Bytes pushed that wait for the rest of their character."""
        return len(self._decoder.getstate()[0])


class Tokenizer(ABC):
    """A vocabulary. Encoding never yields a control token or an unused id; any bytes survive
    `decode_bytes(encode(data))`. Threads may share one."""

    kind: str
    n_vocab: int

    def encode(self, text: str | bytes) -> list[int]:
        """The tokens of a text. Raises ValueError where the vocabulary lacks a byte of it.

        Surrogate escapes in a string stand for the bytes they came from.
        """
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        return self._encode(data)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of the tokens, U+FFFD where their bytes are not UTF-8."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(map(self.token_bytes, tokens))

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token: none for control tokens and unused ids.

        Raises ValueError for an id outside the vocabulary.
        """

    @abstractmethod
    def _encode(self, data: bytes) -> list[int]: ...


class WorldTokenizer(Tokenizer):
    """The RWKV World vocabulary: greedy longest match over bytes."""

    kind = "world"

    def __init__(self, core: _core.WorldTokenizer) -> None:
        self._core = core
        self.n_vocab = core.n_vocab

    def token_bytes(self, token: int) -> bytes:
        return self._core.token_bytes(token)

    def _encode(self, data: bytes) -> list[int]:
        return self._core.encode(data)


# A protobuf appended to another overrides its fields. This one holds a normalizer_spec (3) that
# changes nothing: an empty precompiled_charsmap (2), no add_dummy_prefix (3), no
# remove_extra_whitespaces (4), but escape_whitespaces (5), as the pieces are written so.
IDENTITY_NORMALIZER = bytes([0x1A, 8, 0x12, 0, 0x18, 0, 0x20, 0, 0x28, 1])

# sentencepiece writes a space as U+2581, so a real U+2581 must go round it, and so must bytes that
# are not UTF-8, which surrogateescape decodes to these surrogates.
NOT_FOR_SENTENCEPIECE = re.compile("([\u2581\udc80-\udcff]+)")


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with byte pieces, made exact.

    Spaces are not touched, characters are not normalised, and nothing is put before the text.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, source: str) -> None:
        """`model` is a sentencepiece model file; errors (FormatError) begin with `source`."""
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model + IDENTITY_NORMALIZER)
        except RuntimeError as error:
            raise _core.FormatError(f"{source}: not a sentencepiece model ({error})") from None
        self.n_vocab = self._processor.vocab_size()
        if self._is_text(END_OF_TEXT):
            raise _core.FormatError(
                f"{source}: token 0 is {self._processor.id_to_piece(0)!r}, "
                "expected a control or unknown symbol: it ends a document"
            )
        self._bytes = [self._piece_bytes(token) for token in range(self.n_vocab)]
        self._byte_tokens = {
            self._bytes[token]: token
            for token in range(self.n_vocab)
            if self._processor.is_byte(token)
        }

    def _is_text(self, token: int) -> bool:
        model = self._processor
        return not (model.is_control(token) or model.is_unknown(token) or model.is_unused(token))

    def _piece_bytes(self, token: int) -> bytes:
        if not self._is_text(token):
            return b""
        piece = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # <0xHH>
        return piece.replace("\u2581", " ").encode()

    def token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token {token} is outside the vocabulary of {self.n_vocab}")
        return self._bytes[token]

    def _encode(self, data: bytes) -> list[int]:
        text = data.decode("utf-8", "surrogateescape")
        tokens: list[int] = []
        for i, part in enumerate(NOT_FOR_SENTENCEPIECE.split(text)):
            if i % 2:
                tokens += self._encode_bytes(part.encode("utf-8", "surrogateescape"))
            else:
                tokens += self._encode_text(part)
        return tokens

    def _encode_text(self, text: str) -> list[int]:
        tokens: list[int] = self._processor.encode(text)
        if self._processor.unk_id() in tokens:
            missing = next(c for c in text if self._processor.unk_id() in self._processor.encode(c))
            raise ValueError(f"the vocabulary has no token for '{missing}' of the text")
        return tokens

    def _encode_bytes(self, data: bytes) -> list[int]:
        for byte in data:
            if bytes([byte]) not in self._byte_tokens:
                raise ValueError(f"the vocabulary has no token for byte {byte} of the text")
        return [self._byte_tokens[bytes([byte])] for byte in data]


def tokenizer_from_file(file: _core.ModelFile) -> Tokenizer:
    """The tokenizer stored in a model file.

    Raises FormatError where there is none or it is damaged, UnsupportedError for other kinds.
    """
    kind = file.get("tokenizer.ggml.model")
    if kind is None:
        raise _core.FormatError(f"{file.path}: no tokenizer (key tokenizer.ggml.model is missing)")
    if kind == "rwkv":
        return WorldTokenizer(_core.WorldTokenizer.from_model_file(file))
    model = file.get("rwkv_edge.sentencepiece_model")
    if model is not None:
        if file.value_type("rwkv_edge.sentencepiece_model") != "array[uint8]":
            raise _core.FormatError(
                f"{file.path}: rwkv_edge.sentencepiece_model is "
                f"{file.value_type('rwkv_edge.sentencepiece_model')}, expected array[uint8]"
            )
        return SentencePieceTokenizer(bytes(model), file.path)
    raise _core.UnsupportedError(
        f"{file.path}: tokenizer.ggml.model is '{kind}'; supported are 'rwkv', and sentencepiece "
        "models whose file is in rwkv_edge.sentencepiece_model"
    )
