# SPDX-License-Identifier: Apache-2.0
"""OpenAI's dialect: chat, completions, models; and readers that other dialects share."""

from __future__ import annotations

import base64
import json
import secrets
import struct
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..chat.tools import Tools
from ..generation import MAX_SEED, Choosing, TokenLogprob
from ..tokenizer import Tokenizer
from .fields import Fields, Refused, wrong
from .http import Call, door, event_stream, json_response, openai_error, sse
from .request import (
    MOST_BIASES,
    MOST_CHOICES,
    MOST_MESSAGES,
    MOST_SCHEMA,
    MOST_STOP,
    MOST_STOPS,
    MOST_TEXT,
    MOST_TOKENS,
    MOST_TOOLS,
    MOST_TOP,
    ROLES,
    CallBegin,
    CallText,
    Echo,
    Event,
    Finish,
    Message,
    Names,
    Request,
    Role,
    Text,
    Thought,
    Usage,
    Whole,
    collect,
)
from .request import Call as ToolCall
from .service import Answers, Service

T = TypeVar("T")

MOST_PROMPTS = 2048
COMPLETION_TOKENS = 16  # where a completion does not say, as OpenAI has it
MOST_NAME = 64
EFFORTS = {
    "none": "off",
    "minimal": "fast",
    "low": "bit",
    "medium": "on",
    "high": "lot",
    "xhigh": "lot",
}
KINDS = {"fast": "fast", "free": "on", "lite": "bit", "deep": "lot", "off": "off"}

# ---- reading ------------------------------------------------------------------------------------


def read_sampling(body: Fields, n_vocab: int) -> Choosing:
    """The fields that say how tokens are chosen; those that were not sent are not in it."""
    found: dict[str, Any] = {
        "max_tokens": body.integer(
            "max_completion_tokens", "max_tokens", "max_output_tokens", least=0, most=MOST_TOKENS
        ),
        "temperature": body.number("temperature", least=0, most=100),
        "top_k": body.integer("top_k", least=-1, most=2**31 - 1),
        "top_p": body.number("top_p", least=0, most=1),
        "min_p": body.number("min_p", least=0, most=1),
        "typical_p": body.number("typical_p", least=0, most=1),
        "presence_penalty": body.number("presence_penalty", "alpha_presence", least=-100, most=100),
        "frequency_penalty": body.number(
            "frequency_penalty", "alpha_frequency", least=-100, most=100
        ),
        "penalty_decay": body.number("penalty_decay", "alpha_decay", least=0, most=1),
        "penalty_window": body.integer("penalty_window", least=0, most=2**31 - 1),
        "seed": body.integer("seed", least=-(2**63), most=MAX_SEED),
    }
    if found["top_k"] == -1:  # vLLM's word for all
        found["top_k"] = 0
    if found["seed"] is not None:
        found["seed"] %= MAX_SEED + 1
    tokens = body.array("stop_token_ids", most=MOST_BIASES)
    if tokens is not None:
        found["stop_tokens"] = read_ids(body.path("stop_token_ids"), tokens, n_vocab)
    biases = body.object("logit_bias")
    if biases is not None:
        found["logit_bias"] = read_biases(biases, n_vocab)
    return cast(Choosing, {name: value for name, value in found.items() if value is not None})


def read_ids(name: str, values: Sequence[Any], n_vocab: int) -> list[int]:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < n_vocab:
            raise wrong(name, value, f"token ids from 0 to {n_vocab - 1}")
    return list(values)


def read_biases(body: Fields, n_vocab: int) -> dict[int, float]:
    if len(body) > MOST_BIASES:
        raise Refused(400, f"logit_bias: expected at most {MOST_BIASES}", param="logit_bias")
    found = {}
    for name in body:
        if not (name.isascii() and name.isdigit() and len(name) < 8 and int(name) < n_vocab):
            raise wrong("logit_bias", name, f"token ids from 0 to {n_vocab - 1}")
        bias = body.number(name, least=-1e6, most=1e6)
        if bias is not None:
            found[int(name)] = bias
    return found


def read_stop(body: Fields, name: str = "stop") -> tuple[str, ...]:
    """A text, a list of texts or nothing; empty ones say nothing."""
    return tuple(filter(None, body.texts(name, most=MOST_STOP, items=MOST_STOPS)))


def read_text(body: Fields, name: str) -> str:
    """A text, nothing, or a list of parts of the type text."""
    return "".join(read_parts(body, name))


def read_parts(body: Fields, name: str) -> list[str]:
    if not isinstance(body.get(name), list):
        return [body.text(name, most=MOST_TEXT) or ""]
    found = []
    for part in body.objects(name, most=MOST_MESSAGES) or []:
        kind = part.text("type", most=MOST_NAME) or "text"
        if kind not in ("text", "input_text", "output_text"):
            raise wrong(part.path("type"), kind, "text; this model reads nothing else")
        found.append(part.text("text", most=MOST_TEXT) or "")
    return found


def read_role(body: Fields) -> Role:
    """Of a message."""
    role = body.needed(body.text("role", most=MOST_NAME), "role")
    known = {"developer": "system", "function": "tool"}.get(role, role)
    if known not in ROLES:
        raise wrong(body.path("role"), role, "system, user, assistant or tool")
    return known


def read_messages(body: Fields, name: str = "messages") -> tuple[tuple[Message, ...], bool]:
    """The messages, and whether the last one is to be continued."""
    found = []
    objects = body.needed(body.objects(name, most=MOST_MESSAGES), name)
    prefix = False
    for i, each in enumerate(objects):
        role = read_role(each)
        calls = []
        for call in each.objects("tool_calls", most=MOST_TOOLS) or []:
            function = call.needed(call.object("function"), "function")
            said = function.get("arguments")
            calls.append(
                ToolCall(
                    call.text("id", most=MOST_STOP) or "",
                    function.needed(function.text("name", most=MOST_STOP), "name"),
                    json.dumps(said)
                    if isinstance(said, dict)
                    else function.text("arguments", most=MOST_TEXT) or "{}",
                )
            )
        text = read_text(each, "content")
        raw = bool(each.boolean("raw"))
        if each.boolean("prefix"):
            if i + 1 < len(objects) or role != "assistant":
                raise Refused(400, f"{each.path('prefix')}: only the last message, the assistant's")
            prefix = True
        found.append(Message(role, text, tuple(calls), raw))
    return tuple(found), prefix


def read_tools(body: Fields) -> tuple[Tools | None, bool]:
    """The tools, and whether one of them must be called."""
    items = body.objects("tools", most=MOST_TOOLS) or []
    choice = body.get("tool_choice")
    functions = [each for each in items if each.get("type", "function") == "function"]
    if not functions or choice == "none":
        return None, False
    bounded("tools", [each.values for each in functions])
    must = choice in ("required", "any")
    if isinstance(choice, dict):
        wanted = choice.get("function", choice)
        name = wanted.get("name") if isinstance(wanted, dict) else None
        functions = [x for x in functions if x.get("function", x).get("name") == name]
        if not functions:
            raise wrong("tool_choice", name, "the name of one of the tools")
        must = True
    elif choice not in (None, "auto", "required", "any"):
        raise wrong("tool_choice", choice, "none, auto, required or a function")
    try:
        return Tools([each.values for each in functions]), must
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused(400, str(error), param="tools") from None


def read_form(body: Fields) -> tuple[str, Any] | None:
    """response_format, or one of vLLM's names for forms."""
    wanted = body.object("response_format")
    return read_guided(body) if wanted is None else read_format(wanted)


def read_format(wanted: Fields) -> tuple[str, Any] | None:
    kind = wanted.choice("type", among=("text", "json_object", "json_schema", "regex"))
    if kind == "json_schema":
        inner = wanted.object("json_schema") or wanted  # other dialects have it flat
        schema = inner.needed(inner.object("schema"), "schema")
        return "schema", bounded(inner.path("schema"), schema.values)
    if kind == "json_object":
        schema = wanted.object("schema") or Fields({"type": "object"})
        return "schema", bounded(wanted.path("schema"), schema.values)
    if kind == "regex":
        return "regex", wanted.needed(wanted.text("pattern", most=MOST_SCHEMA), "pattern")
    return None


def read_guided(body: Fields) -> tuple[str, Any] | None:
    if (schema := body.object("guided_json", "json_schema")) is not None:
        return "schema", bounded("guided_json", schema.values)
    for name, form in (("guided_regex", "regex"), ("guided_grammar", "grammar")):
        if (text := body.text(name, most=MOST_SCHEMA)) is not None:
            return form, text
    if body.array("guided_choice", most=MOST_BIASES) is not None:
        texts = body.texts("guided_choice", most=MOST_STOP, items=MOST_BIASES)
        return "choices", list(filter(None, texts))
    return None


def bounded(name: str, found: T) -> T:
    """A schema, or something else that is kept for long or told again."""
    if len(json.dumps(found)) > MOST_SCHEMA:
        raise Refused(400, f"{name}: expected at most {MOST_SCHEMA} bytes", param=name)
    return found


def read_think(body: Fields) -> str | None:
    """One switch that every server spells in its own way."""
    effort = body.choice("reasoning_effort", among=tuple(EFFORTS))
    if effort is not None:
        return EFFORTS[effort]
    reasoning = body.object("reasoning")
    if reasoning is not None and (effort := reasoning.choice("effort", among=tuple(EFFORTS))):
        return EFFORTS[effort]
    template = body.object("chat_template_kwargs")
    on = None if template is None else template.boolean("enable_thinking", "thinking")
    kind = body.choice("think_type", among=tuple(KINDS))
    if on is None:
        on = body.boolean("enable_think")
    think = body.get("think")
    if on is None and think is not None:
        if isinstance(think, str):
            return EFFORTS[body.choice("think", among=tuple(EFFORTS)) or "medium"]
        on = body.boolean("think")
    if on is None:
        return None if kind is None else KINDS[kind]
    return (KINDS[kind] if kind else "on") if on else "off"


def read_names(body: Fields) -> Names:
    found = []
    for name in ("user_name", "assistant_name", "system_name"):
        text = body.text(name, most=MOST_NAME)
        if text is not None and (not text.strip() or set(text) & set("\r\n:{}")):
            raise wrong(name, text, "a name without colons, braces and newlines")
        found.append(text)
    return Names(*found)


def read_common(body: Fields, n_vocab: int) -> dict[str, Any]:
    """Fields of `Request` that chats and completions share."""
    return {
        "sampling": read_sampling(body, n_vocab),
        "stop": read_stop(body),
        "min_tokens": body.integer("min_tokens", least=0, most=MOST_TOKENS) or 0,
        "ignore_eos": bool(body.boolean("ignore_eos")),
        "form": read_form(body),
        "state": body.text("state", most=MOST_NAME),
        "store": bool(body.boolean("store")),
        "cache": body.boolean("cache", "cache_prompt") is not False,
        "timeout": body.number("timeout", least=0, most=1e6),
    }


def choices(request: Request, count: int) -> list[Request]:
    """So many texts of one request, each with a seed of its own."""
    seed = request.sampling.get("seed")
    if count == 1 or seed is None:
        return [request] * count
    return [
        replace(request, sampling={**request.sampling, "seed": (seed + i) % (MAX_SEED + 1)})
        for i in range(count)
    ]


# ---- writing ------------------------------------------------------------------------------------


def usage_of(finishes: Sequence[Finish], same_prompt: bool) -> dict[str, Any]:
    """Choices of one prompt have read it once."""
    uses = [finish.usage for finish in finishes]
    prompts = uses[:1] if same_prompt else uses
    prompt = sum(use.prompt_tokens for use in prompts)
    written = sum(use.completion_tokens for use in uses)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(use.cached_tokens for use in prompts)},
        "completion_tokens_details": {"reasoning_tokens": sum(use.thought_tokens for use in uses)},
    }


def timings_of(use: Usage) -> dict[str, float]:
    """As llama-server has it."""
    read = use.prompt_tokens - use.cached_tokens
    return {
        "cache_n": use.cached_tokens,
        "prompt_n": read,
        "prompt_ms": round(1000 * use.prompt_seconds, 3),
        "prompt_per_second": round(read / max(use.prompt_seconds, 1e-6), 3),
        "predicted_n": use.completion_tokens,
        "predicted_ms": round(1000 * use.seconds, 3),
        "predicted_per_second": round(use.completion_tokens / max(use.seconds, 1e-6), 3),
    }


def token_entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


def chat_logprobs(
    tokenizer: Tokenizer, found: Sequence[TokenLogprob], top: int | None
) -> dict[str, Any] | None:
    if top is None:
        return None
    return {
        "content": [
            {
                **token_entry(tokenizer, each.token, each.logprob),
                "top_logprobs": [token_entry(tokenizer, *best) for best in each.top[:top]],
            }
            for each in found
        ],
        "refusal": None,
    }


def legacy_logprobs(
    tokenizer: Tokenizer, found: Sequence[TokenLogprob | int], offset: int
) -> dict[str, Any]:
    """Of a completion. `offset` is where its text begins, in characters."""
    tokens, offsets = [], []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for each in found:
        token = each if isinstance(each, int) else each.token
        text = tokenizer.token_bytes(token).decode("utf-8", "replace")
        tokens.append(text)
        offsets.append(offset)
        offset += len(text)
        if isinstance(each, int):
            values.append(None)
            tops.append(None)
            continue
        values.append(each.logprob)
        best: dict[str, float] = {}
        for other, logprob in [*each.top, (token, each.logprob)]:
            name = tokenizer.token_bytes(other).decode("utf-8", "replace")
            best.setdefault(name, logprob)
        tops.append(best)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


def broken(error: Refused) -> bytes:
    """What ends a stream that fails."""
    return sse(openai_error(error))


def state_fields(finish: Finish) -> dict[str, Any]:
    if finish.state is None:
        return {}
    return {"state": finish.state, "parent": finish.parent}


# ---- chat ---------------------------------------------------------------------------------------


def check_model(call: Call) -> None:
    """Any name will do, as many programs know one only; unless the server is strict."""
    name, own = call.body.text("model", most=1024), call.service.name
    # Ollama's clients add a tag.
    if call.service.options.strict_model and name not in (None, own, f"{own}:latest"):
        raise Refused(404, f"no model of that name, only {own}", code="model_not_found")


def read_chat(body: Fields, n_vocab: int) -> list[Request]:
    """A request for each choice."""
    common = read_common(body, n_vocab)
    top = body.integer("top_logprobs", least=0, most=MOST_TOP)
    if body.boolean("logprobs"):
        common["sampling"]["logprobs"] = top or 0
    messages, prefix = read_messages(body)
    tools, must = read_tools(body)
    request = Request(
        messages=messages,
        continues=prefix,
        tools=tools,
        must_call=must,
        think=read_think(body),
        think_tokens=body.integer("thinking_budget", "think_tokens", least=0, most=MOST_TOKENS),
        thoughts_in_text=body.text("reasoning_format", most=MOST_NAME) == "none",
        names=read_names(body),
        **common,
    )
    return choices(request, body.integer("n", least=1, most=MOST_CHOICES) or 1)


async def chat(call: Call) -> Response:
    check_model(call)
    body, service = call.body, call.service
    requests = read_chat(body, service.model.n_vocab)
    count, top = len(requests), requests[0].sampling.get("logprobs")
    stream, usage = read_stream(body)
    answers = await service.submit(requests, call.caller)
    about = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": service.name}
    if stream:
        chunks = chat_chunks(answers, service.model.tokenizer, about, top, usage)
        return event_stream(answers, chunks, broken)
    found = await call.patient(gather(answers, count))
    return json_response(
        {
            **about,
            "object": "chat.completion",
            "choices": [chat_choice(service, i, each, top) for i, each in enumerate(found)],
            "usage": usage_of([each.end for each in found], same_prompt=True),
            "timings": timings_of(found[0].end.usage),
            **state_fields(found[0].end),
        }
    )


def read_stream(body: Fields) -> tuple[bool, bool]:
    """Whether the answer is streamed, and whether its usage comes last."""
    options = body.object("stream_options")
    usage = options is not None and bool(options.boolean("include_usage"))
    return bool(body.boolean("stream")), usage


async def gather(answers: Answers, count: int) -> list[Whole]:
    try:
        return await collect(answers, count)
    finally:
        answers.close()


def chat_choice(service: Service, index: int, found: Whole, top: int | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": found.text}
    if found.thought:
        message["reasoning_content"] = found.thought
    if found.calls:
        message["content"] = found.text or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in found.calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(service.model.tokenizer, found.logprobs, top),
        "finish_reason": found.end.reason,
        **state_fields(found.end),
    }


async def chat_chunks(
    answers: Answers,
    tokenizer: Tokenizer,
    about: dict[str, Any],
    top: int | None,
    usage: bool,
) -> AsyncIterator[bytes]:
    begun: set[int] = set()
    finishes: dict[int, Finish] = {}
    head = {**about, "object": "chat.completion.chunk"}
    async for i, event in answers:
        delta = chat_delta(event)
        if i not in begun:  # with the first text, and not before the prompt is read
            begun.add(i)
            delta = {"role": "assistant", **({"content": ""} if not delta else {}), **delta}
        logprobs = None
        if isinstance(event, Text) and event.logprobs:
            logprobs = chat_logprobs(tokenizer, event.logprobs, top)
        if delta:
            choice = {"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": None}
            yield sse({**head, "choices": [choice]})
        if isinstance(event, Finish):
            finishes[i] = event
            choice = {"index": i, "delta": {}, "logprobs": None, "finish_reason": event.reason}
            yield sse(
                {
                    **head,
                    "choices": [choice],
                    "timings": timings_of(event.usage),
                    **state_fields(event),
                }
            )
    if usage:
        ordered = [finishes[i] for i in sorted(finishes)]
        yield sse({**head, "choices": [], "usage": usage_of(ordered, same_prompt=True)})
    yield b"data: [DONE]\n\n"


def chat_delta(event: Event) -> dict[str, Any]:
    if isinstance(event, Text):
        return {"content": event.text}
    if isinstance(event, Thought):
        return {"reasoning_content": event.text}
    if isinstance(event, CallBegin):
        function = {"name": event.name, "arguments": ""}
        call = {"index": event.number, "id": event.id, "type": "function", "function": function}
        return {"tool_calls": [call]}
    if isinstance(event, CallText):
        return {"tool_calls": [{"index": event.number, "function": {"arguments": event.text}}]}
    return {}


# ---- completions --------------------------------------------------------------------------------


def read_prompts(body: Fields, n_vocab: int) -> list[str | tuple[int, ...]]:
    """A text, a list of texts, a list of ids, or a list of lists of ids."""
    found = body.get("prompt")
    if found is None or isinstance(found, str):
        return [body.text("prompt", most=MOST_TEXT) or ""]
    if isinstance(found, list) and found and all(type(x) is int for x in found):
        items = body.array("prompt", most=MOST_TEXT) or []
        return [tuple(read_ids("prompt", items, n_vocab))]
    prompts: list[str | tuple[int, ...]] = []
    for item in body.array("prompt", most=MOST_PROMPTS) or []:
        if isinstance(item, list) and len(item) <= MOST_TEXT:
            prompts.append(tuple(read_ids("prompt", item, n_vocab)))
        else:
            prompts.append(Fields({"prompt": item}).text("prompt", most=MOST_TEXT) or "")
    if not prompts:
        raise wrong("prompt", found, "a text, token ids, or a list of these")
    return prompts


def read_completions(body: Fields, n_vocab: int) -> tuple[list[Request], int]:
    """Requests for all choices of all prompts, and how many each prompt has."""
    common = read_common(body, n_vocab)
    common["sampling"].setdefault("max_tokens", COMPLETION_TOKENS)
    top = body.integer("logprobs", least=0, most=MOST_TOP)
    if top is not None:
        common["sampling"]["logprobs"] = top
    if body.text("suffix", most=MOST_TEXT):
        raise Refused(400, "suffix: this model cannot fill in", param="suffix")
    echo = bool(body.boolean("echo"))
    prompts = read_prompts(body, n_vocab)
    count = body.integer("n", least=1, most=MOST_CHOICES) or 1
    if len(prompts) * count > MOST_PROMPTS:
        raise Refused(400, f"prompt: expected at most {MOST_PROMPTS} with n of each")
    return [
        each
        for prompt in prompts
        for each in choices(Request(prompt=prompt, echo=echo, **common), count)
    ], count


async def completions(call: Call) -> Response:
    check_model(call)
    body, service = call.body, call.service
    requests, count = read_completions(body, service.model.n_vocab)
    one_prompt, top = len(requests) == count, requests[0].sampling.get("logprobs")
    stream, usage = read_stream(body)
    answers = await service.submit(requests, call.caller)
    about = {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.name,
    }
    if stream:
        tokenizer = service.model.tokenizer
        chunks = completion_chunks(answers, tokenizer, about, top, usage, one_prompt)
        return event_stream(answers, chunks, broken)
    found = await call.patient(gather(answers, len(requests)))
    tokenizer = service.model.tokenizer
    return json_response(
        {
            **about,
            "choices": [
                {
                    "index": i,
                    "text": (each.echo.text if each.echo else "") + each.text,
                    "logprobs": None if top is None else whole_logprobs(tokenizer, each),
                    "finish_reason": each.end.reason,
                    **state_fields(each.end),
                }
                for i, each in enumerate(found)
            ],
            "usage": usage_of([each.end for each in found], same_prompt=one_prompt),
            "timings": timings_of(found[0].end.usage),
            **state_fields(found[0].end),
        }
    )


def whole_logprobs(tokenizer: Tokenizer, found: Whole) -> dict[str, Any]:
    before = found.echo.logprobs if found.echo else ()
    return legacy_logprobs(tokenizer, [*before, *found.logprobs], 0)


async def completion_chunks(
    answers: Answers,
    tokenizer: Tokenizer,
    about: dict[str, Any],
    top: int | None,
    usage: bool,
    one_prompt: bool,
) -> AsyncIterator[bytes]:
    finishes: dict[int, Finish] = {}
    offsets: dict[int, int] = {}
    async for i, event in answers:
        if isinstance(event, (Text, Echo)):
            at = offsets.get(i, 0)
            offsets[i] = at + len(event.text)
            logprobs = None if top is None else legacy_logprobs(tokenizer, event.logprobs, at)
            choice = {"index": i, "text": event.text, "logprobs": logprobs, "finish_reason": None}
            yield sse({**about, "choices": [choice]})
        elif isinstance(event, Finish):
            finishes[i] = event
            choice = {"index": i, "text": "", "logprobs": None, "finish_reason": event.reason}
            timings = timings_of(event.usage)
            yield sse({**about, "choices": [choice], "timings": timings, **state_fields(event)})
    if usage:
        ordered = [finishes[i] for i in sorted(finishes)]
        found = usage_of(ordered, same_prompt=one_prompt)
        yield sse({**about, "choices": [], "usage": found})
    yield b"data: [DONE]\n\n"


# ---- embeddings ---------------------------------------------------------------------------------


async def embeddings(call: Call) -> Response:
    check_model(call)
    body, service = call.body, call.service
    found = body.get("input")
    if isinstance(found, list) and not all(isinstance(item, str) for item in found):
        # Programs that count tokens with another model's vocabulary send its ids.
        raise Refused(
            400,
            "input: found token ids, expected texts; in LangChain say "
            "check_embedding_ctx_length=False",
            param="input",
        )
    texts = body.texts("input", most=MOST_TEXT, items=MOST_PROMPTS)
    if not texts:
        raise wrong("input", found, "a text or a list of texts")
    size = body.integer("dimensions", least=1, most=1 << 20)
    if size not in (None, service.model.n_embd):
        raise wrong("dimensions", size, f"{service.model.n_embd}, which this model has")
    kind = body.choice("encoding_format", among=("float", "base64")) or "float"
    vectors = await call.patient(service.embed(texts, call.caller))
    tokens = sum(vector.tokens for vector in vectors)
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": vector.values if kind == "float" else base64_of(vector.values),
        }
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"object": "list", "data": data, "model": service.name, "usage": usage})


def base64_of(values: Sequence[float]) -> str:
    """Little-endian floats of 32 bits."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


# ---- models -------------------------------------------------------------------------------------


def model_object(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "rwkv-edge",
        "max_model_len": service.options.max_prompt,
    }


async def models(call: Call) -> Response:
    return json_response({"object": "list", "data": [model_object(call.service)]})


async def one_model(call: Call) -> Response:
    if call.http.path_params["id"] != call.service.name:
        raise Refused(404, "no model of that name", code="model_not_found")
    return json_response(model_object(call.service))


def routes(service: Service) -> list[BaseRoute]:
    """With and without /v1: programs differ in what they think the base is."""
    found: list[BaseRoute] = []
    for base in ("/v1", ""):
        found += [
            Route(f"{base}/chat/completions", door(service, chat), methods=["POST"]),
            Route(f"{base}/completions", door(service, completions), methods=["POST"]),
            Route(f"{base}/embeddings", door(service, embeddings), methods=["POST"]),
            Route(f"{base}/models", door(service, models), methods=["GET"]),
            Route(f"{base}/models/{{id:path}}", door(service, one_model), methods=["GET"]),
        ]
    return found
