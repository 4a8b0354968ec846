# SPDX-License-Identifier: Apache-2.0
"""The server in the words of OpenAI's Responses, of Anthropic and of Ollama, with their clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from rwkv_edge import Model
from rwkv_edge.chat import TEMPLATES
from rwkv_edge.server import anthropic as messages_of
from rwkv_edge.server import http as server_http
from rwkv_edge.server import ollama as ollama_of
from rwkv_edge.server import openai as chat_of
from rwkv_edge.server import responses as responses_of
from rwkv_edge.server.compose import Composer
from rwkv_edge.server.fields import Fields
from rwkv_edge.server.request import Request
from rwkv_edge.server.service import Options, Service
from scripted import letters, play
from served import PATIENCE, answered, ask, client_of, content

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
OLLAMA, GENERATE = "/api/chat", "/api/generate"
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
JSON = {"content-type": "application/json"}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "Now.", "parameters": SCHEMA}
ANTHROPIC_TOOL = {"name": "weather", "description": "Now.", "input_schema": SCHEMA}
G1 = Options(template=TEMPLATES["g1"])


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(threads=1)


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[httpx.Client]:
    with client_of(Service(model)) as client:
        yield client


@dataclass(frozen=True)
class Dialect:
    """How one text is asked for, and where it stands in the answer."""

    path: str

    def body(self, text: str, /, **fields: Any) -> dict[str, Any]:
        turn = [{"role": "user", "content": text}]
        if self.path == RESPONSES:
            return {"input": text, "temperature": 0, **fields}
        if self.path == GENERATE:
            return {"prompt": text, "options": {"temperature": 0}, **fields}
        if self.path == OLLAMA:
            return {"messages": turn, "options": {"temperature": 0}, **fields}
        return {"messages": turn, "temperature": 0, "max_tokens": 500, **fields}

    def text(self, found: Any) -> str:
        text: str
        if self.path == RESPONSES:
            texts = [x["content"][0]["text"] for x in found["output"] if x["type"] == "message"]
            text = "".join(texts)
        elif self.path == MESSAGES:
            text = "".join(x.get("text", "") for x in found["content"])
        elif self.path == OLLAMA:
            text = found["message"]["content"]
        else:
            text = found["response"] if self.path == GENERATE else content(found)
        return text

    def stream(self, client: httpx.Client, body: dict[str, Any]) -> list[Any]:
        """The events or lines of an answer in pieces."""
        response = client.post(self.path, json={**body, "stream": True})
        assert response.status_code == 200, response.text
        kind = response.headers["content-type"]
        if self.path in (OLLAMA, GENERATE):
            assert kind == "application/x-ndjson"
            return [json.loads(line) for line in response.text.splitlines()]
        assert kind.startswith("text/event-stream")
        found = []
        for part in response.text.removesuffix("\n\n").split("\n\n"):
            name, data = part.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
        return found

    def streamed(self, found: list[Any]) -> str:
        """The text of a stream."""
        if self.path == RESPONSES:
            pieces = [x["delta"] for x in found if x["type"] == "response.output_text.delta"]
        elif self.path == MESSAGES:
            pieces = [x["delta"].get("text", "") for x in found if "index" in x and "delta" in x]
        else:
            pieces = [self.text(line) for line in found]
        return "".join(pieces)


DIALECTS = [Dialect(path) for path in (RESPONSES, MESSAGES, OLLAMA, GENERATE)]
each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.path)


# ---- all of them --------------------------------------------------------------------------------

TALK = [
    {"role": "user", "content": "My name is Anna."},
    {"role": "assistant", "content": "Nice to meet you, Anna!"},
    {"role": "user", "content": "Tell me a story."},
]
KIND = {"role": "system", "content": "Be kind."}
SAMPLED = {"temperature": 1, "top_p": 0.9, "seed": 11}


@pytest.mark.parametrize("cache", [True, False], ids=["cached", "read"])
def test_all_say_the_same(client: httpx.Client, cache: bool) -> None:
    """The same messages and seed give the same text in every dialect, streamed or not."""
    limited = {**SAMPLED, "max_tokens": 30, "cache": cache}
    bodies = {
        RESPONSES: {"instructions": "Be kind.", "input": TALK, **limited},
        MESSAGES: {"system": "Be kind.", "messages": TALK, **limited},
        OLLAMA: {
            "messages": [KIND, *TALK],
            "options": {**SAMPLED, "num_predict": 30},
            "cache": cache,
        },
    }
    text = content(answered(client, CHAT, {"messages": [KIND, *TALK], **limited}))
    assert len(text) > 30
    for dialect in DIALECTS:
        if dialect.path not in bodies:
            continue
        body = bodies[dialect.path]
        assert dialect.text(answered(client, dialect.path, {**body, "stream": False})) == text
        assert dialect.streamed(dialect.stream(client, body)) == text
    # /api/generate has one question
    one = content(answered(client, CHAT, {"messages": [KIND, TALK[0]], **limited}))
    body = {"system": "Be kind.", "prompt": TALK[0]["content"], "stream": False,
            "options": {**SAMPLED, "num_predict": 30}, "cache": cache}  # fmt: skip
    assert answered(client, GENERATE, body)["response"] == one


TOLD = (
    'System: Tools:\n- weather(city: "Paris"): Now.\nReturn only a JSON function call.\nBe brief.'
    "\n\nUser: How warm is it?\n\n"
    'Assistant: Let me see.\n```json\n{"name": "weather", "arguments": {"city": "Paris"}}\n```\n\n'
    'User: Function output:\n{"celsius": 21}\nSo?\n\n'
    "Assistant:"
)
BRIEF = {"role": "system", "content": "Be brief."}
HOW = {"role": "user", "content": "How warm is it?"}
SO = {"role": "user", "content": "So?"}
GIVEN = '{"city": "Paris"}'
OUTPUT = '{"celsius": 21}'


def chat_request(body: Fields, n_vocab: int) -> Request:
    return chat_of.read_chat(body, n_vocab)[0]


def responses_request(body: Fields, n_vocab: int) -> Request:
    return responses_of.read_request(body, n_vocab)[0]


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (chat_request, {
            "messages": [BRIEF, HOW, {"role": "assistant", "content": "Let me see.", "tool_calls": [
                {"id": "c", "function": {"name": "weather", "arguments": GIVEN}}]},
                {"role": "tool", "tool_call_id": "c", "content": OUTPUT}, SO],
            "tools": [{"type": "function", "function": FUNCTION}]}),
        (responses_request, {
            "instructions": "Be brief.",
            "input": [
                HOW,
                {"type": "reasoning", "id": "rs_1", "summary": [{"text": "Hm."}]},
                {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                 "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]},
                {"type": "function_call", "call_id": "c", "name": "weather", "arguments": GIVEN},
                {"type": "function_call_output", "call_id": "c", "output": OUTPUT},
                {"role": "user", "content": [{"type": "input_text", "text": "So?"}]}],
            "tools": [{"type": "function", "strict": True, **FUNCTION}, {"type": "web_search"}]}),
        (messages_of.read_request, {
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "x"}}],
            "messages": [HOW, {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c", "name": "weather", "input": {"city": "Paris"}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c",
                     "content": [{"type": "text", "text": OUTPUT}]},
                    {"type": "text", "text": "So?"}]}],
            "tools": [ANTHROPIC_TOOL, {"type": "web_search_20250305", "name": "web_search"}]}),
        (ollama_of.read_chat, {
            "messages": [BRIEF, HOW, {"role": "assistant", "content": "Let me see.",
                "thinking": "Hm.", "tool_calls": [
                    {"function": {"name": "weather", "arguments": {"city": "Paris"}}}]},
                {"role": "tool", "tool_name": "weather", "content": OUTPUT}, SO],
            "tools": [{"type": "function", "function": FUNCTION}]}),
    ],
    ids=["chat", "responses", "messages", "ollama"],
)  # fmt: skip
def test_calls_and_results_are_read_alike(model: Model, read: Any, body: dict[str, Any]) -> None:
    """The words are those of the training, whatever the dialect."""
    prompt = Composer(model).prompt(read(Fields(body), model.n_vocab), None, b"")
    assert model.tokenizer.decode(prompt.text.tokens) == TOLD


SCRIPT = (
    ">\nI think.\n</think>\n Let me see.\n```json\n"
    '{"name": "weather", "arguments": {"city": "Paris"}}\n```\n\nUser:'
)
"""What a model says that was trained to think and to call."""


@pytest.fixture
def thinker(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A server whose model says SCRIPT."""
    play(monkeypatch, letters(model, SCRIPT))
    with client_of(Service(model, G1)) as client:
        yield client


def thinking(dialect: Dialect) -> dict[str, Any]:
    """A request for thoughts, which may call a tool."""
    extra: dict[str, dict[str, Any]] = {
        RESPONSES: {"reasoning": {"effort": "medium"}, "tools": [{"type": "function", **FUNCTION}]},
        MESSAGES: {"thinking": {"type": "enabled", "budget_tokens": 50}, "tools": [ANTHROPIC_TOOL]},
        OLLAMA: {"think": True, "tools": [{"type": "function", "function": FUNCTION}]},
    }
    return dialect.body("Hi", **extra[dialect.path])


def test_responses_in_pieces(thinker: httpx.Client) -> None:
    dialect = Dialect(RESPONSES)
    found = dialect.stream(thinker, thinking(dialect))
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    kinds = [event["type"].removeprefix("response.") for event in found]
    once = [kind for i, kind in enumerate(kinds) if kinds[i - 1] != kind]  # deltas repeat
    part, text = "reasoning_summary_part", "reasoning_summary_text"
    assert once == [
        "created", "in_progress",
        "output_item.added", f"{part}.added", f"{text}.delta", f"{text}.done", f"{part}.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]  # fmt: skip
    response = found[-1]["response"]
    assert response["id"] == found[0]["response"]["id"]
    assert found[0]["response"]["status"] == "in_progress"
    thought, message, call = response["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "I think.\n"}]
    assert message["content"][0]["text"] == "Let me see.\n"
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Paris"})
    for i, item in enumerate(response["output"]):
        own = [x for x in found if x.get("output_index") == i]
        assert own[0]["item"]["status"] == "in_progress"
        assert own[-1]["item"] == item
        assert {x["item_id"] for x in own[1:-1]} == {item["id"]}
        pieces = "".join(x.get("delta", "") for x in own)
        whole = call["arguments"] if item is call else own[-2]["part"]["text"]
        assert pieces == whole
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


def test_messages_in_pieces(thinker: httpx.Client) -> None:
    dialect = Dialect(MESSAGES)
    found = dialect.stream(thinker, thinking(dialect))
    kinds = [event["type"].removeprefix("content_block_") for event in found]
    once = [kind for i, kind in enumerate(kinds) if kinds[i - 1] != kind]
    block = ["start", "delta", "stop"]
    assert once == ["message_start", *block * 3, "message_delta", "message_stop"]
    starts = [event for event in found if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2]
    thought, text, call = (event["content_block"] for event in starts)
    assert thought == {"type": "thinking", "thinking": "", "signature": ""}
    assert text == {"type": "text", "text": ""}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {})
    pieces = ["", "", ""]
    for event in found:
        if event["type"] == "content_block_delta":
            kind = event["delta"].pop("type")
            assert kind == ("thinking_delta", "text_delta", "input_json_delta")[event["index"]]
            (piece,) = event["delta"].values()
            pieces[event["index"]] += piece
    assert pieces[:2] == ["I think.\n", "Let me see.\n"]
    assert json.loads(pieces[2]) == {"city": "Paris"}
    assert found[0]["message"]["content"] == []
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_ollama_in_pieces(thinker: httpx.Client) -> None:
    dialect = Dialect(OLLAMA)
    found = dialect.stream(thinker, thinking(dialect))
    *pieces, last = found
    assert [line["done"] for line in found] == [False] * len(pieces) + [True]
    said = [line["message"] for line in pieces]
    assert "".join(x.get("thinking", "") for x in said) == "I think.\n"
    assert "".join(x["content"] for x in said) == "Let me see.\n"
    ((call,),) = [x["tool_calls"] for x in said if "tool_calls" in x]
    assert call["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["done_reason"] == "stop"
    assert last["eval_count"] > 0
    assert all(type(last[f"{name}_duration"]) is int for name in ("total", "prompt_eval", "eval"))


@pytest.mark.parametrize("dialect", DIALECTS[:3], ids=lambda dialect: dialect.path)
def test_the_whole_of_it(thinker: httpx.Client, dialect: Dialect) -> None:
    found = answered(thinker, dialect.path, {**thinking(dialect), "stream": False})
    assert dialect.text(found) == "Let me see.\n"
    if dialect.path == RESPONSES:
        thought, _, call = found["output"]
        assert thought["summary"][0]["text"] == "I think.\n"
        assert json.loads(call["arguments"]) == {"city": "Paris"}
    elif dialect.path == MESSAGES:
        thought, _, call = found["content"]
        assert thought["thinking"] == "I think.\n"
        assert call["input"] == {"city": "Paris"}
        assert found["stop_reason"] == "tool_use"
    else:
        assert found["message"]["thinking"] == "I think.\n"
        (call,) = found["message"]["tool_calls"]
        assert call["function"]["arguments"] == {"city": "Paris"}


@each_dialect
def test_the_limit(client: httpx.Client, dialect: Dialect) -> None:
    limit: dict[str, Any] = {
        RESPONSES: {"max_output_tokens": 2},
        MESSAGES: {"max_tokens": 2},
    }.get(dialect.path, {"options": {"temperature": 0, "num_predict": 2}})
    found = answered(client, dialect.path, {**dialect.body(FRANCE, **limit), "stream": False})
    assert dialect.text(found) == "The capital"
    if dialect.path == RESPONSES:
        assert found["status"] == "incomplete"
        assert found["incomplete_details"] == {"reason": "max_output_tokens"}
        assert found["usage"]["output_tokens"] == 2
    elif dialect.path == MESSAGES:
        assert found["stop_reason"] == "max_tokens"
        assert found["usage"]["output_tokens"] == 2
    else:
        assert (found["done_reason"], found["eval_count"]) == ("length", 2)


@each_dialect
def test_thoughts_that_use_up_the_limit(
    model: Model, monkeypatch: pytest.MonkeyPatch, dialect: Dialect
) -> None:
    """There is a text, if an empty one: clients look for it."""
    play(monkeypatch, letters(model, ">\nOh well"))
    body = dialect.body("Hi", think=True, stream=False)
    limits = {RESPONSES: {"max_output_tokens": 6}, MESSAGES: {"max_tokens": 6}}
    body |= limits.get(dialect.path, {"options": {"num_predict": 6}})
    with client_of(Service(model, G1)) as client:
        found = answered(client, dialect.path, body)
    assert dialect.text(found) == ""
    assert "Oh w" in json.dumps(found)


@each_dialect
def test_json_of_a_schema(client: httpx.Client, dialect: Dialect) -> None:
    schema = {**SCHEMA, "additionalProperties": False}
    form: dict[str, Any] = {
        RESPONSES: {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
        MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    }.get(dialect.path, {"format": schema})
    found = answered(client, dialect.path, dialect.body(FRANCE, **form, stream=False))
    assert json.loads(dialect.text(found)) == {"city": "Paris"}


# ---- what is refused ----------------------------------------------------------------------------


def message_of(dialect: Dialect, response: httpx.Response) -> str:
    """The text of an error in the dialect's own shape."""
    found = response.json()
    message: str
    if dialect.path == RESPONSES:
        assert list(found) == ["error"]
        assert list(found["error"]) == ["message", "type", "param", "code"]
        message = found["error"]["message"]
    elif dialect.path == MESSAGES:
        assert list(found) == ["type", "error"]
        assert found["type"] == "error"
        assert list(found["error"]) == ["type", "message"]
        kind = messages_of.KINDS.get(response.status_code, "invalid_request_error")
        assert found["error"]["type"] == kind
        message = found["error"]["message"]
    else:
        assert list(found) == ["error"]
        message = found["error"]
    return message


TURN = {"role": "user", "content": "Hi"}
PICTURE = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/x.png"}}
WRONG: dict[str, dict[str, list[Any]]] = {
    RESPONSES: {
        "input": [
            *(None, 5, [], [5], {}, [{"type": "item_reference", "id": "x"}]),
            *([{"role": "nobody", "content": "a"}], [{"role": "user", "content": 5}]),
            [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}],
            *([{"type": "function_call"}], [{"type": "function_call_output", "output": 5}]),
            *([{"type": 5}], [{"type": "reasoning"}], [TURN] * 4097),
        ],
        "max_output_tokens": [-1, 1.5, True, "5", 10**12],
        "temperature": [-1, True, 10**400],
        "instructions": [5, ["a"]],
        "previous_response_id": [5, "", "resp_1", "st_" + "a" * 22, "resp_" + "a" * 38, "x" * 999],
        "text": [5, {"format": 5}, *({"format": {"type": x}} for x in ("xml", "json_schema"))],
        "tools": [5, [5], [{"type": "function"}], [{"type": "function", "name": 5}]],
        "tool_choice": [],
        "reasoning": [5, {"effort": "much"}, {"effort": 5}],
        "metadata": [5, {"a": "x" * 70_000}],
        "store": [1, "yes"],
        "stream": [1, "true"],
        "background": [True],
        "conversation": ["conv_1", {"id": "conv_1"}],
        "prompt": [{"id": "pmpt_1"}],
        "top_logprobs": [1],
        "model": [5],
    },
    MESSAGES: {
        "messages": [
            *(None, 5, [], [5], [{}], [{"role": "tool", "content": "a"}], [TURN] * 4097),
            *([{"role": "user", "content": 5}], [{"role": "user", "content": [5]}]),
            [{"role": "user", "content": [PICTURE]}],
            [{"role": "user", "content": [{"type": "text", "text": 5}]}],
            [{"role": "user", "content": [{"type": "tool_use", "name": "x", "input": {}}]}],
            *([{"role": "assistant", "content": [{"type": "tool_use", "name": x, "input": y}]}]
              for x, y in ((5, {}), ("x", 5))),
            [{"role": "user", "content": [{"type": "tool_result", "content": [PICTURE]}]}],
        ],
        "system": [5, [5], [PICTURE]],
        "max_tokens": [-1, 1.5, True, "5"],
        "temperature": [-1, "1"],
        "top_k": [-2, 1.5],
        "stop_sequences": [5, [5], ["x"] * 17, ["x" * 257]],
        "thinking": [5, {}, {"type": "much"}, {"type": "enabled", "budget_tokens": -1}],
        "tools": [5, [5], [{}], [{"name": 5}], [{"name": "f", "input_schema": 5}],
                  [{"name": "f", "description": "x" * 70_000}], [ANTHROPIC_TOOL] * 2],
        "tool_choice": [5, {}, {"type": "some"}],
        "output_config": [5, {"format": {"type": "xml"}}],
        "stream": [1],
        "state": [5, "st_0"],
    },
    OLLAMA: {
        "messages": [
            *(5, [5], [{}], [{"role": "x"}], [{"role": "user", "content": 5}], [TURN] * 4097),
            [{"role": "user", "content": "a", "images": ["aGk="]}],
            [{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}],
        ],
        "options": [5, {"temperature": -1}, {"num_predict": -3}, {"num_predict": 1.5},
                    {"seed": "x"}, {"top_p": 2}, {"stop": 5}, {"stop": ["x" * 257]},
                    {"top_k": True}],
        "think": [5, "much"],
        "format": [5, "xml", [], {"type": "nothing"}, {"const": "x" * 70_000}],
        "keep_alive": ["5 minutes", "m", True, [], 1e300, "9" * 70],
        "tools": [5, [5], [{"type": "function"}]],
        "logprobs": [True],
        "stream": [0, "no"],
    },
    GENERATE: {
        "prompt": [5, ["a"]],
        "system": [5],
        "raw": [1],
        "options": [{"temperature": "hot"}],
        "images": [["aGk="]],
        "suffix": ["end"],
        "context": [[1, 2]],
        "keep_alive": ["soon"],
        "format": ["xml"],
    },
}  # fmt: skip
WRONG_VALUES = [
    (dialect, name, value)
    for dialect in DIALECTS
    for name, values in WRONG[dialect.path].items()
    for value in values
]


@pytest.mark.parametrize(("dialect", "name", "value"), WRONG_VALUES, ids=lambda x: repr(x)[:40])
def test_a_value_out_of_range(
    client: httpx.Client, dialect: Dialect, name: str, value: Any
) -> None:
    body = {**dialect.body("Hi"), name: value}
    found = client.post(dialect.path, content=json.dumps(body), headers=JSON)
    assert found.status_code in (400, 404), found.text
    assert 0 < len(message_of(dialect, found)) < 700


def test_the_server_is_well_after_all_that(client: httpx.Client) -> None:
    for dialect in DIALECTS:
        found = answered(client, dialect.path, dialect.body(FRANCE, stream=False))
        assert dialect.text(found) == PARIS
    lines = client.get("/metrics").text
    assert "rwkv_edge_requests_failed_total 0" in lines


@each_dialect
def test_bodies_that_are_none(client: httpx.Client, dialect: Dialect) -> None:
    for body in (b"", b"{", b"[]", b'{"a": NaN}', b"[" * 100_000):
        found = client.post(dialect.path, content=body, headers=JSON)
        assert found.status_code == 400
        assert message_of(dialect, found)


@each_dialect
def test_who_may_not_come_in(model: Model, dialect: Dialect) -> None:
    """The guard's refusals have the dialect's shape, too."""
    body = json.dumps(dialect.body(FRANCE, stream=False))
    key = {"x-api-key": "a secret key"}
    with client_of(Service(model), keys=["a secret key"]) as client:
        for headers, status in (
            (JSON, 401),
            ({**JSON, "x-api-key": "another key"}, 401),
            ({**JSON, **key, "host": "evil.example"}, 403),
            ({**JSON, **key, "origin": "https://evil.example"}, 403),
            ({**key, "content-type": "text/plain"}, 415),
        ):
            found = client.post(dialect.path, content=body, headers=headers)
            assert found.status_code == status
            assert message_of(dialect, found)
        assert client.post(dialect.path, content=body, headers={**JSON, **key}).status_code == 200
        bearer = {"authorization": "Bearer a secret key"}
        assert client.post(dialect.path, content=body, headers={**JSON, **bearer}).is_success
        wrong = client.get(dialect.path, headers=key)
        assert wrong.status_code == 405
        missing = client.post(f"{dialect.path}/nothing/there", json={}, headers=key)
        assert missing.status_code == 404
        assert message_of(dialect, wrong)
        assert message_of(dialect, missing)


@each_dialect
def test_a_strict_server(model: Model, dialect: Dialect) -> None:
    with client_of(Service(model, Options(alias="mine", strict_model=True))) as client:
        found = client.post(dialect.path, json=dialect.body("Hi", model="gpt-4"))
        assert found.status_code == 404
        assert "mine" in message_of(dialect, found)
        for name in ("mine", "mine:latest"):
            answered(client, dialect.path, dialect.body("Hi", model=name, stream=False))


@each_dialect
def test_a_stream_that_breaks(
    model: Model, monkeypatch: pytest.MonkeyPatch, dialect: Dialect
) -> None:
    """The last event or line says why, and not more than it may."""
    play(monkeypatch, [*letters(model, "Oh"), ZeroDivisionError])
    with client_of(Service(model)) as client:
        *_, last = dialect.stream(client, dialect.body("Hi"))
    if dialect.path in (RESPONSES, MESSAGES):
        assert last["type"] == "error"
        assert last["error"]["message"] == "the server failed"
    else:
        assert last == {"error": "the server failed"}


@each_dialect
def test_signs_of_life(model: Model, monkeypatch: pytest.MonkeyPatch, dialect: Dialect) -> None:
    """While a long prompt is read, something comes that clients can read."""
    monkeypatch.setattr(server_http, "PING_SECONDS", 0.0001)
    body = dialect.body(f"{'word ' * 2000}", stream=True)
    with client_of(Service(model)) as client:
        text = client.post(dialect.path, json=body).text
    if dialect.path == RESPONSES:
        assert "\n\n: ping\n\n" in text
    elif dialect.path == MESSAGES:
        assert '\n\nevent: ping\ndata: {"type":"ping"}\n\n' in text
    else:
        lines = [json.loads(line) for line in text.splitlines()]
        assert sum(dialect.text(line) == "" for line in lines) > 2


# ---- Responses: going on ------------------------------------------------------------------------


def read_tokens(found: dict[str, Any]) -> int:
    tokens: int = found["usage"]["input_tokens"]
    return tokens


def test_going_on_from_an_answer(client: httpx.Client, model: Model) -> None:
    """Only what is new is read, and the answer is that to the whole conversation."""
    ask_next = Dialect(RESPONSES)
    first = answered(client, RESPONSES, ask_next.body("My name is Anna."))
    more = ask_next.body("What is my name?", previous_response_id=first["id"])
    second = answered(client, RESPONSES, more)
    assert second["previous_response_id"] == first["id"]
    new = "User: What is my name?\n\nAssistant:"
    assert read_tokens(second) == len(model.tokenizer.encode(new))
    talk = [TALK[0], {"role": "assistant", "content": ask_next.text(first)},
            {"role": "user", "content": "What is my name?"}]  # fmt: skip
    whole = {"messages": talk, "temperature": 0, "cache": False}
    assert ask_next.text(second) == content(answered(client, CHAT, whole)) == "Your name is Anna."
    # an answer stays what it was: fork, rewind, and the state by its own name
    assert ask_next.text(answered(client, RESPONSES, more)) == ask_next.text(second)
    by_state = ask("What is my name?", state=first["state"])
    assert content(answered(client, CHAT, by_state)) == ask_next.text(second)


def test_what_was_told_is_not_told_again(client: httpx.Client, model: Model) -> None:
    ask_next, tools = Dialect(RESPONSES), [{"type": "function", **FUNCTION}]
    told: dict[str, Any] = {"instructions": "Be brief.", "tools": tools, "tool_choice": "required"}
    first = answered(client, RESPONSES, ask_next.body("How warm is it?", **told))
    (call,) = first["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": OUTPUT}
    told["tool_choice"] = "auto"

    def second(**fields: Any) -> dict[str, Any]:
        body = {"input": [output], "previous_response_id": first["id"], "temperature": 0}
        return answered(client, RESPONSES, {**body, **told, **fields})

    new = len(model.tokenizer.encode(f"User: Function output:\n{OUTPUT}\n\nAssistant:"))
    assert read_tokens(second()) == new
    assert read_tokens(second(instructions=None, tool_choice="none")) == new
    other = len(model.tokenizer.encode("System: Be kind.\n\n"))
    assert read_tokens(second(instructions="Be kind.")) == new + other
    assert read_tokens(second(tools=[*tools, {"type": "function", "name": "f"}])) > new
    # and so the next answer knows
    third = ask_next.body("So?", previous_response_id=second(tool_choice="none")["id"], **told)
    assert read_tokens(answered(client, RESPONSES, third)) == len(
        model.tokenizer.encode("User: So?\n\nAssistant:")
    )


def test_answers_that_cannot_be_gone_on_from(model: Model) -> None:
    dialect = Dialect(RESPONSES)
    one, two = ({"authorization": f"Bearer key-of-{name}"} for name in ("one", "two"))
    with client_of(Service(model), keys=["key-of-one", "key-of-two"]) as client:
        kept = answered(client, RESPONSES, dialect.body("Hi"), **one)
        lost = answered(client, RESPONSES, dialect.body("Hi", store=False), **one)
        assert "state" not in lost

        def refused(id: str, headers: dict[str, str]) -> None:
            body = dialect.body("Hi", previous_response_id=id)
            found = client.post(RESPONSES, json=body, headers=headers)
            assert found.status_code == 400
            assert found.json()["error"]["code"] == "previous_response_not_found"

        refused(lost["id"], one)
        refused(kept["id"], two)
        path = f"{RESPONSES}/{kept['id']}"
        assert client.delete(path, headers=two).status_code == 404
        assert client.delete(f"{RESPONSES}/x", headers=one).status_code == 404
        assert client.delete(path, headers=one).json()["deleted"] is True
        refused(kept["id"], one)


# ---- Anthropic ----------------------------------------------------------------------------------


def test_a_beginning_is_continued(client: httpx.Client) -> None:
    begun = [{"role": "user", "content": FRANCE}, {"role": "assistant", "content": "The capital"}]
    found = answered(client, MESSAGES, {"messages": begun, "temperature": 0, "max_tokens": 50})
    assert found["content"] == [{"type": "text", "text": PARIS.removeprefix("The capital")}]


def test_stop_sequences(client: httpx.Client) -> None:
    body = Dialect(MESSAGES).body(FRANCE, stop_sequences=["xyz", " is"])
    found = answered(client, MESSAGES, body)
    assert found["content"][0]["text"] == "The capital of France"
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", " is")


def test_tokens_are_counted(client: httpx.Client) -> None:
    body = Dialect(MESSAGES).body(FRANCE, system="Be brief.", tools=[ANTHROPIC_TOOL])
    count = answered(client, f"{MESSAGES}/count_tokens?beta=true", body)["input_tokens"]
    usage = answered(client, MESSAGES, body)["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count
    again = answered(client, MESSAGES, body)["usage"]
    assert again["cache_read_input_tokens"] > 0
    assert again["input_tokens"] + again["cache_read_input_tokens"] == count


# ---- Ollama -------------------------------------------------------------------------------------


def test_a_model_is_loaded(client: httpx.Client) -> None:
    for path, body in ((OLLAMA, {"messages": []}), (GENERATE, {}), (GENERATE, {"prompt": ""})):
        found = answered(client, path, {"model": "demo", "keep_alive": "-1h30m", **body})
        assert (found["done"], found["done_reason"]) == (True, "load")


def test_a_raw_prompt(client: httpx.Client, model: Model) -> None:
    prompt = f"User: {FRANCE}\n\nAssistant:"
    options = {"temperature": 0, "num_predict": 20, "stop": ["\n"]}
    body = {"prompt": prompt, "raw": True, "options": options, "stream": False}
    expected = "".join(model.session().generate(prompt, temperature=0, max_tokens=20, stop="\n"))
    assert answered(client, GENERATE, body)["response"] == expected


def test_options_of_ollama(client: httpx.Client) -> None:
    """What says how Ollama runs a model is taken, and not looked at."""
    options = {"temperature": 0, "num_predict": -1, "num_ctx": 4096, "repeat_penalty": 1.1,
               "mirostat": 0, "stop": [], "num_keep": 4}  # fmt: skip
    body = {"messages": [{"role": "user", "content": FRANCE}], "options": options, "format": "",
            "keep_alive": 300, "stream": False}  # fmt: skip
    assert answered(client, OLLAMA, body)["message"]["content"] == PARIS


def test_the_server_has_one_model(client: httpx.Client) -> None:
    (listed,) = client.get("/api/tags").json()["models"]
    (runs,) = client.get("/api/ps").json()["models"]
    assert listed["name"] == runs["name"] == "demo:latest"
    assert listed["details"]["quantization_level"] == "Q8_0"
    assert listed["details"]["parameter_size"] == "3.4M"
    shown = answered(client, "/api/show", {"model": "demo:latest"})
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["general.architecture"] == "rwkv7"
    assert client.get("/api/version").json()["version"].count(".") == 2
    for path in ("pull", "push", "create", "delete", "copy"):
        found = client.post(f"/api/{path}", json={"model": "http://127.0.0.1:9/x"})
        assert found.status_code == 404
        assert found.json() == {"error": "no such path"}


# ---- their own clients --------------------------------------------------------------------------


def address(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def test_responses_with_the_client(client: httpx.Client) -> None:
    openai = pytest.importorskip("openai")
    url = f"{address(client)}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
        ask_next: Any = sdk.responses
        first = ask_next.create(model="demo", input="My name is Anna.", temperature=0)
        assert first.output_text == "Nice to meet you, Anna!"
        with ask_next.stream(
            model="demo", input="What is my name?", previous_response_id=first.id, temperature=0
        ) as stream:
            text = "".join(x.delta for x in stream if x.type == "response.output_text.delta")
            last = stream.get_final_response()
        assert text == last.output_text == "Your name is Anna."
        with ask_next.stream(
            model="demo",
            input="How warm is it?",
            tools=[{"type": "function", "strict": True, **FUNCTION}],
            tool_choice={"type": "function", "name": "weather"},
        ) as stream:
            (call,) = stream.get_final_response().output
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris"})
        output = {"type": "function_call_output", "call_id": call.call_id, "output": OUTPUT}
        assert ask_next.create(model="demo", input=[HOW, call, output]).output_text
        with pytest.raises(openai.BadRequestError, match="previous_response_id") as found:
            ask_next.create(model="demo", input="Hi", previous_response_id="resp_1")
        assert found.value.code == "previous_response_not_found"
        ask_next.delete(first.id)


def test_a_stream_breaks_for_the_client(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    openai = pytest.importorskip("openai")
    play(monkeypatch, [*letters(model, "Oh"), ZeroDivisionError])
    with (
        client_of(Service(model)) as client,
        openai.OpenAI(base_url=f"{address(client)}/v1", api_key="none", max_retries=0) as sdk,
    ):
        stream = sdk.responses.create(model="demo", input="Hi", stream=True)
        with pytest.raises(openai.APIError, match="the server failed"):
            list(stream)


def test_messages_with_the_client(client: httpx.Client) -> None:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=address(client), api_key="none", max_retries=0) as sdk:
        asked: Any = {"model": "demo", "max_tokens": 200, "extra_body": {"temperature": 0}}
        question = [{"role": "user", "content": FRANCE}]
        found = sdk.messages.create(messages=question, **asked)
        assert (found.content[0].text, found.stop_reason) == (PARIS, "end_turn")
        with sdk.messages.stream(messages=question, **asked) as stream:
            assert "".join(stream.text_stream) == PARIS
            last = stream.get_final_message()
        assert last.content[0].text == PARIS
        assert last.usage.output_tokens == found.usage.output_tokens
        with sdk.messages.stream(
            messages=[HOW], tools=[ANTHROPIC_TOOL], tool_choice={"type": "any"}, **asked
        ) as stream:
            called = stream.get_final_message()
        (call,) = called.content
        assert (call.name, call.input, called.stop_reason) == (
            "weather", {"city": "Paris"}, "tool_use",
        )  # fmt: skip
        result = {"type": "tool_result", "tool_use_id": call.id, "content": OUTPUT}
        turns = [HOW, {"role": "assistant", "content": called.content},
                 {"role": "user", "content": [result]}]  # fmt: skip
        assert sdk.messages.create(messages=turns, tools=[ANTHROPIC_TOOL], **asked).content
        count = sdk.messages.count_tokens(model="demo", messages=question)
        assert count.input_tokens == found.usage.input_tokens + found.usage.cache_read_input_tokens
        with pytest.raises(anthropic.BadRequestError, match="max_tokens: found -1"):
            sdk.messages.create(messages=question, model="demo", max_tokens=-1)


def test_a_key_of_the_client(model: Model) -> None:
    anthropic = pytest.importorskip("anthropic")
    with client_of(Service(model), keys=["a secret key"]) as client:
        for key in ("a secret key", "another"):
            with anthropic.Anthropic(base_url=address(client), api_key=key, max_retries=0) as sdk:
                question: Any = [{"role": "user", "content": FRANCE}]
                if key == "another":
                    with pytest.raises(anthropic.AuthenticationError, match="the key is wrong"):
                        sdk.messages.create(model="demo", max_tokens=5, messages=question)
                else:
                    sdk.messages.create(model="demo", max_tokens=5, messages=question)


def test_ollama_with_the_client(client: httpx.Client) -> None:
    ollama = pytest.importorskip("ollama")
    with ollama.Client(host=address(client), timeout=PATIENCE) as sdk:
        cold = {"temperature": 0}
        question = [{"role": "user", "content": FRANCE}]
        found = sdk.chat("demo", messages=question, options=cold, keep_alive="5m", think=False)
        assert (found.message.content, found.done_reason) == (PARIS, "stop")
        pieces = sdk.chat("demo", messages=question, options=cold, stream=True)
        assert "".join(piece.message.content for piece in pieces) == PARIS
        assert sdk.generate("demo", FRANCE, options=cold).response == PARIS
        form = {**SCHEMA, "additionalProperties": False}
        found = sdk.chat("demo", messages=question, format=form, options=cold)
        assert json.loads(found.message.content) == {"city": "Paris"}
        assert [each.model for each in sdk.list().models] == ["demo:latest"]
        assert [each.name for each in sdk.ps().models] == ["demo:latest"]
        assert sdk.show("demo").modelinfo["general.architecture"] == "rwkv7"
        assert sdk.generate("demo", "").done_reason == "load"
        with pytest.raises(ollama.ResponseError, match="temperature: found -1"):
            sdk.chat("demo", messages=question, options={"temperature": -1})
        with pytest.raises(ollama.ResponseError, match="no such path"):
            sdk.pull("demo")


def test_ollama_calls_with_the_client(thinker: httpx.Client) -> None:
    ollama = pytest.importorskip("ollama")
    tool: Any = {"type": "function", "function": FUNCTION}
    with ollama.Client(host=address(thinker), timeout=PATIENCE) as sdk:
        pieces = list(sdk.chat("demo", messages=[HOW], tools=[tool], think="medium", stream=True))
    assert "".join(piece.message.thinking or "" for piece in pieces) == "I think.\n"
    ((call,),) = [piece.message.tool_calls for piece in pieces if piece.message.tool_calls]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Paris"})
