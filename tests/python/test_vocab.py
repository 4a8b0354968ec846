# SPDX-License-Identifier: Apache-2.0
"""Vocabularies on their way into a GGUF file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import checkpoints as ck
import pile
import pytest
import tiny
from refusal import refuses
from rwkv_edge import FormatError, Model, UnsupportedError
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import convert
from rwkv_edge.convert.vocab import find_vocabulary, read_vocabulary, world_file
from texts import train


def converted(folder: Path, **options: Any) -> ModelFile:
    target = folder / "out.gguf"
    convert(ck.write(folder, ck.pth_of(ck.weights_of())), target, **options)
    return ModelFile(str(target))


def test_sentencepiece(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    text = tmp_path / "text"
    text.write_text("one two three four five\n" * 50 + "a cat, a hat\n" * 50)
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), vocab_size=280, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, eos_id=0, unk_id=1, bos_id=-1, pad_id=-1,
        user_defined_symbols=["User:", "\n\n"],
        minloglevel=2,
    )  # fmt: skip
    model = (tmp_path / "m.model").read_bytes()
    file = converted(tmp_path, vocab=tmp_path / "m.model")
    assert bytes(file.get("rwkv_edge.sentencepiece_model")) == model
    assert file.value_type("rwkv_edge.sentencepiece_model") == "array[uint8]"
    pieces = spm.SentencePieceProcessor(model_proto=model)
    tokens = file.get("tokenizer.ggml.tokens")
    count = pieces.vocab_size()
    assert tokens[:count] == [pieces.id_to_piece(i) for i in range(count)]
    assert tokens[count:] == [f"[PAD{i}]" for i in range(count, 300)]
    kinds = file.get("tokenizer.ggml.token_type")
    assert kinds[:2] == [3, 2]
    assert kinds[tokens.index("<0x41>")] == 6
    assert kinds[tokens.index("User:")] == 4
    assert file.get("tokenizer.ggml.eot_token_id") == tokens.index("\n\n")
    assert Counter(kinds[:count]) == {1: count - 260, 2: 1, 3: 1, 4: 2, 6: 256}
    assert kinds[tokens.index("\u2581a")] == 1
    assert kinds[count:] == [5] * (300 - count)
    scores = file.get("tokenizer.ggml.scores")
    assert scores[:count] == [pytest.approx(pieces.get_score(i)) for i in range(count)]
    assert file.get("tokenizer.ggml.model") == "llama"
    assert file.get("tokenizer.ggml.add_space_prefix") is True
    assert file.get("tokenizer.ggml.add_bos_token") is False
    assert file.get("tokenizer.ggml.unknown_token_id") == 1
    assert file.get("tokenizer.ggml.eos_token_id") == 0
    path = ck.write(tmp_path, model[:1000], "cut.model")
    with refuses(FormatError, path, "not a sentencepiece model"):
        converted(tmp_path, vocab=path)


def test_a_sentencepiece_model_that_puts_no_space_first(tmp_path: Path) -> None:
    """And has a piece of a type that is none: it is an ordinary one."""
    piece = b"\x0a\x02xy\x15\0\0\x80\xbf\x18\x07"  # the text, the score -1, the type 7
    model = train(normalization_rule_name="identity", add_dummy_prefix=False)
    path = ck.write(tmp_path, model + b"\x0a" + bytes([len(piece)]) + piece, "m.model")
    vocabulary = read_vocabulary(path)
    assert vocabulary.texts[-1] == "xy"
    assert (max(vocabulary.types), vocabulary.types[-1]) == (6, 1)
    assert vocabulary.metadata["tokenizer.ggml.add_space_prefix"].data is False


BAD_VOCABULARIES: dict[str, tuple[bytes, str]] = {
    "three fields": (b"1 'a' 1\n2 'b'\n", r"line 2: expected `id 'token' length`, found \"2 'b'\""),
    "no literal": (b"1 a 1\n", "line 1: expected `id"),
    "a call": (b"1 print('x') 1\n", "line 1: expected `id"),
    "nesting": (b"1 " + b"(" * 100_000 + b" 1\n", "line 1: expected `id"),
    "a number": (b"1 17 2\n", "line 1: the token 17 does not have 2 bytes"),
    "wrong length": (b"1 '\xc3\xa9' 1\n", "line 1: the token .* does not have 1 bytes"),
    "empty token": (b"1 '' 0\n", "does not have 0 bytes"),
    "id 0": (b"0 'a' 1\n", "id 0, expected from 1 to 1048575; 0 ends a document"),
    "huge id": (b"1048576 'a' 1\n", "id 1048576, expected from 1 to 1048575"),
    "id twice": (b"1 'a' 1\n1 'b' 1\n", "line 2: id 1 appears twice"),
    "token twice": (b"1 'a' 1\n2 b'a' 1\n", "two ids have the same bytes"),
    "empty": (b" ", "line 1: expected"),
    "a long line": (b"1 '" + b"a" * 1100 + b"' 1100\n", "line 1: expected `id 'token' length`"),
    "a long token": (
        b"1 '" + b"a" * 257 + b"' 257\n",
        "a token of 257 bytes, expected at most 256",
    ),
    "not UTF-8": (b"1 '\xff' 1\n", "not a World vocabulary, not UTF-8"),
    "too large": (b"1 'a' 1\n300 'b' 1\n", "of 301 tokens, but the model has 300 embeddings"),
    "JSON of another kind": (b'{"weight_map": {}}', "not a Hugging Face tokenizer .no 'model'"),
    "JSON in Latin-1": (b'{"model": "\xe9"}', "not a Hugging Face tokenizer, not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_VOCABULARIES)
def test_bad_vocabulary(tmp_path: Path, case: str) -> None:
    data, message = BAD_VOCABULARIES[case]
    path = ck.write(tmp_path, data, "vocab.txt")
    with refuses(FormatError, path, message):
        converted(tmp_path, vocab=path)
    assert not (tmp_path / "out.gguf").exists()


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    path = ck.write(tmp_path, b"1 'a' 1\n", "vocab.txt")
    os.truncate(path, 1 << 40)
    with refuses(FormatError, path, "not a World vocabulary, larger than 16777216 bytes"):
        converted(tmp_path, vocab=path)


def test_hugging_face(tmp_path: Path) -> None:
    spec, text = pile.tokenizer(), pile.text(pairs=True)
    path = ck.write(tmp_path, text.encode(), "20B_tokenizer.json")
    file = converted(tmp_path, vocab=path)
    assert file.get("tokenizer.huggingface.json") == text
    assert file.get("tokenizer.ggml.model") == "gpt2"
    assert file.get("tokenizer.ggml.pre") == "gpt-2"
    assert file.get("tokenizer.ggml.merges") == spec["model"]["merges"]
    tokens, kinds = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type")
    count = len(spec["model"]["vocab"])
    assert tokens[:count] == list(spec["model"]["vocab"])
    assert tokens[count : count + 3] == [" " * 8, " " * 4, f"[PAD{count + 2}]"]
    assert len(tokens) == len(kinds) == 300
    assert kinds == [3, 3, *[1] * (count - 2), 4, 4, *[5] * (300 - count - 2)]
    model = Model(tmp_path / "out.gguf")
    assert model.tokenizer.encode("hello") == [pile.token("hello")]
    assert not set(model._without_text) & set(model.tokenizer.encode("hello the        "))


def test_hugging_face_with_a_cut_of_its_own(tmp_path: Path) -> None:
    spec = pile.tokenizer()
    split = {"type": "Split", "pattern": {"String": "."}, "behavior": "Isolated", "invert": False}
    steps = [split, spec["pre_tokenizer"]]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    path = ck.write(tmp_path, json.dumps(spec).encode(), "tokenizer.json")
    assert converted(tmp_path, vocab=path).get("tokenizer.ggml.pre") is None


# ---- which vocabulary it is ---------------------------------------------------------------------


def kind_of(metadata: Any) -> str | None:
    return metadata["tokenizer.ggml.model"].data if metadata else None


def test_the_vocabulary_beside_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkv_edge.convert.vocab.world_file", lambda: None)
    count = len(pile.tokenizer()["model"]["vocab"]) + 2
    ck.write(tmp_path, pile.text().encode(), "20B_tokenizer.json")
    assert kind_of(find_vocabulary(tmp_path, count)) == "gpt2"
    assert kind_of(find_vocabulary(tmp_path, count + 511)) == "gpt2"
    assert kind_of(find_vocabulary(tmp_path, count + 512)) is None  # of another model
    assert kind_of(find_vocabulary(tmp_path, count - 1)) is None
    ck.write(tmp_path, b"1 'a' 1\n8191 'b' 1\n", "rwkv_vocab_v20230424.txt")
    assert kind_of(find_vocabulary(tmp_path, 8192)) == "rwkv"
    assert kind_of(find_vocabulary(tmp_path, count)) == "gpt2"
    ck.write(tmp_path, b"{", "tokenizer.json")
    with refuses(FormatError, tmp_path / "tokenizer.json", "not a Hugging Face tokenizer"):
        find_vocabulary(tmp_path, 8192)


def test_models_of_256_embeddings_read_bytes(tmp_path: Path) -> None:
    shape = dataclasses.replace(ck.SHAPE, vocab=256, layers=1)
    source = ck.write(tmp_path, ck.pth_of(tiny.random_weights(shape, 5)))
    convert(source, tmp_path / "out.gguf")
    for path in (source, tmp_path / "out.gguf"):
        assert Model(path).metadata["tokenizer.ggml.tokens"][:2] == ["<s>", r"\x01"]
        tokenizer = Model(path).tokenizer
        assert tokenizer.n_vocab == 256
        data = bytes(range(1, 256)) + "\u00e9<s>[PAD1]".encode()
        assert tokenizer.encode(data) == list(data)
        assert [tokenizer.token_bytes(i) for i in (0, 1, 255)] == [b"", b"\1", b"\xff"]
        with pytest.raises(ValueError, match="no token for byte 0 at offset 1 of the text"):
            tokenizer.encode(b"a\0")


def test_a_model_without_a_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkv_edge.convert.vocab.world_file", lambda: None)
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    model = Model(path)
    assert len(model.session().feed([1, 2])) == 300
    with refuses(FormatError, path, r"no tokenizer .*--vocab FILE, or Model\(path, vocab="):
        _ = model.tokenizer
    vocab = ck.write(tmp_path, ck.VOCABULARY.encode(), "vocab.txt")
    assert Model(path, vocab=vocab).tokenizer.encode("a") == [1]


def test_missing_vocabulary_says_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkv_edge.convert.vocab.world_file", lambda: None)
    with refuses(UnsupportedError, tmp_path, r"--vocab FILE.*pip install 'rwkv-edge\[convert\]'"):
        converted(tmp_path)


@pytest.mark.skipif(world_file() is None, reason="needs pyrwkv-tokenizer")
def test_world_vocabulary(tmp_path: Path) -> None:
    with refuses(FormatError, world_file(), r"of 65530 tokens, but the model has 300 embeddings"):
        converted(tmp_path, vocab=world_file())
    shape = dataclasses.replace(ck.SHAPE, vocab=65536, layers=1)
    path = ck.write(tmp_path, ck.pth_of(tiny.random_weights(shape, 5)), "world")
    convert(path, tmp_path / "out.gguf")
    file = ModelFile(str(tmp_path / "out.gguf"))
    tokens, kinds = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type")
    assert (len(tokens), tokens[261], tokens[65530]) == (65536, "\\n\\n", "[PAD65530]")
    assert (kinds.count(1), kinds.count(5), kinds[0]) == (65529, 6, 3)
    assert file.get("tokenizer.ggml.eot_token_id") == 261
