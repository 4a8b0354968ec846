# SPDX-License-Identifier: Apache-2.0
"""Text of a given form: whatever the model would like to say, it is of that form."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from rwkv_edge import Model, UnsupportedError
from rwkv_edge.grammar import Grammars
from rwkv_edge.tokenizer import END_OF_TEXT
from scripted import THE, USER, bits, bits_after, byte_tokens, play, talkative_model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 200},
        "tags": {
            "type": "array",
            "items": {"enum": ["User", "the end", "\u00e9t\u00e9"]},
            "maxItems": 3,
        },
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WILD: dict[str, Any] = {"top_p": 1, "temperature": 5, "max_tokens": 500}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(talkative_model(tmp_path_factory.mktemp("models")), threads=1)


NEVER = [b"\xed\xa0", b"\xf4\x90", b"\xe0\x80"]  # no UTF-8: half of a pair, too large, too long
HALVES = [  # of characters, as the World vocabulary has some: their beginning, middle or end
    b"\xc3", b" \xc3", b"\xa9t", b"\xa9t\xc3", b"t\xc3\xa9", b"\xe4\xbd", b"\xbd\xa0",
    b"\xa0\xe5\xa5", b"\xa5\xbd", b'"\xe4', b"\xf0\x9f", b"\xf0\x9f\x98", b"\x9f\x98", b"\x98\x80",
    b"\x9f\x98\x80", b"\x80!", b'\x80"', b"\xbd\xe4", *NEVER,
]  # fmt: skip


@pytest.fixture(scope="module")
def halves(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with tokens of several bytes that begin or end in a character."""
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    tiny.put_vocabulary(made.file, model.n_vocab, HALVES[1:])  # one byte has its token
    return Model(tiny.write(tmp_path_factory.mktemp("models"), "halves.gguf", made), threads=1)


def check(found: Any) -> None:
    assert list(found) == ["name", "age", "tags"]
    assert isinstance(found["name"], str)
    assert len(found["name"]) <= 8
    assert 0 <= found["age"] <= 200
    assert set(found["tags"]) <= {"User", "the end", "\u00e9t\u00e9"}
    assert len(found["tags"]) <= 3


def test_json_of_a_schema(model: Model) -> None:
    """Any seed, as a dict or as JSON; with the tokens and the state of what was written."""
    texts = set()
    for seed in range(30):
        session = model.session()
        schema = json.dumps(SCHEMA) if seed % 2 else SCHEMA
        pieces = session.generate("x", schema=schema, seed=seed, lookup=5 * (seed % 3), **WILD)
        text = "".join(pieces)
        check(json.loads(text))
        assert pieces.details.finish_reason == "stop"
        assert model.tokenizer.decode(pieces.details.tokens) == text
        assert bits(session) == bits_after(model, [*byte_tokens("x"), *pieces.details.tokens])
        texts.add(text)
    assert len(texts) > 20


def test_a_batch_of_forms(model: Model) -> None:
    texts = ["", "", "", ""]
    batch = model.batch(model.session() for _ in texts)
    each: Any = [{"schema": SCHEMA}, {"regex": "[a-z]{5}"}, {"choices": ["\u00e9", "q"]}, {}]
    for i, piece in batch.generate("x", each=each, seed=1, **{**WILD, "max_tokens": 200}):
        texts[i] += piece
    check(json.loads(texts[0]))
    assert re.fullmatch("[a-z]{5}", texts[1])
    assert texts[2] in ("\u00e9", "q")
    assert texts[3]


def test_a_regex(model: Model) -> None:
    pattern = r"[0-9]{2}:\p{Han}+( User| the)*/\.\x20?"
    for seed in range(20):
        text = "".join(model.session().generate("x", regex=pattern, seed=seed, **WILD))
        assert re.fullmatch(r"[0-9]{2}:[\u2e80-\U0003ffff]+( User| the)*/\.\x20?", text), text


ODD = ["a", "ab", "abc", 'q"\\\n\x00\x7f', "\u00e9\U0001f600", "|x/.*", " the", "(", "\u4f60\u597d"]


def test_choices(model: Model) -> None:
    """All of them, and only they: also those that begin another, and of any characters."""
    found = set()
    for seed in range(300):
        found.add("".join(model.session().generate("x", choices=ODD, seed=seed, **WILD)))
        if len(found) == len(ODD):
            break
    assert found == set(ODD)


def test_a_grammar(model: Model) -> None:
    lark = 'start: "<" item ("," item)* ">"\nitem: NUMBER | "the" | start\nNUMBER: /-?[1-9]/\n'
    for seed in range(10):
        pieces = model.session().generate("x", grammar=lark, seed=seed, **WILD)
        text = "".join(pieces)
        while (shorter := re.sub(r"<(-?[1-9]|the)(,(-?[1-9]|the))*>", "the", text)) != text:
            text = shorter
        assert text == "the" or pieces.details.finish_reason == "length", text


@pytest.mark.parametrize("which", ["model", "halves"])
def test_bytes_of_characters(request: pytest.FixtureRequest, which: str) -> None:
    """Tokens that are half a character are allowed where they lead to an allowed one, and only
    there: the definition, over all tokens and all beginnings of all choices. Where one text is
    left, the package may choose the tokens for it."""
    model = request.getfixturevalue(which)
    words = ["\u00e9", "\u00e8t", "\u4f60", "\U0001f600!", "e"]
    whole = [word.encode() for word in words]
    grammars = Grammars(model.tokenizer, model.n_vocab)
    tokens = [model.tokenizer.token_bytes(token) for token in range(model.n_vocab)]
    for word in whole:
        constraint = grammars.constraint("choices", words)
        for cut in range(len(word) + 1):
            begun = word[:cut]
            bits = np.unpackbits(np.frombuffer(constraint.allowed(), np.uint8), bitorder="little")
            expected = {
                token
                for token, data in enumerate(tokens)
                if data and any(w.startswith(begun + data) for w in whole)
            }
            expected |= {END_OF_TEXT} if begun in whole else set()
            found = set(np.flatnonzero(bits).tolist())
            if sum(w.startswith(begun) for w in whole) == 1 and begun not in whole:
                assert found
                assert found <= expected, begun
            else:
                assert found == expected, begun
            if cut < len(word):
                constraint.accept(1 + word[cut])
        assert constraint.complete


def test_tokens_that_begin_or_end_in_a_character(halves: Model) -> None:
    """Whatever such tokens the model likes, the text is UTF-8 and of its form."""
    known = {halves.tokenizer.token_bytes(token): token for token in range(halves.n_vocab)}
    ours = {known[data]: 3.0 for data in HALVES}
    used: set[int] = set()
    one = ["\u00e9t\u00e9", "\u4f60\u597d", "\U0001f600!", "e\u00e9"]
    schema = {
        "type": "object",
        "properties": {
            "free": {"type": "string", "maxLength": 8},
            "one": {"enum": one},
        },
        "required": ["free", "one"],
        "additionalProperties": False,
    }
    for seed in range(40):
        pieces = halves.session().generate("x", schema=schema, seed=seed, logit_bias=ours, **WILD)
        text = "".join(pieces)
        details = pieces.details
        assert details.finish_reason == "stop"
        assert halves.tokenizer.decode_bytes(details.tokens) == text.encode()  # nothing is U+FFFD
        found = json.loads(text)
        assert len(found["free"]) <= 8
        assert found["one"] in one
        used |= set(details.tokens) & set(ours)
    assert len(used) > len(HALVES) / 2
    assert not used & {known[data] for data in NEVER}
    for seed in range(20):
        han = halves.session().generate(
            "x", regex=r"\p{Han}{3}", seed=seed, logit_bias=ours, **WILD
        )
        assert re.fullmatch("[\u2e80-\U0003ffff]{3}", "".join(han))


def test_where_the_text_may_end_the_model_decides(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for script, reason, text in (
        ([*byte_tokens("ab"), END_OF_TEXT], "stop", "ab"),
        ([*byte_tokens("abc"), USER], "stop", "abc"),  # nothing may follow: no token is asked for
        (byte_tokens("aba"), "length", "aba"),
    ):
        play(monkeypatch, list(script))
        session = model.session()
        pieces = session.generate([1], regex="(ab)*c?", max_tokens=3)
        assert "".join(pieces) == text
        assert pieces.details.finish_reason == reason
        assert bits(session) == bits_after(model, [1, *byte_tokens(text)])


def test_with_other_options(model: Model) -> None:
    def text(**options: Any) -> str:
        return "".join(model.session().generate("x", seed=1, **WILD, **options))

    assert text(choices=["User", "the"], banned=[USER, *byte_tokens("U")]) == "the"
    assert text(regex="[ab]{9}", logit_bias={1 + ord("a"): 900}) == "a" * 9
    assert text(choices=[" the", "x"], forced=[THE]) == " the"
    assert text(regex="a+b", stop="b").strip("a") == ""
    with pytest.raises(ValueError, match="forced token 257 is not allowed here"):
        text(choices=["x"], forced=[THE])
    with pytest.raises(ValueError, match="no token is left to choose"):
        text(choices=["x"], banned=byte_tokens("x"))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"schema": {"not": {}}}, ValueError, r'schema: Unimplemented keys: \["not"\]'),
    ({"schema": {"type": "nope"}}, ValueError, "schema: .*nope"),
    ({"schema": "{"}, ValueError, r"schema: not JSON \("),
    ({"schema": "[1]"}, ValueError, r"schema: found \[1\], expected an object"),
    ({"schema": {"a": object}}, ValueError, r"schema: not JSON \("),
    ({"schema": 3}, TypeError, "schema: found 3, expected a dict or JSON"),
    ({"regex": "(a"}, ValueError, "regex: .*unclosed group"),
    ({"regex": 3}, TypeError, "regex: found 3, expected a text"),
    ({"regex": "\ud800"}, ValueError, "regex: .* expected characters that UTF-8 has"),
    ({"choices": []}, ValueError, r"choices: found \[\], expected texts that are not empty"),
    ({"choices": ["a", ""]}, ValueError, "choices: .* expected texts that are not empty"),
    ({"choices": "ab"}, TypeError, "choices: found 'ab', expected a list of texts"),
    ({"choices": [1]}, TypeError, r"choices: found \[1\], expected a list of texts"),
    ({"choices": ["\udcff"]}, ValueError, "choices: .* expected characters that UTF-8 has"),
    ({"grammar": "start: foo"}, ValueError, 'grammar: .*unknown name: "foo"'),
    ({"grammar": ""}, ValueError, "grammar: Empty grammar"),
    # llguidance's own text has no name, its inner state, or all of a long form
    ({"schema": '{"items":' * 200 + "{}" + "}" * 200}, ValueError, "^schema: recursion limit"),
    ({"grammar": "start: (" * 1000}, ValueError, r"^grammar: .{300}\.\.\.$"),
    ({"grammar": "a: b", "regex": "a"}, ValueError, "regex and grammar: found 2 forms, expected"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_forms_are_refused_at_once(
    model: Model, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    session = model.session()
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)):
        session.generate("x", **options)
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)):
        model.batch([session]).generate("x", each=[options])  # type: ignore[list-item]
    assert bits(session) == bits_after(model, [])


def test_a_form_that_no_text_has(model: Model) -> None:
    pieces = model.session().generate("x", schema={"$ref": "#"})
    with pytest.raises(ValueError, match=r"^schema: no text has this form$"):
        list(pieces)


def test_a_form_that_becomes_too_large(model: Model) -> None:
    """The package finds out in the middle; the message has one line of it."""
    session = model.session()
    lark = 'start: "x" a{0,100000}\na: (b b){1000}\nb: "x"{1000}'
    text = ""
    with pytest.raises(ValueError, match=r"\Agrammar: .*Too many items[^\n]*\Z"):  # noqa: PT012
        for piece in session.generate("x", grammar=lark, max_tokens=9):
            text += piece
    assert bits(session) == bits_after(model, byte_tokens("x" + text))


def test_deep_schemas(model: Model) -> None:
    """Hostile nesting is an error, and no crash."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100_000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match="schema: "):
        model.session().generate("x", schema=schema)
    while schema.get("items"):  # taken apart by hand: its destruction would be as deep
        schema = schema["items"]
    with pytest.raises(ValueError, match="schema: "):
        model.session().generate("x", schema='{"items":' * 3000 + "{}" + "}" * 3000)


def test_a_missing_package(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    other = Model(model.path, threads=1)
    with pytest.raises(UnsupportedError, match=r"pip install 'rwkv-edge\[grammar\]'"):
        other.session().generate("x", choices=["a"])
    assert "".join(other.session().generate("x", max_tokens=1))


def test_a_vocabulary_smaller_than_the_head(tmp_path: Path) -> None:
    """Ids without text are never allowed."""
    shape = tiny.SHAPES["d192"]
    made = tiny.tiny_model(shape, "f32", 1)
    tiny.put_vocabulary(made.file, 270)
    model = Model(tiny.write(tmp_path, "small.gguf", made))
    assert model.n_vocab > model.tokenizer.n_vocab
    found = Grammars(model.tokenizer, model.n_vocab).constraint("regex", "(?s:.*)").allowed()
    allowed = np.flatnonzero(np.unpackbits(np.frombuffer(found, np.uint8), bitorder="little"))
    silent = set(model._without_text)
    assert not silent & set(allowed.tolist())
    assert len(allowed) > 150
    text = "".join(model.session().generate("x", regex="[a-z]{20}", seed=1, **WILD))
    assert re.fullmatch("[a-z]{20}", text)
