# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back, byte for byte, with the vocabulary that lies in the model file."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

from . import _core
from .files.form import shown, utf8

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

        Surrogate escapes in a string stand for the bytes that they came from. Raises ValueError for
        other halves of characters, and if the vocabulary lacks a byte of the text.
        """
        return self._encode(utf8("text", text) if isinstance(text, str) else text)

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


class HuggingFaceTokenizer(Tokenizer):
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
        self._byte_tokens = {data[0]: i for i, data in enumerate(self._bytes) if len(data) == 1}

    def token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token {token} is outside the vocabulary of {self.n_vocab}")
        return self._bytes[token]

    def _encode(self, data: bytes) -> list[int]:
        tokens: list[int] = []
        for i, part in enumerate(NOT_UTF8.split(data.decode("utf-8", "surrogateescape"))):
            tokens += self._encode_bytes(part) if i % 2 else self._encode_text(part)
        if self.decode_bytes(tokens) != data:  # not with any tokenizer that models are known to use
            raise ValueError(f"the tokenizer does not keep the text {data[:60]!r}")
        return tokens

    def _encode_bytes(self, escaped: str) -> list[int]:
        data = escaped.encode("utf-8", "surrogateescape")
        for byte in data:
            if byte not in self._byte_tokens:
                raise ValueError(f"the vocabulary has no token for byte {byte} of the text")
        return [self._byte_tokens[byte] for byte in data]

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
    if kind is None:
        raise _core.FormatError(
            f"{file.path}: no tokenizer (key tokenizer.ggml.model is missing); name the "
            "vocabulary's file (--vocab FILE, or Model(path, vocab=...)) or put it beside the "
            "model; for a World model install it: pip install 'rwkv-edge[convert]'"
        )
    if kind == "gpt2" and file.get(HUGGINGFACE_KEY) is not None:
        if file.value_type(HUGGINGFACE_KEY) != "string":
            raise _core.FormatError(
                f"{file.path}: {HUGGINGFACE_KEY} is {file.value_type(HUGGINGFACE_KEY)}, "
                "expected string"
            )
        return HuggingFaceTokenizer(file.get(HUGGINGFACE_KEY), file.path)
    return CoreTokenizer(_core.Tokenizer.from_model_file(file))
