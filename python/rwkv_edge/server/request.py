# SPDX-License-Identifier: Apache-2.0
"""What a client asks for and what it gets, whatever its dialect.

A dialect is a module with three things:

- a reader: from the JSON of a body (`Fields`) to one `Request` for each text that is wanted (`n`
  choices are `n` requests with seeds one after the other);
- a writer: from the events of `Service.answer(requests, caller)`, pairs of the number of a request
  and an `Event`, to the dialect's chunks; and from `collect` of them to its whole answer;
- `routes(service)`: the paths, each with a handler wrapped by `door` (http.py). The door checks
  key, content type, size and JSON, and gives the handler a `Call`. It writes a `Refused` with the
  dialect's own `error_body`.

openai.py is the longest example. Its readers of messages, tools and sampling are for other dialects
too. A dialect never touches the model, the scheduler or the states.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ..chat.tools import Tools
from ..generation import Choosing, TokenLogprob
from .fields import Refused

MOST_TEXT = 1 << 22  # characters of one text
MOST_MESSAGES = 4096
MOST_TOKENS = 1 << 20  # of an answer
MOST_STOPS, MOST_STOP = 16, 256
MOST_CHOICES = 32
MOST_TOP = 20
MOST_TOOLS = 128
MOST_SCHEMA = 1 << 16
MOST_BIASES = 1024

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Call:
    """Of a tool, by the model."""

    id: str
    name: str
    arguments: str
    """JSON."""


@dataclass(frozen=True)
class Message:
    """One of a conversation. What was thought is not in it: models are trained without."""

    role: Role
    text: str
    calls: tuple[Call, ...] = ()
    raw: bool = False
    """Whether the text is read as it is, in no turn."""


@dataclass(frozen=True)
class Names:
    """Of the speakers, where they are not the template's."""

    user: str | None = None
    assistant: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Request:
    """One text that is wanted."""

    messages: tuple[Message, ...] = ()
    """A conversation, which the model continues. Either this,"""
    prompt: str | tuple[int, ...] | None = None
    """or a text or its tokens."""
    state: str | None = None
    """The id of the state that it begins at; only what is new is read."""
    store: bool = False
    """Whether the state at the end is stored, and its id comes with `Finish`."""
    store_as: str | None = None
    """That id, one of `states.new_id`; None: any."""
    continues: bool = False
    """Whether the last message, the assistant's, goes on."""
    sampling: Choosing = field(default_factory=Choosing)
    """What was sent. Where a name is missing, the server's own value counts."""
    stop: tuple[str, ...] = ()
    """Beside the template's."""
    min_tokens: int = 0
    ignore_eos: bool = False
    form: tuple[str, Any] | None = None
    """What the text must look like: a name of `grammar.FORMS` and its value."""
    think: str | None = None
    """One of `chat.THINK_MODES`; None: the server's."""
    think_tokens: int | None = None
    thoughts_in_text: bool = False
    """Whether thoughts are part of the text, with <think> around them."""
    tools: Tools | None = None
    must_call: bool = False
    """Whether the answer must be a call of one of `tools`."""
    tools_told: bool = False
    """Whether the state has read of the tools, so that they are not told again."""
    names: Names = Names()
    echo: bool = False
    """Whether the prompt comes first, as an `Echo`."""
    cache: bool = True
    """Whether what others of this caller have read may be used, and what it reads is kept."""
    timeout: float | None = None
    """Seconds; then the text ends with the reason "length"."""

    def __post_init__(self) -> None:
        """Raises Refused for what no dialect may let through."""
        if (self.prompt is None) == (not self.messages):
            raise Refused(400, "found neither messages nor a prompt, or both, expected one")
        if len(self.messages) > MOST_MESSAGES:
            raise Refused(400, f"messages: found more than {MOST_MESSAGES}", param="messages")
        if len(self.stop) > MOST_STOPS or any(len(x.encode()) > MOST_STOP for x in self.stop):
            text = f"stop: expected at most {MOST_STOPS} texts of at most {MOST_STOP} bytes"
            raise Refused(400, text, param="stop")
        size = sum(len(m.text) + sum(len(c.arguments) for c in m.calls) for m in self.messages)
        if size + len(self.prompt or ()) > MOST_TEXT:
            raise Refused(413, f"found a text of more than {MOST_TEXT} characters")
        if self.must_call and (self.tools is None or self.form is not None):
            raise Refused(400, "a call that must be made needs tools, and no other form")


@dataclass(frozen=True)
class Caller:
    """Who asks: everything that is stored belongs to one."""

    id: str
    """A digest of the key; "" where the server has none."""


# ---- what comes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A piece of the answer."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens that came since the last piece, where they were asked for."""


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call of a tool begins. Its arguments follow in `CallText`s."""

    number: int
    id: str
    name: str


@dataclass(frozen=True)
class CallText:
    number: int
    text: str


@dataclass(frozen=True)
class Echo:
    """The prompt, where it was asked for."""

    text: str
    logprobs: tuple[TokenLogprob | int, ...] = ()
    """For each token; of the first, of which nothing is known, the token alone."""


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, those that were not read."""
    completion_tokens: int
    thought_tokens: int
    """Of these, those of thoughts."""
    prompt_seconds: float
    seconds: float
    """From the first token on."""


@dataclass(frozen=True)
class Finish:
    """The last event of a request."""

    reason: Reason
    usage: Usage
    stop: str | None = None
    """The client's stop string that ended the text."""
    state: str | None = None
    """The id of the state at the end, where it was to be stored,"""
    parent: str | None = None
    """and of the one that the text began at."""


Event = Text | Thought | CallBegin | CallText | Echo | Finish


@dataclass
class Whole:
    """A whole answer."""

    text: str = ""
    thought: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    echo: Echo | None = None
    finish: Finish | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Text):
            self.text += event.text
            self.logprobs += event.logprobs
        elif isinstance(event, Thought):
            self.thought += event.text
        elif isinstance(event, CallBegin):
            self.calls.append(Call(event.id, event.name, ""))
        elif isinstance(event, CallText):
            old = self.calls[event.number]
            self.calls[event.number] = Call(old.id, old.name, old.arguments + event.text)
        elif isinstance(event, Echo):
            self.echo = event
        else:
            self.finish = event

    @property
    def end(self) -> Finish:
        assert self.finish is not None
        return self.finish


async def collect(events: AsyncIterator[tuple[int, Event]], count: int) -> list[Whole]:
    """The whole answers to so many requests."""
    found = [Whole() for _ in range(count)]
    async for i, event in events:
        found[i].add(event)
    return found
