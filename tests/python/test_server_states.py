# SPDX-License-Identifier: Apache-2.0
"""States over HTTP: kept, named, forked, rewound, as files; and calls told from a text."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rwkv_edge import Conversation, Model, State
from rwkv_edge.chat import TEMPLATES
from rwkv_edge.chat.tools import Tools
from rwkv_edge.server.calls import CallReader
from rwkv_edge.server.fields import Refused
from rwkv_edge.server.request import CallBegin, CallText, Event, Text
from rwkv_edge.server.service import Options, Service
from rwkv_edge.server.states import BESIDE, States, size_of
from scripted import letters, play
from served import answered, ask, client_of, content, eventually, streamed

CHAT, COMPLETIONS, STATES = "/v1/chat/completions", "/v1/completions", "/v1/states"
OCTETS = {"content-type": "application/octet-stream"}
ANNA = "My name is Anna."


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(threads=1)


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[httpx.Client]:
    with client_of(Service(model)) as client:
        yield client


def loaded(client: httpx.Client, id: str, folder: Path) -> State:
    path = folder / "a.state"
    path.write_bytes(client.get(f"{STATES}/{id}/file").content)
    return State.load(path)


def remembered(model: Model, *questions: str) -> State:
    """What a conversation's state is after some questions."""
    chat = Conversation(model)
    for question in questions:
        list(chat.ask(question, temperature=0))
    return chat.session.state


def same(one: State, other: State) -> bool:
    assert one.output is not None
    assert other.output is not None
    equal = np.array_equal(one.data, other.data) and np.array_equal(one.output, other.output)
    return equal and one.tokens == other.tokens


# ---- a conversation that goes on from a state ---------------------------------------------------


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_a_stored_conversation(
    client: httpx.Client, model: Model, tmp_path: Path, cache: bool
) -> None:
    """Its state has the bits of a conversation that was held in this process."""
    first = answered(client, CHAT, ask(ANNA, store=True, cache=cache))
    assert first["parent"] is None
    assert same(loaded(client, first["state"], tmp_path), remembered(model, ANNA))
    body = ask("What is my name?", state=first["state"], store=True, cache=cache)
    second = answered(client, CHAT, body)
    assert second["parent"] == first["state"]
    assert content(second) == "Your name is Anna."
    # only what is new was read
    new = len(model.tokenizer.encode("User: What is my name?\n\nAssistant:"))
    assert second["usage"]["prompt_tokens"] == new
    expected = remembered(model, ANNA, "What is my name?")
    assert same(loaded(client, second["state"], tmp_path), expected)


def test_fork_and_rewind(client: httpx.Client, model: Model, tmp_path: Path) -> None:
    """A state never changes: naming it twice is a fork, naming an earlier one a rewind."""
    start = answered(client, CHAT, ask(ANNA, store=True))["state"]
    before = client.get(f"{STATES}/{start}/file").content
    ways = [answered(client, CHAT, ask(text, state=start, store=True))
            for text in ("What is my name?", "What is 2 + 2?", "What is my name?")]  # fmt: skip
    assert content(ways[0]) == content(ways[2]) != content(ways[1])
    assert len({each["state"] for each in ways}) == 3
    states = [loaded(client, each["state"], tmp_path) for each in ways]
    assert same(states[0], states[2])
    assert same(states[1], remembered(model, ANNA, "What is 2 + 2?"))
    assert client.get(f"{STATES}/{start}/file").content == before


def test_choices_have_states_of_their_own(client: httpx.Client) -> None:
    body = ask("Tell me a story.", temperature=1, top_p=0.9, seed=3, max_tokens=8, n=2, store=True)
    found = answered(client, CHAT, body)
    first, second = (choice["state"] for choice in found["choices"])
    assert first != second
    for id, choice in zip((first, second), found["choices"], strict=True):
        tail = client.get(f"{STATES}/{id}").json()["text_tail"]
        assert choice["message"]["content"].endswith(tail)


def test_a_stream_ends_with_its_state(client: httpx.Client) -> None:
    *_, last, done = streamed(client, CHAT, ask(ANNA, store=True))
    assert done == "[DONE]"
    found = answered(client, CHAT, ask("What is my name?", state=last["state"]))
    assert content(found) == "Your name is Anna."


@pytest.mark.parametrize("stop", [[], ["there"], ["e"]], ids=str)
def test_a_stored_text(client: httpx.Client, model: Model, tmp_path: Path, stop: list[str]) -> None:
    """The state is that of the text that was given, wherever a stop string begins."""
    options: Any = {"temperature": 0, "max_tokens": 12, "stop": stop}
    body = {"prompt": "Once upon", **options, "store": True}
    found = answered(client, COMPLETIONS, body)
    session = model.session()
    assert found["choices"][0]["text"] == "".join(session.generate("Once upon", **options))
    assert same(loaded(client, found["state"], tmp_path), session.state)
    more = answered(client, COMPLETIONS, {**body, "prompt": "", "state": found["state"]})
    assert more["choices"][0]["text"] == "".join(session.generate("", **options))


@pytest.mark.parametrize("mode", ["none", "minimal", "high"])
def test_thoughts_are_not_remembered(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    """Models are trained with answers only. The state is that of the visible text, and the next
    turn finds it in the cache without naming it."""
    text = {"high": ">\nHm.\n</think>\n"}.get(mode, ">\n" if mode == "minimal" else "")
    play(monkeypatch, letters(model, f"{text} Hello.\n\nUser:") * 3)
    service = Service(model, Options(template=TEMPLATES["g1"]))
    with client_of(service) as client:
        for stored in (True, False):
            fields = ask("Hi", reasoning_effort=mode, store=stored, cache=not stored)
            first = answered(client, CHAT, fields)
            assert content(first) == "Hello."
            if stored:
                state = loaded(client, first["state"], tmp_path)
        eventually(lambda: not service.scheduler.running)
        messages = [*ask("Hi")["messages"], {"role": "assistant", "content": "Hello."},
                    {"role": "user", "content": "And?"}]  # fmt: skip
        second = answered(client, CHAT, {"messages": messages, "temperature": 0})["usage"]
    session = model.session()
    known = 0
    for part in ("User: Hi\n\nAssistant:", " Hello.\n\n"):
        ids = model.tokenizer.encode(part)
        known += len(ids)
        session.read(ids)
    assert same(state, session.state)
    assert second["prompt_tokens_details"]["cached_tokens"] == known


def test_a_cache_that_forgets(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An answer in other tokens than its text has is read again from the beginning."""
    play(monkeypatch, letters(model, " Hello.\n\nUser:"))
    with client_of(Service(model, Options(template=TEMPLATES["g1"], cache_memory=0))) as client:
        found = answered(client, CHAT, ask("Hi", store=True))
        state = loaded(client, found["state"], tmp_path)
    session = model.session()
    for part in ("User: Hi\n\nAssistant:", " Hello.\n\n"):
        session.read(model.tokenizer.encode(part))
    assert same(state, session.state)


# ---- objects ------------------------------------------------------------------------------------


def test_made_from_a_text(client: httpx.Client, model: Model, tmp_path: Path) -> None:
    first = answered(client, STATES, {"prompt": "Once upon", "name": "a story"})
    assert first["object"] == "state"
    assert (first["tokens"], first["text_tail"], first["name"]) == (2, "Once upon", "a story")
    assert first["fingerprint"] == model.fingerprint
    second = answered(client, STATES, {"prompt": " a time", "from": first["id"]})
    assert second["parent"] == first["id"]
    session = model.session()
    for part in ("Once upon", " a time"):
        session.read(model.tokenizer.encode(part))
    assert same(loaded(client, second["id"], tmp_path), session.state)
    ids = model.tokenizer.encode("Once upon")
    third = answered(client, STATES, {"prompt": ids})
    assert same(loaded(client, third["id"], tmp_path), loaded(client, first["id"], tmp_path))


def test_made_from_messages(client: httpx.Client, model: Model) -> None:
    """A system text that is read once."""
    messages = [{"role": "system", "content": "My name is Anna."}]
    made = answered(client, STATES, {"messages": messages})
    found = answered(client, CHAT, ask("What is my name?", state=made["id"]))
    chat = Conversation(model, system="My name is Anna.")
    assert content(found) == "".join(chat.ask("What is my name?", temperature=0))


def test_the_list_and_the_end(client: httpx.Client) -> None:
    made = [answered(client, STATES, {"prompt": text})["id"] for text in ("a", "b")]
    listed = client.get(STATES).json()
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]][:2] == made[::-1]
    assert client.delete(f"{STATES}/{made[0]}").json()["deleted"]
    for path in (f"{STATES}/{made[0]}", f"{STATES}/{made[0]}/file"):
        assert client.get(path).status_code == 404
    assert client.delete(f"{STATES}/{made[0]}").status_code == 404
    assert client.post(CHAT, json=ask("a", state=made[0])).status_code == 404
    assert client.get(f"{STATES}/{made[1]}").json()["id"] == made[1]


def test_states_belong_to_a_key(model: Model) -> None:
    with client_of(Service(model), keys=["key-of-one", "key-of-two"]) as client:
        one, two = ({"x-api-key": f"key-of-{name}"} for name in ("one", "two"))
        id = client.post(STATES, json={"prompt": "secret"}, headers=one).json()["id"]
        assert client.get(STATES, headers=two).json()["data"] == []
        for path in (f"{STATES}/{id}", f"{STATES}/{id}/file"):
            assert client.get(path, headers=one).status_code == 200
            assert client.get(path, headers=two).status_code == 404
        assert client.delete(f"{STATES}/{id}", headers=two).status_code == 404
        body = {"prompt": "a", "state": id, "max_tokens": 1}
        assert client.post(COMPLETIONS, json=body, headers=two).status_code == 404
        assert client.post(COMPLETIONS, json=body, headers=one).status_code == 200


def test_a_state_that_expires(client: httpx.Client) -> None:
    made = answered(client, STATES, {"prompt": "a", "ttl": 3600})
    assert made["expires"] - made["created"] in (3599, 3600, 3601)
    gone = answered(client, STATES, {"prompt": "a", "ttl": 0})["id"]
    assert client.get(f"{STATES}/{gone}").status_code == 404
    assert gone not in [each["id"] for each in client.get(STATES).json()["data"]]


# ---- files --------------------------------------------------------------------------------------


def test_down_and_up_again(client: httpx.Client, model: Model, tmp_path: Path) -> None:
    made = answered(client, CHAT, ask(ANNA, store=True))["state"]
    found = client.get(f"{STATES}/{made}/file")
    assert found.headers["content-disposition"] == f'attachment; filename="{made}.state"'
    state = loaded(client, made, tmp_path)
    assert state.text is None  # nothing of whose it is
    up = client.post(f"{STATES}?name=mine", content=found.content, headers=OCTETS)
    assert up.status_code == 201
    assert (up.json()["name"], up.json()["tokens"]) == ("mine", state.tokens)
    again = answered(client, CHAT, ask("What is my name?", state=up.json()["id"]))
    assert content(again) == "Your name is Anna."
    # the file is one of the program's, too
    session = model.session(state)
    prompt = "User: What is my name?\n\nAssistant:"
    text = "".join(session.generate(prompt, temperature=0, stop="\n\n"))
    assert text.strip() == "Your name is Anna."


def test_files_that_are_no_state(client: httpx.Client, model: Model, tmp_path: Path) -> None:
    session = model.session()
    session.read([1, 2, 3])
    good = session.state
    path = tmp_path / "a.state"
    good.save(path)
    data = path.read_bytes()
    nan = data[:-64] + bytes(np.full(16, np.nan, np.float32))
    replace(good, fingerprint="0" * 64).save(path, replace=True)
    other = path.read_bytes()
    for bad in (b"", b"GGUF", data[:-1], data[: len(data) // 2], nan, other, b"PK" + data[2:],
                model.path.read_bytes()[:5000], bytes(1000)):  # fmt: skip
        found = client.post(STATES, content=bad, headers=OCTETS)
        assert found.status_code == 400, bad[:20]
        message = found.json()["error"]["message"]
        assert not any(part in message for part in ("/tmp", str(tmp_path), str(model.path.parent)))
    large = client.post(STATES, content=data + bytes(2 << 20), headers=OCTETS)
    assert large.status_code == 413


# ---- where they are kept ------------------------------------------------------------------------


def test_a_state_that_cannot_be_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client learns of it, and nothing of the folder."""
    with client_of(Service(model, Options(state_dir=tmp_path))) as client:

        def full(_: State, path: Path, **_more: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(State, "save", full)
        expected = "the state could not be written: No space left on device"
        found = client.post(CHAT, json=ask(ANNA, store=True))
        assert (found.status_code, found.json()["error"]["message"]) == (503, expected)
        assert client.post(STATES, json={"prompt": "a"}).status_code == 503
        error = streamed(client, CHAT, ask(ANNA, store=True))[-1]["error"]
        assert (error["message"], error["type"]) == (expected, "server_error")
        assert client.get(STATES).json()["data"] == []
    session = model.session()
    session.read([1])
    state = session.state
    state.data[7] = np.nan
    with pytest.raises(Refused, match="NaN"):
        States(model).put("", state)


def test_states_outlive_the_server(model: Model, tmp_path: Path) -> None:
    """Also one that was killed: a state is on the disk before its id is told."""
    options = Options(state_dir=tmp_path / "minds", cache_dir=tmp_path / "cache")
    with client_of(Service(model, options), keys=["key-of-one"]) as client:
        client.headers["x-api-key"] = "key-of-one"
        id = answered(client, CHAT, ask(ANNA, store=True))["state"]
        files = [path for path in (tmp_path / "minds").rglob("*") if path.is_file()]
        assert [path.name for path in files] == [f"{id}.state"]
        for path in (*files, *(path.parent for path in files)):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    (files[0].parent / "st_junk.state").write_bytes(b"GGUF")
    with client_of(Service(model, options), keys=["key-of-one", "key-of-two"]) as client:
        client.headers["x-api-key"] = "key-of-one"
        assert [each["id"] for each in client.get(STATES).json()["data"]] == [id]
        assert content(answered(client, CHAT, ask("What is my name?", state=id))) == (
            "Your name is Anna."
        )
        client.headers["x-api-key"] = "key-of-two"
        assert client.get(f"{STATES}/{id}").status_code == 404
        client.headers["x-api-key"] = "key-of-one"
        os.truncate(files[0], 1000)  # which the server has in memory, and another has not
    with client_of(Service(model, options), keys=["key-of-one"]) as client:
        client.headers["x-api-key"] = "key-of-one"
        assert client.post(CHAT, json=ask("Hello!", state=id)).status_code == 404


def states_of(model: Model, count: int) -> list[State]:
    found = []
    session = model.session()
    for _ in range(count):
        session.read([1])
        found.append(session.state)
    return found


def test_a_budget_of_memory(model: Model) -> None:
    """Without a folder, what was used longest ago is forgotten."""
    states = states_of(model, 4)
    kept = States(model, memory_bytes=2 * size_of(states[0]))
    ids = []
    for i, state in enumerate(states):
        ids.append(kept.put("a", state).id)
        if i == 2:
            kept.get("a", ids[1])
        assert kept.memory <= 2 * size_of(states[0])
    assert {each.id for each in kept.of("a")} == {ids[1], ids[3]}


def test_a_budget_of_the_disk(model: Model, tmp_path: Path) -> None:
    """With one, they leave the memory first, and come back from the disk with all their bits."""
    states = states_of(model, 4)
    room = size_of(states[0]) + BESIDE
    kept = States(model, tmp_path, memory_bytes=1, disk_bytes=3 * room)
    ids = [kept.put("a", state).id for state in states]
    assert {each.id for each in kept.of("a")} == set(ids[1:])
    assert len(list(tmp_path.rglob("*.state"))) == 3
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.state")) <= 3 * room
    for id, state in zip(ids[1:], states[1:], strict=True):
        assert same(kept.get("a", id)[1], state)
        assert kept.memory <= room


# ---- calls in a text ----------------------------------------------------------------------------


TOOLS = Tools([{"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}])
CALL = '```json\n{"name": "f", "arguments": {"a": "```"}}\n```'


OTHER = '```json\n{"name": "g", "arguments": {}}\n```'


def told(text: str, size: int) -> list[Event]:
    reader = CallReader(TOOLS)
    found = [event for i in range(0, len(text), size) for event in reader.push(text[i : i + size])]
    return [*found, *reader.end()]


def joined(events: list[Event]) -> list[str]:
    """The texts, and the calls as their arguments."""
    found: list[str] = [""]
    for event in events:
        if isinstance(event, Text):
            found[-1] += event.text
        elif isinstance(event, CallBegin):
            assert event.name == "f"
            found += [""]
        elif isinstance(event, CallText):
            found += [event.text, ""]
    return [text for text in found if text]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, ['{"a": "```"}']),
        (f"Let me see:\n{CALL}", ["Let me see:\n", '{"a": "```"}']),
        (f"{CALL}\n{CALL}", ['{"a": "```"}', '{"a": "```"}']),
        ('{"name": "f", "arguments": {}}', ["{}"]),
        (CALL[:-4], ['{"a": "```"}']),
        (CALL[:20], [CALL[:20]]),
        (OTHER, [OTHER]),
        ("```json\n[1, 2]\n``` is a list", ["```json\n[1, 2]\n``` is a list"]),
        ("no call ``", ["no call ``"]),
        ("```python\nx\n```", ["```python\nx\n```"]),
        ("{not JSON", ["{not JSON"]),
    ],
    ids=repr,
)  # fmt: skip
def test_calls_are_told_from_text(text: str, expected: list[str], size: int) -> None:
    assert joined(told(text, size)) == expected


def test_text_is_not_held_back_for_nothing() -> None:
    reader = CallReader(TOOLS)
    assert reader.push("The answer is") == [Text("The answer is")]
    assert reader.push(" `") == [Text(" ")]
    assert reader.push("x` and") == [Text("`x` and")]
