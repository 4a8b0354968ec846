# SPDX-License-Identifier: Apache-2.0
"""How likely the model finds given continuations: an endpoint of ours.

    {"context": "The sky is", "continuation": [" blue", " green"]}
    {"object": "list", "model": "...", "usage": {...},
     "data": [{"object": "score", "index": 0, "logprob": -1.2, "tokens": 1, "greedy": true}, ...]}

`logprob` is ln p of all tokens of a continuation after the context, which begins a document, and
`greedy` whether each of them is the likeliest.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..tokenizer import END_OF_TEXT
from .fields import Fields, Refused
from .http import Call, door, json_response
from .openai import MOST_PROMPTS, check_model, gather, usage_of
from .request import MOST_TEXT, Request, Whole
from .service import Service


def read_continuations(body: Fields) -> list[str]:
    texts = body.texts("continuation", most=MOST_TEXT, items=MOST_PROMPTS)
    if not texts or not all(texts):
        raise Refused(
            400, "continuation: expected a text, or a list of texts", param="continuation"
        )
    return texts


async def scores(call: Call) -> Response:
    check_model(call)
    body, service = call.body, call.service
    context = body.text("context", most=MOST_TEXT) or ""
    texts = read_continuations(body)
    before, *ends = await asyncio.to_thread(encoded, service, [context, *texts])
    answers = await service.submit(
        [
            Request(
                prompt=(END_OF_TEXT, *before, *tokens),
                echo=True,
                sampling={"max_tokens": 0, "logprobs": 1},
            )
            for tokens in ends
        ],
        call.caller,
    )
    found = await call.patient(gather(answers, len(ends)))
    return json_response(
        {
            "object": "list",
            "model": service.name,
            "data": [
                score(i, each, len(tokens))
                for i, (each, tokens) in enumerate(zip(found, ends, strict=True))
            ],
            "usage": usage_of([each.end for each in found], same_prompt=False),
        }
    )


def encoded(service: Service, texts: list[str]) -> list[tuple[int, ...]]:
    """Of long texts this takes a while: not for the event loop's thread."""
    return [tuple(service.composer.encode(text)) for text in texts]


def score(index: int, found: Whole, count: int) -> dict[str, Any]:
    assert found.echo is not None
    last = [each for each in found.echo.logprobs[-count:] if not isinstance(each, int)]
    assert len(last) == count
    return {
        "object": "score",
        "index": index,
        "logprob": math.fsum(each.logprob for each in last),
        "tokens": count,
        "greedy": all(each.top[0][1] == each.logprob for each in last),
    }


def routes(service: Service) -> list[BaseRoute]:
    return [
        Route(f"{base}/scores", door(service, scores), methods=["POST"]) for base in ("/v1", "")
    ]
