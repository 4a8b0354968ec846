# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back, byte for byte, with the vocabulary that lies in the model file."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from . import _core
from .files.form import shown

END_OF_TEXT = 0
"""The token that ends a document, in every model. No text encodes to it."""
MAX_TOKENS = 1 << 20
"""Of any vocabulary. The largest that models have is a quarter of it."""


class StreamDecoder:
    """Decodes UTF-8 that comes in pieces. Invalid bytes become U+FFFD.

    However the data is cut, the results join to `data.decode("utf-8", "replace")`.
    """

    def __init__(self) -> None:
        self._core = _core.Utf8Stream()

    def push(self, data: bytes) -> str:
        """Add bytes; returns the characters that are now complete."""
        return self._core.push(data)

    def flush(self) -> str:
        """End the text; returns U+FFFD if its last character is incomplete, else nothing."""
        return self._core.flush()

    @property
    def pending(self) -> int:
        """Bytes pushed that wait for the rest of their character."""
        return self._core.pending


class Tokenizer(ABC):
    """Converts text to tokens and back.

    `decode_bytes(encode(data))` is `data`, for any bytes. Encoding never gives a control token or
    an unused id. Threads may share a tokenizer.
    """

    kind: str
    n_vocab: int

    def encode(self, text: str | bytes) -> list[int]:
        """The tokens of a text.

        Surrogate escapes in a string stand for the bytes that they came from. Raises ValueError if
        the vocabulary lacks a byte of the text.
        """
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        return self._encode(data)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of the tokens. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(map(self.token_bytes, tokens))

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token: none for control tokens and unused ids.

        Raises ValueError for an id outside the vocabulary.
        """

    def without_text(self) -> list[int]:
        """The control tokens and unused ids, but for END_OF_TEXT."""
        return [i for i in range(1, self.n_vocab) if not self.token_bytes(i)]

    @abstractmethod
    def _encode(self, data: bytes) -> list[int]: ...


class CoreTokenizer(Tokenizer):
    """A tokenizer of the engine."""

    def __init__(self, core: _core.Tokenizer) -> None:
        self._core = core
        self.kind = core.kind
        self.n_vocab = core.n_vocab

    def token_bytes(self, token: int) -> bytes:
        return self._core.token_bytes(token)

    def without_text(self) -> list[int]:
        return self._core.without_text()

    def _encode(self, data: bytes) -> list[int]:
        return self._core.encode(data)


class PieceTokenizer(Tokenizer):
    """A tokenizer of a library, with the bytes of each token and the tokens of single bytes."""

    _bytes: list[bytes]
    _byte_tokens: dict[bytes, int]

    def token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token {token} is outside the vocabulary of {self.n_vocab}")
        return self._bytes[token]

    def _encode_bytes(self, escaped: str) -> list[int]:
        data = escaped.encode("utf-8", "surrogateescape")
        for byte in data:
            if bytes([byte]) not in self._byte_tokens:
                raise ValueError(f"the vocabulary has no token for byte {byte} of the text")
        return [self._byte_tokens[bytes([byte])] for byte in data]


# Fields of a sentencepiece model, a protobuf message.
PIECES, NORMALIZER, DENORMALIZER = 1, 3, 5
# A normalizer_spec that changes nothing: no precompiled_charsmap (2), no add_dummy_prefix (3), no
# remove_extra_whitespaces (4), but escape_whitespaces (5), as the pieces are written so.
IDENTITY_NORMALIZER = bytes([0x1A, 8, 0x12, 0, 0x18, 0, 0x20, 0, 0x28, 1])

# sentencepiece writes a space as U+2581, so a real U+2581 must go round it, and so must bytes that
# are not UTF-8, which surrogateescape decodes to these surrogates.
NOT_FOR_SENTENCEPIECE = re.compile("([\u2581\udc80-\udcff]+)")


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


def load_sentencepiece(model: bytes, source: str) -> Any:
    """A processor of a sentencepiece model that leaves the characters of a text as they are.

    Raises FormatError, beginning with `source`.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        # The file's own normalizers are cut out: what they hold never runs.
        kept = [
            field
            for number, _, field in protobuf_fields(model)
            if number not in (NORMALIZER, DENORMALIZER)
        ]
        processor.LoadFromSerializedProto(IDENTITY_NORMALIZER + b"".join(kept))
        for token in range(processor.vocab_size()):
            processor.id_to_piece(token)  # which need not be UTF-8, and no message either
    except (KeyError, IndexError):
        raise _core.FormatError(f"{source}: not a sentencepiece model (no protobuf)") from None
    except (RuntimeError, OSError, UnicodeDecodeError) as error:
        raise _core.FormatError(f"{source}: not a sentencepiece model ({error})") from None
    return processor


class SentencePieceTokenizer(PieceTokenizer):
    """A sentencepiece model with byte pieces, made exact.

    Spaces are not touched, characters are not normalised, and nothing is put before the text.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, source: str) -> None:
        """`model` is a sentencepiece model file; errors (FormatError) begin with `source`."""
        self._processor = load_sentencepiece(model, source)
        self.n_vocab = self._processor.vocab_size()
        if self._is_text(END_OF_TEXT):
            raise _core.FormatError(
                f"{source}: token 0 is {shown(self._processor.id_to_piece(0))}, "
                "expected a control or unknown symbol: it ends a document"
            )
        self._bytes = [self._piece_bytes(token) for token in range(self.n_vocab)]
        self._byte_tokens = {
            self._bytes[token]: token
            for token in range(self.n_vocab)
            if self._processor.is_byte(token)
        }
        # What stands for a space where the vocabulary has no piece for it.
        self._escaped = [self._byte_tokens.get(bytes([byte]), -1) for byte in "\u2581".encode()]

    def _is_text(self, token: int) -> bool:
        model = self._processor
        return not (model.is_control(token) or model.is_unknown(token) or model.is_unused(token))

    def _piece_bytes(self, token: int) -> bytes:
        if not self._is_text(token):
            return b""
        piece: str = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # <0xHH>
        return piece.replace("\u2581", " ").encode()

    def _encode(self, data: bytes) -> list[int]:
        text = data.decode("utf-8", "surrogateescape")
        tokens: list[int] = []
        for i, part in enumerate(NOT_FOR_SENTENCEPIECE.split(text)):
            if i % 2:
                tokens += self._encode_bytes(part)
            else:
                tokens += self._encode_text(part)
        return tokens

    def _encode_text(self, text: str) -> list[int]:
        tokens: list[int] = self._processor.encode(text)
        if self._escaped[0] in tokens:  # of a curly quote, say
            tokens = self._with_spaces(tokens)
        if self._processor.unk_id() in tokens:
            missing = next(c for c in text if self._processor.unk_id() in self._processor.encode(c))
            raise ValueError(f"the vocabulary has no token for '{missing}' of the text")
        return tokens

    def _with_spaces(self, tokens: list[int]) -> list[int]:
        """With a space's byte instead of the three of U+2581, which the text itself cannot hold."""
        found: list[int] = []
        for token in tokens:
            found.append(token)
            if found[-3:] == self._escaped:
                found[-3:] = self._encode_bytes(" ")
        return found


# ---- Hugging Face -------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A token of a tokenizer.json: a control token, one that matches as it is, or a common one."""

    text: str
    special: bool
    added: bool


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, others from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted(set(range(256)).difference(plain))
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()
NOT_UTF8 = re.compile("([\udc80-\udcff]+)")
# Of a tokenizer.json, what would change the text, add to it or drop parts of it.
LEFT_OUT = ("normalizer", "post_processor", "truncation", "padding")
# What may follow any text. A blank line is one token at the end of a text, and mostly two before
# another line. Models have read texts that went on, so that is how a prompt must look to them.
FOLLOWER = "."


def read_pieces(text: str, source: str) -> tuple[dict[str, Any], dict[int, Piece]]:
    """A Hugging Face tokenizer.json, and its tokens by id.

    Raises FormatError, beginning with `source`, where it is malformed or does not begin with a
    token that can end a document, UnsupportedError where its tokens are not made of bytes.
    """
    try:
        spec = json.loads(text)
        model = spec["model"]
        kind = model.get("type", "BPE")
        steps = pre_tokenizers(spec)
        if kind != "BPE" or "ByteLevel" not in [step["type"] for step in steps]:
            raise _core.UnsupportedError(
                f"{source}: a Hugging Face tokenizer of kind {shown(kind)} over characters; "
                "expected BPE over bytes (ByteLevel). If there is a tokenizer.model beside it, "
                "take that"
            )
        for option in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(option):  # tokenizers 0.23 panics where a merge is shorter
                raise ValueError(f"{option}: found {shown(model[option])}, expected none")
        pieces: dict[int, Piece] = {}
        for name, number in model["vocab"].items():
            pieces[_token_id(number)] = Piece(name, False, False)
        if len(pieces) != len(model["vocab"]):
            raise ValueError("two tokens have one id")
        for added in spec.get("added_tokens") or []:
            content = added["content"]
            if type(content) is not str:
                raise TypeError(f"token {shown(added['id'])} is {shown(content)}")
            pieces[_token_id(added["id"])] = Piece(content, bool(added["special"]), True)
        merges = model.get("merges") or []  # "a b" or, in newer files, ["a", "b"]
        model["merges"] = [pair if type(pair) is str else " ".join(pair) for pair in merges]
        for text_part in (*(piece.text for piece in pieces.values()), *model["merges"]):
            text_part.encode("utf-8")  # JSON can write half of a character
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _core.FormatError(f"{source}: not a Hugging Face tokenizer ({reason})") from None
    first = pieces.get(END_OF_TEXT)
    if first is None or not first.special:
        raise _core.FormatError(
            f"{source}: token 0 is {shown(first.text if first else None)}, "
            "expected a special token: it ends a document"
        )
    return spec, pieces


def _token_id(number: Any) -> int:
    """An id that was read. Numbers beyond MAX_TOKENS can be chosen to have equal hashes."""
    if type(number) is not int:
        raise TypeError(f"a token has id {shown(number)}, expected a whole number")
    if not 0 <= number < MAX_TOKENS:
        raise ValueError(f"a token has id {shown(number)}, expected below {MAX_TOKENS}")
    return number


def pre_tokenizers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps that cut a text before its pieces are looked for."""
    whole = spec.get("pre_tokenizer") or {"type": None}
    steps: list[dict[str, Any]] = whole.get("pretokenizers", [whole])
    return steps


class HuggingFaceTokenizer(PieceTokenizer):
    """A Hugging Face tokenizer of the byte-level kind, made exact; needs the package tokenizers.

    Characters are not normalised (that of the Pile models asks for NFC: text that is not in that
    form stays as it is), special tokens in a text are text, and nothing is put before or after.
    That of the Pile models has no tokens for the 13 bytes that UTF-8 never uses.
    """

    kind = "huggingface"

    def __init__(self, text: str, source: str) -> None:
        """`text` is a tokenizer.json; errors begin with `source`."""
        spec, pieces = read_pieces(text, source)
        try:
            import tokenizers  # optional
        except ImportError:
            raise _core.UnsupportedError(
                f"{source}: its tokenizer needs a package: pip install 'rwkv-edge[pile]'"
            ) from None
        spec |= dict.fromkeys(LEFT_OUT)
        spec["model"]["dropout"] = None
        for step in pre_tokenizers(spec):
            if "add_prefix_space" in step:
                step["add_prefix_space"] = False
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except (KeyboardInterrupt, SystemExit):
            raise
        except (
            BaseException
        ) as error:  # it raises nothing more specific, and a panic is no Exception
            raise _core.FormatError(f"{source}: not a Hugging Face tokenizer ({error})") from None
        self._tokenizer.encode_special_tokens = True
        self.n_vocab = max(pieces) + 1
        self._bytes = [b""] * self.n_vocab
        for number, piece in pieces.items():
            self._bytes[number] = piece_bytes(piece, source)
        self._byte_tokens = {data: i for i, data in enumerate(self._bytes) if len(data) == 1}

    def _encode(self, data: bytes) -> list[int]:
        tokens: list[int] = []
        for i, part in enumerate(NOT_UTF8.split(data.decode("utf-8", "surrogateescape"))):
            tokens += self._encode_bytes(part) if i % 2 else self._encode_text(part)
        if self.decode_bytes(tokens) != data:  # not with any tokenizer that models are known to use
            raise ValueError(f"the tokenizer does not keep the text {data[:60]!r}")
        return tokens

    def _encode_text(self, text: str) -> list[int]:
        if text.endswith("\n"):
            tokens: list[int] = self._tokenizer.encode(text + FOLLOWER).ids
            if tokens and self._bytes[tokens[-1]] == FOLLOWER.encode():
                return tokens[:-1]
        found: list[int] = self._tokenizer.encode(text).ids
        return found


def piece_bytes(piece: Piece, source: str) -> bytes:
    """The text of a token: of a common one each character is a byte. None for a control token."""
    if piece.special:
        return b""
    if piece.added:
        return piece.text.encode()
    if not BYTE_OF.keys() >= set(piece.text):
        raise _core.FormatError(
            f"{source}: token {shown(piece.text)} is not written in GPT-2's characters for bytes"
        )
    return bytes(BYTE_OF[character] for character in piece.text)


# ---- in a model file ----------------------------------------------------------------------------

HUGGINGFACE_KEY = "tokenizer.huggingface.json"
SENTENCEPIECE_KEY = "rwkv_edge.sentencepiece_model"


def tokenizer_from_file(file: _core.ModelFile) -> Tokenizer:
    """The tokenizer stored in a model file.

    Raises FormatError where there is none or it is damaged, UnsupportedError for other kinds, and
    where the package that it needs is not installed.
    """
    kind = file.get("tokenizer.ggml.model")
    if kind is not None:
        _check_type(file, "tokenizer.ggml.model", "string")
    if kind is None:
        raise _core.FormatError(
            f"{file.path}: no tokenizer (key tokenizer.ggml.model is missing); name the "
            "vocabulary's file (--vocab FILE, or Model(path, vocab=...)) or put it beside the "
            "model; for a World model install it: pip install 'rwkv-edge[convert]'"
        )
    if kind == "rwkv":
        return CoreTokenizer(_core.Tokenizer.from_model_file(file))
    if kind == "gpt2" and file.get(HUGGINGFACE_KEY) is not None:
        _check_type(file, HUGGINGFACE_KEY, "string")
        return HuggingFaceTokenizer(file.get(HUGGINGFACE_KEY), file.path)
    if file.get(SENTENCEPIECE_KEY) is not None:
        _check_type(file, SENTENCEPIECE_KEY, "array[uint8]")
        return SentencePieceTokenizer(bytes(file.get(SENTENCEPIECE_KEY)), file.path)
    raise _core.UnsupportedError(
        f"{file.path}: tokenizer.ggml.model is '{kind}'; supported are 'rwkv', 'gpt2' with "
        f"{HUGGINGFACE_KEY}, and sentencepiece models whose file is in {SENTENCEPIECE_KEY}"
    )


def _check_type(file: _core.ModelFile, key: str, expected: str) -> None:
    if file.value_type(key) != expected:
        raise _core.FormatError(
            f"{file.path}: {key} is {file.value_type(key)}, expected {expected}"
        )
