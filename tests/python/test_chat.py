# SPDX-License-Identifier: Apache-2.0
"""Conversations: the template, where an answer ends, and what the model remembers of it."""

from __future__ import annotations

import json
import random
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import checkpoints as ck
import pile
import pytest
import tiny
from conftest import GetModel
from rwkv_edge import Conversation, FormatError, Model, Session, State
from rwkv_edge.chat import THINK_MODES, Thought, clean
from rwkv_edge.chat.conversation import KEPT
from rwkv_edge.chat.saved import Transcript, text_of, transcript_of
from scripted import (
    ASSISTANT,
    ING,
    THE,
    TURN_END,
    USER,
    bits,
    bits_after,
    byte_tokens,
    play,
    talkative_model,
)

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


# What is called, the argument, its value, and the error.
BAD_ARGUMENTS: list[tuple[str, str, object, str]] = [
    ("Conversation", "model", "a.gguf", "model: found 'a.gguf', expected a Model"),
    ("Conversation", "cache", "folder", "cache: found 'folder', expected a PrefixCache"),
    ("Conversation", "system", 5, "system: found 5, expected a text"),
    ("Conversation", "system", "\ud800", "system: found '\\ud800', expected characters that UTF-8"),
    (
        "Conversation",
        "state",
        "a.state",
        "state: found 'a.state', expected a State, as State.load(",
    ),
    ("Conversation", "template", "me", "template: found 'me', expected one of world, g1, raven"),
    ("Conversation", "template", [], "template: found [], expected one of world, g1, raven"),
    ("Conversation", "think", 1, "think: found 1, expected one of off, fast, bit, on, lot"),
    ("Conversation", "think_tokens", "9", "think_tokens: found '9', expected a whole number"),
    ("ask", "text", 5, "text: found 5, expected a text"),
    ("ask", "text", b"x", "text: found b'x', expected a text"),
    ("ask", "text", "a\udfff", "text: found 'a\\udfff', expected characters that UTF-8 has"),
    ("ask", "undo", "x", "undo: found 'x', expected a whole number"),
    ("ask", "lookup", "x", "lookup: found 'x', expected a whole number"),
    ("tell", "system", 5, "system: found 5, expected a text"),
    ("tell", "system", None, "system: found None, expected a text"),
    ("tell", "system", "\udc7f", "system: found '\\udc7f', expected characters that UTF-8 has"),
    ("undo", "turns", "x", "turns: found 'x', expected a whole number"),
    ("undo", "turns", 1.5, "turns: found 1.5, expected a whole number"),
    ("undo", "turns", None, "turns: found None, expected a whole number"),
]


@pytest.mark.parametrize(("what", "name", "value", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused_at_once(
    model: Model, monkeypatch: pytest.MonkeyPatch, what: str, name: str, value: Any, message: str
) -> None:
    chat = Conversation(model, system="x")
    play(monkeypatch, [THE, TURN_END])
    list(chat.ask("hi"))
    before = (chat.system, chat.turns, bits(chat.session))
    of_a_value = "one of" in message or "characters" in message
    kind: type[Exception] = ValueError if of_a_value else TypeError
    given: dict[str, Any] = {name: value}
    if what == "Conversation":
        call, given = Conversation, {"model": model, **given}
    else:
        call, given = getattr(chat, what), {"text": "so?", **given} if what == "ask" else given
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        call(**given)
    assert (chat.system, chat.turns, bits(chat.session)) == before


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


# ---- the state is that of the visible text ------------------------------------------------------


def bits_of(model: Model, system: str, turns: Sequence[tuple[str, str]]) -> bytes:
    """The state of a session that reads a conversation as it can be seen."""
    encode = model.tokenizer.encode
    tokens = encode(f"System: {system}\n\n") if system else []
    for user, answer in turns:
        tokens += encode(f"User: {user}\n\nAssistant:")
        tokens += encode((f" {answer}" if answer else "") + "\n\n")
    return bits_after(model, tokens)


def test_whatever_is_done_the_state_is_that_of_the_visible_text(tmp_path: Path) -> None:
    model, chance = Model(talkative_model(tmp_path), threads=1), random.Random(5)
    chat = Conversation(model, system="x", template="g1", think_tokens=5)
    texts = ["hello", "the\n\nsecond (think)", "\u6f22\u5b57 \udcff", "ing " * 20]
    done: Counter[str] = Counter()

    def ask(text: str, undo: int = 0) -> None:
        chat.think = chance.choice(THINK_MODES)
        options: dict[str, Any] = {"top_p": 0.95, "seed": chance.randrange(1000)}
        pieces = chat.ask(
            text, thoughts=True, undo=undo, lookup=chance.choice((0, 4)), max_tokens=9, **options
        )
        for _ in range(chance.choice((0, 1, 4, 100))):
            next(pieces, None)
        if chance.random() < 0.5:
            pieces.close()

    for _ in range(120):
        said = len(chat.turns)
        what = chance.choices(
            ("ask", "undo", "again", "tell", "reset", "load", "save"), (10, 3, 2, 1, 0.3, 1, 1)
        )[0]
        done[what] += 1
        if what == "ask":
            ask(chance.choice(texts))
        elif what == "undo" and said:
            back = chance.randint(1, said)
            gone = chat.turns[said - back]
            assert chat.undo(back) == gone
            assert len(chat.turns) == said - back
        elif what == "again" and said:
            ask(chance.choice(texts), undo=chance.randint(1, said))
        elif what == "tell":
            chat.tell(chance.choice(["", "a\n\nb", "the"]))
        elif what == "reset":
            chat.reset()
        elif what == "save":
            chat.save(tmp_path / "state")
        elif what == "load" and (tmp_path / "state").exists():
            chat.load(tmp_path / "state")
        if chance.random() < 0.5:  # or else what comes next must end an answer first
            assert bits(chat.session) == bits_of(model, chat.system, chat.turns)
            assert len(chat.tokens) >= len(chat.turns)
    assert min(done.values()) > 0
    assert bits(chat.session) == bits_of(model, chat.system, chat.turns)


def test_tokens_that_a_text_does_not_encode_to(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model wrote as single bytes is read again as its text is encoded."""
    chat = Conversation(model)
    play(monkeypatch, [*byte_tokens(" the"), 0])
    assert "".join(chat.ask("hi")) == "the"
    assert bits(chat.session) == bits_after(model, [*asked(model, "hi"), THE, TURN_END])
    assert bits(chat.session) != bits_after(
        model, [*asked(model, "hi"), *byte_tokens(" the"), TURN_END]
    )
    assert chat.tokens == [*asked(model, "hi"), THE, TURN_END]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that sessions read, those that they write aside."""
    found: list[int] = []
    real = Session.read

    def listen(self: Session, tokens: list[int], **options: Any) -> None:
        found.extend(tokens)
        real(self, tokens, **options)

    monkeypatch.setattr(Session, "read", listen)
    return found


@pytest.mark.parametrize("lookup", [0, 4])
def test_a_token_of_the_answer_and_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int], lookup: int
) -> None:
    """As the World vocabulary has for Chinese. It is kept, as in training, and nothing before it is
    read again."""
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    texts = [repr(bytes([byte]))[2:-1] for byte in range(256)]
    words = ["。\n", "User", "Assistant", "ing", "\n\n"]
    tokens = ["<s>", *texts, *(repr(word.encode())[2:-1] for word in words)]
    padded = tokens + [f"[PAD{i}]" for i in range(len(tokens), tiny.SHAPES["d128"].vocab)]
    made.file.put("tokenizer.ggml.tokens", tiny.ARRAY, tiny.array(tiny.STRING, padded))
    model = Model(tiny.write(tmp_path, "a.gguf", made), threads=1)
    chat, end = Conversation(model), [THE, *byte_tokens("\n")]
    play(monkeypatch, [BLANK, ING, ING, *end])
    assert "".join(chat.ask("hi", lookup=lookup)) == "inging。"
    assert read == [*asked(model, "hi"), *end]
    expected = [*asked(model, "hi"), BLANK, ING, ING, *end]
    assert bits(chat.session) == bits_after(model, expected) == bits_of(model, "", chat.turns)


def test_undo(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    chat = Conversation(model, system="x")
    for i in range(8):
        play(monkeypatch, [THE, ING, TURN_END])
        list(chat.ask(f"question {i}"))
    read = Session.read

    def listen(self: Session, tokens: list[int], **options: Any) -> None:
        fed.extend(tokens)
        read(self, tokens, **options)

    monkeypatch.setattr(Session, "read", listen)
    for left in (7, 6, 5, 4):  # from states that were kept
        assert chat.undo() == (f"question {left}", "theing")
        assert bits(chat.session) == bits_of(model, "x", chat.turns)
        assert not fed
    assert chat.undo() == ("question 3", "theing")
    assert len(fed) == len(chat.tokens)  # everything again, but no more than that
    assert bits(chat.session) == bits_of(model, "x", chat.turns)
    fed.clear()
    assert chat.undo(2) == ("question 1", "theing")  # and the states before its turns were kept
    assert not fed
    assert bits(chat.session) == bits_of(model, "x", chat.turns)
    for turns in (0, -1, 2):
        with pytest.raises(ValueError, match=rf"found {turns} turns .*, expected 1 to 1$"):
            chat.undo(turns)
    assert [turn.user for turn in chat.turns] == ["question 0"]
    chat.undo()
    with pytest.raises(ValueError, match="nothing was said that could be taken back"):
        chat.undo()


def test_asking_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn takes the place of others as if these had never been, once it was read."""
    chat = Conversation(model, system="x")
    for i in range(7):
        play(monkeypatch, [THE, TURN_END])
        list(chat.ask(f"question {i}"))
    turns, before, seen = chat.turns, bits(chat.session), []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done > total - 100:
            raise KeyboardInterrupt

    for undo in (1, 6):  # from a state that was kept, and from the beginning
        with pytest.raises(KeyboardInterrupt):
            list(chat.ask("another " * 300, undo=undo, progress=stop))
        assert chat.turns == turns
        assert bits(chat.session) == before
        chat.ask("another", undo=undo).close()  # and nobody wanted the answer
        assert chat.turns == turns
    for wrong in (8, -1):
        with pytest.raises(ValueError, match=f"found {wrong} turns to take back, expected 1 to 7"):
            chat.ask("another", undo=wrong)
    with pytest.raises(ValueError, match="the message is empty"):
        chat.ask(" ", undo=1)
    with pytest.raises(ValueError, match="max_tokens"):
        chat.ask("another", undo=1, max_tokens=-1)
    assert (chat.turns, bits(chat.session)) == (turns, before)
    for undo in (1, 6):
        seen.clear()
        play(monkeypatch, [ING, TURN_END])
        said = chat.ask("again", undo=undo, progress=lambda *now: seen.append(now))
        assert "".join(said) == "ing"
        assert chat.turns == (*turns[: 7 - undo], ("again", "ing"))
        assert bits(chat.session) == bits_of(model, "x", chat.turns)
        assert seen == sorted(seen)
        assert len({total for _, total in seen}) == 1
    assert chat.undo() == ("again", "ing")
    assert chat.turns == turns[:1]
    assert bits(chat.session) == bits_of(model, "x", chat.turns)


@pytest.mark.parametrize("how", ["undo", "tell"])
def test_reading_again_is_all_or_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    chat = Conversation(model)
    for i in range(7):
        play(monkeypatch, [THE, TURN_END])
        list(chat.ask(f"{i} " * 100))
    turns, seen = chat.turns, []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.undo(2 + 4, progress=progress) if how == "undo" else chat.tell("x", progress=progress)
    assert seen == sorted(seen)
    assert seen[-1][0] <= seen[-1][1]
    assert (chat.turns, chat.system) == (turns, "")
    assert bits(chat.session) == bits_of(model, "", turns)


@pytest.mark.parametrize("think", ["off", "on"])
def test_an_interrupt_where_an_answer_ends(
    model: Model, monkeypatch: pytest.MonkeyPatch, think: str
) -> None:
    """It falls where the turn is read again; whoever looks at the session next completes that."""
    chat = Conversation(model, template="g1", think=think)
    thought = byte_tokens(">Hm</think") if think == "on" else []
    play(monkeypatch, [*thought, *byte_tokens("> the"), 0])
    pieces = chat.ask("hi")
    text = [next(pieces), next(pieces)]
    with monkeypatch.context() as patch:
        patch.setattr(Session, "read", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pieces.close()
    assert chat.turns == (("hi", "".join(text).strip()),)
    assert bits(chat.session) == bits_of(model, "", chat.turns)


def test_the_memory_of_a_long_conversation(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: weakref.WeakSet[Session] = weakref.WeakSet()
    fork = Session.fork

    def count(self: Session) -> Session:
        sessions.add(made := fork(self))
        return made

    monkeypatch.setattr(Session, "fork", count)
    chat = Conversation(model)
    for i in range(20):
        play(monkeypatch, [THE, TURN_END])
        list(chat.ask(f"question {i}"))
        assert len(sessions) <= KEPT
    chat.undo(10)
    assert len(sessions) <= KEPT


def test_another_system_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Conversation(model, system="x")
    play(monkeypatch, [THE, TURN_END])
    list(chat.ask("hi"))
    chat.tell("Be\n\nkind. ")
    assert (chat.system, chat.turns) == ("Be\nkind.", (("hi", "the"),))
    assert bits(chat.session) == bits_of(model, "Be\nkind.", [("hi", "the")])
    chat.reset()
    assert bits(chat.session) == bits_of(model, "x", [])


# ---- thinking -----------------------------------------------------------------------------------

THOUGHT = ">\nHm, the\n\nUser: is\n</think"
ASKED = {  # what the model reads in place of "User: hi\n\nAssistant:"
    "off": "User: hi\n\nAssistant:",
    "bit": "User: hi (think a bit)\n\nAssistant: <think",
    "on": "User: hi (think)\n\nAssistant: <think",
    "lot": "User: hi (think a lot)\n\nAssistant: <think",
}


def told_apart(pieces: Iterable[str]) -> tuple[str, str]:
    """Thoughts and answer."""
    thoughts: list[str] = []
    answer: list[str] = []
    for piece in pieces:
        (thoughts if isinstance(piece, Thought) else answer).append(piece)
    return "".join(thoughts), "".join(answer)


@pytest.mark.parametrize("mode", ["bit", "on", "lot"])
def test_thinking_comes_first_and_is_not_remembered(
    model: Model, monkeypatch: pytest.MonkeyPatch, read: list[int], mode: str
) -> None:
    chat = Conversation(model, template="g1", think=mode)
    play(monkeypatch, [*byte_tokens(THOUGHT), *byte_tokens(">\n\nYes.\n\nNo.\n\nUser:")])
    thoughts, answer = told_apart(chat.ask("hi", thoughts=True))
    assert thoughts == "Hm, the\n\nUser: is\n"
    assert answer == "Yes.\n\nNo."
    encode = model.tokenizer.encode
    begin = encode(ASKED[mode]) + encode("</think")
    assert read[: len(begin)] == begin
    assert bits(chat.session) == bits_of(model, "", [("hi", "Yes.\n\nNo.")])
    # And who does not ask for thoughts gets none.
    play(monkeypatch, [*byte_tokens(THOUGHT), *byte_tokens(">\nNo"), 0])
    assert list(chat.ask("hi")) == ["N", "o"]
    assert chat.turns == (("hi", "Yes.\n\nNo."), ("hi", "No"))


def test_fast_thinking_is_none(
    model: Model, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    chat = Conversation(model, template="g1", think="fast")
    play(monkeypatch, [*byte_tokens(">\nYes."), 0])
    assert told_apart(chat.ask("hi", thoughts=True)) == ("", "Yes.")
    begin = model.tokenizer.encode(ASKED["off"]) + model.tokenizer.encode(" <think>\n</think")
    assert read[: len(begin)] == begin
    assert bits(chat.session) == bits_of(model, "", [("hi", "Yes.")])


def test_a_limit_of_thinking_below_0(model: Model) -> None:
    with pytest.raises(ValueError, match="think_tokens: found -1, expected at least 0"):
        Conversation(model, template="g1", think="on", think_tokens=-1)


@pytest.mark.parametrize(("thought", "shown"), [("> a b c", "a b c"), (">\nab", "ab"), ("", "")])
def test_thinking_has_an_end(
    model: Model, monkeypatch: pytest.MonkeyPatch, read: list[int], thought: str, shown: str
) -> None:
    """It may reach its limit, or end the document; an answer follows nevertheless."""
    chat = Conversation(model, template="g1", think="on", think_tokens=7)
    end = [] if len(thought) == 7 else [0]
    play(monkeypatch, [*byte_tokens(thought), *end, *byte_tokens(">\nYes"), 0])
    assert told_apart(chat.ask("hi", thoughts=True, max_tokens=100)) == (shown, "Yes")
    encode = model.tokenizer.encode
    begin = encode(ASKED["on"]) + encode("\n</think")
    assert read[: len(begin)] == begin
    assert bits(chat.session) == bits_of(model, "", [("hi", "Yes")])


def test_thinking_that_is_stopped(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Conversation(model, template="g1", think="on")
    play(monkeypatch, byte_tokens(">abcdef"))
    pieces = chat.ask("hi", thoughts=True)
    assert [next(pieces), next(pieces)] == ["a", "b"]
    pieces.close()
    assert chat.turns == (("hi", ""),)
    assert bits(chat.session) == bits_of(model, "", [("hi", "")])


THINKS_BY_ITSELF = {
    "and answers": (" <think>\nHm\n</think>\n\nYes.", "Hm\n", "Yes."),
    "at once": ("<think></think>Yes", "", "Yes"),
    "to its end": (" <think>Hm</thi", "Hm</thi", ""),
    "not": (" <thin air", "", "<thin air"),
    "nearly": (" <think", "", "<think"),
    "later": ("No <think>Hm</think>", "", "No <think>Hm</think>"),
}


@pytest.mark.parametrize("lookup", [0, 4])
@pytest.mark.parametrize(
    ("text", "thought", "answer"), THINKS_BY_ITSELF.values(), ids=THINKS_BY_ITSELF
)
def test_a_model_that_thinks_by_itself(
    model: Model, monkeypatch: pytest.MonkeyPatch, text: str, thought: str, answer: str, lookup: int
) -> None:
    chat = Conversation(model, template="g1")
    play(monkeypatch, [*byte_tokens(text), 0])
    assert told_apart(chat.ask("hi", thoughts=True, lookup=lookup)) == (thought, answer)
    assert bits(chat.session) == bits_of(model, "", [("hi", answer)])


def test_a_thinking_answer_is_saved_as_it_can_be_seen(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = Conversation(model, template="g1", think="on")
    play(monkeypatch, [*byte_tokens(THOUGHT), *byte_tokens(">\nYes, the"), 0])
    pieces = chat.ask("hi")
    assert [next(pieces) for _ in range(4)] == ["Y", "e", "s", ","]
    chat.save(tmp_path / "state")
    assert bits(model.session(State.load(tmp_path / "state"))) == bits_of(
        model, "", [("hi", "Yes,")]
    )
    assert "".join(pieces) == " the"
    assert bits(chat.session) == bits_of(model, "", [("hi", "Yes, the")])


@pytest.mark.parametrize("mode", ["off", "fast", "on"])
def test_an_answer_of_a_given_form(
    model: Model, monkeypatch: pytest.MonkeyPatch, read: list[int], mode: str
) -> None:
    """What is thought before has none."""
    pytest.importorskip("llguidance")
    chat = Conversation(model, template="g1", think=mode)
    play(monkeypatch, [*byte_tokens(">Hm</think" if mode == "on" else ""), *byte_tokens("no")])
    assert "".join(chat.ask("hi", choices=["yes", "no"])) == "no"
    encode = model.tokenizer.encode
    if mode != "off":
        asked = {
            "fast": encode(ASKED["off"]) + encode(" <think>\n</think"),
            "on": encode(ASKED["on"]),
        }
        begin = asked[mode] + (encode("\n</think") if mode == "on" else []) + encode(">\n")
        assert read[: len(begin)] == begin
    assert bits(chat.session) == bits_of(model, "", [("hi", "no")])


def test_wrong_options_are_refused_before_anything_is_read(model: Model) -> None:
    chat = Conversation(model)
    with pytest.raises(ValueError, match="top_p"):
        chat.ask("hi", top_p=2)
    with pytest.raises(ValueError, match="lookup"):
        chat.ask("hi", lookup=-1)
    assert chat.turns == ()
    assert bits(chat.session) == bits_after(model, [])


def test_thinking_needs_a_template_that_has_it(model: Model) -> None:
    with pytest.raises(ValueError, match="think: found 'on', but the template world has no thinki"):
        Conversation(model, think="on")
    chat = Conversation(model, template="g1")
    with pytest.raises(ValueError, match="think: found 'much', expected one of off, fast, bit, on"):
        chat.think = "much"


def test_what_an_answer_took(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Conversation(model, template="g1", think="on")
    play(monkeypatch, [*byte_tokens(">ab</think"), *byte_tokens(">Yes"), 0])
    list(chat.ask("hi"))
    assert chat.work.read == len(model.tokenizer.encode(ASKED["on"]))
    assert chat.work.written == len(">ab</think") + len(">Yes")
    assert chat.work.reading > 0
    assert chat.work.writing > 0


# ---- saved with its text ------------------------------------------------------------------------


def test_a_saved_conversation_knows_its_text(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = Conversation(model, system="x", template="g1")
    for _ in range(6):
        play(monkeypatch, [*byte_tokens(" a\n\nb"), 0])
        list(chat.ask("hi \udcff"))
    chat.save(tmp_path / "state")
    other = Conversation(model, system="something else")
    other.load(tmp_path / "state")
    assert (other.system, other.turns, other.template) == (chat.system, chat.turns, chat.template)
    other.undo(5)
    assert bits(other.session) == bits_of(model, "x", chat.turns[:1])
    other.reset()
    assert other.template.name == "world"
    assert bits(other.session) == bits_of(model, "something else", [])


def test_a_state_without_text_ends_what_can_be_undone(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session = model.session()
    session.feed([THE])
    session.state.save(tmp_path / "state")
    chat = Conversation(model)
    chat.load(tmp_path / "state")
    assert chat.turns == ()
    for _ in range(6):
        play(monkeypatch, [ING, TURN_END])
        list(chat.ask("hi"))
    chat.undo(6)
    assert bits(chat.session) == bits_after(model, [THE])


@pytest.mark.parametrize("asked_before", [0, 1])
def test_a_conversation_on_top_of_a_state(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked_before: int
) -> None:
    """Saved, its text is known, but not what it stands on, unless one begins there."""
    session = model.session()
    session.feed([THE])
    session.state.save(tmp_path / "state")
    begin = State.load(tmp_path / "state")

    def ask(chat: Conversation, times: int) -> None:
        for _ in range(times):
            play(monkeypatch, [BLANK, ING, TURN_END])
            list(chat.ask("hi"))

    chat = Conversation(model, state=begin, system="x")
    ask(chat, asked_before)
    chat.save(tmp_path / "later")
    saved = bits(chat.session)
    other = Conversation(model)
    other.load(tmp_path / "later")
    assert (other.system, other.turns) == ("x", (("hi", "ing"),) * asked_before)
    assert other.tokens == []
    for _ in range(2):
        ask(other, 6)
        assert len(other.tokens) == len([*asked(model, "hi"), BLANK, ING, TURN_END]) * 6
        other.undo(6)  # more than there are states of
        assert bits(other.session) == saved
    with pytest.raises(ValueError, match="known only as a state, with its system text"):
        other.tell("y")
    if asked_before:
        with pytest.raises(ValueError, match="what was said by then is known only as a state"):
            other.undo()
    same = Conversation(model, state=begin)
    same.load(tmp_path / "later")
    same.undo() if asked_before else None
    same.tell("")
    assert bits(same.session) == bits_after(model, [THE])


@pytest.mark.parametrize("turns", [0, 2])
def test_a_system_text_that_is_in_the_state_is_not_told_again(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, turns: int
) -> None:
    session = model.session()
    session.feed([THE])
    chat = Conversation(model, system="x", state=session.state)
    for _ in range(turns):
        play(monkeypatch, [ING, TURN_END])
        list(chat.ask("hi"))
    chat.save(tmp_path / "state")
    right = bits(chat.session)
    other = Conversation(model)
    other.load(tmp_path / "state")
    assert (other.system, len(other.turns)) == ("x", turns)
    for _ in range(KEPT + 2):
        play(monkeypatch, [ING, TURN_END])
        list(other.ask("hi"))
    other.undo(KEPT + 2)
    assert bits(other.session) == right
    assert other.tokens == []
    with pytest.raises(ValueError, match="known only as a state, with its system text"):
        other.tell("y")


DAMAGED_TEXTS = {
    "no JSON": "{",
    "deep": "[" * 100000,
    "no object": "[]",
    "no turns": lambda found: found.pop("turns"),
    "a turn of three": lambda found: found["turns"].append(["a", "b", "c"]),
    "a turn of numbers": lambda found: found["turns"].append([1, 2]),
    "a number as system": lambda found: found.update(system=1),
    "no template": lambda found: found.update(template=None),
    "a template without a name": lambda found: found["template"].pop("name"),
    "a template without stops": lambda found: found["template"].pop("stop"),
    "a strange beginning": lambda found: found.update(begin=[]),
    "half a character asked": lambda found: found["turns"].append(["\ud800", "b"]),
    "half a character answered": lambda found: found["turns"].append(["a", "b\udfff"]),
    "half a character as system": lambda found: found.update(system="\udd00"),
    "half a character as name": lambda found: found["template"].update(name="\udc7f"),
}


@pytest.mark.parametrize("damage", DAMAGED_TEXTS.values(), ids=DAMAGED_TEXTS)
def test_a_damaged_text_is_none(
    model: Model, monkeypatch: pytest.MonkeyPatch, damage: str | Callable[[Any], object]
) -> None:
    chat = Conversation(model)
    play(monkeypatch, [ING, TURN_END])
    list(chat.ask("hi"))
    whole = text_of(Transcript(chat.template, "", chat.turns, None))
    assert transcript_of(whole) is not None
    if isinstance(damage, str):
        text = damage
    else:
        damage(found := json.loads(whole))
        text = json.dumps(found)
    assert transcript_of(text) is None


def test_export(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chat = Conversation(model, system="Be kind.", template="g1", think="on")
    play(monkeypatch, [*byte_tokens(THOUGHT), *byte_tokens(">\nYes.\n\n* a\n* b"), 0])
    list(chat.ask("hi \udcff"))
    chat.export(tmp_path / "chat.md")
    assert (tmp_path / "chat.md").read_text() == (
        "**System:**\n\nBe kind.\n\n**User:**\n\nhi ?\n\n**Assistant:**\n\nYes.\n\n* a\n* b\n\n"
    )
    with pytest.raises(FileExistsError, match=r"chat\.md: is there already"):
        chat.export(tmp_path / "chat.md")
    chat.reset()
    chat.export(tmp_path / "chat.md", replace=True)
    assert (tmp_path / "chat.md").read_text() == "**System:**\n\nBe kind.\n\n"
    with pytest.raises(ValueError, match="is the model itself"):
        chat.export(model.path, replace=True)


# ---- raw ----------------------------------------------------------------------------------------


def test_raw_texts_stay_as_they_are(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Conversation(model, template="raw")
    with pytest.raises(ValueError, match="the message is empty"):
        chat.ask("")
    play(monkeypatch, [*byte_tokens(" a\n\nUser: b \n"), 0])
    assert "".join(chat.ask(" Once\r\n\n")) == " a\n\nUser: b \n"
    encode = model.tokenizer.encode
    first = [*encode(" Once\r\n\n"), *encode(" a\n\nUser: b \n")]
    assert bits(chat.session) == bits_after(model, first)
    play(monkeypatch, [THE, 0])
    assert "".join(chat.ask("")) == " the"  # it goes on
    assert bits(chat.session) == bits_after(model, [*first, THE])
    chat.undo()
    assert bits(chat.session) == bits_after(model, first)
    with pytest.raises(ValueError, match="the template raw has no system text"):
        chat.tell("x")
    with pytest.raises(ValueError, match="the template raw has no system text"):
        Conversation(model, template="raw", system="x")
