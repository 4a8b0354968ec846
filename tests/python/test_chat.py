# SPDX-License-Identifier: Apache-2.0
"""Conversations: the template, where an answer ends, and what the model remembers of it."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints as ck
import pile
import pytest
import tiny
from conftest import GetModel
from rwkv_edge import Conversation, FormatError, Model, State
from rwkv_edge.chat import clean
from scripted import ASSISTANT, ING, THE, TURN_END, USER, bits, bits_after, byte_tokens, play

COLON = byte_tokens(":")
(BLANK,) = byte_tokens(" ")


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
    second = [*asked(model, "and?"), BLANK, ING, TURN_END]  # as in training: "Assistant: ing"
    assert bits(chat.session) == bits_after(model, [*first, *second])


def test_without_a_system_text(model: Model) -> None:
    for system in (None, "", "\n"):
        assert bits(Conversation(model, system=system).session) == bits_after(model, [])


# What the model says, what the user sees of it, and what is left in the state before the turn ends.
ANSWERS: dict[str, tuple[list[int], str, list[int]]] = {
    "paragraph": ([THE, TURN_END, THE], "the", [THE]),
    "user's turn": ([THE, *byte_tokens("\n"), USER, *COLON], "the", [THE]),
    "its own turn again": ([THE, *byte_tokens("\n"), ASSISTANT, *COLON], "the", [THE]),
    "white space first": ([*byte_tokens(" \n "), ING, 0], "ing", [BLANK, ING]),
    "white space last": ([THE, *byte_tokens(" \n "), 0], "the \n ", [THE]),
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
    chat = Conversation(model, paragraphs=True)
    assert "".join(chat.ask("hi")) == "the\n\ning"
    kept = [THE, TURN_END, ING]
    assert bits(chat.session) == bits_after(model, [*asked(model, "hi"), *kept, TURN_END])


def test_max_tokens_ends_an_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [THE, ING, ING, ING])
    chat = Conversation(model)
    assert "".join(chat.ask("hi", max_tokens=2)) == "theing"
    expected = [*asked(model, "hi"), THE, ING, TURN_END]
    assert bits(chat.session) == bits_after(model, expected)


@pytest.mark.parametrize("how", ["close", "ask", "reset", "load"])
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
        expected += [*asked(model, "so?"), BLANK, ING, TURN_END]
    elif how == "reset":
        chat.reset()
        expected = []
    else:
        other = model.session()
        other.feed([THE])
        other.state.save(tmp_path / "state")
        chat.load(tmp_path / "state")
        expected = [THE]
    assert list(pieces) == []
    assert bits(chat.session) == bits_after(model, expected)


def test_saving_in_the_middle_of_an_answer(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = Conversation(model)
    play(monkeypatch, [THE, ING, *byte_tokens("\n"), THE, TURN_END])
    pieces = chat.ask("hi")
    assert [next(pieces), next(pieces)] == ["the", "ing"]
    chat.save(tmp_path / "state")
    other = model.session(State.load(tmp_path / "state"))
    assert bits(other) == bits_after(model, [*asked(model, "hi"), THE, ING, TURN_END])
    assert list(pieces) == ["\n the"]  # and the answer goes on
    expected = [*asked(model, "hi"), THE, ING, *byte_tokens("\n"), THE, TURN_END]
    assert bits(chat.session) == bits_after(model, expected)


def test_a_question_that_was_never_read(model: Model) -> None:
    chat = Conversation(model)
    first = chat.ask("hi")
    second = chat.ask("so?")
    assert list(first) == []
    assert bits(chat.session) == bits_after(model, [])
    second.close()
    assert bits(chat.session) == bits_after(model, [])


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


def test_the_model_is_not_overwritten(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data = model.path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.gguf: is the model itself; name another file"):
        Conversation(Model(path)).save(path)
    assert path.read_bytes() == data


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


# ---- a state to begin with ----------------------------------------------------------------------


@pytest.fixture
def tuned(tmp_path: Path) -> State:
    states = tiny.random_states(tiny.SHAPES["d128"], 3)
    return State.load(ck.write(tmp_path, ck.pth_of(states), "tuned.pth"))


def test_every_conversation_begins_at_a_tuned_state(model: Model, tuned: State) -> None:
    begin = bits(model.session(tuned))
    assert begin != bits(model.session())
    chat = Conversation(model, state=tuned)
    assert bits(chat.session) == begin
    list(chat.ask("hello", max_tokens=3))
    assert bits(chat.session) != begin
    chat.reset()
    assert bits(chat.session) == begin
    session = model.session(tuned)
    session.feed(model.tokenizer.encode("System: x\n\n"))
    assert bits(Conversation(model, state=tuned, system="x").session) == bits(session)


def test_a_conversation_may_begin_at_a_saved_state(model: Model, tmp_path: Path) -> None:
    first = Conversation(model, system="x")
    list(first.ask("hello", max_tokens=3))
    first.save(tmp_path / "state")
    chat = Conversation(model, state=State.load(tmp_path / "state"))
    assert bits(chat.session) == bits(first.session)
    list(chat.ask("hello", max_tokens=3))
    chat.reset()
    assert bits(chat.session) == bits(first.session)


# ---- templates ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raven(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that reads and writes as those of the Pile do."""
    made = tiny.tiny_model(tiny.VERSIONS["4"]["d192"], "f32", 1)
    made.file.put("tokenizer.ggml.model", tiny.STRING, "gpt2")
    made.file.put("tokenizer.huggingface.json", tiny.STRING, json.dumps(pile.tokenizer()))
    return Model(tiny.write(tmp_path_factory.mktemp("models"), "raven.gguf", made), threads=1)


def test_pile_models_talk_as_bob_and_alice(raven: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    bob, alice, newline = pile.token("Bob"), pile.token("Alice"), pile.token("\n")
    colon, space = pile.token(":"), pile.token(" ")
    chat = Conversation(raven)
    opening = raven.tokenizer.encode(f"\n{chat.template.opening}\n\nBob")[:-1]
    assert opening[-2:] == [newline, newline]  # and not the token of both
    assert bits(chat.session) == bits_after(raven, opening)
    play(monkeypatch, [space, pile.token("hello"), newline, newline, bob])
    assert "".join(chat.ask("the")) == "hello"
    question = [bob, colon, pile.token(" the"), newline, newline, alice, colon]
    answer = [space, pile.token("hello"), newline, newline]
    assert bits(chat.session) == bits_after(raven, [*opening, *question, *answer])
    play(monkeypatch, [pile.token("the"), newline, alice, colon, space])
    assert "".join(chat.ask("the")) == "the"
    assert bits(Conversation(raven, system="").session) == bits_after(raven, [])


def test_instructions(raven: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Conversation(raven, template="instruct")
    newline = pile.token("\n")
    first = "Below is an instruction that describes a task. Write a response that appropriately "
    opening = raven.tokenizer.encode(f"{first}completes the request.\n\n")
    assert bits(chat.session) == bits_after(raven, opening)
    hello = [pile.token("hello"), newline, newline, pile.token("the")]
    play(monkeypatch, [*hello, 0])
    assert "".join(chat.ask("hello")) == "hello\n\nthe"
    question = raven.tokenizer.encode("# Instruction:\nhello\n\n# Response:\n")
    assert bits(chat.session) == bits_after(raven, [*opening, *question, *hello, newline, newline])


def test_what_a_user_says_is_no_template(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [TURN_END])
    chat = Conversation(model, system="{0}")
    list(chat.ask("{} {x} %s"))
    expected = model.tokenizer.encode("System: {0}\n\n") + asked(model, "{} {x} %s")
    assert bits(chat.session) == bits_after(model, [*expected, TURN_END])


def test_a_tuned_state_of_another_model(raven: Model, tuned: State) -> None:
    with pytest.raises(FormatError, match=r"tuned\.pth: .* does not fit .*raven\.gguf: rwkv4 with"):
        Conversation(raven, state=tuned)
