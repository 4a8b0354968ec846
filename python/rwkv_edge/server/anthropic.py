# SPDX-License-Identifier: Apache-2.0
"""Anthropic's dialect: Messages, in blocks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..chat.tools import Tools
from .fields import Fields, Refused, wrong
from .http import Call, door, drained, json_response, sse, stream_response
from .openai import (
    MOST_NAME,
    check_model,
    new_id,
    read_common,
    read_format,
    read_parts,
    read_stop,
    read_text,
    read_think,
    read_tools,
    state_fields,
)
from .request import (
    MOST_MESSAGES,
    MOST_STOP,
    MOST_TEXT,
    MOST_TOKENS,
    MOST_TOOLS,
    CallBegin,
    CallText,
    Event,
    Finish,
    Message,
    Request,
    Role,
    Text,
    Thought,
    Usage,
)
from .request import Call as ToolCall
from .service import Answers, Service

PATHS = ("/v1/messages", "/messages")
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Of errors, by their status."""
THINKING = {"enabled": "on", "adaptive": "on", "disabled": "off"}
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def error_body(error: Refused) -> dict[str, Any]:
    kind = KINDS.get(error.status)
    if kind is None:
        kind = "api_error" if error.status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


# ---- reading ------------------------------------------------------------------------------------


def read_blocks(body: Fields) -> list[Message]:
    """`system`, and then `messages`: each a text or a list of blocks."""
    system = "\n".join(read_parts(body, "system"))
    found = [Message("system", system)] if system else []
    for each in body.needed(body.objects("messages", most=MOST_MESSAGES), "messages"):
        role: Any = each.choice("role", among=("user", "assistant", "system"))
        found += read_message(each, each.needed(role, "role"))
    return found


def read_message(body: Fields, role: Role) -> list[Message]:
    """A list, because results of tools are blocks of the user's."""
    if not isinstance(body.get("content"), list):
        return [Message(role, read_text(body, "content"))]
    found: list[Message] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    for block in body.objects("content", most=MOST_MESSAGES) or []:
        kind = block.text("type", most=MOST_NAME)
        if kind == "tool_use" and role == "assistant":
            given = block.object("input")
            name = block.needed(block.text("name", most=MOST_STOP), "name")
            arguments = json.dumps({} if given is None else given.values, ensure_ascii=False)
            calls.append(ToolCall(block.text("id", most=MOST_STOP) or "", name, arguments))
        elif kind == "tool_result" and role == "user":
            found.append(Message("tool", "\n".join(read_parts(block, "content"))))
        elif kind in ("thinking", "redacted_thinking"):
            continue  # models are trained without
        elif kind == "text":
            texts.append(block.text("text", most=MOST_TEXT) or "")
        else:
            expected = "text, tool_use of the assistant, tool_result of the user, or thinking"
            raise wrong(block.path("type"), kind, expected)
    if texts or calls or not found:
        found.append(Message(role, "\n".join(texts), tuple(calls)))
    return found


def read_functions(body: Fields) -> tuple[Tools | None, bool]:
    """`tools` and `tool_choice`. Tools that Anthropic's servers would run are left out."""
    tools = []
    for each in body.objects("tools", most=MOST_TOOLS) or []:
        if each.text("type", most=MOST_NAME) in (None, "custom"):
            schema = each.object("input_schema")
            about = {name: each.get(name) for name in ("name", "description")}
            tools.append({**about, "parameters": {} if schema is None else schema.values})
    wanted: Any = None
    choice = body.object("tool_choice")
    if choice is not None:
        kind = choice.needed(choice.choice("type", among=(*CHOICES, "tool")), "type")
        wanted = {"name": choice.get("name")} if kind == "tool" else CHOICES[kind]
    return read_tools(Fields({"tools": tools, "tool_choice": wanted}))


def read_request(body: Fields, n_vocab: int) -> Request:
    messages = read_blocks(body)
    tools, must = read_functions(body)
    common = read_common(body, n_vocab)
    common["stop"] = read_stop(body, "stop_sequences")
    output = body.object("output_config")
    wanted = body.object("output_format") if output is None else output.object("format")
    if wanted is not None:
        common["form"] = read_format(wanted)
    think, budget = read_think(body), None
    thinking = body.object("thinking")
    if thinking is not None:
        kind = thinking.choice("type", among=tuple(THINKING))
        think = THINKING[thinking.needed(kind, "type")]
        budget = thinking.integer("budget_tokens", least=0, most=MOST_TOKENS)
    return Request(
        messages=tuple(messages),
        continues=bool(messages) and messages[-1].role == "assistant" and not messages[-1].calls,
        tools=tools,
        must_call=must,
        think=think,
        think_tokens=budget,
        **common,
    )


# ---- writing ------------------------------------------------------------------------------------


class Writer:
    """The blocks of an answer, and the events that tell of them."""

    def __init__(self, model: str) -> None:
        self.message: dict[str, Any] = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        self._open: dict[str, Any] | None = None  # the last block, while it goes on
        self._json = ""  # of a call's arguments

    async def events(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        yield {"type": "message_start", "message": self.message}
        async for _, event in answers:
            for each in self.told(event):
                yield each

    def told(self, event: Event) -> Iterator[dict[str, Any]]:
        if isinstance(event, Thought):
            yield from self._said("thinking", event.text)
        elif isinstance(event, Text) and event.text:
            yield from self._said("text", event.text)
        elif isinstance(event, CallBegin):
            yield from self._end()
            self._json = ""
            yield self._begin({"type": "tool_use", "id": event.id, "name": event.name, "input": {}})
        elif isinstance(event, CallText):
            self._json += event.text
            yield self._delta({"type": "input_json_delta", "partial_json": event.text})
        elif isinstance(event, Finish):
            if all(block["type"] == "thinking" for block in self.message["content"]):
                yield from self._said("text", "")  # for clients that look for one
            yield from self._end()
            yield from self._finished(event)

    def _about(self, type: str, **fields: Any) -> dict[str, Any]:
        """An event of the last block."""
        return {"type": type, "index": len(self.message["content"]) - 1, **fields}

    def _begin(self, block: dict[str, Any]) -> dict[str, Any]:
        self._open = block
        self.message["content"].append(block)
        return self._about("content_block_start", content_block=block)

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return self._about("content_block_delta", delta=delta)

    def _said(self, type: str, text: str) -> Iterator[dict[str, Any]]:
        if self._open is None or self._open["type"] != type:
            yield from self._end()
            signed = {"signature": ""} if type == "thinking" else {}
            yield self._begin({"type": type, type: "", **signed})
        if text:
            assert self._open is not None
            self._open[type] += text
            yield self._delta({"type": f"{type}_delta", type: text})

    def _end(self) -> Iterator[dict[str, Any]]:
        block, self._open = self._open, None
        if block is None:
            return
        if block["type"] == "tool_use":
            block["input"] = json.loads(self._json)
        yield self._about("content_block_stop")

    def _finished(self, finish: Finish) -> Iterator[dict[str, Any]]:
        end = {
            "stop_reason": REASONS[finish.reason] if finish.stop is None else "stop_sequence",
            "stop_sequence": finish.stop,
        }
        usage = usage_of(finish.usage)
        self.message |= {**end, "usage": usage, **state_fields(finish)}
        yield {"type": "message_delta", "delta": end, "usage": usage, **state_fields(finish)}
        yield {"type": "message_stop"}


def usage_of(use: Usage) -> dict[str, int]:
    """Of the prompt, what was read and what was known are counted apart here."""
    return {
        "input_tokens": use.prompt_tokens - use.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": use.cached_tokens,
        "output_tokens": use.completion_tokens,
    }


def broken(error: Refused) -> bytes:
    return sse(error_body(error), "error")


# ---- paths --------------------------------------------------------------------------------------


async def create(call: Call) -> Response:
    check_model(call)
    service = call.service
    request = read_request(call.body, service.model.n_vocab)
    answers = await service.submit([request], call.caller)
    writer = Writer(service.name)
    if call.body.boolean("stream"):
        return stream_response(
            answers,
            (sse(event, event["type"]) async for event in writer.events(answers)),
            media_type="text/event-stream",
            ping=sse({"type": "ping"}, "ping"),
            broken=broken,
        )
    await call.patient(drained(answers, writer.events(answers)))
    return json_response(writer.message)


async def count(call: Call) -> Response:
    """Tokens that the messages would be read as."""
    check_model(call)
    request = read_request(call.body, call.service.model.n_vocab)
    prompt = await asyncio.to_thread(call.service.composer.prompt, request, None, b"")
    return json_response({"input_tokens": len(prompt.text.tokens)})


def routes(service: Service) -> list[BaseRoute]:
    found: list[BaseRoute] = []
    for base in PATHS:
        found += [
            Route(base, door(service, create, error_body), methods=["POST"]),
            Route(f"{base}/count_tokens", door(service, count, error_body), methods=["POST"]),
        ]
    return found
