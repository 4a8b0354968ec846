# SPDX-License-Identifier: Apache-2.0
"""Drafts from the text itself: the text and the state are those without, in fewer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rwkv_edge import Model, Session
from rwkv_edge.generation import MOST_AGAIN, Stream
from rwkv_edge.lookup import Lookup
from scripted import ING, THE, TURN_END, Alarm, bits, bits_after, byte_tokens, play, talkative_model

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 120},
    "sampled": {"top_p": 0.8, "seed": 3, "max_tokens": 120, "presence_penalty": 0.2},
    "stop strings": {"temperature": 0, "max_tokens": 120, "stop": ["ab", "\n\nUser:", "e e"]},
    "few tokens": {"temperature": 0, "max_tokens": 5},
}
PROMPTS = ["abcabcabcabcabc", "the theing the theing the", "xyz"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return Model(path, threads=2)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("most", [1, 3, 7])
def test_the_same_text_and_the_same_state(model: Model, options: dict[str, Any], most: int) -> None:
    plain, fast = [[model.session() for _ in PROMPTS] for _ in range(2)]
    for session, other, prompt in zip(plain, fast, PROMPTS, strict=True):
        expected = "".join(session.generate(prompt, **options))
        found = ""
        for piece in other.generate(prompt, lookup=most, **options):
            found += piece
            assert bits(other) == bits(other.fork())
        assert found == expected
        assert bits(other) == bits(session)
    texts = ["", "", ""]
    together = [model.session() for _ in PROMPTS]
    for i, piece in model.batch(together).generate(PROMPTS, lookup=most, **options):
        texts[i] += piece
    if "seed" not in options:
        assert [bits(s) for s in together] == [bits(s) for s in plain]


def test_a_text_that_repeats_itself_takes_fewer_steps(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = byte_tokens("a list of things, " * 12)
    play(monkeypatch, [*tokens])
    session = model.session()
    assert (
        "".join(session.generate("x", lookup=7, max_tokens=len(tokens)))
        == "a list of things, " * 12
    )
    guessed, right, steps = session.lookups
    assert guessed >= right > 150
    assert steps < 70 < len(tokens)
    assert bits(session) == bits_after(model, [*byte_tokens("x"), *tokens])


def test_where_a_draft_is_wrong(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its beginning, inside, at its end; where the answer ends, too, and with text held back."""
    said = byte_tokens("one two three four. ")
    for cut in range(2, 12):
        for last in ([], [0], byte_tokens("one t")):
            script = [*said, *said[:cut], THE, ING, *byte_tokens("\n"), *last]
            play(monkeypatch, [*script])
            session = model.session()
            list(session.generate([1], lookup=5, stop="\n\nUser:", max_tokens=len(script)))
            fed = [token for token in script if token]
            assert bits(session) == bits_after(model, [1, *fed]), (cut, last)


def test_an_earlier_text_of_the_session_is_looked_up(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = byte_tokens("what was said before")
    session = model.session()
    session.feed([*tokens, THE])
    fork = session.fork()
    play(monkeypatch, [*tokens])
    list(fork.generate([ING], lookup=7, max_tokens=len(tokens)))
    assert fork.lookups[1] > 10
    session.reset()
    play(monkeypatch, [*tokens])
    list(session.generate([ING], lookup=7, max_tokens=len(tokens)))
    assert session.lookups[1] == 0


def test_leaving_and_looking_in_the_middle(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    said = byte_tokens("abcdefgh")
    play(monkeypatch, [*said, *said, *said])
    session = model.session()
    text = ""
    for piece in session.generate([1], lookup=7, max_tokens=24):
        text += piece
        assert bits(session.fork()) == bits_after(model, [1, *byte_tokens(text)])
        if len(text) > 13:
            break
    assert bits(session) == bits_after(model, [1, *byte_tokens(text)])


@pytest.mark.posix("SIGALRM")
def test_ctrl_c_at_any_moment(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    said = byte_tokens("abcdefg, ")
    tokens = [*said, *said[:5], TURN_END] * 30
    with Alarm() as alarm:
        for microseconds in range(500, 20000, 500):
            play(monkeypatch, [*tokens])
            session = model.session()
            with alarm.after(microseconds / 1e6):
                list(session.generate([1], lookup=6, stop="\n\nUser:", max_tokens=400))
            stream = session._stream
            if stream is None:  # it fell before the text
                assert bits(session) == bits_after(model, [])
                continue
            given = stream.answer.given()
            fed = [*([1] if session._engine.tokens else []), *stream.answer.tokens[: given[0]]]
            assert bits(session) == bits_after(model, [*fed, *given[1]])
    assert alarm.hits > 10


def test_drafts() -> None:
    lookup = Lookup(4, [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])
    assert lookup.draft() == [3, 4, 5, 6]
    lookup.learn(4, 1)
    lookup.extend([3])
    assert lookup.draft() == [4]  # short ones after wrong ones
    lookup.learn(1, 1)
    lookup.extend([4])
    assert lookup.draft() == [5, 6]  # and longer ones again
    lookup.extend([77, 78])
    assert lookup.draft() == []
    assert (lookup.drafted, lookup.accepted, lookup.steps) == (5, 2, 4)
    for _ in range(10):
        lookup.learn(1, 0)
    lookup.extend([1, 2])
    assert lookup.draft() == []  # where guesses are wrong, there are none for a while
    assert any(lookup.draft() for _ in range(100))


def test_steps_stay_short(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    part = Stream.part

    def watched(stream: Stream) -> Any:
        found = part(stream)
        sizes.append(len(found[1]))
        return found

    monkeypatch.setattr(Stream, "part", watched)
    session: Session = model.session()
    list(session.generate("abcabcab", lookup=7, max_tokens=200, top_p=1, seed=1))
    assert max(sizes[1:]) <= 7 + MOST_AGAIN + 1
