# SPDX-License-Identifier: Apache-2.0
"""Ollama's dialect, for one model that is always there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timezone
from typing import Any, cast

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..describe import main_type
from ..generation import Choosing
from .fields import Fields, Refused, wrong
from .http import Call, door, json_response, stream_response, to_json
from .openai import (
    MOST_NAME,
    bounded,
    check_model,
    gather,
    read_common,
    read_messages,
    read_sampling,
    read_stop,
    read_think,
    read_tools,
    state_fields,
)
from .request import (
    MOST_MESSAGES,
    MOST_TEXT,
    MOST_TOKENS,
    CallBegin,
    CallText,
    Finish,
    Message,
    Request,
    Whole,
)
from .service import Answers, Service

PATHS = ("/api",)
SPOKEN = "0.13.0"
"""Clients want at least the version of Ollama that brought what they use: this is the one whose
words these are."""
DURATION = re.compile(r"[+-]?(\d{1,12}(\.\d{1,12})?(ns|us|µs|ms|s|m|h))+|[+-]?\d{1,12}")
NEVER = "9999-12-31T23:59:59Z"
NEEDS_CHAT = "/v1/chat/completions has it"
NOT_DONE = {
    "suffix": "this model cannot fill in",
    "context": "/api/chat takes earlier messages",
    "images": "this model reads nothing but text",
    "logprobs": NEEDS_CHAT,
    "top_logprobs": NEEDS_CHAT,
}
"""Fields that would change what an answer is, and what to do instead."""


def error_body(error: Refused) -> dict[str, Any]:
    return {"error": str(error)}


# ---- reading ------------------------------------------------------------------------------------


def read_format(body: Fields) -> tuple[str, Any] | None:
    """A schema, the word json, or nothing."""
    if isinstance(body.get("format"), str):
        found = body.choice("format", among=("json", ""))
        return ("schema", {"type": "object"}) if found else None
    schema = body.object("format")
    return None if schema is None else ("schema", bounded("format", schema.values))


def read_options(body: Fields, n_vocab: int) -> tuple[Choosing, tuple[str, ...]]:
    """How tokens are chosen, and what ends a text. What says how Ollama should run a model is not
    looked at."""
    options = body.object("options") or Fields({})
    found = read_sampling(options, n_vocab)
    most = options.integer("num_predict", least=-2, most=MOST_TOKENS)
    if most is not None:  # below 0: no limit
        found["max_tokens"] = most if most >= 0 else MOST_TOKENS
    return found, read_stop(options)


def check_keep_alive(body: Fields) -> None:
    """The model stays, whatever this says."""
    if isinstance(body.get("keep_alive"), str):
        if not DURATION.fullmatch(body.text("keep_alive", most=MOST_NAME) or ""):
            raise wrong("keep_alive", body.get("keep_alive"), 'seconds, or a time such as "5m"')
    else:
        body.number("keep_alive", least=-1e12, most=1e12)


def read_shared(body: Fields, n_vocab: int) -> dict[str, Any]:
    """Fields of `Request` that both ways to ask have."""
    for name, instead in NOT_DONE.items():
        if body.get(name):
            raise Refused(400, f"{name}: {instead}", param=name)
    check_keep_alive(body)
    common = read_common(body, n_vocab)
    sampling, stop = read_options(body, n_vocab)
    common["sampling"] |= cast(Any, sampling)
    common["stop"] += stop
    common["form"] = read_format(body) or common["form"]
    return {**common, "think": read_think(body)}


def read_chat(body: Fields, n_vocab: int) -> Request | None:
    """None where it has no messages, which loads a model."""
    shared = read_shared(body, n_vocab)
    for each in body.objects("messages", most=MOST_MESSAGES) or []:
        if each.get("images"):
            text = f"{each.path('images')}: {NOT_DONE['images']}"
            raise Refused(400, text, param="messages")
    if not body.get("messages"):
        return None
    messages, prefix = read_messages(body)
    tools, must = read_tools(body)
    return Request(messages=messages, continues=prefix, tools=tools, must_call=must, **shared)


def read_generate(body: Fields, n_vocab: int) -> Request | None:
    """None where it has no prompt, which loads a model."""
    shared = read_shared(body, n_vocab)
    prompt = body.text("prompt", most=MOST_TEXT)
    system = body.text("system", most=MOST_TEXT)
    raw = body.boolean("raw")
    if not prompt:
        return None
    if raw:
        return Request(prompt=prompt, **shared)
    told = (Message("system", system),) if system else ()
    return Request(messages=(*told, Message("user", prompt)), **shared)


# ---- writing ------------------------------------------------------------------------------------


def chat_part(found: Whole) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": found.text}
    if found.thought:
        message["thinking"] = found.thought
    if found.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in found.calls
        ]
    return {"message": message}


def generate_part(found: Whole) -> dict[str, Any]:
    return {"response": found.text, **({"thinking": found.thought} if found.thought else {})}


Part = Callable[[Whole], dict[str, Any]]


def head(service: Service) -> dict[str, Any]:
    return {"model": tagged(service), "created_at": moment(datetime.now(timezone.utc))}


def last(finish: Finish) -> dict[str, Any]:
    use = finish.usage
    return {
        "done": True,
        "done_reason": "length" if finish.reason == "length" else "stop",
        "total_duration": nanoseconds(use.prompt_seconds + use.seconds),
        "load_duration": 0,
        "prompt_eval_count": use.prompt_tokens,
        "prompt_eval_duration": nanoseconds(use.prompt_seconds),
        "eval_count": use.completion_tokens,
        "eval_duration": nanoseconds(use.seconds),
        **state_fields(finish),
    }


def nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)


def moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def line(found: dict[str, Any]) -> bytes:
    return to_json(found) + b"\n"


async def lines(answers: Answers, service: Service, part: Part) -> AsyncIterator[bytes]:
    """A call is told in one line, so it waits until it is whole."""
    waiting, told = Whole(), 0  # of its calls
    async for _, event in answers:
        if not isinstance(event, CallText) and told < len(waiting.calls):
            calls = Whole(calls=waiting.calls[told:])
            told = len(waiting.calls)
            yield line({**head(service), **part(calls), "done": False})
        if isinstance(event, (CallBegin, CallText)):
            waiting.add(event)
            continue
        piece = Whole()
        piece.add(event)
        done = last(event) if isinstance(event, Finish) else {"done": False}
        yield line({**head(service), **part(piece), **done})


# ---- paths --------------------------------------------------------------------------------------


async def answer(call: Call, request: Request | None, part: Part) -> Response:
    check_model(call)
    service = call.service
    streams = call.body.boolean("stream") is not False
    if request is None:
        loaded = {**head(service), **part(Whole()), "done": True, "done_reason": "load"}
        return json_response(loaded)
    answers = await service.submit([request], call.caller)
    if streams:
        return stream_response(
            answers,
            lines(answers, service, part),
            media_type="application/x-ndjson",
            ping=line({**head(service), **part(Whole()), "done": False}),
            broken=lambda error: line(error_body(error)),
        )
    (found,) = await call.patient(gather(answers, 1))
    return json_response({**head(service), **part(found), **last(found.end)})


async def chat(call: Call) -> Response:
    return await answer(call, read_chat(call.body, call.service.model.n_vocab), chat_part)


async def generate(call: Call) -> Response:
    return await answer(call, read_generate(call.body, call.service.model.n_vocab), generate_part)


def tagged(service: Service) -> str:
    """The model's name with a tag, as all of Ollama's have one."""
    return service.name if ":" in service.name else f"{service.name}:latest"


def details(service: Service) -> dict[str, Any]:
    model = service.model
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.arch,
        "families": [model.arch],
        "parameter_size": amount(parameters(service)),
        "quantization_level": main_type(model._file).upper(),
    }


def amount(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def parameters(service: Service) -> int:
    return sum(math.prod(tensor.shape) for tensor in service.model._file.tensors)


def entry(service: Service) -> dict[str, Any]:
    """The model in a list."""
    return {
        "name": tagged(service),
        "model": tagged(service),
        "size": sum(tensor.nbytes for tensor in service.model._file.tensors),
        "digest": service.model.fingerprint,
        "details": details(service),
    }


def since(service: Service) -> str:
    return moment(datetime.fromtimestamp(service.started, timezone.utc))


async def tags(call: Call) -> Response:
    service = call.service
    return json_response({"models": [{**entry(service), "modified_at": since(service)}]})


async def running(call: Call) -> Response:
    service = call.service
    length = service.options.max_prompt
    about = {"expires_at": NEVER, "size_vram": 0, "context_length": length}
    return json_response({"models": [{**entry(service), **about}]})


async def show(call: Call) -> Response:
    check_model(call)
    service, model = call.service, call.service.model
    template = service.composer.template
    return json_response(
        {
            "modelfile": "",
            "parameters": "\n".join(f"{k} {v}" for k, v in service.composer.sampling.items()),
            "template": template.name,
            "modified_at": since(service),
            "details": details(service),
            "model_info": {
                "general.architecture": model.arch,
                "general.parameter_count": parameters(service),
                f"{model.arch}.block_count": model.n_layer,
                f"{model.arch}.embedding_length": model.n_embd,
                f"{model.arch}.vocab_size": model.n_vocab,
                f"{model.arch}.context_length": service.options.max_prompt,
            },
            "capabilities": ["completion", "tools", *(["thinking"] if template.think else [])],
        }
    )


async def version(_: Call) -> Response:
    return json_response({"version": SPOKEN})


def routes(service: Service) -> list[BaseRoute]:
    found: list[BaseRoute] = []
    for path, handler, method in (
        ("chat", chat, "POST"),
        ("generate", generate, "POST"),
        ("show", show, "POST"),
        ("tags", tags, "GET"),
        ("ps", running, "GET"),
        ("version", version, "GET"),
    ):
        found.append(Route(f"/api/{path}", door(service, handler, error_body), methods=[method]))
    return found
