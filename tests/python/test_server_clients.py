# SPDX-License-Identifier: Apache-2.0
"""Programs that people have, each with the server; those that are not installed are skipped.

They need `pip install langchain-openai litellm llm 'lm_eval[api]' langchain-anthropic
langchain-ollama openai-agents`, which is large, so CI does not install them. OpenAI's own client is
in test_server.py; those of other dialects are in test_server_dialects.py.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from rwkv_edge import Conversation, Model, scoring
from rwkv_edge.chat import TEMPLATES
from rwkv_edge.server.service import Options, Service
from scripted import play
from served import client_of
from test_harness import CAPITALS, SUMS, TEXTS, samples, write_tasks

pytestmark = pytest.mark.filterwarnings("ignore")  # of what the programs import

FRANCE = "What is the capital of France?"
KEY = "a key of the tests"
WEATHER = {
    "name": "weather",
    "description": "How warm it is",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris"]}},
        "required": ["city"],
    },
}
ANSWER = {
    "title": "Answer",
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(threads=1)


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[httpx.Client]:
    with client_of(Service(model), keys=[KEY]) as client:
        yield client


@pytest.fixture
def url(client: httpx.Client) -> str:
    return str(client.base_url.join("/v1"))


def asked(model: Model, *questions: str) -> str:
    chat = Conversation(model)
    return ["".join(chat.ask(question, temperature=0)) for question in questions][-1]


# ---- LangChain ----------------------------------------------------------------------------------


def test_langchain(url: str, model: Model) -> None:
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI
    chat = chat_openai(
        model="demo", base_url=url, api_key=KEY, temperature=0, max_retries=0, stream_usage=True
    )
    whole = chat.invoke(FRANCE)
    assert whole.content == asked(model, FRANCE)
    assert whole.response_metadata["finish_reason"] == "stop"
    chunks = list(chat.stream(FRANCE))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert len(chunks) > 2
    used = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert used[-1]["output_tokens"] == whole.usage_metadata["output_tokens"] > 0
    name = "My name is Anna."
    talk = [("human", name), ("ai", asked(model, name)), ("human", "What is my name?")]
    assert chat.invoke(talk).content == asked(model, name, "What is my name?")
    both = chat.batch([FRANCE, name])
    assert [each.content for each in both] == [whole.content, asked(model, name)]


def test_tools_and_forms_of_langchain(url: str) -> None:
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI
    chat = chat_openai(model="demo", base_url=url, api_key=KEY, temperature=0, max_retries=0)
    tool = {"type": "function", "function": WEATHER}
    for choice in ("any", "weather"):
        bound = chat.bind_tools([tool], tool_choice=choice)
        found = bound.invoke("How warm is it?")
        assert [(c["name"], c["args"]) for c in found.tool_calls] == [
            ("weather", {"city": "Paris"})
        ]
        parts = list(bound.stream("How warm is it?"))
        streamed = parts[0]
        for part in parts[1:]:
            streamed += part
        assert [(c["name"], c["args"]) for c in streamed.tool_calls] == [
            ("weather", {"city": "Paris"})
        ]
        # the result goes back with the call's id
        result = {"role": "tool", "tool_call_id": found.tool_calls[0]["id"], "content": "21"}
        assert isinstance(chat.invoke([("human", "How warm is it?"), found, result]).content, str)
    structured = chat.with_structured_output(ANSWER)  # json_schema, strict
    assert isinstance(structured.invoke("Is it so?")["yes"], bool)


def test_embeddings_of_langchain(url: str, model: Model) -> None:
    module = pytest.importorskip("langchain_openai")
    texts = ["a cat", "two cats"]
    vectors = module.OpenAIEmbeddings(
        model="demo", base_url=url, api_key=KEY, check_embedding_ctx_length=False, max_retries=0
    ).embed_documents(texts)
    assert (np.array(vectors, np.float32) == model.embed(texts)).all()


@pytest.mark.parametrize("dialect", ["responses", "anthropic", "ollama"])
def test_dialects_of_langchain(url: str, model: Model, dialect: str) -> None:
    common: dict[str, Any] = {"model": "demo", "temperature": 0}
    key: dict[str, Any] = {"api_key": KEY, "max_retries": 0}
    base = url.removesuffix("/v1")
    if dialect == "responses":
        module = pytest.importorskip("langchain_openai")
        chat = module.ChatOpenAI(base_url=url, use_responses_api=True, **key, **common)
    elif dialect == "anthropic":
        module = pytest.importorskip("langchain_anthropic")
        chat = module.ChatAnthropic(base_url=base, max_tokens=200, **key, **common)
    else:
        headers = {"authorization": f"Bearer {KEY}"}
        module = pytest.importorskip("langchain_ollama")
        chat = module.ChatOllama(base_url=base, client_kwargs={"headers": headers}, **common)
    whole = chat.invoke(FRANCE)
    assert whole.text == asked(model, FRANCE)
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in chat.stream(FRANCE)) == whole.text
    name = "My name is Anna."
    talk = [("human", name), ("ai", asked(model, name)), ("human", "What is my name?")]
    assert chat.invoke(talk).text == asked(model, name, "What is my name?")
    if dialect == "ollama":  # which cannot ask for a call that must be made
        structured = chat.with_structured_output(ANSWER, method="json_schema")
        assert isinstance(structured.invoke("Is it so?")["yes"], bool)
        return
    bound = chat.bind_tools([{"type": "function", "function": WEATHER}], tool_choice="any")
    found = bound.invoke("How warm is it?")
    assert [(c["name"], c["args"]) for c in found.tool_calls] == [("weather", {"city": "Paris"})]
    result = {"role": "tool", "tool_call_id": found.tool_calls[0]["id"], "content": "21"}
    assert isinstance(bound.invoke([("human", "How warm is it?"), found, result]).text, str)


def test_the_agents_of_openai(url: str, model: Model) -> None:
    """They call a tool, go on with its result, and go on from an answer."""
    agents, openai = pytest.importorskip("agents"), pytest.importorskip("openai")
    agents.set_tracing_disabled(True)
    called = []

    def weather(city: Literal["Paris"]) -> str:
        """How warm it is."""
        called.append(city)
        return "21"

    async def run() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as sdk:
            demo = agents.OpenAIResponsesModel("demo", sdk)
            settings = agents.ModelSettings(tool_choice="required", temperature=0, max_tokens=300)
            tools = [agents.function_tool(weather)]
            caller = agents.Agent(name="a", model=demo, tools=tools, model_settings=settings)
            told = await agents.Runner.run(caller, "How warm is it in Paris?", max_turns=3)
            cold = agents.ModelSettings(temperature=0)
            talker = agents.Agent(name="b", model=demo, model_settings=cold)
            first = await agents.Runner.run(talker, "My name is Anna.")
            id = first.last_response_id
            more = await agents.Runner.run(talker, "What is my name?", previous_response_id=id)
            return told.final_output, more.final_output

    told, more = asyncio.run(run())
    assert called == ["Paris"]
    assert told
    assert more == asked(model, "My name is Anna.", "What is my name?")


# ---- LiteLLM ------------------------------------------------------------------------------------


def test_litellm(url: str, model: Model) -> None:
    litellm = pytest.importorskip("litellm")
    common = {"model": "openai/demo", "api_base": url, "api_key": KEY, "temperature": 0}
    messages = [{"role": "user", "content": FRANCE}]
    whole = litellm.completion(messages=messages, **common)
    assert whole.choices[0].message.content == asked(model, FRANCE)
    assert whole.usage.completion_tokens > 0
    chunks = list(litellm.completion(messages=messages, stream=True, **common))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == asked(model, FRANCE)
    assert chunks[-1].choices[0].finish_reason == "stop"
    tool = {"type": "function", "function": WEATHER}
    for stream in (False, True):
        found = litellm.completion(
            messages=messages, tools=[tool], tool_choice="required", stream=stream, **common
        )
        if stream:
            found = litellm.stream_chunk_builder(list(found), messages=messages)
        (call,) = found.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "weather", {"city": "Paris"},
        )  # fmt: skip
        assert found.choices[0].finish_reason == "tool_calls"
    vectors = litellm.embedding(input=["a cat"], **{**common, "temperature": None}).data
    assert (np.array(vectors[0]["embedding"], np.float32) == model.embed(["a cat"])[0]).all()
    with pytest.raises(litellm.BadRequestError, match="temperature: found 500"):
        litellm.completion(messages=messages, **{**common, "temperature": 500})
    with pytest.raises(litellm.AuthenticationError, match="the key is wrong"):
        litellm.completion(messages=messages, **{**common, "api_key": "another"})


# It leaves an event loop open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dialects_of_litellm(url: str, model: Model) -> None:
    litellm = pytest.importorskip("litellm")
    messages = [{"role": "user", "content": FRANCE}]
    common = {"api_key": KEY, "temperature": 0}
    base = url.removesuffix("/v1")
    for stream in (False, True):
        found = litellm.completion(
            model="anthropic/demo", api_base=base, messages=messages, stream=stream, **common
        )
        if stream:
            found = litellm.stream_chunk_builder(list(found), messages=messages)
        assert found.choices[0].message.content == asked(model, FRANCE)
        # whose bodies have no type, or octets
        house = {"model": "ollama_chat/demo", "api_base": base, "messages": messages, **common}
        for found in (
            litellm.completion(stream=stream, **house),
            asyncio.run(waited(litellm.acompletion(stream=stream, **house))),
        ):
            whole = (
                litellm.stream_chunk_builder(list(found), messages=messages) if stream else found
            )
            assert whole.choices[0].message.content == asked(model, FRANCE)
    gc.collect()
    found = litellm.responses(model="openai/demo", api_base=url, input=FRANCE, **common)
    assert found.output[0].content[0].text == asked(model, FRANCE)


async def waited(answer: Any) -> Any:
    """An answer, or all of its chunks."""
    found = await answer
    return [chunk async for chunk in found] if hasattr(found, "__aiter__") else found


def test_thoughts_in_litellm(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    litellm = pytest.importorskip("litellm")
    text = ">\nI think.\n</think>\n Hello.\n\nUser:"
    play(monkeypatch, [token for letter in text for token in model.tokenizer.encode(letter)])
    with client_of(Service(model, Options(template=TEMPLATES["g1"]))) as client:
        found = litellm.completion(
            model="openai/demo",
            api_base=str(client.base_url.join("/v1")),
            api_key="none",
            messages=[{"role": "user", "content": "Hi"}],
            reasoning_effort="high",
            allowed_openai_params=["reasoning_effort"],
        )
    message = found.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello.", "I think.\n")


# ---- llm ----------------------------------------------------------------------------------------


def test_llm(url: str, model: Model, tmp_path: Path) -> None:
    """The program, with a conversation that goes on."""
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: house\n  model_name: demo\n  api_base: {url}\n  api_key_name: house\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"house": KEY}))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    name, greedy = "My name is Anna.", ("-o", "temperature", "0")
    assert run("-m", "house", *greedy, name) == asked(model, name)
    assert run("-c", *greedy, "What is my name?") == asked(model, name, "What is my name?")
    assert run("-m", "house", "--no-stream", *greedy, FRANCE) == asked(model, FRANCE)


# ---- the evaluation harness ---------------------------------------------------------------------


def test_the_harness_has_the_same_numbers(model: Model, tmp_path: Path) -> None:
    """Over HTTP as in the process, in its three kinds of tasks. Without `add_bos_token=False`, the
    model of the process reads token 0 before each text."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity")
    names = write_tasks(tmp_path)
    with client_of(Service(model)) as client:
        base = client.base_url.join("/v1/completions")
        arguments = f"model=demo,base_url={base},tokenizer_backend=remote,custom_prefix_token_id=0"
        command = f"run --model local-completions --tasks {names} --batch_size 2 --log_samples"
        subprocess.run(
            [
                *(sys.executable, "-m", "lm_eval", *command.split(), "--model_args", arguments),
                *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
            check=True,
            timeout=600,
        )
    encode = model.tokenizer.encode
    for line, (country, cities, _) in zip(samples(tmp_path, "choice"), CAPITALS, strict=True):
        context = encode(f"User: What is the capital of {country}?\n\nAssistant:")
        texts = [f" The capital of {country} is {city}." for city in cities]
        expected = scoring.score(model, [(context, encode(text)) for text in texts])
        given = [(float(logprob), greedy == "True") for ((logprob, greedy),) in line["resps"]]
        assert [greedy for _, greedy in given] == [greedy for _, greedy in expected]
        tokens = max(len(encode(text)) for text in texts)
        assert [x for x, _ in given] == near([x for x, _ in expected], tokens)
    scores = scoring.score(model, [([0], encode(text)) for text in TEXTS])
    for line, text, (logprob, _) in zip(samples(tmp_path, "text"), TEXTS, scores, strict=True):
        assert float(line["resps"][0][0]) == near(logprob, len(encode(text)))
    for line, (question, _) in zip(samples(tmp_path, "answer"), SUMS, strict=True):
        prompt = f"User: {question}\n\nAssistant:"
        text = "".join(model.session().generate(prompt, stop="\n\n", temperature=0, max_tokens=20))
        assert line["resps"] == [[text]]


def near(logprobs: float | list[float], tokens: int) -> Any:
    """Floats have 24 bits, and `score` also takes exp in them, once for each token."""
    return pytest.approx(logprobs, rel=2**-23, abs=tokens * 2**-22)
