# SPDX-License-Identifier: Apache-2.0
"""The server in OpenAI's words: with its own client, and what other clients break on."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from rwkv_edge import Conversation, Model, _core
from rwkv_edge.chat import TEMPLATES
from rwkv_edge.server import app as server_app
from rwkv_edge.server import http as server_http
from rwkv_edge.server.service import Options, Service
from scripted import letters, play
from served import PATIENCE, answered, ask, client_of, content, eventually, streamed

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FRANCE = "What is the capital of France?"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(threads=1)


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[httpx.Client]:
    with client_of(Service(model)) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=str(client.base_url.join("/v1")), api_key="none", max_retries=0
    ) as sdk:
        yield sdk


def asked(model: Model, *questions: str) -> str:
    """What the model answers to the last of some questions."""
    chat = Conversation(model)
    return ["".join(chat.ask(question, temperature=0)) for question in questions][-1]


# ---- OpenAI's own client ------------------------------------------------------------------------


def test_chat_with_the_client(sdk: openai.OpenAI, model: Model) -> None:
    found = sdk.chat.completions.create(
        model="gpt-3.5-turbo", messages=[{"role": "user", "content": FRANCE}], temperature=0
    )
    assert found.object == "chat.completion"
    assert found.model == "demo"
    message = found.choices[0].message
    assert (message.role, message.content) == ("assistant", asked(model, FRANCE))
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_the_streams_of_the_client(sdk: openai.OpenAI, model: Model) -> None:
    messages: Any = [{"role": "user", "content": FRANCE}]
    chunks = sdk.chat.completions.create(
        model="demo", messages=messages, temperature=0, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == asked(model, FRANCE)
    # the helper asserts more of what it reads
    with sdk.chat.completions.stream(model="demo", messages=messages, temperature=0) as stream:
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == text


def test_completions_with_the_client(sdk: openai.OpenAI, model: Model) -> None:
    prompt = f"User: {FRANCE}\n\nAssistant:"
    found = sdk.completions.create(
        model="demo", prompt=prompt, temperature=0, max_tokens=20, stop="\n"
    )
    expected = "".join(model.session().generate(prompt, temperature=0, max_tokens=20, stop="\n"))
    assert found.choices[0].text == expected


def test_embeddings_with_the_client(sdk: openai.OpenAI, model: Model) -> None:
    """It asks for base64, unless told otherwise."""
    texts = ["a cat", "two cats " * 60]
    expected = model.embed(texts)
    packed = sdk.embeddings.create(model="demo", input=texts)
    assert (np.array([x.embedding for x in packed.data], np.float32) == expected).all()
    plain = sdk.embeddings.create(model="demo", input=texts[0], encoding_format="float")
    assert (np.array(plain.data[0].embedding, np.float32) == expected[0]).all()
    assert plain.usage.prompt_tokens == len(model.tokenizer.encode(texts[0]))


def test_models_with_the_client(sdk: openai.OpenAI) -> None:
    assert [each.id for each in sdk.models.list()] == ["demo"]
    assert sdk.models.retrieve("demo").object == "model"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("a/b")


def test_errors_of_the_client(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature: found -1") as found:
        sdk.completions.create(model="demo", prompt="a", temperature=-1)
    assert found.value.body == {
        "message": "temperature: found -1, expected a number from 0 to 100",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": None,
    }


# ---- chat, exactly ------------------------------------------------------------------------------


def test_the_order_of_a_stream(client: httpx.Client, model: Model) -> None:
    body = ask(FRANCE, stream_options={"include_usage": True})
    *chunks, usage, done = streamed(client, CHAT, body)
    assert done == "[DONE]"
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in (*chunks, usage))
    assert len({chunk["id"] for chunk in (*chunks, usage)}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert {choice["index"] for choice in choices} == {0}
    # the role comes with the first text: a client may take the time of the first chunk
    assert choices[0]["delta"]["role"] == "assistant"
    assert choices[0]["delta"]["content"]
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert "".join(c["delta"].get("content", "") for c in choices) == asked(model, FRANCE)
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    # and nothing of usage where it was not asked for
    assert all("usage" not in chunk for chunk in streamed(client, CHAT, ask(FRANCE))[:-1])


def test_signs_of_life(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long prompt is read, before the first chunk: clients and proxies give up."""
    service, go_on = Service(model), threading.Event()
    feed = service.scheduler._fed

    def waiting(parts: Any) -> bytearray:
        assert go_on.wait(PATIENCE)
        return feed(parts)

    monkeypatch.setattr(service.scheduler, "_fed", waiting)
    monkeypatch.setattr(server_http, "PING_SECONDS", 0.02)
    body = {**ask("Hello!"), "stream": True}
    with client_of(service) as client, client.stream("POST", CHAT, json=body) as stream:
        lines = stream.iter_lines()
        assert [next(lines) for _ in range(4)] == [": ping", ""] * 2
        go_on.set()
        rest = [line for line in lines if line and line != ": ping"]
    assert json.loads(rest[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert rest[-1] == "data: [DONE]"


def test_the_whole_answer(client: httpx.Client) -> None:
    found = answered(client, CHAT, ask("Hello!"))
    (choice,) = found["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert found["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0
    assert found["timings"]["predicted_n"] == found["usage"]["completion_tokens"]
    assert answered(client, "/chat/completions", ask("Hello!"))["choices"] == found["choices"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "What is the capital "},
                                     {"type": "text", "text": "of France?"}]},
        {"role": "user", "content": FRANCE, "name": None, "tool_calls": None},
    ],
    ids=["parts", "nulls"],
)  # fmt: skip
def test_forms_of_a_message(client: httpx.Client, model: Model, message: dict[str, Any]) -> None:
    found = answered(client, CHAT, {"messages": [message], "temperature": 0, "stop": None})
    assert content(found) == asked(model, FRANCE)


def test_a_conversation(client: httpx.Client, model: Model) -> None:
    name = "My name is Anna."
    first = asked(model, name)
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": name},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What is my name?"},
    ]
    found = answered(client, CHAT, {"messages": messages, "temperature": 0})
    chat = Conversation(model, system="Be kind.")
    list(chat.ask(name, temperature=0))
    assert chat.turns[0].answer == first
    assert content(found) == "".join(chat.ask("What is my name?", temperature=0))
    assert found["usage"]["prompt_tokens"] == len(chat.tokens) - len(
        chat._answer(chat.turns[1].answer)
    )


def test_unknown_fields_are_taken(client: httpx.Client) -> None:
    extra = {"repetition_penalty": 1.0, "keep_alive": -1, "user": "u", "metadata": {}, "top_k": -1}
    answered(client, CHAT, ask("Hello!", **extra))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit(client: httpx.Client, name: str) -> None:
    found = answered(client, CHAT, ask(FRANCE, **{name: 2}))
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stop", [" is", [" is"], ["", " is", "nothing"]], ids=str)
def test_stops(client: httpx.Client, model: Model, stop: Any) -> None:
    found = answered(client, CHAT, ask(FRANCE, stop=stop))
    assert content(found) == asked(model, FRANCE).partition(" is")[0]
    assert found["choices"][0]["finish_reason"] == "stop"


def test_stop_tokens_and_the_end(client: httpx.Client, model: Model) -> None:
    prompt = {"prompt": "The end.", "temperature": 0, "max_tokens": 40}
    (token,) = model.tokenizer.encode(" is")
    found = answered(client, CHAT, ask(FRANCE, stop_token_ids=[token]))
    assert content(found) == asked(model, FRANCE).partition(" is")[0]
    whole = answered(client, COMPLETIONS, {**prompt, "ignore_eos": True})
    assert whole["usage"]["completion_tokens"] == 40
    least = answered(client, COMPLETIONS, {**prompt, "min_tokens": 20})
    assert least["usage"]["completion_tokens"] >= 20


def test_choices_are_those_of_their_seeds(client: httpx.Client) -> None:
    body = ask("Tell me a story.", temperature=1, top_p=0.9, seed=7, max_tokens=20)
    found = answered(client, CHAT, {**body, "n": 3})
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    alone = [answered(client, CHAT, {**body, "seed": 7 + i, "cache": False}) for i in range(3)]
    assert [content(found, i) for i in range(3)] == [content(each) for each in alone]
    assert len({content(each) for each in alone}) > 1
    assert found["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]


def test_logprobs(client: httpx.Client, model: Model) -> None:
    body = ask(FRANCE, logprobs=True, top_logprobs=2, max_tokens=5)
    found = answered(client, CHAT, body)["choices"][0]["logprobs"]["content"]
    text = model.session().generate(
        f"User: {FRANCE}\n\nAssistant:", temperature=0, max_tokens=5, logprobs=2
    )
    list(text)
    expected = text.details.logprobs
    assert expected is not None
    assert [each["logprob"] for each in found] == [each.logprob for each in expected]
    for each, known in zip(found, expected, strict=True):
        assert bytes(each["bytes"]) == model.tokenizer.token_bytes(known.token)
        assert [top["logprob"] for top in each["top_logprobs"]] == [lp for _, lp in known.top]
    chunks = streamed(client, CHAT, body)[:-1]
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [x for part in parts if part for x in part["content"]] == found


def test_bias_and_penalties_are_those_of_generate(client: httpx.Client, model: Model) -> None:
    (token,) = model.tokenizer.encode(" P")
    options: dict[str, Any] = {
        "presence_penalty": 1.5, "frequency_penalty": 0.5, "penalty_decay": 0.9,
        "logit_bias": {str(token): -50},
    }  # fmt: skip
    prompt = f"User: {FRANCE}\n\nAssistant:"
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 12}
    found = answered(client, COMPLETIONS, {**body, **options})["choices"][0]["text"]
    expected = "".join(
        model.session().generate(
            prompt, temperature=0, max_tokens=12, **{**options, "logit_bias": {token: -50}}
        )
    )
    assert found == expected
    other = {"alpha_presence": 1.5, "alpha_frequency": 0.5, "alpha_decay": 0.9}
    body = {**body, **other, "logit_bias": options["logit_bias"]}
    assert answered(client, COMPLETIONS, body)["choices"][0]["text"] == expected


def test_what_is_not_sent_is_the_servers(model: Model) -> None:
    with client_of(Service(model, Options(max_tokens=3, sampling={"temperature": 0}))) as client:
        body = {"messages": [{"role": "user", "content": FRANCE}]}
        first, again = (answered(client, CHAT, body) for _ in range(2))
        assert first["usage"]["completion_tokens"] == 3
        assert content(first) == content(again)
        props = client.get("/props").json()["default_generation_settings"]
        assert props["params"] == {"temperature": 0, "max_tokens": 3}


def test_continuing_the_assistant(client: httpx.Client, model: Model) -> None:
    whole = asked(model, FRANCE)
    begun = whole[: len(whole) // 2].rpartition(" ")[0]
    messages = [
        {"role": "user", "content": FRANCE},
        {"role": "assistant", "content": begun, "prefix": True},
    ]
    assert (
        begun + content(answered(client, CHAT, {"messages": messages, "temperature": 0})) == whole
    )


def test_names_of_the_speakers(client: httpx.Client, model: Model) -> None:
    names = {"user_name": "Q", "assistant_name": "A"}
    found = answered(client, CHAT, ask(FRANCE, max_tokens=5, **names))
    text = model.session().generate(f"Q: {FRANCE}\n\nA:", temperature=0, max_tokens=5)
    assert content(found) == "".join(text).lstrip()
    raw = [{"role": "user", "content": "Once upon", "raw": True}]
    found = answered(client, CHAT, {"messages": raw, "temperature": 0, "max_tokens": 3})
    text = model.session().generate("Once upon", temperature=0, max_tokens=3)
    assert content(found) == "".join(text).lstrip()


def test_time_runs_out(client: httpx.Client) -> None:
    """An answer that would take for ever ends as if it were long enough."""
    body = ask("Tell me a story.", ignore_eos=True, max_tokens=1 << 20, timeout=0.2, stop=[])
    found = answered(client, COMPLETIONS, {**body, "prompt": "Once"})
    assert found["choices"][0]["finish_reason"] == "length"
    found = answered(client, CHAT, ask("Hello!", timeout=0))
    assert found["choices"][0]["finish_reason"] == "length"


# ---- completions, exactly -----------------------------------------------------------------------


def test_forms_of_a_prompt(client: httpx.Client, model: Model) -> None:
    texts = ["Once upon", "User: Hello!\n\nAssistant:"]
    ids = [model.tokenizer.encode(text) for text in texts]
    body = {"temperature": 0, "max_tokens": 4}
    expected = ["".join(model.session().generate(text, **body)) for text in texts]  # type: ignore[arg-type]
    for prompt, count in ((texts[0], 1), (texts, 2), (ids[0], 1), (ids, 2)):
        found = answered(client, COMPLETIONS, {**body, "prompt": prompt})["choices"]
        assert [each["index"] for each in found] == list(range(count))
        assert [each["text"] for each in found] == expected[:count]
    many = answered(client, COMPLETIONS, {**body, "prompt": texts * 20})["choices"]
    assert [each["text"] for each in many] == expected * 20
    chunks = streamed(client, COMPLETIONS, {**body, "prompt": texts})[:-1]
    parts = [["", ""]]
    for chunk in chunks:
        parts[0][chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert parts[0] == expected
    assert answered(client, COMPLETIONS, {"prompt": "a"})["usage"]["completion_tokens"] <= 16


def test_an_empty_prompt(client: httpx.Client, model: Model) -> None:
    found = answered(client, COMPLETIONS, {"prompt": "", "temperature": 0, "max_tokens": 4})
    text = model.session().generate("", temperature=0, max_tokens=4)
    assert found["choices"][0]["text"] == "".join(text)


def test_echo_scores_the_prompt(client: httpx.Client, model: Model) -> None:
    """As lm-eval reads it: null first; the actual token among the likeliest, with one float."""
    ids = [0, *model.tokenizer.encode("Once upon a time there was a dog. " * 8)]
    body = {"prompt": [ids], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    (choice,) = answered(client, COMPLETIONS, body)["choices"]
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(ids) + 1
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    rows = model.session().feed(ids, logits="all").astype(np.float64)
    lse = np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1)
    expected = [rows[i, token] - lse[i] for i, token in enumerate(ids[1:])]
    assert found["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-5)
    greedy = rows.argmax(1)
    for i, token in enumerate(ids[1:], 1):
        own, top = found["token_logprobs"][i], found["top_logprobs"][i]
        assert (own == max(top.values())) == (greedy[i - 1] == token)
        assert top[found["tokens"][i]] == own
    text = model.tokenizer.decode(ids)
    assert choice["text"].startswith(text)
    assert found["text_offset"][1:] == [
        len(model.tokenizer.decode(ids[:i])) for i in range(1, len(ids) + 1)
    ]
    none = answered(client, COMPLETIONS, {**body, "max_tokens": 0})["choices"][0]
    assert none["logprobs"]["token_logprobs"] == found["token_logprobs"][:-1]
    assert none["text"] == text
    plain = answered(client, COMPLETIONS, {"prompt": "Once", "echo": True, "max_tokens": 0})
    assert plain["choices"][0]["text"] == "Once"


# ---- forms, tools, thoughts ---------------------------------------------------------------------


SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "boolean"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_schema",
                             "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
        {"guided_json": SCHEMA},
    ],
    ids=["openai", "vllm"],
)  # fmt: skip
def test_json_of_a_schema(client: httpx.Client, form: dict[str, Any]) -> None:
    found = json.loads(content(answered(client, CHAT, ask("Is it so?", **form))))
    assert list(found) == ["answer"]
    assert isinstance(found["answer"], bool)


def test_other_forms(client: httpx.Client) -> None:
    assert content(answered(client, CHAT, ask("Say.", guided_regex="x{3}"))) == "xxx"
    assert content(answered(client, CHAT, ask("Say.", guided_choice=["uvw"]))) == "uvw"
    wrong = client.post(CHAT, json=ask("Say.", guided_regex="("))
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "response_format"
    both = ask("Say.", response_format={"type": "text"})
    assert content(answered(client, CHAT, both)) == content(answered(client, CHAT, ask("Say.")))


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris"]}},
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "weather"}}],
    ids=["any", "one"],
)
def test_a_call_that_must_be_made(sdk: openai.OpenAI, choice: Any) -> None:
    found = sdk.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "How warm is it?"}],
        tools=[TOOL],  # type: ignore[list-item]
        tool_choice=choice,
    )
    assert found.choices[0].finish_reason == "tool_calls"
    message = found.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.id
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather", {"city": "Paris"},
    )  # fmt: skip
    with sdk.chat.completions.stream(
        model="demo",
        messages=[{"role": "user", "content": "How warm is it?"}],
        tools=[TOOL],  # type: ignore[list-item]
        tool_choice=choice,
    ) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_calls_in_a_stream(client: httpx.Client) -> None:
    """Each delta names its call, the first with an id and a name; arguments are a string."""
    body = ask("How warm is it?", tools=[TOOL], tool_choice="required", parallel_tool_calls=True)
    choices = [chunk["choices"][0] for chunk in streamed(client, CHAT, body)[:-1]]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert {call["index"] for call in calls} == {0}
    assert calls[0]["id"]
    assert (calls[0]["type"], calls[0]["function"]["name"]) == ("function", "weather")
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Paris"}
    assert choices[-1]["finish_reason"] == "tool_calls"
    plain = answered(client, CHAT, ask("Hello!"))["choices"]
    assert (
        answered(client, CHAT, ask("Hello!", tools=[TOOL], tool_choice="none"))["choices"] == plain
    )


def test_a_call_and_its_result_are_read(model: Model) -> None:
    """The words are those of the training."""
    from rwkv_edge.server.compose import Composer
    from rwkv_edge.server.fields import Fields
    from rwkv_edge.server.openai import read_messages, read_tools
    from rwkv_edge.server.request import Request

    call = {"id": "c1", "type": "function",
            "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}  # fmt: skip
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"celsius": 21}'},
    ]
    body = Fields({"messages": messages, "tools": [TOOL]})
    found, _ = read_messages(body)
    tools, must = read_tools(body)
    assert not must
    prompt = Composer(model).prompt(Request(messages=found, tools=tools), None, b"")
    assert model.tokenizer.decode(prompt.text.tokens) == (
        'System: Tools:\n- weather(city: "Paris")\nReturn only a JSON function call.\nBe brief.\n\n'
        "User: How warm is it?\n\n"
        'Assistant: ```json\n{"name": "weather", "arguments": {"city": "Paris"}}\n```\n\n'
        'User: Function output:\n{"celsius": 21}\n\n'
        "Assistant:"
    )


THOUGHT = ">\nI think.\n</think"
G1 = Options(template=TEMPLATES["g1"])


@pytest.mark.parametrize(
    ("fields", "words", "script"),
    [
        ({"reasoning_effort": "high"}, "User: Hi (think a lot)\n\nAssistant: <think", True),
        ({"reasoning_effort": "low"}, "User: Hi (think a bit)\n\nAssistant: <think", True),
        ({"chat_template_kwargs": {"enable_thinking": True}},
         "User: Hi (think)\n\nAssistant: <think", True),
        ({"think": True}, "User: Hi (think)\n\nAssistant: <think", True),
        ({"think": "medium"}, "User: Hi (think)\n\nAssistant: <think", True),
        ({"enable_think": True, "think_type": "free"}, "User: Hi (think)\n\nAssistant: <think",
         True),
        ({"reasoning_effort": "none"}, "User: Hi\n\nAssistant:", False),
        ({"reasoning_effort": "minimal"}, "User: Hi\n\nAssistant: <think>\n</think", False),
        ({}, "User: Hi\n\nAssistant:", False),
    ],
    ids=str,
)  # fmt: skip
def test_thinking(
    model: Model, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], words: str, script: bool
) -> None:
    fed: list[int] = []
    answer = letters(model, (THOUGHT if script else "") + (">" if "<think" in words else ""))
    play(monkeypatch, [*answer, *letters(model, "\n Hello.\n\nUser:")])
    service = Service(model, G1)
    feed = service.scheduler._fed

    def listening(parts: Any) -> bytearray:
        fed.extend(token for _, tokens in parts for token in tokens)
        return feed(parts)

    monkeypatch.setattr(service.scheduler, "_fed", listening)
    with client_of(service) as client:
        found = answered(client, CHAT, ask("Hi", **fields))
    assert content(found) == "Hello."
    assert found["choices"][0]["message"].get("reasoning_content") == (
        "I think.\n" if script else None
    )
    thoughts = found["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert (thoughts > 0) == script
    assert model.tokenizer.decode(fed).startswith(words)


def test_thoughts_use_up_the_limit(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, letters(model, ">\nOh well"))
    with client_of(Service(model, G1)) as client:
        found = answered(client, CHAT, ask("Hi", think=True, max_tokens=6))
    assert content(found) == ""
    assert found["choices"][0]["message"]["reasoning_content"] == "Oh w"
    assert found["choices"][0]["finish_reason"] == "length"


def test_a_budget_of_thoughts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, letters(model, ">\nOh>\n Yes.\n\nUser:"))
    with client_of(Service(model, G1)) as client:
        found = answered(client, CHAT, ask("Hi", think=True, thinking_budget=4))
    assert content(found) == "Yes."
    assert found["choices"][0]["message"]["reasoning_content"] == "Oh"


def test_thoughts_in_the_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, letters(model, THOUGHT + ">\n Yes.\n\nUser:"))
    with client_of(Service(model, G1)) as client:
        found = answered(client, CHAT, ask("Hi", think=True, reasoning_format="none"))
    assert content(found) == "<think>I think.\n\n</think>\n\nYes."


# ---- other paths --------------------------------------------------------------------------------


def test_tokens_in_two_dialects(client: httpx.Client, model: Model) -> None:
    ids = model.tokenizer.encode("Hello there")
    for name in ("content", "prompt"):
        found = answered(client, "/tokenize", {name: "Hello there", "add_special_tokens": False})
        assert (found["tokens"], found["count"]) == (ids, len(ids))
    found = answered(client, "/detokenize", {"tokens": ids})
    assert found["content"] == found["prompt"] == "Hello there"
    assert "eos_token" in client.get("/tokenizer_info").json()


def test_health_props_and_metrics(client: httpx.Client, model: Model) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    found = client.get("/props").json()
    assert found["chat_template"] == "world"
    assert found["total_slots"] > 0
    assert found["default_generation_settings"]["n_ctx"] > 0
    assert found["model"]["state_bytes"] == model.session().state.data.nbytes + 4 * model.n_embd
    before = values(client)
    answered(client, CHAT, ask("Hello!", cache=False))
    after = values(client)
    assert after["rwkv_edge_requests_total"] == before["rwkv_edge_requests_total"] + 1
    assert after["rwkv_edge_generated_tokens_total"] > before["rwkv_edge_generated_tokens_total"]


def values(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {name: float(x) for name, x in (y.split() for y in lines if not y.startswith("#"))}


def test_heads(client: httpx.Client) -> None:
    """What a GET would answer, without the body. Ollama's program asks so whether a server is
    there."""
    state = answered(client, "/v1/states", {"prompt": "Once"})["id"]
    paths = ["/", "/page/app.js", "/health", "/v1/models", "/v1/models/demo", "/props", "/metrics",
             "/tokenizer_info", "/api/tags", "/api/ps", "/api/version", "/v1/states",
             f"/v1/states/{state}", f"/v1/states/{state}/file"]  # fmt: skip
    host, port = client.base_url.host, client.base_url.port
    assert port is not None
    for path in paths:
        whole = client.get(path)
        with socket.create_connection((host, port), PATIENCE) as raw:
            raw.sendall(
                f"HEAD {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
            )
            with raw.makefile("rb") as file:
                head, _, body = file.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), path
        assert body == b""
        fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:])
        assert {name.decode() for name in fields} - {"connection"} == set(whole.headers)
        if path != "/metrics":  # where counters grow
            assert int(fields[b"content-length"]) == len(whole.content)
    assert client.head(CHAT).status_code == 405
    assert client.head("/nothing").status_code == 404
    assert client.head("/", headers={"host": "evil.example"}).status_code == 403
    with client_of(Service(Model(threads=1)), keys=["a secret key"]) as locked:
        assert locked.head("/").status_code == 200
        assert locked.head("/v1/models").status_code == 401


def test_token_ids_are_not_embedded(client: httpx.Client) -> None:
    found = client.post("/v1/embeddings", json={"input": [[1, 2]], "model": "demo"})
    assert found.status_code == 400
    assert "check_embedding_ctx_length=False" in found.json()["error"]["message"]


def test_memory_is_given_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, while it serves."""
    calls: list[int] = []
    monkeypatch.setattr(_core, "give_back_memory", lambda: calls.append(1))
    monkeypatch.setattr(server_app, "TIDY_SECONDS", 0.01)
    with client_of(Service(model)):
        eventually(lambda: len(calls) > 1)


def test_a_strict_server(model: Model) -> None:
    with client_of(Service(model, Options(alias="mine", strict_model=True))) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
        answered(client, CHAT, ask("Hello!", model="mine"))
        assert client.post(CHAT, json=ask("Hello!", model="gpt-4")).status_code == 404


def test_the_model_is_named_nowhere_by_its_path(client: httpx.Client, model: Model) -> None:
    for path in ("/props", "/v1/models", "/metrics", "/tokenizer_info"):
        assert str(model.path.parent) not in client.get(path).text


# ---- the cache ----------------------------------------------------------------------------------


def cached(found: dict[str, Any]) -> int:
    tokens: int = found["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def test_a_second_turn_reads_what_is_new(model: Model) -> None:
    with client_of(Service(model)) as client:
        messages = ask("My name is Anna.")["messages"]
        first = answered(client, CHAT, {"messages": messages, "temperature": 0})
        assert cached(first) == 0
        messages = [*messages, {"role": "assistant", "content": content(first)},
                    {"role": "user", "content": "What is my name?"}]  # fmt: skip
        second = answered(client, CHAT, {"messages": messages, "temperature": 0})
        again = answered(client, CHAT, {"messages": messages, "temperature": 0, "cache": False})
        assert cached(again) == 0
        assert content(second) == content(again)
        new = len(model.tokenizer.encode("User: What is my name?\n\nAssistant:"))
        assert second["usage"]["prompt_tokens"] - cached(second) == new


def test_no_key_finds_what_another_has_read(model: Model) -> None:
    with client_of(Service(model), keys=["key-of-one", "key-of-two"]) as client:
        one, two = ({"authorization": f"Bearer key-of-{name}"} for name in ("one", "two"))
        body = ask("A secret that nobody else should notice.")
        assert [cached(answered(client, CHAT, body, **one)) > 0 for _ in range(2)] == [False, True]
        assert cached(answered(client, CHAT, body, **two)) == 0
