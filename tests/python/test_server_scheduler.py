# SPDX-License-Identifier: Apache-2.0
"""Many programs in one engine: nobody's answer depends on who else is served."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from rwkv_edge import Model, _core
from rwkv_edge.chat import TEMPLATES
from rwkv_edge.server import service as server_service
from rwkv_edge.server.fields import Refused
from rwkv_edge.server.program import Feed, Program, Steps
from rwkv_edge.server.request import Text
from rwkv_edge.server.scheduler import Job, Mailbox, Scheduler
from rwkv_edge.server.service import Options, Service
from served import PATIENCE, answered, ask, client_of, content, eventually

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDLESS = {"prompt": "Once", "ignore_eos": True, "max_tokens": 1 << 20}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(threads=1)


# ---- over HTTP ----------------------------------------------------------------------------------


def test_an_answer_does_not_depend_on_company(model: Model) -> None:
    """Texts and logprobs, alone and among eight, with prompts of all lengths between them."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        (COMPLETIONS, {"prompt": "Once upon a time " * (1 + 40 * (i % 3)), "max_tokens": 30,
                       "temperature": 1, "top_p": 0.8, "seed": i, "logprobs": 2})
        for i in range(5)
    ]  # fmt: skip
    bodies += [
        (CHAT, ask("Hello!", max_tokens=20, temperature=1, seed=i, logprobs=True, top_logprobs=2))
        for i in range(3)
    ]
    with client_of(Service(model)) as client:

        def each(path: str, body: dict[str, Any]) -> Any:
            return answered(client, path, body)["choices"]

        alone = [each(path, {**body, "cache": False}) for path, body in bodies]
        steps = client_steps(client)
        with ThreadPoolExecutor(len(bodies)) as pool:
            together = list(pool.map(lambda one: each(*one), bodies * 2))
        assert together == alone * 2
        written = sum(body["max_tokens"] for _, body in bodies * 2)
        assert client_steps(client) - steps < written  # they did share steps


def client_steps(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(x for x in lines if x.startswith("rwkv_edge_steps_total")).split()[1])


def test_nobody_keeps_the_logits_of_a_step(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a row of each session that speaks, so a few kept ones are as large as all states.
    Here texts begin at different steps, think, score their prompts and are remembered."""

    class Logits(bytearray):
        pass

    made: list[weakref.ref[Logits]] = []
    alive: list[int] = []
    real = _core.feed_together

    def feed_together(parts: Any) -> bytearray:
        alive.append(sum(each() is not None for each in made))
        logits = Logits(real(parts))
        made.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(_core, "feed_together", feed_together)
    talk = (CHAT, ask("Hello!", max_tokens=40, ignore_eos=True, reasoning_effort="high"))
    score = (COMPLETIONS, {"prompt": "word " * 60, "echo": True, "logprobs": 1, "max_tokens": 9})
    text = (COMPLETIONS, {"prompt": "Once", "max_tokens": 60, "ignore_eos": True})
    service = Service(model, Options(template=TEMPLATES["g1"]))
    with client_of(service) as client, ThreadPoolExecutor(9) as pool:
        list(pool.map(lambda one: answered(client, *one), [talk, score, text] * 6))
    assert len(alive) > 60
    assert max(alive) == 0


def test_a_slow_disk(
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Nobody waits for it, few states wait to be written, and one line of the log says so."""
    monkeypatch.setattr(server_service, "MOST_UNWRITTEN", 1)
    service, written = Service(model, Options(cache_dir=tmp_path)), threading.Event()
    real = service.cache.keep_on_disk

    def slow(*arguments: Any) -> str | None:
        assert written.wait(PATIENCE)
        return real(*arguments)

    monkeypatch.setattr(service.cache, "keep_on_disk", slow)
    with client_of(service) as client:
        for i in range(4):
            answered(client, CHAT, ask(f"Hello {i}!", max_tokens=3))
        written.set()
    assert caplog.text.count("the disk is slow: 1 states were not kept") == 1
    assert caplog.text.count("the disk is slow") == 1
    assert list(tmp_path.rglob("*.state"))


def test_a_full_queue(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    service, go_on = Service(model, Options(max_sessions=1, max_queue=1)), threading.Event()
    feed = service.scheduler._fed

    def waiting(parts: list[tuple[Job, list[int]]]) -> bytearray:
        assert go_on.wait(PATIENCE)
        return feed(parts)

    monkeypatch.setattr(service.scheduler, "_fed", waiting)
    with client_of(service) as client, ThreadPoolExecutor(2) as pool:
        runs = pool.submit(answered, client, CHAT, ask("Hello!"))
        eventually(lambda: service.scheduler.running == 1)
        waits = pool.submit(answered, client, CHAT, ask("Hello!"))
        eventually(lambda: service.scheduler.queued == 1)
        monkeypatch.setattr(service, "make", None)  # a refusal comes before any work
        refused = client.post(CHAT, json=ask("Hello!"))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert client.get("/health").status_code == 200
        assert service.scheduler.oldest > 0
        go_on.set()
        assert content(runs.result(PATIENCE)) == content(waits.result(PATIENCE))


def test_a_client_that_does_not_wait(model: Model) -> None:
    """Also without streaming, its answer ends, in the middle or before it has begun."""
    service = Service(model, Options(max_sessions=1))
    with client_of(service) as client:
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                client.post(COMPLETIONS, json=ENDLESS, timeout=0.3)
        with client.stream("POST", COMPLETIONS, json={**ENDLESS, "stream": True}) as streams:
            next(streams.iter_lines())
        eventually(lambda: not service.scheduler.running and not service.scheduler.queued)
        assert service.scheduler.counts.cancelled == 3
        assert content(answered(client, CHAT, ask("Hello!")))


def test_stopping_lets_answers_end(model: Model) -> None:
    service = Service(model)
    with ThreadPoolExecutor(1) as pool, client_of(service) as client:
        body = {"prompt": "Once", "ignore_eos": True, "max_tokens": 300}
        running = pool.submit(answered, client, COMPLETIONS, body)
        eventually(lambda: service.scheduler.running)
        service.scheduler.stop(PATIENCE)
        refused = client.post(CHAT, json=ask("Hello!"))
        assert refused.status_code == 503
        assert running.result(PATIENCE)["usage"]["completion_tokens"] == 300
        eventually(lambda: client.get("/health").status_code == 503)


def test_a_system_text_is_read_once(model: Model) -> None:
    """By many who come at once: all but the first wait for it."""
    system = "You are a helpful assistant. " * 40
    with client_of(Service(model)) as client:

        def each(i: int) -> Any:
            messages = [{"role": "system", "content": system}, *ask(f"Hello {i}!")["messages"]]
            return answered(client, CHAT, {"messages": messages, "max_tokens": 4})["usage"]

        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(each, range(6)))
    long = len(model.tokenizer.encode(f"System: {system}"))
    read = [use["prompt_tokens"] - use["prompt_tokens_details"]["cached_tokens"] for use in found]
    assert sum(count >= long for count in read) == 1


# ---- the scheduler itself -----------------------------------------------------------------------


class Reads(Program):
    """Reads so many tokens, and says when it is done."""

    def __init__(self, model: Model, tokens: int, speaking: bool = False) -> None:
        super().__init__()
        self.session = model.session()
        self._tokens, self._speaking = tokens, speaking

    def steps(self) -> Steps:
        if self._speaking:
            for _ in range(self._tokens):
                yield Feed(self.session._engine, [1], _core.Logits.last, True)
        else:
            yield Feed(self.session._engine, [1] * self._tokens, _core.Logits.last, False)
        self.events.append(Text("done"))


class Gate(Program):
    """Keeps the engine's thread until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()

    def steps(self) -> Steps:
        assert self.open.wait(PATIENCE)
        yield None


class Fails(Program):
    def steps(self) -> Steps:
        yield None
        raise ZeroDivisionError("what somebody said")


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    found = Scheduler(max_sessions=4, max_queue=8)
    found.start()
    yield found
    found.stop(0)
    found.join(PATIENCE)
    assert not found.alive


def run(
    scheduler: Scheduler, programs: Sequence[tuple[str, Program]], before: Callable[[], None]
) -> list[tuple[int, Any]]:
    """Submit the programs of some callers behind a gate, and collect what comes, in its order."""

    async def all_of_them() -> list[tuple[int, Any]]:
        box, gate = Mailbox(), Gate()
        scheduler.submit(gate, "gate", PATIENCE, box, -1)
        for i, (caller, program) in enumerate(programs):
            scheduler.submit(program, caller, PATIENCE, box, i, more=True)
        before()
        gate.open.set()
        return [await asyncio.wait_for(box.next(), PATIENCE) for _ in programs]

    return asyncio.run(all_of_them())


def nothing() -> None:
    pass


def test_callers_take_turns(model: Model) -> None:
    """A caller with many requests does not hold up one with a single one."""
    scheduler = Scheduler(max_sessions=1, max_queue=8)
    scheduler.start()
    programs = [("a", Reads(model, 3)) for _ in range(4)] + [("b", Reads(model, 3))]
    order = [i for i, _ in run(scheduler, programs, nothing)]
    assert order == [0, 4, 1, 2, 3]
    scheduler.stop(0)
    scheduler.join(PATIENCE)


def test_a_long_prompt_does_not_hold_up_a_short_one(scheduler: Scheduler, model: Model) -> None:
    found = run(scheduler, [("a", Reads(model, 2000)), ("b", Reads(model, 20))], nothing)
    assert [i for i, _ in found] == [1, 0]


def test_speakers_go_on_beside_a_long_prompt(
    scheduler: Scheduler, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step has the token of everyone who speaks, and a part of the prompt."""
    steps: list[list[tuple[bool, int]]] = []
    feed = scheduler._fed

    def listening(parts: list[tuple[Job, list[int]]]) -> bytearray:
        steps.append([(job.feed.speaking, len(ids)) for job, ids in parts if job.feed])
        return feed(parts)

    monkeypatch.setattr(scheduler, "_fed", listening)
    run(scheduler, [("a", Reads(model, 500)), *(("b", Reads(model, 5, True)),) * 1,
                    ("c", Reads(model, 5, True))], nothing)  # fmt: skip
    shared = [step for step in steps if len(step) == 3]
    assert len(shared) == 5
    for step in shared:
        assert sorted(step)[1:] == [(True, 1), (True, 1)]
        assert 0 < sorted(step)[0][1] <= 64


def test_a_program_that_fails_fails_alone(
    scheduler: Scheduler, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    found = dict(run(scheduler, [("a", Fails()), ("b", Reads(model, 30))], nothing))
    assert isinstance(found[0], ZeroDivisionError)
    assert found[1] == Text("done")
    assert "ZeroDivisionError" in caplog.text
    assert "somebody" not in caplog.text


def test_a_feed_that_fails_fails_alone(
    scheduler: Scheduler, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may run out for one that the others do not need."""
    greedy = Reads(model, 30)
    feed = scheduler._fed

    def scarce(parts: list[tuple[Job, list[int]]]) -> bytearray:
        if any(job.program is greedy for job, _ in parts):
            raise MemoryError
        return feed(parts)

    monkeypatch.setattr(scheduler, "_fed", scarce)
    found = dict(run(scheduler, [("a", greedy), ("b", Reads(model, 30))], nothing))
    assert isinstance(found[0], MemoryError)
    assert found[1] == Text("done")


def test_cancelled_while_waiting(scheduler: Scheduler, model: Model) -> None:
    async def cancel_one() -> tuple[int, Any]:
        box, gate = Mailbox(), Gate()
        scheduler.submit(gate, "", PATIENCE, box, -1)
        first = scheduler.submit(Reads(model, 3), "", PATIENCE, box, 0)
        scheduler.submit(Reads(model, 3), "", PATIENCE, box, 1)
        queued = scheduler.queued
        scheduler.cancel(first)
        assert scheduler.queued == queued - 1
        gate.open.set()
        return await asyncio.wait_for(box.next(), PATIENCE)

    assert asyncio.run(cancel_one())[0] == 1


def test_a_reader_that_does_not_read(scheduler: Scheduler, model: Model) -> None:
    class Talks(Program):
        def steps(self) -> Steps:
            session = model.session()
            while True:
                self.events += [Text("x")] * 500
                yield Feed(session._engine, [1], _core.Logits.last, True)

    async def listen_late() -> list[Any]:
        box = Mailbox()
        job = scheduler.submit(Talks(), "", PATIENCE, box)
        while not job.cancelled:
            await asyncio.sleep(0.01)  # without looking into the box
        found: list[Any] = []
        while not found or isinstance(found[-1], Text):
            found.append((await asyncio.wait_for(box.next(), PATIENCE))[1])
        return found

    *texts, last = asyncio.run(listen_late())
    assert 1000 <= len(texts) < 3000
    assert isinstance(last, Refused)
    eventually(lambda: not scheduler.running)
