# SPDX-License-Identifier: Apache-2.0
"""agenerate: the same text, while other tasks run; cancelled, the state is the text's."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from rwkv_edge import Model, Session, _core
from scripted import ING, THE, TURN_END, USER, bits, bits_after, byte_tokens, play, talkative_model

PROMPT = byte_tokens("a prompt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(talkative_model(tmp_path_factory.mktemp("models")), threads=1)


@pytest.mark.parametrize(
    "options", [{"stop": ["e", "\n\nUser"]}, {"lookup": 5, "temperature": 0}, {"max_tokens": 0}]
)
def test_the_same_text(model: Model, options: dict[str, Any]) -> None:
    options = {"seed": 3, "max_tokens": 60, "top_p": 0.9} | options

    async def talk(prompt: str) -> tuple[list[str], bytes, object]:
        session = model.session()
        pieces = session.agenerate(prompt, **options)
        found = [piece async for piece in pieces]
        found += [piece async for piece in session.agenerate(max_tokens=3, temperature=0)]
        return found, bits(session), pieces.details.finish_reason

    async def together() -> list[tuple[list[str], bytes, object]]:
        return await asyncio.gather(*map(talk, ["abcabc", "x", "the theing"]))

    for prompt, found in zip(["abcabc", "x", "the theing"], asyncio.run(together()), strict=True):
        session = model.session()
        pieces = session.generate(prompt, **options)
        expected = list(pieces)
        expected += session.generate(max_tokens=3, temperature=0)
        assert found == (expected, bits(session), pieces.details.finish_reason)


def test_the_same_texts_of_a_batch(model: Model) -> None:
    prompts = ["abcabc", "x", "the theing"]
    options: Any = {"seed": 3, "max_tokens": 30, "top_p": 0.9, "stop": "e"}
    own: Any = [{}, {"max_tokens": 5}, {"temperature": 0}]

    async def talk() -> tuple[list[tuple[int, str]], list[bytes], object]:
        batch = model.batch(model.session() for _ in prompts)
        pieces = batch.agenerate(prompts, each=own, **options)
        found = [piece async for piece in pieces]
        begun = batch.agenerate("and on", seed=1)
        await begun.__anext__()
        await begun.aclose()
        assert [each.finish_reason for each in begun.details] == ["cancelled"] * 3
        reasons = [each.finish_reason for each in pieces.details]
        return found, [bits(session) for session in batch.sessions], reasons

    batch = model.batch(model.session() for _ in prompts)
    pieces = batch.generate(prompts, each=own, **options)
    expected = list(pieces)
    begun = batch.generate("and on", seed=1)
    next(begun)
    begun.close()
    reasons = [each.finish_reason for each in pieces.details]
    assert asyncio.run(talk()) == (expected, [bits(each) for each in batch.sessions], reasons)


def test_other_tasks_run_meanwhile(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine waits for another task of the loop: it would wait forever in the loop's thread."""
    feed, said = _core.feed_together, threading.Event()

    def waiting(*arguments: Any) -> object:
        assert threading.current_thread() is not threading.main_thread()
        assert said.wait(60)
        return feed(*arguments)

    monkeypatch.setattr(_core, "feed_together", waiting)

    async def other() -> None:
        await asyncio.sleep(0.01)
        said.set()

    async def main() -> str:
        task = asyncio.create_task(other())
        text = "".join([piece async for piece in model.session().agenerate("x", max_tokens=3)])
        await task
        return text

    assert asyncio.run(main())


def test_cancelled_at_any_moment(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [*byte_tokens("abcdefg, "), THE, TURN_END, ING] * 40
    rng = random.Random(4)
    cancelled = 0

    async def talk(session: Session, out: list[str], lookup: int) -> None:
        async for piece in session.agenerate(PROMPT, stop="\n\nx", max_tokens=400, lookup=lookup):
            out.append(piece)

    async def main(lookup: int) -> None:
        nonlocal cancelled
        play(monkeypatch, list(said))
        session, out = model.session(), list[str]()
        task = asyncio.create_task(talk(session, out, lookup))
        await asyncio.sleep(rng.uniform(0.0, 0.03))
        task.cancel()
        if rng.random() < 0.3:
            await asyncio.sleep(0)
            task.cancel()  # once more, while it waits for the engine
        try:
            await task
        except asyncio.CancelledError:
            cancelled += 1
        text = "".join(out)
        fed: list[int] = []
        for token in said:
            data = model.tokenizer.token_bytes(token).decode()
            if not text:
                break
            assert text.startswith(data)
            text = text[len(data) :]
            fed.append(token)
        # Before the first piece the prompt may have been read or not.
        states = [bits_after(model, [*PROMPT, *fed]), *([] if fed else [bits_after(model, [])])]
        assert bits(session) in states
        assert session._stream is None or session._stream.ended

    for i in range(60):
        asyncio.run(main(lookup=4 * (i % 2)))
    assert cancelled > 40


def waiting_feed() -> tuple[Callable[..., object], threading.Event, threading.Event]:
    """A `feed_together` that says when it has begun, and goes on when it may."""
    feed, begun, may = _core.feed_together, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> object:
        begun.set()
        assert may.wait(60)
        return feed(*arguments)

    return slow, begun, may


def test_a_cancelled_task_waits_for_the_engine(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a step would change the session after the task has ended."""
    slow, begun, may = waiting_feed()

    async def main() -> None:
        play(monkeypatch, [THE, ING, USER])
        session = model.session()
        pieces = session.agenerate(PROMPT)
        assert await pieces.__anext__() == " the"
        monkeypatch.setattr(_core, "feed_together", slow)
        task = asyncio.ensure_future(pieces.__anext__())
        while not begun.is_set():
            await asyncio.sleep(0.001)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
        may.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bits(session) == bits_after(model, [*PROMPT, THE])

    asyncio.run(main())


def test_a_long_prompt_is_not_read_to_the_end(model: Model) -> None:
    """A million tokens take minutes; the cancelled task ends, and they were not read. The loop has
    no complaint of what ended the reading."""
    complaints: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: complaints.append(context))
        session = model.session()
        session.feed([THE])
        pieces = session.agenerate([1] * 1_000_000)
        task = asyncio.ensure_future(pieces.__anext__())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 60)
        assert bits(session) == bits_after(model, [THE])
        assert pieces.details.finish_reason == "cancelled"
        gc.collect()  # which is when a future complains

    asyncio.run(main())
    assert not complaints


def test_the_loop_ends_in_the_middle(model: Model) -> None:
    """asyncio.run cancels what is left; the session can be used again."""
    session = model.session()
    out: list[str] = []

    async def talk() -> None:
        async for piece in session.agenerate(PROMPT, max_tokens=100_000, temperature=0):
            out.append(piece)

    async def main() -> None:
        main.task = asyncio.create_task(talk())  # type: ignore[attr-defined]
        while len(out) < 5:
            await asyncio.sleep(0.001)

    asyncio.run(main())
    other = model.session()
    text = "".join(out)
    shown = ""
    for piece in other.generate(PROMPT, max_tokens=100_000, temperature=0):
        shown += piece
        if len(shown) >= len(text):
            break
    assert shown == text
    assert bits(session) == bits(other)


def test_a_break_and_an_aclose(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(close: bool) -> None:
        play(monkeypatch, [THE, TURN_END, USER, ING])
        session = model.session()
        pieces = session.agenerate(PROMPT, stop="\n\nx", max_tokens=4)
        async for piece in pieces:
            assert piece == " the"
            break
        if close:
            await pieces.aclose()
        assert bits(session) == bits_after(model, [*PROMPT, THE])
        session.feed([ING])
        await pieces.aclose()
        assert bits(session) == bits_after(model, [*PROMPT, THE, ING])
        assert pieces.details.finish_reason == "cancelled"

    asyncio.run(main(True))
    asyncio.run(main(False))


def test_a_session_in_use(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another task that changes it gets an error, and the text goes on; looking at it is fine."""
    slow, begun, may = waiting_feed()

    async def main() -> None:
        play(monkeypatch, [THE, ING, USER])
        session = model.session()
        pieces = session.agenerate(PROMPT, max_tokens=2)
        assert await pieces.__anext__() == " the"
        monkeypatch.setattr(_core, "feed_together", slow)
        task = asyncio.ensure_future(pieces.__anext__())
        while not begun.is_set():
            await asyncio.sleep(0.001)
        assert bits(session) == bits_after(model, [*PROMPT, THE])
        uses: list[Callable[[], object]] = [
            lambda: session.feed([1]),
            session.reset,
            lambda: session.agenerate("x"),
            lambda: session.generate("x"),
        ]
        for use in uses:
            with pytest.raises(RuntimeError, match="the session is in use: another task"):
                use()
        may.set()
        assert await task == "ing"
        assert [piece async for piece in pieces] == []
        assert bits(session) == bits_after(model, [*PROMPT, THE, ING])
        session.feed([1])

    asyncio.run(main())


def test_errors_come_at_once_or_from_the_loop(model: Model) -> None:
    with pytest.raises(ValueError, match="top_p is 2"):
        model.session().agenerate("x", top_p=2)

    def fails(_logits: Any, tokens: list[int]) -> None:
        if len(tokens) == 2:
            raise RuntimeError("enough")

    async def main() -> None:
        session = model.session()
        out: list[str] = []

        async def talk() -> None:
            async for piece in session.agenerate(PROMPT, logits_hook=fails, forced=[THE, ING]):
                out.append(piece)

        with pytest.raises(RuntimeError, match="enough"):
            await talk()
        assert out == [" the", "ing"]
        assert bits(session) == bits_after(model, [*PROMPT, THE, ING])

    asyncio.run(main())
