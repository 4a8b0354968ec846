# SPDX-License-Identifier: Apache-2.0
"""Vocabularies on their way into a GGUF file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import checkpoints as ck
import pytest
import tiny
from rwkv_edge import FormatError, UnsupportedError
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import convert
from rwkv_edge.convert.vocab import world_file


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
    assert kinds[tokens.index("\u2581a")] == 1
    assert kinds[count:] == [5] * (300 - count)
    scores = file.get("tokenizer.ggml.scores")
    assert scores[:count] == [pytest.approx(pieces.get_score(i)) for i in range(count)]
    assert file.get("tokenizer.ggml.model") == "llama"
    assert file.get("tokenizer.ggml.add_space_prefix") is True
    assert file.get("tokenizer.ggml.add_bos_token") is False
    assert file.get("tokenizer.ggml.unknown_token_id") == 1
    assert file.get("tokenizer.ggml.eos_token_id") == 0
    with pytest.raises(FormatError, match=r"not a sentencepiece model"):
        converted(tmp_path, vocab=ck.write(tmp_path, model[:1000], "cut.model"))


BAD_VOCABULARIES: dict[str, tuple[bytes, str]] = {
    "three fields": (b"1 'a' 1\n2 'b'\n", r"line 2: expected `id 'token' length`, found \"2 'b'\""),
    "no literal": (b"1 a 1\n", "line 1: expected `id"),
    "a call": (b"1 print('x') 1\n", "line 1: expected `id"),
    "nesting": (b"1 " + b"(" * 100_000 + b" 1\n", "line 1: expected `id"),
    "a number": (b"1 17 2\n", "line 1: the token 17 does not have 2 bytes"),
    "wrong length": (b"1 '\xc3\xa9' 1\n", "line 1: the token .* does not have 1 bytes"),
    "empty token": (b"1 '' 0\n", "does not have 0 bytes"),
    "id 0": (b"0 'a' 1\n", "id 0, expected 1 or more; 0 ends a document"),
    "id twice": (b"1 'a' 1\n1 'b' 1\n", "line 2: id 1 appears twice"),
    "token twice": (b"1 'a' 1\n2 b'a' 1\n", "two ids have the same bytes"),
    "empty": (b" ", "line 1: expected"),
    "not UTF-8": (b"1 '\xff' 1\n", "not a World vocabulary, not UTF-8"),
    "too large": (b"1 'a' 1\n300 'b' 1\n", "a token has id 300, but the model has 300 embeddings"),
}


@pytest.mark.parametrize("case", BAD_VOCABULARIES)
def test_bad_vocabulary(tmp_path: Path, case: str) -> None:
    data, message = BAD_VOCABULARIES[case]
    path = ck.write(tmp_path, data, "vocab.txt")
    with pytest.raises(FormatError, match=message) as error:
        converted(tmp_path, vocab=path)
    assert str(error.value).startswith(str(path))
    assert not (tmp_path / "out.gguf").exists()


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    path = ck.write(tmp_path, b"1 'a' 1\n", "vocab.txt")
    os.truncate(path, 1 << 40)
    with pytest.raises(FormatError, match="not a vocabulary, larger than 67108864 bytes"):
        converted(tmp_path, vocab=path)


def test_hugging_face_tokenizer_is_recognised(tmp_path: Path) -> None:
    path = ck.write(tmp_path, b'{"version": "1.0"}', "20B_tokenizer.json")
    with pytest.raises(UnsupportedError, match="a Hugging Face tokenizer; expected rwkv_vocab"):
        converted(tmp_path, vocab=path)


def test_missing_vocabulary_says_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkv_edge.convert.vocab.world_file", lambda: None)
    with pytest.raises(UnsupportedError, match=r"--vocab FILE.*pip install 'rwkv-edge\[convert\]'"):
        converted(tmp_path)


@pytest.mark.skipif(world_file() is None, reason="needs pyrwkv-tokenizer")
def test_world_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"id 65529, but the model has 300 embeddings"):
        converted(tmp_path)
    shape = dataclasses.replace(ck.SHAPE, vocab=65536, layers=1)
    path = ck.write(tmp_path, ck.pth_of(tiny.random_weights(shape, 5)), "world")
    convert(path, tmp_path / "out.gguf")
    file = ModelFile(str(tmp_path / "out.gguf"))
    tokens, kinds = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type")
    assert (len(tokens), tokens[261], tokens[65530]) == (65536, "\\n\\n", "[PAD65530]")
    assert (kinds.count(1), kinds.count(5), kinds[0]) == (65529, 6, 3)
    assert file.get("tokenizer.ggml.eot_token_id") == 261
