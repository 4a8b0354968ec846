# SPDX-License-Identifier: Apache-2.0
"""OpenAI's Responses: items instead of messages, and answers that are gone on from.

An answer stores its state, unless the request says otherwise, and its id names it. What that state
has read of instructions and tools is not told again: their digests are part of the id.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .fields import Fields, Refused, wrong
from .http import Call, door, drained, event_stream, json_response, openai_error, sse
from .openai import (
    MOST_NAME,
    bounded,
    check_model,
    new_id,
    read_common,
    read_format,
    read_role,
    read_text,
    read_think,
    read_tools,
    state_fields,
    timings_of,
)
from .request import (
    MOST_MESSAGES,
    MOST_STOP,
    MOST_TEXT,
    MOST_TOKENS,
    CallBegin,
    CallText,
    Event,
    Finish,
    Message,
    Request,
    Text,
    Thought,
    Usage,
)
from .request import Call as ToolCall
from .service import Answers, Service
from .states import new_id as new_state_id

NOT_DONE = ("background", "conversation", "prompt", "top_logprobs")
"""Fields that would change what an answer is."""
NOTHING = "0" * 8

# ---- ids ----------------------------------------------------------------------------------------


class Id(NamedTuple):
    """Of an answer."""

    state: str
    instructions: str
    """A digest of what its state has read last of these;"""
    tools: str
    """and of these."""

    def __str__(self) -> str:
        return f"resp_{self.state.removeprefix('st_')}{self.instructions}{self.tools}"


ID = re.compile(r"resp_([A-Za-z0-9_-]{22})([0-9a-f]{8})([0-9a-f]{8})")


def read_id(text: str) -> Id:
    found = ID.fullmatch(text)
    if found is None:
        raise not_found()
    return Id(f"st_{found[1]}", found[2], found[3])


def not_found() -> Refused:
    """With the status and the code that clients know, who then send everything again."""
    return Refused(
        400,
        "previous_response_id: no such response; it was not stored, is gone, or is another key's",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def digest(text: str | None, instead: str) -> str:
    """Of a text; `instead` where there is none."""
    return hashlib.sha256(text.encode()).hexdigest()[:8] if text else instead


# ---- reading ------------------------------------------------------------------------------------


def read_items(body: Fields) -> list[Message]:
    """`input`: a text of the user, or a list of items."""
    if not isinstance(body.get("input"), list):
        return [Message("user", body.needed(body.text("input", most=MOST_TEXT), "input"))]
    found: list[Message] = []
    for item in body.objects("input", most=MOST_MESSAGES) or []:
        kind = item.text("type", most=MOST_NAME) or "message"
        if kind == "message":
            message = Message(read_role(item), read_text(item, "content"))
        elif kind == "function_call":
            call = ToolCall(
                item.text("call_id", most=MOST_STOP) or "",
                item.needed(item.text("name", most=MOST_STOP), "name"),
                item.text("arguments", most=MOST_TEXT) or "{}",
            )
            message = Message("assistant", "", (call,))
        elif kind == "function_call_output":
            message = Message("tool", read_text(item, "output"))
        elif kind == "reasoning":  # models are trained without
            continue
        else:
            expected = "message, function_call, function_call_output or reasoning"
            raise wrong(item.path("type"), kind, expected)
        if found and message.role == found[-1].role == "assistant" and one_turn(found[-1], message):
            text = "\n".join(filter(None, [found[-1].text, message.text]))
            message = Message("assistant", text, found.pop().calls + message.calls)
        found.append(message)
    if not found:
        raise wrong("input", body.get("input"), "a text or items, one of them a message")
    return found


def one_turn(one: Message, other: Message) -> bool:
    """Whether two items of the assistant are a text and its calls."""
    return bool(one.calls or other.calls)


def read_request(body: Fields, n_vocab: int) -> tuple[Request, Id]:
    """And the id that the answer gets."""
    for name in NOT_DONE:
        if body.get(name):
            raise Refused(400, f"{name}: this server has no such thing", param=name)
    messages = read_items(body)
    tools, must = read_tools(body)
    instructions = body.text("instructions", most=MOST_TEXT)
    given = body.text("previous_response_id", most=MOST_STOP)
    before = None if given is None else read_id(given)
    known = before or Id("", NOTHING, NOTHING)
    id = Id(
        new_state_id(),
        digest(instructions, known.instructions),
        digest(tools.system() if tools else None, known.tools),
    )
    if instructions and id.instructions != known.instructions:
        messages.insert(0, Message("system", instructions))
    common = read_common(body, n_vocab)
    if before is not None:
        common["state"] = before.state
    common["store"] = body.boolean("store") is not False
    text = body.object("text")
    wanted = None if text is None else text.object("format")
    if wanted is not None:
        common["form"] = read_format(wanted)
    request = Request(
        messages=tuple(messages),
        tools=tools,
        must_call=must,
        tools_told=id.tools == known.tools,
        think=read_think(body),
        think_tokens=body.integer("thinking_budget", least=0, most=MOST_TOKENS),
        store_as=id.state,
        **common,
    )
    return request, id


# ---- writing ------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """Of an item that has a text: what its prefix, its list of parts and its events are called."""

    prefix: str
    parts: str
    place: str
    part_event: str
    text_event: str
    part: dict[str, Any]
    """Without its text."""
    extra: dict[str, Any]
    """Of its events."""
    item: dict[str, Any]


KINDS = {
    "message": Kind(
        "msg_",
        "content",
        "content_index",
        "response.content_part",
        "response.output_text",
        {"type": "output_text", "annotations": [], "logprobs": []},
        {"logprobs": []},
        {"role": "assistant"},
    ),
    "reasoning": Kind(
        "rs_",
        "summary",
        "summary_index",
        "response.reasoning_summary_part",
        "response.reasoning_summary_text",
        {"type": "summary_text"},
        {},
        {},
    ),
}


class Writer:
    """The items of an answer, and the events that tell of them."""

    def __init__(self, about: dict[str, Any]) -> None:
        """`about` is what a response says of its request."""
        self.response: dict[str, Any] = {**about, "status": "in_progress", "output": []}
        self._events = 0
        self._open: dict[str, Any] | None = None  # the last item, while it goes on
        self._text = ""  # of it

    async def events(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=dict(self.response))
        async for _, event in answers:
            for each in self.told(event):
                yield each

    def _event(self, type: str, **fields: Any) -> dict[str, Any]:
        self._events += 1
        return {"type": type, "sequence_number": self._events - 1, **fields}

    def told(self, event: Event) -> Iterator[dict[str, Any]]:
        if isinstance(event, Thought):
            yield from self._said("reasoning", event.text)
        elif isinstance(event, Text) and event.text:
            yield from self._said("message", event.text)
        elif isinstance(event, CallBegin):
            yield from self._end()
            call = {"call_id": event.id, "name": event.name, "arguments": ""}
            yield self._begin("fc_", {"type": "function_call", **call})
        elif isinstance(event, CallText):
            self._text += event.text
            name = "response.function_call_arguments.delta"
            yield self._event(name, **self._where(), delta=event.text)
        elif isinstance(event, Finish):
            if all(item["type"] == "reasoning" for item in self.response["output"]):
                yield from self._said("message", "")  # for clients that look for one
            yield from self._end()
            yield self._finished(event)

    def _begin(self, prefix: str, fields: dict[str, Any]) -> dict[str, Any]:
        self._open = {"id": new_id(prefix), "status": "in_progress", **fields}
        self._text = ""
        self.response["output"].append(self._open)
        index = len(self.response["output"]) - 1
        return self._event("response.output_item.added", output_index=index, item=self._open)

    def _where(self) -> dict[str, Any]:
        items = self.response["output"]
        return {"item_id": items[-1]["id"], "output_index": len(items) - 1}

    def _said(self, type: str, text: str) -> Iterator[dict[str, Any]]:
        kind = KINDS[type]
        if self._open is None or self._open["type"] != type:
            yield from self._end()
            yield self._begin(kind.prefix, {"type": type, **kind.item, kind.parts: []})
            part = {**kind.part, "text": ""}
            yield self._event(f"{kind.part_event}.added", **self._at(kind), part=part)
        if text:
            self._text += text
            yield self._event(
                f"{kind.text_event}.delta", **self._at(kind), **kind.extra, delta=text
            )

    def _at(self, kind: Kind) -> dict[str, Any]:
        return {**self._where(), kind.place: 0}

    def _end(self) -> Iterator[dict[str, Any]]:
        """Of the last item."""
        item, self._open = self._open, None
        if item is None:
            return
        if item["type"] == "function_call":
            item["arguments"] = self._text
            done = {"arguments": self._text, "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **self._where(), **done)
        else:
            kind = KINDS[item["type"]]
            part = {**kind.part, "text": self._text}
            item[kind.parts] = [part]
            said = {**kind.extra, "text": self._text}
            yield self._event(f"{kind.text_event}.done", **self._at(kind), **said)
            yield self._event(f"{kind.part_event}.done", **self._at(kind), part=part)
        item["status"] = "completed"
        index = len(self.response["output"]) - 1
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _finished(self, finish: Finish) -> dict[str, Any]:
        whole = finish.reason != "length"
        self.response |= {
            "status": "completed" if whole else "incomplete",
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "usage": usage_of(finish.usage),
            "timings": timings_of(finish.usage),
            **state_fields(finish),
        }
        return self._event(f"response.{self.response['status']}", response=self.response)

    def broken(self, error: Refused) -> bytes:
        """As OpenAI has it, and with what its Python client raises."""
        event = self._event("error", code=error.code, message=str(error), param=error.param)
        return sse({**event, **openai_error(error)}, "error")


def usage_of(use: Usage) -> dict[str, Any]:
    return {
        "input_tokens": use.prompt_tokens,
        "input_tokens_details": {"cached_tokens": use.cached_tokens},
        "output_tokens": use.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": use.thought_tokens},
        "total_tokens": use.prompt_tokens + use.completion_tokens,
    }


def about(body: Fields, model: str, request: Request, id: Id) -> dict[str, Any]:
    """What a response says of its request."""
    body.object("metadata")
    return {
        "id": str(id),
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": request.sampling.get("max_tokens"),
        "metadata": echoed(body, "metadata", {}),
        "parallel_tool_calls": body.boolean("parallel_tool_calls") is not False,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": echoed(body, "reasoning", None),
        "store": request.store,
        "temperature": request.sampling.get("temperature"),
        "text": echoed(body, "text", {"format": {"type": "text"}}),
        "tool_choice": echoed(body, "tool_choice", "auto"),
        "tools": echoed(body, "tools", []),
        "top_p": request.sampling.get("top_p"),
        "truncation": "disabled",
        "usage": None,
    }


def echoed(body: Fields, name: str, instead: Any) -> Any:
    """What was sent, within bounds."""
    found = body.get(name)
    return instead if found is None else bounded(name, found)


# ---- paths --------------------------------------------------------------------------------------


async def create(call: Call) -> Response:
    check_model(call)
    service = call.service
    request, id = read_request(call.body, service.model.n_vocab)
    writer = Writer(about(call.body, service.name, request, id))
    try:
        answers = await service.submit([request], call.caller)
    except Refused as error:
        if error.code == "state_not_found" and call.body.sent("previous_response_id"):
            raise not_found() from None
        raise
    if call.body.boolean("stream"):
        chunks = (sse(event, event["type"]) async for event in writer.events(answers))
        return event_stream(answers, chunks, writer.broken)
    await call.patient(drained(answers, writer.events(answers)))
    return json_response(writer.response)


async def delete(call: Call) -> Response:
    id = call.http.path_params["id"]
    found = ID.fullmatch(id)
    if found is None:
        raise Refused(404, "no such response", code="not_found")
    await asyncio.to_thread(call.service.states.delete, call.caller.id, f"st_{found[1]}")
    return json_response({"id": id, "object": "response", "deleted": True})


def routes(service: Service) -> list[BaseRoute]:
    found: list[BaseRoute] = []
    for base in ("/v1/responses", "/responses"):
        found += [
            Route(base, door(service, create), methods=["POST"]),
            Route(f"{base}/{{id}}", door(service, delete), methods=["DELETE"]),
        ]
    return found
