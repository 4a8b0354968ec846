# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of the Hugging Face kind: exact bytes, and nothing that a text did not say."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pile
import pytest
from refusal import refuses
from rwkv_edge import FormatError, UnsupportedError
from rwkv_edge.tokenizer import HuggingFaceTokenizer
from texts import TEXTS


@pytest.fixture(scope="module")
def twenty_b() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(pile.text(), "test.json")


def byte_tokens(data: bytes) -> list[int]:
    return [pile.FIRST_BYTE + byte for byte in data]


def test_every_token_has_the_bytes_that_it_is_spelled_with(twenty_b: HuggingFaceTokenizer) -> None:
    spec = pile.tokenizer()
    number = len(spec["model"]["vocab"])
    assert twenty_b.n_vocab == number + 2
    assert [twenty_b.token_bytes(i) for i in range(258)] == [
        b"", b"", *(bytes([b]) for b in range(256))
    ]  # fmt: skip
    assert twenty_b.token_bytes(pile.token(" the")) == b" the"
    assert twenty_b.token_bytes(number) == b" " * 8


def test_it_agrees_with_the_package_but_for_special_tokens(twenty_b: HuggingFaceTokenizer) -> None:
    package = pytest.importorskip("tokenizers").Tokenizer.from_str(pile.text())
    for text in TEXTS:
        exact = unicodedata.is_normalized("NFC", text) and not text.endswith("\n")
        if exact and "<|" not in text:
            assert twenty_b.encode(text) == package.encode(text).ids
    assert package.encode("<|endoftext|>").ids == [0]
    assert twenty_b.encode("<|endoftext|>") == byte_tokens(b"<|endoftext|>")


def test_characters_are_not_normalised(twenty_b: HuggingFaceTokenizer) -> None:
    assert twenty_b.encode("\u00e9") == [pile.token("\u00e9")]
    assert twenty_b.encode("e\u0301") == byte_tokens("e\u0301".encode())


def test_runs_of_spaces_are_tokens_of_their_own(twenty_b: HuggingFaceTokenizer) -> None:
    number = len(pile.tokenizer()["model"]["vocab"])
    assert twenty_b.encode("a" + 12 * " " + "b") == [
        *byte_tokens(b"a"),
        number,
        number + 1,
        *byte_tokens(b"b"),
    ]


def test_a_blank_line_at_the_end_is_encoded_as_before_more_text(
    twenty_b: HuggingFaceTokenizer,
) -> None:
    newline, bob = byte_tokens(b"\n"), pile.token("Bob")
    assert twenty_b.encode("\n\nBob") == [*newline, *newline, bob]
    assert twenty_b.encode("\n\n") == [*newline, *newline]
    assert twenty_b.encode("Bob\n\n\n") == [bob, pile.token("\n\n"), *newline]
    assert twenty_b.encode("Bob\n") == [bob, *newline]
    assert twenty_b.encode("\n\n ") == [pile.token("\n\n"), *byte_tokens(b" ")]


def test_a_blank_line_that_a_tokenizer_never_splits() -> None:
    spec = pile.tokenizer(pairs=True)
    spec["pre_tokenizer"] |= {"use_regex": False}
    spec["model"]["vocab"]["\u010a\u010a."] = 2000
    spec["model"]["merges"].append(["\u010a\u010a", "."])
    tokenizer = HuggingFaceTokenizer(json.dumps(spec), "test.json")
    assert tokenizer.encode("\n\n") == [pile.token("\n\n")]
    assert tokenizer.encode("\n\n.") == [2000]


def test_what_a_tokenizer_would_add_is_left_out() -> None:
    spec = pile.tokenizer()
    spec["pre_tokenizer"]["add_prefix_space"] = True
    spec["truncation"] = {"direction": "Right", "max_length": 3, "stride": 0}
    spec["truncation"]["strategy"] = "LongestFirst"
    end, sequence = "<|endoftext|>", {"Sequence": {"id": "A", "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": end, "type_id": 0}}, sequence],
        "pair": [sequence, sequence],
        "special_tokens": {end: {"id": end, "ids": [0], "tokens": [end]}},
    }
    spec["model"]["dropout"] = 0.9
    tokenizer = HuggingFaceTokenizer(json.dumps(spec), "test.json")
    assert tokenizer.encode("hello the the") == [pile.token(w) for w in ("hello", " the", " the")]


def test_a_tokenizer_that_drops_text_is_noticed() -> None:
    spec = pile.tokenizer()
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"String": "-"}, "behavior": "Removed", "invert": False},
            spec["pre_tokenizer"],
        ],
    }
    tokenizer = HuggingFaceTokenizer(json.dumps(spec), "test.json")
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.raises(ValueError, match="the tokenizer does not keep the text b'a-b'"):
        tokenizer.encode("a-b")


def test_bytes_that_a_tokenizer_lacks() -> None:
    spec = pile.tokenizer()
    del spec["model"]["vocab"][pile.spelled(b"\xff")]
    tokenizer = HuggingFaceTokenizer(json.dumps(spec), "test.json")
    with pytest.raises(ValueError, match="no token for byte 255 of the text"):
        tokenizer.encode(b"a\xff")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with refuses(UnsupportedError, "a.gguf", r"pip install 'rwkv-edge\[pile\]'"):
        HuggingFaceTokenizer(pile.text(), "a.gguf")


def spoil(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: Any) -> None:
        for key in path[:-1]:
            spec = spec[key]
        spec[path[-1]] = value

    return change


BAD_TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no model": (lambda spec: spec.pop("model"), "not a Hugging Face tokenizer .no 'model'"),
    "a list": (spoil("model", value=[]), "not a Hugging Face tokenizer"),
    "no vocab": (lambda spec: spec["model"].pop("vocab"), "no 'vocab'"),
    "an id twice": (spoil("model", "vocab", "x", value=5), "two tokens have one id"),
    "a negative id": (spoil("model", "vocab", "x", value=-1), "id -1, expected below"),
    "a huge id": (spoil("model", "vocab", "x", value=1 << 40), "id 1099511627776, expected below"),
    "an id of text": (spoil("model", "vocab", "x", value="5"), "a token has id '5'"),
    "added without id": (spoil("added_tokens", value=[{"content": "x"}]), "no 'special'"),
    "text for 0": (spoil("added_tokens", 0, "special", value=False), "token 0 is '<.endoftext.>'"),
    "merges": (spoil("model", "merges", value=[5]), "not a Hugging Face tokenizer"),
    "an unknown merge": (spoil("model", "merges", value=["q z"]), "not a Hugging Face tokenizer"),
    "a prefix": (
        spoil("model", "continuing_subword_prefix", value="rwkv7"),
        "continuing_subword_prefix: found 'rwkv7', expected none",
    ),
    "a suffix": (
        spoil("model", "end_of_word_suffix", value="</w>"),
        "end_of_word_suffix: found '</w>', expected none",
    ),
    "characters": (
        spoil("model", "vocab", "a b", value=900),
        "token 'a b' is not written in GPT-2",
    ),
}


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_a_bad_tokenizer(name: str) -> None:
    change, message = BAD_TOKENIZERS[name]
    spec = pile.tokenizer()
    change(spec)
    with refuses(FormatError, "a.gguf", message):
        HuggingFaceTokenizer(json.dumps(spec), "a.gguf")


def test_a_panic_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an exception that is no Exception, as pyo3 makes it."""

    class PanicException(BaseException):
        pass

    def panic(_: str) -> None:
        raise PanicException("range end index out of range")

    monkeypatch.setattr("tokenizers.Tokenizer", SimpleNamespace(from_str=panic))
    with refuses(FormatError, "a.gguf", "not a Hugging Face tokenizer .range end index"):
        HuggingFaceTokenizer(json.dumps(pile.tokenizer()), "a.gguf")


def test_a_tokenizer_that_is_no_json() -> None:
    for text in ("", "{", "[]", "[" * 100_000):
        with refuses(FormatError, "a.gguf", r"^a\.gguf: not a Hugging Face tokenizer"):
            HuggingFaceTokenizer(text, "a.gguf")


@pytest.mark.parametrize(
    "change",
    [
        spoil("model", "type", value="Unigram"),
        spoil("pre_tokenizer", value={"type": "Metaspace"}),
        spoil("pre_tokenizer", value=None),
    ],
)
def test_tokenizers_over_characters(change: Callable[[dict[str, Any]], None]) -> None:
    spec = pile.tokenizer()
    change(spec)
    with refuses(UnsupportedError, "a.gguf", r"expected BPE over bytes.*tokenizer\.model"):
        HuggingFaceTokenizer(json.dumps(spec), "a.gguf")
