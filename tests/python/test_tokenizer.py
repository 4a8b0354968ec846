# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: round trips of any bytes, World against another implementation, streams."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pile
import pytest
import tiny
from refusal import refuses
from rwkv_edge import FormatError, StreamDecoder, Tokenizer, UnsupportedError, _core
from rwkv_edge.tokenizer import CoreTokenizer, HuggingFaceTokenizer, tokenizer_from_file
from sentencepiece_library import ours
from texts import TEXTS, train

BROKEN = [
    b"\xff",
    b"\xe2\x96",
    b"\xe2\x96\x81\xe2\x96",
    b"a\xc3(b\xf0\x9f\x98",
    b"\xed\xa0\x80 a surrogate, \xc0\xaf overlong",
    bytes(range(256)),
]


def random_bytes(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randrange(200)) for _ in range(200)]


def world(tokens: list[bytes | None]) -> CoreTokenizer:
    return CoreTokenizer(_core.Tokenizer.from_vocab(tokens))


BYTES: list[bytes | None] = [None, *(bytes([b]) for b in range(256))]


@pytest.fixture(scope="module")
def real_world() -> tuple[CoreTokenizer, Any]:
    """The published vocabulary in our tokenizer, and in that of the package it came with."""
    package = pytest.importorskip("pyrwkv_tokenizer")
    tokens: list[bytes | None] = [None] * 65536
    lines = Path(package.__file__).with_name("rwkv_vocab_v20230424.txt").read_text("utf-8")
    for line in lines.rstrip("\n").split("\n"):
        number, rest = line.split(" ", 1)
        token = ast.literal_eval(rest.rsplit(" ", 1)[0])
        tokens[int(number)] = token.encode() if isinstance(token, str) else token
    return world(tokens), package.RWKVTokenizer()


# All must be exact, whatever their makers had in mind for spaces and characters.
SENTENCEPIECE = {
    "nfkc": {},
    "unigram": {"model_type": "unigram", "treat_whitespace_as_suffix": True},
}


# ---- any tokenizer ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bytes", "pile", *SENTENCEPIECE])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "pile":
        return HuggingFaceTokenizer(pile.text(), "test.json")
    if request.param == "bytes":
        return world([*BYTES, b"ab", b"abc", b"bcd", "\u00e9".encode(), b"\n\n", None])
    return ours(train(**SENTENCEPIECE[request.param]))


def test_any_bytes_survive(tokenizer: Tokenizer) -> None:
    for data in [text.encode() for text in TEXTS] + BROKEN + random_bytes(1):
        tokens = tokenizer.encode(data)
        assert tokenizer.decode_bytes(tokens) == data
        assert b"".join(map(tokenizer.token_bytes, tokens)) == data
        assert tokenizer.decode(tokens) == data.decode("utf-8", "replace")


def test_text_and_its_bytes_encode_alike(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        assert tokenizer.encode(text) == tokenizer.encode(text.encode())
    escaped = b"\xff a \x80".decode("utf-8", "surrogateescape")
    assert tokenizer.encode(escaped) == tokenizer.encode(b"\xff a \x80")


def test_only_tokens_with_text_encode(tokenizer: Tokenizer) -> None:
    silent = {i for i in range(tokenizer.n_vocab) if not tokenizer.token_bytes(i)}
    assert 0 in silent
    assert len(silent) > 1
    for data in [text.encode() for text in TEXTS] + random_bytes(2):
        assert not silent & set(tokenizer.encode(data))


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_outside_the_vocabulary(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(ValueError, match=f"token {token} is outside the vocabulary of "):
        tokenizer.token_bytes(token)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([token])


# ---- World --------------------------------------------------------------------------------------


def test_longest_match_wins() -> None:
    tokenizer = world([*BYTES, b"ab", b"abcd", b"bc", b"cde"])
    ab, abcd, bc, cde = range(257, 261)
    assert tokenizer.encode("ab") == [ab]
    assert tokenizer.encode("abcde") == [abcd, 1 + ord("e")]
    assert tokenizer.encode("abcx") == [ab, 1 + ord("c"), 1 + ord("x")]
    assert tokenizer.encode("xbcde") == [1 + ord("x"), bc, 1 + ord("d"), 1 + ord("e")]
    assert tokenizer.encode("abc") == [ab, 1 + ord("c")]
    assert tokenizer.encode("cdex") == [cde, 1 + ord("x")]


def test_the_lower_of_two_equal_tokens_encodes() -> None:
    tokenizer = world([b"end", b"a", b"", b"a", None])
    assert tokenizer.encode("aa") == [1, 1]
    assert tokenizer.decode([0, 3, 2, 4, 1]) == "aa"


def test_a_byte_that_the_vocabulary_lacks() -> None:
    with pytest.raises(ValueError, match="no token for byte 98 at offset 2 of the text"):
        world([None, b"a", b"bc"]).encode("aab")


def test_random_vocabularies_agree_with_a_plain_search() -> None:
    rng = random.Random(3)
    for _ in range(50):
        tokens = [bytes(rng.choices(b"ab\xff\0", k=rng.randint(1, 6))) for _ in range(40)]
        vocabulary: list[bytes | None] = [None, b"a", b"b", b"\xff", b"\0", *tokens]
        ids: dict[bytes, int] = {}
        for token, data in enumerate(vocabulary):
            if data is not None:
                ids.setdefault(data, token)
        text = bytes(rng.choices(b"ab\xff\0", k=200))
        expected, at = [], 0
        while at < len(text):
            longest = max((data for data in ids if text.startswith(data, at)), key=len)
            expected.append(ids[longest])
            at += len(longest)
        assert world(vocabulary).encode(text) == expected


def test_world_agrees_with_pyrwkv_tokenizer(real_world: tuple[CoreTokenizer, Any]) -> None:
    ours, theirs = real_world
    sources = [path.read_text("utf-8") for path in Path(__file__).parent.glob("*.py")]
    # Theirs takes text only; latin-1 makes random bytes one.
    mixed = [data.decode("latin-1") for data in random_bytes(4) + BROKEN]
    for text in [*TEXTS, "".join(TEXTS), *sources, *mixed]:
        assert ours.encode(text) == theirs.encode(text)
    for data in BROKEN + random_bytes(5):
        assert ours.decode_bytes(ours.encode(data)) == data


def test_world_knows_the_end_of_a_turn(real_world: tuple[CoreTokenizer, Any]) -> None:
    tokenizer, _ = real_world
    assert tokenizer.n_vocab == 65536
    assert tokenizer.encode("\n\n") == [261]
    assert tokenizer.encode("User: hi\n\nAssistant:")[-4:] == tokenizer.encode("\n\nAssistant:")


# ---- from a model file --------------------------------------------------------------------------


def open_file(folder: Path, change: Callable[[tiny.Gguf], None]) -> Tokenizer:
    file = tiny.Gguf()
    file.put("general.architecture", tiny.STRING, "rwkv7")
    tiny.put_vocabulary(file, 300)
    change(file)
    path = folder / "a.gguf"
    path.write_bytes(file.to_bytes())
    return tokenizer_from_file(_core.ModelFile(str(path)))


def put_tokens(*tokens: str) -> Callable[[tiny.Gguf], None]:
    def change(file: tiny.Gguf) -> None:
        values = tiny.array(tiny.STRING, list(tokens))
        file.put("tokenizer.ggml.tokens", tiny.ARRAY, values)
        file.drop("tokenizer.ggml.token_type")

    return change


def put_types(kind: int, types: list[int]) -> Callable[[tiny.Gguf], None]:
    values = tiny.array(kind, types)
    return lambda file: file.put("tokenizer.ggml.token_type", tiny.ARRAY, values)


def put_sentencepiece(kind: int, model: bytes) -> Callable[[tiny.Gguf], None]:
    def change(file: tiny.Gguf) -> None:
        file.put("tokenizer.ggml.model", tiny.STRING, "llama")
        values = tiny.array(kind, list(model))
        file.put("rwkv_edge.sentencepiece_model", tiny.ARRAY, values)

    return change


def test_world_tokens_are_unescaped(tmp_path: Path) -> None:
    change = put_tokens("<s>", r"\t\n\r\\\'", r"\x00\xfF", "\"'", "[PAD4]", "[PAD9]", r"\"")
    tokenizer = open_file(tmp_path, change)
    assert tokenizer.kind == "world"
    found = [tokenizer.token_bytes(i) for i in range(7)]
    assert found == [b"", b"\t\n\r\\'", b"\0\xff", b"\"'", b"", b"[PAD9]", b'"']


def test_control_and_unused_tokens_do_not_encode(tmp_path: Path) -> None:
    tokenizer = open_file(tmp_path, lambda _: None)
    text = "<s>[PAD299][PAD262]"
    assert tokenizer.encode(text) == [1 + byte for byte in text.encode()]
    assert tokenizer.decode([0, 299]) == ""


def put_tokenizer_json(kind: int, value: Any) -> Callable[[tiny.Gguf], None]:
    def change(file: tiny.Gguf) -> None:
        file.put("tokenizer.ggml.model", tiny.STRING, "gpt2")
        file.put("tokenizer.huggingface.json", kind, value)

    return change


def test_a_tokenizer_json_in_the_file(tmp_path: Path) -> None:
    tokenizer = open_file(tmp_path, put_tokenizer_json(tiny.STRING, pile.text()))
    assert tokenizer.kind == "huggingface"
    assert tokenizer.encode("hello") == [pile.token("hello")]


def test_a_sentencepiece_model_in_the_file(tmp_path: Path) -> None:
    tokenizer = open_file(tmp_path, put_sentencepiece(tiny.U8, train()))
    assert tokenizer.kind == "sentencepiece"
    assert tokenizer.decode(tokenizer.encode("a  b\u2581")) == "a  b\u2581"


BAD_FILES: dict[str, tuple[Callable[[tiny.Gguf], None], str]] = {
    "no model": (lambda file: file.drop("tokenizer.ggml.model"), "key tokenizer.ggml.model"),
    "no tokens": (lambda file: file.drop("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens"),
    "empty": (put_tokens(), "tokenizer.ggml.tokens"),
    "escape": (put_tokens("<s>", r"a\q"), r"tokens\[1\]: found 'a\\q', expected bytes"),
    "hex": (put_tokens("<s>", r"\x4"), r"tokens\[1\]: found '\\x4', expected bytes"),
    "backslash": (put_tokens("<s>", "ok", "\\"), r"tokens\[2\]: found '\\', expected bytes"),
    "few types": (put_types(tiny.I32, [1, 2]), "found 2 entries, expected 300"),
    "type of types": (put_types(tiny.F32, [1] * 300), "tokenizer.ggml.token_type"),
    "sentencepiece": (put_sentencepiece(tiny.U8, b"junk"), "not a sentencepiece model"),
    "json": (put_tokenizer_json(tiny.STRING, "{}"), "not a Hugging Face tokenizer"),
    "json type": (put_tokenizer_json(tiny.U32, 5), "json is uint32, expected string"),
    "wide bytes": (put_sentencepiece(tiny.I32, b"junk"), r"expected array\[uint8\]"),
}


@pytest.mark.parametrize(("change", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_vocabulary(
    tmp_path: Path, change: Callable[[tiny.Gguf], None], message: str
) -> None:
    with refuses(FormatError, tmp_path / "a.gguf", message):
        open_file(tmp_path, change)


def test_another_kind_of_tokenizer(tmp_path: Path) -> None:
    def change(file: tiny.Gguf) -> None:
        file.put("tokenizer.ggml.model", tiny.STRING, "gpt2")

    with refuses(
        UnsupportedError, tmp_path / "a.gguf", r"tokenizer\.ggml\.model is 'gpt2'; supported are"
    ):
        open_file(tmp_path, change)


# ---- streams ------------------------------------------------------------------------------------


def test_a_stream_cut_anywhere_is_the_text() -> None:
    rng = random.Random(6)
    for data in [text.encode() for text in TEXTS] + BROKEN + random_bytes(7):
        decoder, out, at = StreamDecoder(), "", 0
        while at < len(data):
            size = rng.randint(1, 4)
            out += decoder.push(data[at : at + size])
            at += size
        assert out + decoder.flush() == data.decode("utf-8", "replace")


def test_a_character_comes_out_with_its_last_byte() -> None:
    decoder = StreamDecoder()
    assert [decoder.push(bytes([byte])) for byte in "\u00e9\U0001f600".encode()] == [
        "",
        "\u00e9",
        "",
        "",
        "",
        "\U0001f600",
    ]
    assert decoder.pending == 0
    assert decoder.push(b"\xe2\x96") == ""
    assert decoder.pending == 2


def test_nothing_is_stuck_behind_an_invalid_byte() -> None:
    decoder = StreamDecoder()
    assert decoder.push(b"\xff") == "\ufffd"
    assert decoder.push("\ufffd".encode()) == "\ufffd"
    assert decoder.push(b"\xf0\x9f") + decoder.push(b"a") == "\ufffda"
    assert decoder.push(b"\xc3") + decoder.flush() == "\ufffd"
