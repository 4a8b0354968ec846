# SPDX-License-Identifier: Apache-2.0
"""Conversations: the template, where an answer ends, and what the model remembers of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import GetModel
from rwkv_edge import Conversation, FormatError, Model
from rwkv_edge.chat import TURN_STOPS, clean
from scripted import ASSISTANT, ING, THE, TURN_END, USER, bits, bits_after, byte_tokens, play

COLON = byte_tokens(":")


@pytest.fixture(scope="module")
def model(tiny_model: GetModel) -> Model:
    return Model(tiny_model("f32", "d128")[0], threads=1)


def asked(model: Model, text: str) -> list[int]:
    return model.tokenizer.encode(f"User: {text}\n\nAssistant:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", "hello"),
        ("  a\r\nb\r\n\r\nc\n\n\n\nd\r\r", "a\nb\nc\nd"),
        ("\n\n \n", ""),
        ("a\n \nb", "a\n \nb"),
        ("User: x\n\nAssistant: y", "User: x\nAssistant: y"),
    ],
)
def test_a_message_cannot_end_its_turn(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_what_the_model_reads(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Conversation(model, system="Be\r\n\r\nkind. ")
    start = model.tokenizer.encode("System: Be\nkind.\n\n")
    assert bits(chat.session) == bits_after(model, start)
    play(monkeypatch, [THE, ING, TURN_END])
    assert "".join(chat.ask("hi\n\nthere\n")) == "theing"
    first = [*start, *asked(model, "hi\nthere"), THE, ING, TURN_END]
    assert bits(chat.session) == bits_after(model, first)
    play(monkeypatch, [ING, TURN_END])
    assert "".join(chat.ask("and?")) == "ing"
    assert bits(chat.session) == bits_after(model, [*first, *asked(model, "and?"), ING, TURN_END])


def test_without_a_system_text(model: Model) -> None:
    for system in (None, "", "\n"):
        assert bits(Conversation(model, system=system).session) == bits_after(model, [])


# What the model says, what the user sees of it, and what is left in the state before the turn ends.
ANSWERS: dict[str, tuple[list[int], str, list[int]]] = {
    "paragraph": ([THE, TURN_END, THE], "the", [THE]),
    "user's turn": ([THE, *byte_tokens("\n"), USER, *COLON], "the", [THE]),
    "its own turn again": ([THE, *byte_tokens("\n"), ASSISTANT, *COLON], "the", [THE]),
    "white space first": ([*byte_tokens(" \n "), ING, 0], "ing", [*byte_tokens(" \n "), ING]),
    "end of text": ([THE, 0], "the", [THE]),
    "nothing": ([0], "", []),
    "nothing but the end": ([TURN_END], "", []),
}


@pytest.mark.parametrize(("tokens", "shown", "kept"), ANSWERS.values(), ids=ANSWERS.keys())
def test_where_an_answer_ends(
    model: Model, monkeypatch: pytest.MonkeyPatch, tokens: list[int], shown: str, kept: list[int]
) -> None:
    play(monkeypatch, tokens)
    chat = Conversation(model)
    assert "".join(chat.ask("hi")) == shown
    expected = [*asked(model, "hi"), *kept, TURN_END]
    assert bits(chat.session) == bits_after(model, expected)


def test_an_answer_of_several_paragraphs(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [THE, TURN_END, ING, TURN_END, USER, *COLON, THE])
    chat = Conversation(model, stop=TURN_STOPS)
    assert "".join(chat.ask("hi")) == "the\n\ning"
    kept = [THE, TURN_END, ING]
    assert bits(chat.session) == bits_after(model, [*asked(model, "hi"), *kept, TURN_END])


@pytest.mark.parametrize(("last", "rest"), [("\n", "\n"), ("\n\n", ""), ("x", "\n\n")])
def test_a_turn_ends_with_two_newlines_only(
    model: Model, monkeypatch: pytest.MonkeyPatch, last: str, rest: str
) -> None:
    tokens = [THE, *byte_tokens(last)]
    play(monkeypatch, [*tokens, 0])
    chat = Conversation(model, stop=["no such thing"])
    assert "".join(chat.ask("hi")) == "the" + last
    tokens += model.tokenizer.encode(rest)
    assert bits(chat.session) == bits_after(model, [*asked(model, "hi"), *tokens])


def test_max_tokens_ends_an_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [THE, ING, ING, ING])
    chat = Conversation(model)
    assert "".join(chat.ask("hi", max_tokens=2)) == "theing"
    expected = [*asked(model, "hi"), THE, ING, TURN_END]
    assert bits(chat.session) == bits_after(model, expected)


@pytest.mark.parametrize("how", ["close", "ask", "save"])
def test_a_stopped_answer_ends_its_turn(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    chat = Conversation(model)
    play(monkeypatch, [THE, ING, *byte_tokens("\n"), THE, ING])
    pieces = chat.ask("hi")
    assert [next(pieces), next(pieces)] == ["the", "ing"]
    expected = [*asked(model, "hi"), THE, ING, TURN_END]
    if how == "close":
        pieces.close()
    elif how == "ask":
        play(monkeypatch, [ING, TURN_END])
        assert "".join(chat.ask("so?")) == "ing"
        expected += [*asked(model, "so?"), ING, TURN_END]
    else:
        chat.save(tmp_path / "state")
    assert list(pieces) == []
    assert bits(chat.session) == bits_after(model, expected)


def test_an_error_in_an_answer_ends_its_turn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [THE, *byte_tokens("\n"), KeyboardInterrupt])
    chat = Conversation(model)
    with pytest.raises(KeyboardInterrupt):
        list(chat.ask("hi"))
    expected = [*asked(model, "hi"), THE, TURN_END]
    assert bits(chat.session) == bits_after(model, expected)


def test_a_message_that_was_not_read_was_not_said(model: Model) -> None:
    chat = Conversation(model)
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(chat.ask("x" * 300, progress=progress))
    total = len(asked(model, "x" * 300))
    assert seen == [(0, total), (seen[1][0], total)]
    assert bits(chat.session) == bits_after(model, [])


@pytest.mark.parametrize("text", ["", " \n\n "])
def test_an_empty_message(model: Model, text: str) -> None:
    chat = Conversation(model)
    with pytest.raises(ValueError, match="the message is empty"):
        chat.ask(text)
    assert bits(chat.session) == bits_after(model, [])


def test_a_saved_conversation_goes_on(model: Model, tmp_path: Path) -> None:
    chat = Conversation(model, system="x")
    list(chat.ask("hello", max_tokens=10, temperature=0))
    chat.save(tmp_path / "state")
    expected = "".join(chat.ask("and then?", max_tokens=20, temperature=0))
    other = Conversation(model)
    list(other.ask("something else", max_tokens=5))
    other.load(tmp_path / "state")
    assert "".join(other.ask("and then?", max_tokens=20, temperature=0)) == expected
    assert bits(other.session) == bits(chat.session)


def test_a_state_that_does_not_fit_changes_nothing(
    model: Model, tiny_model: GetModel, tmp_path: Path
) -> None:
    Conversation(Model(tiny_model("f32", "d192")[0])).save(tmp_path / "state")
    chat = Conversation(model)
    with pytest.raises(FormatError, match=r"width 192.* does not fit .*width 128"):
        chat.load(tmp_path / "state")
    assert bits(chat.session) == bits_after(model, [])


def test_reset_keeps_the_system_text(model: Model) -> None:
    chat = Conversation(model, system="x")
    begin = bits(chat.session)
    list(chat.ask("hello", max_tokens=3))
    assert bits(chat.session) != begin
    chat.reset()
    assert bits(chat.session) == begin
