# SPDX-License-Identifier: Apache-2.0
"""Sessions that go on together: each gets what it would get alone, to the bit."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import GetModel
from rwkv_edge import Model, Session
from rwkv_edge.generation import Options
from scripted import THE, bits, bits_after, byte_tokens, talkative_model

PROMPTS = ["The", "A longer prompt, of more tokens than go through the layers together. " * 3, "x"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=[1, 3], ids=["1 thread", "3 threads"])
def model(path: Path, request: pytest.FixtureRequest) -> Model:
    return Model(path, threads=request.param)


def sessions(model: Model, n: int = len(PROMPTS)) -> list[Session]:
    return [model.session() for _ in range(n)]


def test_feeding_together(model: Model) -> None:
    tokens = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    together, alone = sessions(model), sessions(model)
    batch = model.batch(together)
    expected = [session.feed(ids) for session, ids in zip(alone, tokens, strict=True)]
    assert (batch.feed(tokens) == np.stack(expected)).all()
    expected = [session.feed([THE]) for session in alone]
    assert batch.feed([[THE]] * 3, logits="none") is None
    assert [bits(s) for s in together] == [bits(s) for s in alone]
    # what comes next is known all the same
    texts = ["".join(s.generate(max_tokens=9, temperature=0)) for s in (*together, *alone)]
    assert texts[:3] == texts[3:]


def test_generating_together(model: Model) -> None:
    together, alone = sessions(model), sessions(model)
    pieces: list[list[str]] = [[], [], []]
    options = {"max_tokens": 40, "top_p": 0.9, "stop": ["e", "\n\nUser:"]}
    for i, piece in model.batch(together).generate(PROMPTS, seed=7, **options):  # type: ignore[arg-type]
        pieces[i].append(piece)
        # also in the middle, each session stands where its own text ends
        assert bits(together[i]) == bits(together[i].fork())
    for i, (session, prompt) in enumerate(zip(alone, PROMPTS, strict=True)):
        assert pieces[i] == list(session.generate(prompt, seed=7 + i, **options))  # type: ignore[arg-type]
    assert [bits(s) for s in together] == [bits(s) for s in alone]


def test_one_prompt_for_all(model: Model) -> None:
    texts: dict[int, str] = {}
    for i, piece in model.batch(sessions(model)).generate("The", max_tokens=20, top_p=1, seed=1):
        texts[i] = texts.get(i, "") + piece
    assert len(set(texts.values())) == 3


def test_sessions_come_and_go(model: Model) -> None:
    """Among others that speak, one is used otherwise, and the loop is left early."""
    together, alone = sessions(model), sessions(model)
    said = ["", "", ""]
    pieces = model.batch(together).generate(PROMPTS, max_tokens=30, temperature=0)
    for i, piece in pieces:
        said[i] += piece
        if len(said[1]) > 5:
            together[1].feed([THE])
            break
    for i, piece in pieces:
        assert i != 1
        said[i] += piece
        if len(said[0]) > 20:
            break
    pieces.close()
    for i in range(3):
        text = ""
        for piece in alone[i].generate(PROMPTS[i], max_tokens=30, temperature=0):
            text += piece
            if len(text) >= len(said[i]):
                break
        assert text == said[i]
    alone[1].feed([THE])
    assert [bits(s) for s in together] == [bits(s) for s in alone]


def test_an_interrupt_feeds_nobody(model: Model) -> None:
    together = sessions(model)
    together[0].feed([THE])

    def progress(done: int, total: int) -> None:
        assert total == 403
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.batch(together).feed([[1], [1] * 400, [1, 2]], progress=progress)
    assert [bits(s) for s in together] == [bits_after(model, ids) for ids in ([THE], [], [])]


@pytest.mark.posix("SIGALRM")
def test_ctrl_c_in_a_long_prompt(path: Path) -> None:
    """A prompt of minutes ends when the signal comes, and was not read."""
    session = Model(path, threads=1).session()
    session.feed([THE])
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    start = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            session.feed(np.ones(1_000_000, int))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - start < 60  # it would take longer by far
    assert bits(session) == bits_after(session.model, [THE])


def test_what_a_batch_refuses(model: Model, path: Path) -> None:
    a, b = sessions(model, 2)
    with pytest.raises(ValueError, match="a session occurs twice"):
        model.batch([a, a])
    with pytest.raises(ValueError, match="a session of another model"):
        model.batch([Model(path).session()])
    batch = model.batch([a, b])
    with pytest.raises(ValueError, match="tokens: found 1, expected 2, one for each session"):
        batch.feed([[1]])
    with pytest.raises(ValueError, match="tokens: found none"):
        batch.feed([[1], []])
    with pytest.raises(ValueError, match="token 300 is outside"):
        batch.feed([[1], [300]])
    with pytest.raises(ValueError, match="found 'some', expected 'last', 'all' or 'none'"):
        batch.feed([[1], [1]], logits="some")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="prompts: found 3, expected 2"):
        batch.generate(["a", "b", "c"])
    with pytest.raises(ValueError, match="max_tokens"):
        batch.generate("a", max_tokens=-1)
    with pytest.raises(ValueError, match="a session of Model"):
        a.rewind(Model(path).session())
    assert bits(a) == bits(b) == bits_after(model, [])
    nobody = model.batch([])
    assert nobody.feed([]).shape == (0, 300)
    assert list(nobody.generate("a")) == []


def test_a_batch_of_bytes_is_no_prompt(model: Model) -> None:
    with pytest.raises(ValueError, match="tokens: found bytes"):
        model.batch(sessions(model, 1)).generate([b"abc"])
    assert byte_tokens("a") == [98]


def test_logits_of_every_token(tiny_model: GetModel) -> None:
    path, _ = tiny_model("q8_0", "d128")
    model = Model(path)
    tokens = [[1, 2, 3], [4], list(range(70))]
    batch = model.batch(sessions(model, 3))
    for rows, each in zip(batch.feed(tokens, logits="all"), tokens, strict=True):
        assert np.array_equal(rows, model.session().feed(each, logits="all"))


def test_options_of_single_sessions(model: Model) -> None:
    own: list[Options] = [
        {"temperature": 0, "stop": "e"},
        {"seed": 5, "max_tokens": 3, "logprobs": 1},
        {"lookup": 4},
    ]
    shared: Options = {"seed": 7, "top_p": 0.9, "max_tokens": 20}
    texts = ["", "", ""]
    pieces = model.batch(sessions(model)).generate(PROMPTS, each=own, **shared)
    for i, piece in pieces:
        texts[i] += piece
    for i, prompt in enumerate(PROMPTS):
        options: Options = {**shared, "seed": 7 + i, **own[i]}
        alone = model.session().generate(prompt, **options)
        assert texts[i] == "".join(alone)
        assert pieces.details[i].tokens == alone.details.tokens
        assert pieces.details[i].finish_reason == alone.details.finish_reason
        assert pieces.details[i].logprobs == alone.details.logprobs
    batch = model.batch(sessions(model))
    with pytest.raises(ValueError, match="each: found 1, expected 3, one for each session"):
        batch.generate(PROMPTS, each=[{}])
    with pytest.raises(TypeError, match="tempo"):
        batch.generate(PROMPTS, each=[{}, {"tempo": 3}, {}])  # type: ignore[typeddict-unknown-key]
