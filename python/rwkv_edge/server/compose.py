# SPDX-License-Identifier: Apache-2.0
"""From a request to tokens: what is read, in which pieces, and how the text behind it is chosen."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..chat.templates import HINTS, PLACE, Template, find_template, roles
from ..chat.tools import result
from ..generation import Answer, Choosing
from ..grammar import Constraint
from ..model import Model
from ..prefix_cache import Text, text_of
from ..state import State
from ..tokenizer import END_OF_TEXT
from .fields import Refused
from .request import Message, Names, Request

KEPT_EACH = 1024
"""Of a long text, the state after so many tokens is kept, and so on."""
NEVER = -1e30  # a logit of what must not come; the sampler takes no infinity


@dataclass(frozen=True)
class Prompt:
    """Where a text begins, and what a conversation remembers when it has ended."""

    text: Text
    """What is read before."""
    shared: int
    """Of its beginnings, those that a later text may have. From the last of them the conversation
    goes on when the answer is known, with"""
    asked: tuple[int, ...] = ()
    """the turn of the user, where that was read with a hint to think, and then the answer."""
    begun: str = ""
    """Of the answer, what the request had already,"""
    begun_tokens: tuple[int, ...] = ()
    """and its tokens, the last ones of `text`."""

    @property
    def base(self) -> int:
        """Tokens of the shared beginnings."""
        return self.text.beginnings[self.shared - 1].end if self.shared else 0


class Composer:
    """Knows how a model is written to."""

    def __init__(
        self,
        model: Model,
        template: Template | None = None,
        *,
        sampling: Choosing | None = None,
        think: str = "off",
        paragraphs: bool = False,
    ) -> None:
        """`sampling` and `think` are for requests that say nothing of them. `paragraphs` lets
        answers have several, whatever the template says."""
        self.paragraphs = paragraphs
        self.model = model
        self.template = find_template(model)[0] if template is None else template
        self.sampling: Choosing = {**model.recommended_sampling, **(sampling or {})}
        self.think = think if self.template.think else "off"
        self._encode = model.tokenizer.encode

    def encode(self, text: str) -> list[int]:
        return self._encode(text) if text else []

    def template_for(self, names: Names) -> Template:
        """The template, with the speakers' names of a request."""
        if names == Names():
            return self.template
        user, assistant = names.user or "User", names.assistant or "Assistant"
        system = names.system or "System"
        return dataclasses.replace(
            self.template,
            user=f"{user}: {{}}\n\n",
            assistant=f"{assistant}: {{}}\n\n",
            system=f"{system}: {{}}\n\n",
            stop=roles(user, system, assistant, ends=("\n\n",)),
        )

    def mode(self, request: Request) -> str:
        """How long the model thinks; models that never learned it do not."""
        if request.prompt is not None or request.continues or not self.template.think:
            return "off"
        return self.think if request.think is None else request.think

    def prompt(self, request: Request, start: State | None, salt: bytes) -> Prompt:
        """Encoding a long text takes a while: not for the thread of the event loop."""
        if request.prompt is not None:
            given = request.prompt
            ids = self.encode(given) if isinstance(given, str) else list(given)
            if not ids and (start is None or start.output is None):
                if start is not None:
                    text = "prompt: is empty, and the state does not know its last token"
                    raise Refused(400, text, param="prompt")
                ids = [END_OF_TEXT]
            found = self._text([ids], start, salt)
            return Prompt(found, len(found.beginnings))
        return self._conversation(request, start, salt)

    def _text(self, segments: Sequence[Sequence[int]], start: State | None, salt: bytes) -> Text:
        try:
            return text_of(self.model, pieces(segments), start=start, salt=salt)
        except ValueError as error:  # a token that is none
            raise Refused(400, str(error), param="prompt") from None

    def _conversation(self, request: Request, start: State | None, salt: bytes) -> Prompt:
        template = self.template_for(request.names)
        turns = list(self._turns(request, template, start is None))
        begun = turns.pop().text if request.continues else ""
        last = turns.pop() if turns[-1].role in ("user", "lead") else None
        if last is None and not (turns[-1].role == "raw" and not begun):
            last = Turn("lead", lead_of(template))
        parts = [self.encode(turn.text) for turn in turns]
        shared, asked = len(pieces(parts)), tuple[int, ...]()
        hinted = last is not None and last.role == "user" and bool(HINTS[self.mode(request)])
        if last is not None:
            parts.append(self.encode(last.text))
            if hinted:
                asked = tuple(parts.pop())
                parts.append(self.encode(template.asked(last.said, self.mode(request))))
            else:
                shared = len(pieces(parts))
        begun_tokens: list[int] = []
        if begun:
            begun_tokens = self.encode(template.answered(begun).removesuffix(template.answered("")))
            parts.append(begun_tokens)
        text = self._text(parts, start, salt)
        return Prompt(text, shared, asked, begun, tuple(begun_tokens))

    def told(self, request: Request, start: State | None, salt: bytes) -> Prompt:
        """What a stored state has read: a text; or messages, behind which the user speaks, or the
        assistant answers the last one."""
        if request.prompt is not None:
            return self.prompt(request, start, salt)
        template = self.template_for(request.names)
        turns = self._turns(request, template, start is None)
        text = self._text([self.encode(turn.text) for turn in turns], start, salt)
        return Prompt(text, len(text.beginnings))

    def _turns(self, request: Request, template: Template, fresh: bool) -> Iterator[Turn]:
        """The messages as they are read, one after the other."""
        messages = list(request.messages)
        system = [m.text for m in messages if m.role == "system"]
        opening = "" if system or not fresh else template.opening
        if request.tools is not None and not request.tools_told:
            # One system turn, in which the tools come first, as in training.
            messages = [m for m in messages if m.role != "system"]
            told = request.tools.system("\n".join(filter(None, [opening, *system])))
            messages.insert(0, Message("system", told))
        elif opening:
            messages.insert(0, Message("system", opening))
        waiting: list[str] = []  # what users said that has no answer yet
        for i, message in enumerate(messages):
            if message.raw:
                yield Turn("raw", message.text)
                continue
            if message.role in ("user", "tool"):
                said = template.clean(message.text)
                waiting.append(result(said) if message.role == "tool" else said)
                if i + 1 < len(messages) and messages[i + 1].role in ("user", "tool"):
                    continue
                said = "\n".join(waiting)
                waiting = []
                yield Turn("user", template.asked(said), said)
            elif message.role == "system":
                text = template.clean(message.text)
                if text and not template.system:
                    raise Refused(
                        400,
                        f"messages: the template {template.name} has no place for a system text",
                        param="messages",
                    )
                yield Turn("system", template.told(text))
            else:
                answer = answer_text(message, template)
                last = i + 1 == len(messages) and request.continues
                if i == 0 or messages[i - 1].role not in ("user", "tool"):
                    yield Turn("lead", lead_of(template))
                yield Turn("assistant", answer if last else template.answered(answer))

    def visible(self, prompt: Prompt, request: Request, answer: str) -> list[int]:
        """What a conversation remembers of an answer, and of its beginning in the request."""
        template = self.template_for(request.names)
        whole = prompt.begun + answer
        return self.encode(template.answered(whole if template.exact else whole.strip()))

    def stops(self, request: Request) -> tuple[str, ...]:
        """What ends the text."""
        template = self.template_for(request.names)
        own = template.stops(self.paragraphs) if request.prompt is None else ()
        return (*own, *request.stop)

    def answer(
        self, request: Request, max_tokens: int, constraint: Constraint | None = None
    ) -> Answer:
        """Raises Refused for options that no text can be made with."""
        options: dict[str, Any] = {**self.sampling, **request.sampling, "max_tokens": max_tokens}
        if request.ignore_eos and constraint is None:  # a form ends where it is whole
            options["banned"] = [*options.get("banned", ()), END_OF_TEXT]
        if request.min_tokens:
            options["logits_hook"] = no_end_before(request.min_tokens)
        try:
            return Answer(
                self.model.tokenizer,
                self.model.n_vocab,
                self.model._without_text,
                stop=self.stops(request),
                constraint=constraint,
                **cast(Choosing, options),
            )
        except (ValueError, TypeError) as error:
            raise Refused(400, str(error)) from None

    def thoughts(self, request: Request, max_tokens: int, stop: str) -> Answer:
        """What comes before an answer."""
        options: dict[str, Any] = {**self.sampling, **request.sampling}
        for name in ("logprobs", "stop_tokens"):
            options.pop(name, None)
        options["max_tokens"] = max_tokens
        return Answer(
            self.model.tokenizer,
            self.model.n_vocab,
            self.model._without_text,
            stop=stop,
            **cast(Choosing, options),
        )


def pieces(segments: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Segments, the long ones cut where a state is kept."""
    return [
        segment[i : i + KEPT_EACH]
        for segment in segments
        for i in range(0, len(segment), KEPT_EACH)
    ]


@dataclass(frozen=True)
class Turn:
    role: str
    text: str
    """As it is read."""
    said: str = ""
    """Of a user: without the words around it."""


def lead_of(template: Template) -> str:
    """What begins an answer."""
    return template.assistant.partition(PLACE)[0].rstrip(" ")


def answer_text(message: Message, template: Template) -> str:
    """What an assistant said, calls in the form of the training."""
    fences = [
        "```json\n"
        + json.dumps({"name": c.name, "arguments": arguments(c.arguments)}, ensure_ascii=False)
        + "\n```"
        for c in message.calls
    ]
    text = message.text if template.exact else answer_clean(message.text)
    return "\n".join(filter(None, [text, *fences]))


def arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def answer_clean(text: str) -> str:
    """An answer may have paragraphs, but none that begins another's turn."""
    return re.sub("\r\n?", "\n", text).strip()


def no_end_before(count: int) -> Any:
    def hook(logits: Any, tokens: list[int]) -> None:
        if len(tokens) < count:
            logits[END_OF_TEXT] = NEVER

    return hook
