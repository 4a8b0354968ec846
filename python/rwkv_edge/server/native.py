# SPDX-License-Identifier: Apache-2.0
"""What is not OpenAI's: states, tokens, and what others ask of a server: props and metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..tokenizer import END_OF_TEXT
from .fields import Fields, Refused
from .http import OCTETS, STATES, Call, door, is_upload, json_response, media_type, read_body
from .openai import read_ids, read_messages, read_names
from .request import MOST_TEXT, Request
from .service import Service
from .states import MOST_NAME, Kept

MOST_TTL = 10.0 * 365 * 86400  # seconds
MOST_ID = 64

# ---- states -------------------------------------------------------------------------------------


def seen(call: Call, kept: Kept) -> dict[str, Any]:
    return kept.seen(call.service.model)


def read_state(body: Fields, n_vocab: int) -> Request:
    """What a new state reads."""
    parent = body.text("from", "state", most=MOST_ID)
    if body.sent("messages"):
        messages, prefix = read_messages(body)
        if prefix:
            raise Refused(400, "messages: a state ends with a whole turn", param="messages")
        return Request(messages=messages, state=parent, names=read_names(body))
    if isinstance(body.get("prompt"), list):
        found = body.array("prompt", most=MOST_TEXT) or []
        return Request(prompt=tuple(read_ids("prompt", found, n_vocab)), state=parent)
    text = body.needed(body.text("prompt", most=MOST_TEXT), "prompt")
    return Request(prompt=text, state=parent)


async def make_state(call: Call) -> Response:
    """From a text or messages behind another state; or from a file."""
    kind = media_type(call.http.headers.get("content-type"))
    if is_upload(call.http.scope["path"], kind):
        return await upload(call)
    body, service = call.body, call.service
    request = read_state(body, service.model.n_vocab)
    name = body.text("name", most=MOST_NAME)
    ttl = body.number("ttl", least=0, most=MOST_TTL)
    kept = await call.patient(service.read_state(request, call.caller, name=name, ttl=ttl))
    return json_response(seen(call, kept), 201)


async def upload(call: Call) -> Response:
    states = call.service.states
    asked = Fields(dict(call.http.query_params))
    name = asked.text("name", most=MOST_NAME)
    data = await read_body(call.http, states.most_upload)
    kept = await asyncio.to_thread(states.upload, call.caller.id, data, name=name, ttl=None)
    return json_response(seen(call, kept), 201)


async def list_states(call: Call) -> Response:
    found = call.service.states.of(call.caller.id)
    return json_response({"object": "list", "data": [seen(call, kept) for kept in found]})


async def one_state(call: Call) -> Response:
    kept = call.service.states.facts(call.caller.id, call.http.path_params["id"])
    return json_response(seen(call, kept))


async def delete_state(call: Call) -> Response:
    id = call.http.path_params["id"]
    await asyncio.to_thread(call.service.states.delete, call.caller.id, id)
    return json_response({"id": id, "object": "state", "deleted": True})


async def state_file(call: Call) -> Response:
    id = call.http.path_params["id"]
    data = await asyncio.to_thread(call.service.states.file, call.caller.id, id)
    headers = {"content-disposition": f'attachment; filename="{id}.state"'}
    return Response(data, 200, headers, OCTETS)


# ---- tokens -------------------------------------------------------------------------------------


async def tokenize(call: Call) -> Response:
    """llama-server's words ({content} to {tokens}) and vLLM's ({prompt} to {tokens, count})."""
    text = call.body.text("content", "prompt", most=MOST_TEXT)
    encode = call.service.composer.encode
    if call.body.sent("messages"):
        messages, _ = read_messages(call.body)
        request = Request(messages=messages)
        prompt = await asyncio.to_thread(call.service.composer.prompt, request, None, b"")
        ids = list(prompt.text.tokens)
    else:
        ids = await asyncio.to_thread(encode, call.body.needed(text, "prompt"))
    found: dict[str, Any] = {
        "tokens": ids,
        "count": len(ids),
        "max_model_len": call.service.options.max_prompt,
    }
    if call.body.boolean("with_pieces"):
        tokenizer = call.service.model.tokenizer
        found["tokens"] = [{"id": i, "piece": tokenizer.decode([i])} for i in ids]
    return json_response(found)


async def detokenize(call: Call) -> Response:
    tokens = call.body.needed(call.body.array("tokens", most=MOST_TEXT), "tokens")
    tokenizer = call.service.model.tokenizer
    ids = read_ids("tokens", tokens, tokenizer.n_vocab)
    text = await asyncio.to_thread(tokenizer.decode, ids)
    return json_response({"content": text, "prompt": text})


async def tokenizer_info(call: Call) -> Response:
    """What lm-eval asks for. No text encodes to the token that ends a document."""
    return json_response(
        {
            "tokenizer_class": f"rwkv-{call.service.model.tokenizer.kind}",
            "eos_token": "<|endoftext|>",
            "eos_token_id": END_OF_TEXT,
            "bos_token": None,
            "pad_token": None,
            "vocab_size": call.service.model.n_vocab,
            "chat_template": None,
        }
    )


# ---- the server ---------------------------------------------------------------------------------


async def props(call: Call) -> Response:
    """A part of llama-server's, and what the page shows."""
    service, model = call.service, call.service.model
    template = service.composer.template
    return json_response(
        {
            "model_alias": service.name,
            "total_slots": service.options.max_sessions,
            "default_generation_settings": {
                "n_ctx": service.options.max_prompt,
                "params": {**service.composer.sampling, "max_tokens": service.options.max_tokens},
            },
            "chat_template": template.name,
            "thinks": template.think,
            "build_info": "rwkv-edge",
            "model": {
                "arch": model.arch,
                "n_layer": model.n_layer,
                "n_embd": model.n_embd,
                "n_vocab": model.n_vocab,
                "device": model.device,
                "threads": model.threads,
                "fingerprint": model.fingerprint,
                "state_bytes": 4 * (model.n_layer * model._shape.layer_size + model._shape.width),
            },
        }
    )


async def metrics(call: Call) -> Response:
    """In Prometheus's text format."""
    service = call.service
    scheduler, counts = service.scheduler, service.scheduler.counts
    totals = {
        "prompt_tokens": (counts.prompt_tokens, "Tokens of prompts that were read"),
        "cached_tokens": (counts.cached_tokens, "Tokens of prompts that were in the cache"),
        "generated_tokens": (counts.generated_tokens, "Tokens that were written"),
        "requests": (counts.requests, "Texts and vectors that were asked for"),
        "requests_refused": (counts.refused, "Of these, refused as the queue was full"),
        "requests_cancelled": (counts.cancelled, "Whose client went away"),
        "requests_failed": (counts.failed, "That ended with an error"),
        "steps": (counts.steps, "Steps of the engine"),
        "step_seconds": (round(counts.step_seconds, 6), "Time in steps"),
    }
    now = {
        "requests_processing": (scheduler.running, "Texts being read or written"),
        "requests_deferred": (scheduler.queued, "Requests that wait"),
        "queue_age_seconds": (round(scheduler.oldest, 3), "Of the first that waits"),
        "states": (service.states.count, "States that clients keep"),
        "state_bytes": (service.states.memory, "Of these in memory"),
        "cache_bytes": (service.cache.used, "Of beginnings in memory"),
    }
    lines = []
    for name, (value, text) in totals.items():
        lines += metric(f"rwkv_edge_{name}_total", "counter", value, text)
    for name, (value, text) in now.items():
        lines += metric(f"rwkv_edge_{name}", "gauge", value, text)
    return Response("\n".join([*lines, ""]), 200, media_type="text/plain; version=0.0.4")


def metric(name: str, kind: str, value: float, text: str) -> list[str]:
    return [f"# HELP {name} {text}.", f"# TYPE {name} {kind}", f"{name} {value}"]


def routes(service: Service) -> list[BaseRoute]:
    found: list[BaseRoute] = [
        Route(STATES, door(service, make_state), methods=["POST"]),
        Route(STATES, door(service, list_states), methods=["GET"]),
        Route(f"{STATES}/{{id}}", door(service, one_state), methods=["GET"]),
        Route(f"{STATES}/{{id}}", door(service, delete_state), methods=["DELETE"]),
        Route(f"{STATES}/{{id}}/file", door(service, state_file), methods=["GET"]),
        Route("/props", door(service, props), methods=["GET"]),
        Route("/metrics", door(service, metrics), methods=["GET"]),
    ]
    for base in ("", "/v1"):
        found += [
            Route(f"{base}/tokenize", door(service, tokenize), methods=["POST"]),
            Route(f"{base}/detokenize", door(service, detokenize), methods=["POST"]),
            Route(f"{base}/tokenizer_info", door(service, tokenizer_info), methods=["GET"]),
        ]
    return found
