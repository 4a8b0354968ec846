# SPDX-License-Identifier: Apache-2.0
"""Session.generate: what it yields, and that the state is always that of the text it yielded."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import inspect
import random
import re
import time
import weakref
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
from rwkv_edge import Model, Session
from rwkv_edge.generation import Answer, Details, Generation
from scripted import (
    ING,
    THE,
    TURN_END,
    USER,
    WORDS,
    Alarm,
    bits,
    bits_after,
    byte_tokens,
    play,
    talkative_model,
)

PROMPT = byte_tokens("a prompt")
TEXT = {token: text for text, token in WORDS.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(talkative_model(tmp_path_factory.mktemp("models")), threads=1)


def text_of(tokens: Sequence[int]) -> bytes:
    return b"".join(TEXT.get(token) or bytes([token - 1]) for token in tokens)


def fed_for(model: Model, tokens: Sequence[int], text: bytes) -> list[int]:
    """The tokens that a text at the beginning of theirs is made of, the last one cut if need be."""
    fed: list[int] = []
    for token in tokens:
        data = TEXT.get(token) or bytes([token - 1])
        if len(data) > len(text):
            return fed + model.tokenizer.encode(text)
        if not text:
            return fed
        fed.append(token)
        text = text[len(data) :]
    return fed


def test_pieces_are_whole_characters(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [*byte_tokens("\u00e9\U0001f600"), THE]
    play(monkeypatch, tokens)
    session = model.session()
    pieces = list(session.generate(PROMPT, max_tokens=len(tokens)))
    assert pieces == ["\u00e9", "\U0001f600", " the"]
    assert bits(session) == bits_after(model, PROMPT + tokens)


def test_bytes_that_are_no_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = byte_tokens(b"a\xffb\xe2\x96c\xf0\x9f")
    play(monkeypatch, tokens)
    session = model.session()
    assert "".join(session.generate(PROMPT, max_tokens=8)) == "a\ufffdb\ufffdc\ufffd"
    assert bits(session) == bits_after(model, PROMPT + tokens)


def test_token_0_ends_the_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [THE, TURN_END, 0, ING])
    session = model.session()
    assert "".join(session.generate(PROMPT, stop="\n\nUser:")) == " the\n\n"
    assert bits(session) == bits_after(model, [*PROMPT, THE, TURN_END])


STOPS: dict[str, tuple[list[int], str | list[str], str, list[int]]] = {
    "one token": ([THE, TURN_END], "\n\n", " the", [THE]),
    "several tokens": ([THE, TURN_END, USER, *byte_tokens(":")], "\n\nUser:", " the", [THE]),
    "at once": ([TURN_END], "\n\n", "", []),
    "inside a token": ([ING, THE], "e", "ing th", [ING, *byte_tokens(" th")]),
    "from inside a token": ([THE, ING], "ei", " th", byte_tokens(" th")),
    "the first of two": ([ING, TURN_END, USER], ["User", "\n\n"], "ing", [ING]),
    "after a false start": (
        [TURN_END, TURN_END, USER, *byte_tokens(":")],
        "\n\nUser:",
        "\n\n",
        [TURN_END],
    ),
    "after half a character": (
        byte_tokens(b"\xe2\x96\n"),
        "\n",
        "\ufffd",
        byte_tokens(b"\xe2\x96"),
    ),
}


@pytest.mark.parametrize(("tokens", "stop", "text", "fed"), STOPS.values(), ids=STOPS.keys())
def test_a_stop_string(
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    tokens: list[int],
    stop: str | list[str],
    text: str,
    fed: list[int],
) -> None:
    play(monkeypatch, [*tokens, ING, ING])
    session = model.session()
    assert "".join(session.generate(PROMPT, stop=stop)) == text
    assert bits(session) == bits_after(model, PROMPT + fed)


def cut(tokens: Sequence[int], stops: Sequence[bytes]) -> bytes:
    """The text of the tokens up to the first stop string that a token completes."""
    for n in range(1, len(tokens) + 1):
        text = text_of(tokens[:n])
        found = [text.find(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)]
    return text_of(tokens)


def test_random_texts_and_stops(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    alphabet = [*byte_tokens("\nUe the"), *byte_tokens("\u00e9"), THE, USER, ING, TURN_END]
    for _ in range(400):
        tokens = rng.choices(alphabet, k=rng.randint(1, 12))
        # half of the stop strings are pieces of the text itself, so that they occur
        own = rng.random() < 0.5
        source = text_of(tokens if own else rng.choices(alphabet, k=20)).decode("utf-8", "ignore")
        source += "the end"
        starts = [rng.randrange(len(source) - 4) for _ in range(rng.randint(0, 3))]
        stops = [source[at : at + rng.randint(1, 4)] for at in starts]
        play(monkeypatch, [*tokens, 0])
        session = model.session()
        text = "".join(session.generate(PROMPT, stop=stops))
        expected = cut(tokens, [stop.encode() for stop in stops])
        assert text == expected.decode("utf-8", "replace"), (tokens, stops)
        fed = fed_for(model, tokens, expected)
        assert bits(session) == bits_after(model, PROMPT + fed), (tokens, stops)


def test_closing_early_keeps_what_was_yielded(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [
        *byte_tokens("\u00e9"),
        THE,
        TURN_END,
        ING,
        *byte_tokens("\U0001f600"),
        USER,
        TURN_END,
        THE,
    ]
    for count in range(1, 8):
        play(monkeypatch, tokens)
        session = model.session()
        pieces = session.generate(PROMPT, max_tokens=len(tokens), stop=["\n\nx", "th", "e\n\nx"])
        text = "".join(islice(pieces, count))
        pieces.close()
        expected = bits_after(model, PROMPT + fed_for(model, tokens, text.encode()))
        assert session._engine.get_state() == expected, count  # already, and not only when asked
        assert bits(session) == expected, count


def test_any_other_use_of_the_session_ends_a_generation(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, [THE, ING, USER])
    session = model.session()
    pieces = session.generate(PROMPT)
    assert next(pieces) == " the"
    session.feed([ING])
    assert bits(session) == bits_after(model, [*PROMPT, THE, ING])
    assert list(pieces) == []


def test_looks_at_the_middle_of_a_generation(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # After " the", "\n\n" may begin a stop string: the session is ahead of the text.
    play(monkeypatch, [THE, TURN_END, THE, ING])
    session, other = model.session(), model.session()
    pieces = session.generate(PROMPT, stop="\n\nUser:", max_tokens=4)
    assert bits(session.fork()) == bits_after(model, [])  # nothing was read yet
    assert next(pieces) == " the"
    there = bits_after(model, [*PROMPT, THE])
    assert bits(session) == bits(session.fork()) == there
    other.rewind(session)
    assert bits(other) == there
    assert "".join(pieces) == "\n\n theing"
    assert bits(session) == bits_after(model, [*PROMPT, THE, TURN_END, THE, ING])


def test_a_generation_that_was_overtaken_changes_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, [THE, TURN_END, ING])
    session = model.session()
    first = session.generate(PROMPT, stop="\n\nUser:")
    assert next(first) == " the"
    second = session.generate([ING], max_tokens=1)
    assert list(first) == []
    assert bits(session) == bits_after(model, [*PROMPT, THE])
    session.feed([USER])
    first.close()
    second.close()
    assert bits(session) == bits_after(model, [*PROMPT, THE, USER])


def test_a_loop_left_early_keeps_no_memory(model: Model) -> None:
    """Whoever holds the session holds no generator, so no cycle waits for the collector."""
    gc.collect()
    gc.disable()
    try:
        session = model.session()
        gone = weakref.ref(session)
        for _ in session.generate(PROMPT, max_tokens=9, temperature=0):
            break
        del session
        assert gone() is None
    finally:
        gc.enable()


def test_an_error_leaves_what_was_yielded(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [THE, TURN_END, KeyboardInterrupt])
    session = model.session()
    pieces: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        pieces.extend(session.generate(PROMPT, stop="\n\nUser:"))
    assert pieces == [" the"]
    assert bits(session) == bits_after(model, [*PROMPT, THE])


@pytest.mark.posix("SIGALRM")
def test_ctrl_c_at_any_moment(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = byte_tokens("abcdefgh" * 200)
    states = [bits_after(model, PROMPT)]
    session = model.session()
    session.feed(PROMPT)
    for token in tokens[:400]:
        session.feed([token])
        states.append(bits(session))
    rng = random.Random(2)
    with Alarm() as alarm:
        for _ in range(60):
            play(monkeypatch, tokens)
            session = model.session()
            session.feed(PROMPT)
            out: list[str] = []
            with alarm.after(rng.uniform(0.0005, 0.02)):
                for piece in session.generate(max_tokens=400, stop="b\n"):
                    out.append(piece)
            # The last piece, "bc" or one letter, may have been on its way when the interrupt came.
            size = len("".join(out))
            assert bits(session) in states[size : size + 3]
    assert alarm.hits > 20


def test_a_second_generation_goes_on(model: Model) -> None:
    whole = model.session()
    text = "".join(whole.generate("User", max_tokens=30, temperature=0))
    parts = model.session()
    first = "".join(parts.generate("User", max_tokens=0))
    first += "".join(parts.generate(max_tokens=11, temperature=0))
    # A cut inside a character shows as U+FFFD; the state knows better.
    assert bits(parts) != bits(whole)
    list(parts.generate("", max_tokens=19, temperature=0))
    assert bits(parts) == bits(whole)
    assert text.startswith(first.rstrip("\ufffd"))


def test_an_empty_prompt(model: Model) -> None:
    session = model.session()
    text = "".join(session.generate(max_tokens=8, temperature=0))
    other = model.session()
    assert text == "".join(other.generate([0], max_tokens=8, temperature=0))
    session.reset(dataclasses.replace(other.state, output=None))
    with pytest.raises(ValueError, match="the prompt is empty, and the last token's logits"):
        session.generate("")


def test_seeds(model: Model) -> None:
    def text(seed: int | None) -> str:
        return "".join(model.session().generate("The", max_tokens=20, top_p=1, seed=seed))

    assert text(1) == text(1) != text(2)
    assert len({text(None) for _ in range(4)}) > 1


def test_ids_without_text_are_never_sampled(model: Model) -> None:
    session = model.session()
    text = "".join(
        session.generate("x", max_tokens=300, temperature=1000, top_p=1, seed=3, stop="no such")
    )
    assert text
    silent = set(model._without_text)
    assert silent == set(range(262, 300))


def test_digits_and_blanks_are_not_counted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [THE, *byte_tokens("1 \n")]
    sampler = play(monkeypatch, tokens)
    list(model.session().generate(PROMPT, max_tokens=4))
    assert sampler.accepted == list(zip(tokens, [1.0, 0.0, 0.0, 1.0], strict=True))


def test_options_reach_the_sampler(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "seed": 5}
    options |= {"presence_penalty": 0.1, "frequency_penalty": 0.2, "penalty_decay": 0.9}
    options |= {"min_p": 0.05, "typical_p": 0.8, "penalty_window": 9, "forced": [1, 2]}
    sampler = play(monkeypatch, [])
    model.session().generate(PROMPT, logit_bias={3: 1.5}, banned=[4], **options)
    assert sampler.options == {**options, "logit_bias": [(3, 1.5)]}
    assert sampler.banned == [*model._without_text, 4]


def test_a_penalty_changes_the_text(model: Model) -> None:
    def text(penalty: float) -> str:
        session = model.session()
        return "".join(
            session.generate("the", max_tokens=100, temperature=0, presence_penalty=penalty)
        )

    assert text(0) == text(0) != text(5)


BAD_OPTIONS: list[tuple[str, object, str]] = [
    ("max_tokens", -1, "max_tokens: found -1, expected at least 0"),
    ("max_tokens", "9", "max_tokens: found '9', expected a whole number"),
    ("temperature", -0.5, "temperature is -0.5, expected 0 to 1000"),
    ("temperature", 10**400, "temperature is inf, expected 0 to 1000"),
    ("temperature", "hot", "temperature: found 'hot', expected a number"),
    ("top_k", -1, "top_k: found -1, expected 0 to 9223372036854775807"),
    ("top_k", 2**63, "top_k: found 9223372036854775808, expected 0 to 9223372036854775807"),
    ("top_k", 1.5, "top_k: found 1.5, expected a whole number"),
    ("top_p", 1.5, "top_p is 1.5, expected 0 to 1"),
    ("top_p", None, "top_p: found None, expected a number"),
    ("presence_penalty", float("nan"), "presence_penalty is nan"),
    ("presence_penalty", "1", "presence_penalty: found '1', expected a number"),
    ("frequency_penalty", float("inf"), "frequency_penalty is inf"),
    ("frequency_penalty", [1], "frequency_penalty: found [1], expected a number"),
    ("penalty_decay", float("nan"), "penalty_decay is nan"),
    ("penalty_decay", b"1", "penalty_decay: found b'1', expected a number"),
    ("seed", -1, "seed: found -1, expected 0 to 18446744073709551615"),
    ("seed", 2**64, "seed: found 18446744073709551616, expected 0 to 18446744073709551615"),
    ("seed", 0.5, "seed: found 0.5, expected a whole number"),
    ("min_p", float("nan"), "min_p is nan, expected 0 to 1"),
    ("typical_p", -1, "typical_p is -1, expected 0 to 1"),
    ("penalty_window", -1, "penalty_window: found -1, expected 0 to 9223372036854775807"),
    ("logit_bias", {1: float("inf")}, "logit_bias of token 1 is inf, expected -1000 to 1000"),
    ("logit_bias", {300: 1}, "logit_bias: found 300, expected 0 to 299"),
    ("logit_bias", {1: "x"}, "logit_bias of token 1: found 'x', expected a number"),
    ("logit_bias", [1], "logit_bias: found [1], expected a dict of tokens and numbers"),
    ("banned", [-1], "banned: found -1, expected 0 to 299"),
    ("banned", "x", "banned: found 'x', expected a list of whole numbers"),
    ("forced", [1.5], "forced: found 1.5, expected a whole number"),
    ("stop_tokens", 3, "stop_tokens: found 3, expected a list of whole numbers"),
    ("logits_hook", 3, "logits_hook: found 3, expected a function"),
    ("stop", "", "stop: found an empty string, expected some text"),
    ("stop", ["a", ""], "stop: found an empty string, expected some text"),
    ("stop", [1], "stop: found [1], expected a text or a list of texts"),
    ("stop", 1, "stop: found 1, expected a text or a list of texts"),
    ("stop", b"a", "stop: found b'a', expected a text or a list of texts"),
    ("stop", "\ud800", "stop: found '\\ud800', expected characters that UTF-8 has"),
    ("lookup", -1, "lookup: found -1, expected at least 0"),
    ("lookup", "x", "lookup: found 'x', expected a whole number"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_at_once(
    model: Model, name: str, value: object, message: str
) -> None:
    session = model.session()
    of_a_kind = ("number", "numbers", "texts", "function")
    kind = TypeError if message.endswith(of_a_kind) else ValueError
    with pytest.raises(kind, match=re.escape(message)):
        session.generate("x", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(kind, match=re.escape(message)):
        model.batch([session]).generate("x", **{name: value})  # type: ignore[arg-type]
    assert bits(session) == bits_after(model, [])


def test_defaults_are_those_that_the_help_names() -> None:
    text = Session.generate.__doc__ or ""
    said = {name: float(value) for name, value in re.findall(r"`(\w+)`\s+\(([\d.]+)\b", text)}
    found = {name: p.default for name, p in inspect.signature(Answer).parameters.items()}
    assert len(said) == 10
    assert said == {name: found[name] for name in said}
    assert found["seed"] is None


def test_options_may_be_of_numpy(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": np.int64(9), "top_k": np.uint8(5), "seed": np.int32(3)}
    options |= {"temperature": np.float32(2), "top_p": 1, "stop": (word for word in ["zz"])}
    text = "".join(model.session().generate("The", **options))
    plain = {"max_tokens": 9, "top_k": 5, "seed": 3, "temperature": 2.0, "top_p": 1.0}
    assert text == "".join(model.session().generate("The", stop=["zz"], **plain))  # type: ignore[arg-type]


def test_nothing_happens_before_the_first_piece_is_wanted(model: Model) -> None:
    session = model.session()
    started = time.perf_counter()
    pieces = session.generate(np.ones(10000, dtype=int).tolist())
    assert time.perf_counter() - started < 1
    pieces.close()
    assert bits(session) == bits_after(model, [])


def test_a_stop_token_ends_the_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [THE, TURN_END, ING, USER])
    session = model.session()
    assert "".join(session.generate(PROMPT, stop_tokens=[USER, ING])) == " the\n\n"
    assert bits(session) == bits_after(model, [*PROMPT, THE, TURN_END])


def test_forced_banned_and_biased_tokens(model: Model) -> None:
    def text(**options: Any) -> str:
        return "".join(model.session().generate("The", max_tokens=30, temperature=0, **options))

    plain = text()
    assert text(forced=[THE, USER]).startswith(" theUser")
    first = model.tokenizer.encode(plain)[0]
    assert model.tokenizer.decode([first]) not in text(banned=[first])
    assert text(logit_bias={ING: 900}) == "ing" * 30
    assert text(logit_bias={first: -900}) == text(banned=[first])
    assert text(min_p=1, top_p=1) == plain


def test_a_hook_changes_the_logits(model: Model) -> None:
    seen: list[list[int]] = []

    def alternate(logits: Any, tokens: list[int]) -> None:
        assert logits.shape == (model.n_vocab,)
        assert logits.dtype == np.float32
        seen.append(tokens)
        logits[ING if len(tokens) % 2 else THE] += 1000

    for lookup in (0, 5):
        seen.clear()
        session = model.session()
        pieces = session.generate(
            "The", max_tokens=6, temperature=0, logits_hook=alternate, lookup=lookup
        )
        assert "".join(pieces) == " theing" * 3
        assert seen == [([THE, ING] * 3)[:n] for n in range(6)]
        assert bits(session) == bits_after(model, [*model.tokenizer.encode("The"), *[THE, ING] * 3])


def test_a_hook_that_returns_or_raises(model: Model) -> None:
    def returns(logits: Any, tokens: list[int]) -> Any:
        return logits if len(tokens) == 2 else None

    session = model.session()
    pieces = session.generate(PROMPT, forced=[THE, ING], logits_hook=returns)
    assert [next(pieces), next(pieces)] == [" the", "ing"]
    with pytest.raises(TypeError, match="logits_hook: it returned ndarray, expected None"):
        next(pieces)
    assert bits(session) == bits_after(model, [*PROMPT, THE, ING])


def details_of(pieces: Generation) -> tuple[str, Details]:
    return "".join(pieces), pieces.details


REASONS: dict[str, tuple[list[int], dict[str, Any], str, list[int], int]] = {
    "length": ([THE, ING, USER], {"max_tokens": 2}, "length", [THE, ING], 2),
    "nothing": ([THE], {"max_tokens": 0}, "length", [], 0),
    "end of document": ([THE, 0], {}, "end", [THE], 1),
    "stop string": ([THE, TURN_END, USER], {"stop": "\n\nU"}, "stop", [THE], 3),
    "inside a token": ([THE, ING], {"stop": "n"}, "stop", [THE, ING], 2),
    "stop token": ([THE, ING, USER], {"stop_tokens": [USER]}, "stop", [THE, ING], 2),
}


@pytest.mark.parametrize("case", REASONS.values(), ids=REASONS)
@pytest.mark.parametrize("lookup", [0, 4])
def test_the_facts_about_a_text(
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[list[int], dict[str, Any], str, list[int], int],
    lookup: int,
) -> None:
    script, options, reason, tokens, sampled = case
    play(monkeypatch, list(script))
    pieces = model.session().generate(PROMPT, lookup=lookup, **options)
    before = pieces.details
    assert (before.finish_reason, before.tokens, before.prompt_seconds) == (None, [], 0)
    _, details = details_of(pieces)
    assert (details.finish_reason, details.tokens) == (reason, tokens)
    assert details.sampled_tokens == sampled
    assert details.prompt_tokens == len(PROMPT)
    assert details.logprobs is None
    assert details.prompt_seconds > 0
    assert (details.seconds > 0) == (len(script) > 1 and options.get("max_tokens") != 0)
    assert (details.tokens_per_second > 0) == (sampled > 1)


def test_the_facts_in_the_middle(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the text that was yielded, as the session is."""
    play(monkeypatch, [THE, ING, TURN_END, USER])
    session = model.session()
    pieces = session.generate(PROMPT, stop="\n\nx", max_tokens=4)
    assert [next(pieces), next(pieces)] == [" the", "ing"]
    assert pieces.details.tokens == [THE, ING]
    assert pieces.details.finish_reason is None
    assert next(pieces) == "\n\nUser"
    assert pieces.details.finish_reason == "length"
    for use in (lambda p: p.close(), lambda _: session.feed([1])):
        play(monkeypatch, [THE, TURN_END, USER])
        pieces = session.generate(PROMPT, stop="\n\nx", max_tokens=4)
        assert next(pieces) == " the"
        use(pieces)
        assert (pieces.details.finish_reason, pieces.details.tokens) == ("cancelled", [THE])
        assert list(pieces) == []


def test_closed_before_it_began(model: Model) -> None:
    session = model.session()
    pieces = session.generate(PROMPT)
    assert pieces.details.finish_reason is None
    pieces.close()
    assert pieces.details.finish_reason == "cancelled"
    assert list(pieces) == []
    several = model.batch([session]).generate([PROMPT])
    several.close()
    assert [facts.finish_reason for facts in several.details] == ["cancelled"]
    later = session.agenerate(PROMPT)
    asyncio.run(later.aclose())
    assert later.details.finish_reason == "cancelled"
    assert bits(session) == bits_after(model, [])


def test_an_option_that_is_none(model: Model) -> None:
    with pytest.raises(TypeError, match=r"^topp: no option of generate$"):
        model.session().generate("x", topp=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^topp: no option of generate$"):
        model.batch([model.session()]).generate("x", topp=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("lookup", [0, 5])
def test_logprobs_of_a_text(model: Model, lookup: int) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "seed": 3, "top_p": 1, "presence_penalty": 2}
    text, details = details_of(
        model.session().generate("ababab", logprobs=3, lookup=lookup, **options)
    )
    assert text == "".join(model.session().generate("ababab", **options))
    assert details.logprobs is not None
    assert [each.token for each in details.logprobs] == details.tokens
    session = model.session()
    rows = session.feed([*model.tokenizer.encode("ababab"), *details.tokens], logits="all")
    for row, found in zip(rows[5:], details.logprobs, strict=False):
        x = row.astype(np.float64)
        right = x - x.max() - np.log(np.exp(x - x.max()).sum())
        assert abs(found.logprob - right[found.token]) < 1e-4
        assert [token for token, _ in found.top] == np.argsort(-x, kind="stable")[:3].tolist()
    _, own = details_of(model.session().generate("x", max_tokens=1, logprobs=0))
    assert own.logprobs is not None
    assert own.logprobs[0].top == []
    for bad in (-1, 301):
        with pytest.raises(ValueError, match=f"logprobs: found {bad}, expected 0 to 300"):
            model.session().generate("x", logprobs=bad)
