# SPDX-License-Identifier: Apache-2.0
"""sentencepiece models in the engine: the tokens of the library, for any text and any model that it
takes; and models that it must refuse."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
import rwkv_edge
from refusal import refuses
from rwkv_edge import FormatError, Tokenizer, UnsupportedError, _core
from rwkv_edge.tokenizer import SENTENCEPIECE_KEY
from sentencepiece_library import (
    BPE,
    BYTE,
    CHAR,
    CONTROL,
    NORMALIZER,
    PIECES,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER,
    WORD,
    LibraryTokenizer,
    byte_pieces,
    field,
    ours,
    piece,
    protobuf_fields,
    trainer,
    varint,
)
from texts import TEXTS, train

TESTS = Path(__file__).parent
SCRIPTS = (
    *((0, 0x7F), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A)),
    *((0x900, 0x97F), (0xE00, 0xE5B), (0x300, 0x36F), (0x2000, 0x206F), (0x2570, 0x2590)),
    *((0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0xFFF0, 0xFFFD)),
    *((0x1F300, 0x1F6FF), (0x1F1E6, 0x1F1FF), (0x20000, 0x2A6DF), (0x10FFF0, 0x10FFFF)),
)
RUNS = (" ", "a", "\n", "=", "-", "ab", "\u4f60", "\u2581", "\0", "<0x41>", "\n\n", "\U0001f600")
BROKEN = (
    *(b"\xe2\x96", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xf0\x9f\x98", b"\xff"),
    *(b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf5\x80\x80\x80", b"\x80", b"\xc2", b"\xdf\x41"),
)


def mixed(seed: int, size: int) -> bytes:
    """Code, prose, scripts, emoji, control characters, long runs, and what is not UTF-8."""
    rng = random.Random(seed)
    sources = [path.read_bytes() for path in sorted(TESTS.glob("test_t*.py"))]
    parts: list[bytes] = []
    while len(parts) % 50 or sum(map(len, parts)) < size:
        kind = rng.randrange(10)
        if kind < 4:
            source = rng.choice(sources)
            at = rng.randrange(len(source))
            parts.append(source[at : at + rng.randrange(2000)])
        elif kind == 4:
            parts.append(rng.choice(TEXTS).encode())
        elif kind == 5:
            low, high = rng.choice(SCRIPTS)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(80)).encode())
        elif kind == 6:
            parts.append(rng.choice(RUNS).encode() * rng.randrange(1, 300))
        elif kind == 7:
            parts.append(rng.randbytes(rng.randrange(40)))
        elif kind == 8:
            parts.append(rng.choice(BROKEN))
        else:
            parts.append(bytes(rng.choices(b" \t\n\r\0\x01\x1b\x7f", k=rng.randrange(30))))
    return b"".join(parts)


TRAINED = {
    "identity": {"normalization_rule_name": "identity", "add_dummy_prefix": False},
    "nfkc": {},
    "unigram": {"model_type": "unigram", "treat_whitespace_as_suffix": True},
    "unigram, prefix": {"model_type": "unigram", "vocab_size": 450},
}


def demo_model() -> bytes:
    file = _core.ModelFile(str(Path(rwkv_edge.__file__).with_name("demo.gguf")))
    return bytes(file.get(SENTENCEPIECE_KEY))


@pytest.mark.parametrize("name", ["demo", *TRAINED])
def test_a_megabyte_of_mixed_text_gives_the_tokens_of_the_library(name: str) -> None:
    settings: dict[str, Any] = TRAINED.get(name, {})
    model = demo_model() if name == "demo" else train(**settings)
    tokenizer, library = ours(model), LibraryTokenizer(model)
    assert tokenizer.n_vocab == library.n_vocab
    for token in range(tokenizer.n_vocab):
        assert tokenizer.token_bytes(token) == library.token_bytes(token)
    text = mixed(1, 1_000_000)
    tokens = tokenizer.encode(text)
    assert tokens == library.encode(text)
    assert tokenizer.decode_bytes(tokens) == text


SCORES = (0.0, -0.0, -1.0, -1.5, -2.0, -3.25, 0.5, 1e-30, -1e-40, -70_000.0, 90_000.0, 3e38, -3e38)


def random_model(rng: random.Random, kind: int, byte_fallback: bool) -> bytes:
    """Few characters and few scores, so that there are many ties; types of all kinds."""
    scores = rng.sample(SCORES, rng.randint(1, 4)) if rng.random() < 0.5 else ()
    parts = [piece("</s>", 0.0, CONTROL), piece("<unk>", 0.0, UNKNOWN), piece("a", -5.0)]
    parts += byte_pieces() if byte_fallback else ()
    texts = {"a", "</s>", "<unk>"}
    letters = rng.choice(("ab", "abc", "ab\u2581", "a\u2581\u00e9\U0001f600", "abx "))
    for _ in range(rng.randint(1, 60)):
        text = "".join(rng.choices(letters, k=rng.randint(1, rng.choice((3, 6, 12)))))
        if text not in texts:
            texts.add(text)
            # One character that is unused would be the token of a text in the library.
            unused = UNUSED if len(text) > 1 else USER
            type_ = rng.choice((1, 1, 1, 1, 1, USER, unused, 99))
            parts.append(piece(text, rng.choice(scores or (rng.uniform(-9, 0),)), type_))
    return b"".join(parts) + trainer(kind, byte_fallback)


@pytest.mark.parametrize("kind", [BPE, UNIGRAM])
def test_random_models_give_the_tokens_of_the_library(kind: int) -> None:
    rng = random.Random(kind)
    lost = 0
    for i in range(300):
        model = random_model(rng, kind, i % 3 != 0)
        tokenizer, library = ours(model), LibraryTokenizer(model)
        for _ in range(10):
            text = "".join(rng.choices("aabbc \u00e9\U0001f600\u2581x", k=rng.randint(0, 80)))
            try:
                expected = library.encode(text.encode())
            except (KeyError, ValueError):
                lost += 1
                with pytest.raises(ValueError, match="the vocabulary has no token for "):
                    tokenizer.encode(text)
                continue
            assert tokenizer.encode(text) == expected
            assert tokenizer.decode(expected) == text
    assert 100 < lost < 1500


# ---- any text -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TRAINED)
def pieces(request: pytest.FixtureRequest) -> Tokenizer:
    return ours(train(**TRAINED[request.param]))


def test_ordinary_text_uses_the_pieces(pieces: Tokenizer) -> None:
    text = "def test_the_lower_of_two_equal_tokens_encodes() -> None:"
    assert len(pieces.encode(text)) < 0.7 * len(text)


def test_a_model_without_byte_pieces_says_what_it_lacks() -> None:
    tokenizer = ours(train(byte_fallback=False, vocab_size=200))
    assert tokenizer.decode(tokenizer.encode("def test")) == "def test"
    with pytest.raises(ValueError, match="no token for '\u2f00' of the text"):
        tokenizer.encode("def \u2f00")
    with pytest.raises(ValueError, match="no token for byte 255 of the text"):
        tokenizer.encode(b"\xff")
    with pytest.raises(ValueError, match="no token for byte 226 of the text"):
        tokenizer.encode("\u2581")


def test_a_space_without_a_piece() -> None:
    model = b"".join(
        data
        for number, value, data in protobuf_fields(train())
        if not (number == PIECES and isinstance(value, bytes) and b"\xe2\x96\x81" in value)
    )
    text = "def  test \u2581 \u201ca\u201d "
    tokenizer = ours(model)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == LibraryTokenizer(model).encode(text.encode())


START = piece("</s>", 0.0, CONTROL) + piece("<unk>", 0.0, UNKNOWN)


@pytest.mark.parametrize("kind", [BPE, UNIGRAM])
def test_an_unused_character_goes_by_bytes(kind: int) -> None:
    # The library's BPE gives the token, which has no bytes, and the text would be lost.
    model = START + piece("a", 0.0, UNUSED) + piece("b") + b"".join(byte_pieces())
    tokenizer = ours(model + trainer(kind, True))
    assert tokenizer.encode("ab") == [4 + ord("a"), 3]


def test_a_control_symbol_in_a_text_is_text() -> None:
    model = START + piece("|", 0.0, CONTROL) + b"".join(byte_pieces()) + piece("b")
    for kind in (BPE, UNIGRAM):
        tokenizer = ours(model + trainer(kind, True))
        assert tokenizer.decode(tokenizer.encode("|</s>b")) == "|</s>b"
        assert tokenizer.without_text() == [1, 2]


def test_long_pieces_and_a_long_text() -> None:
    # Pieces that begin each other as often as the limit allows. Work grows with the text.
    grown = [piece("a" * size, -float(size)) for size in range(1, 1025)]
    for kind in (BPE, UNIGRAM):
        tokenizer = ours(START + b"".join(grown) + trainer(kind, False))
        tokens = tokenizer.encode("a" * 30_000)
        assert tokenizer.decode(tokens) == "a" * 30_000


# ---- models that are refused --------------------------------------------------------------------


def refused(model: bytes, why: str) -> None:
    with refuses(FormatError, "a.gguf", rf"^a\.gguf: not a sentencepiece model \({why}"):
        ours(model, "a.gguf")


def test_a_cut_model() -> None:
    # However little is cut. Bytes put after such a model could complete its last field.
    for missing in (1, 2, 8, 16, 100):
        refused(train()[:-missing], "no protobuf, or cut short")


TAIL = trainer(BPE, False)
REFUSED = {
    "empty": (b"", "no token is the unknown one"),
    "junk": (b"junk", "a field of wire type|no protobuf"),
    "field 0": (b"\x00\x00" + START, "a field of number 0"),
    "group": (START + b"\x0b\x0c", "a field of wire type 3"),
    "long key": (b"\xff\xff\xff\xff\x7f\x00" + START, "a field of number"),
    "endless number": (START + field(2, b"\x18" + b"\xff" * 11), "no protobuf, or cut short"),
    "long size": (START + b"\x0a\xff\xff\xff\xff\xff\x00", "no protobuf, or cut short"),
    "size beyond the end": (START + b"\x0a\xff\xff\xff\xff\x0f", "no protobuf, or cut short: "),
    "piece beyond its end": (START + field(1, b"\x0a\x05ab"), "no protobuf, or cut short: 5 bytes"),
    "float beyond its end": (START + field(1, b"\x15\0\0"), "no protobuf, or cut short: 4 bytes"),
    "normalizer": (START + field(NORMALIZER, b"\x12\x7f"), "no protobuf, or cut short: 127 bytes"),
    "no text": (START + piece("") + TAIL, "token 2 has no text"),
    "no field of text": (START + field(PIECES, b"") + TAIL, "token 2 has no text"),
    "not UTF-8": (START + piece(b"a\xff\xfe") + TAIL, "token 2 is not UTF-8"),
    "surrogate": (START + piece(b"\xed\xa0\x80") + TAIL, "token 2 is not UTF-8"),
    "zero": (START + piece("a\0b") + TAIL, "token 2 has a zero in it"),
    "long": (START + piece("a" * 1025) + TAIL, "token 2 has 1025 bytes, expected at most 1024"),
    "NaN": (START + piece("a", float("nan")) + TAIL, "token 2 has the score "),
    "infinity": (START + piece("a", float("inf")) + TAIL, "token 2 has the score inf"),
    "twice": (START + piece("ab") * 2 + TAIL, "two tokens are 'ab'"),
    "twice, types": (START + piece("</s>") + TAIL, "two tokens are '</s>'"),
    "twice, unigram": (START + piece("ab") * 2 + trainer(UNIGRAM, False), "two tokens are 'ab'"),
    "two unknown": (START + piece("?", 0.0, UNKNOWN) + TAIL, "token 2 is a second unknown one"),
    "none unknown": (piece("</s>", 0.0, CONTROL) + TAIL, "no token is the unknown one"),
    "unigram of nothing": (START + trainer(UNIGRAM, False), "no token has text"),
    "unasked byte": (START + piece("<0x41>", 0.0, BYTE) + TAIL, "token 2 is the byte '<0x41>'"),
    "odd byte": (
        START + piece("<0xg1>", 0.0, BYTE) + trainer(BPE, True),
        "token 2 is the byte '<0xg1>', expected <0x00> to <0xFF>",
    ),
    "few bytes": (START + piece("<0x41>", 0.0, BYTE) + trainer(BPE, True), "byte_fallback without"),
}


@pytest.mark.parametrize(("model", "why"), REFUSED.values(), ids=REFUSED)
def test_a_damaged_model(model: bytes, why: str) -> None:
    refused(model, why)


@pytest.mark.parametrize(("kind", "name"), [(WORD, "words"), (CHAR, "characters")])
def test_a_model_of_another_type(kind: int, name: str) -> None:
    with refuses(UnsupportedError, "a.gguf", f"a sentencepiece model of {name}, expected BPE or"):
        ours(START + piece("a") + trainer(kind, False), "a.gguf")


def test_token_0_must_end_a_document() -> None:
    model = train(eos_id=-1, unk_id=2, control_symbols=[], user_defined_symbols=["zero"])
    with refuses(FormatError, "a.gguf", "token 0 is 'zero', expected a control"):
        ours(model, "a.gguf")


def test_the_largest_model_and_the_largest_vocabulary() -> None:
    refused(START + field(4, b"\0" * (1 << 24)), r"\d+ bytes, expected at most 16777216")
    many = b"".join(field(PIECES, field(1, b"%05x" % i)) for i in range((1 << 20) - 1))
    refused(START + many, "1048577 pieces, expected at most 1048576")


def test_what_the_library_takes_is_taken() -> None:
    """Types and models without a number of theirs, fields that are repeated or of another form."""
    a = field(PIECES, field(1, b"x") + field(1, b"a") + b"\x18\x03\x18\x63\x18\x01\x10\x05")
    nothing = field(2, b"\x1a\x01\x02") + field(2, b"\x18\x63") + field(77, b"abc") + b"\x30\x07"
    unused = piece("\0", 0.0, UNUSED) * 2
    model = START + a + nothing + trainer(BPE, False) + unused + trainer(BPE, False)
    model += b"\xfd\x01" + struct.pack("<f", 1.0) + b"\xf9\x01" + struct.pack("<d", 1.0)
    model += field(2, b"\x18" + varint((1 << 32) + BPE))
    tokenizer = ours(model)
    assert tokenizer.encode("aa") == LibraryTokenizer(model).encode(b"aa") == [2, 2]
    assert tokenizer.without_text() == [1, 3, 4]
